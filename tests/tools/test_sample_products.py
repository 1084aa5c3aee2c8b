"""Products are read by their places, in any order and from any chunk of a shard."""

from __future__ import annotations

import numpy as np

from pipeline import manifest
from pipeline.manifest import CHUNK_PRODUCTS
from tests import shards
from tools import sample_products


def test_products_are_read_in_the_order_asked_for_from_all_chunks(tmp_path):
    shards.write(tmp_path, train=3 * CHUNK_PRODUCTS, val=2, shards=2)
    files = manifest.read(str(tmp_path), kind='shards', remedy='').of_split('train')
    numbers = np.array([2 * CHUNK_PRODUCTS, 0, CHUNK_PRODUCTS, 3 * CHUNK_PRODUCTS - 1, 0, CHUNK_PRODUCTS - 1])
    places = sample_products.find(files, numbers)
    half = 3 * CHUNK_PRODUCTS // 2
    assert places[:2] == [(files[1], 2 * CHUNK_PRODUCTS - half), (files[0], 0)]
    found = sample_products.read(str(tmp_path), places)
    assert [product.product_id for product in found] == (3 * numbers + 1).tolist()
    assert found[1] == found[4]
    assert sample_products.read(str(tmp_path), []) == []
