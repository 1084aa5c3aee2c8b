"""Repeats are those that a dict of the pictures finds, and known pictures those that the ensemble finds in its way."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from ensemble import known_images
from pipeline import beam_job, manifest
from pipeline.records import Product
from tests import shards
from tools.browse import repeats, scan

SPLITS = ('train', 'train', 'val', 'test')


@pytest.fixture(scope='module')
def products() -> list[list[Product]]:
    """Four shards of 60 products with 1 to 4 of 400 pictures; a shard's splits are those above."""
    draw = np.random.default_rng(5)
    made = []
    for shard, split in enumerate(SPLITS):
        labels = np.full(60, -1) if split == 'test' else draw.integers(shards.CATEGORIES, size=60)
        pictures = [tuple(b'%d' % one for one in draw.integers(400, size=draw.integers(1, 5))) for _ in labels]
        made.append([
            Product(60 * shard + number, -1 if label < 0 else 1000 + label, label, split, images)
            for number, (label, images) in enumerate(zip(labels.tolist(), pictures, strict=True))
        ])  # fmt: skip
    return made


@pytest.fixture(scope='module')
def folder(products, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('shards')
    shards.write_products(folder, {'train': products[:2], 'val': products[2:3], 'test': products[3:]})
    return folder


@pytest.fixture(scope='module')
def found(folder) -> scan.Scan:
    made = manifest.read(str(folder), kind='shards', remedy='')
    return scan.read(str(folder), made, categories=shards.CATEGORIES)


def test_repeats_are_those_that_a_dict_finds(products, found):
    pictures = defaultdict(list)
    by_id = {product.product_id: product for shard in products for product in shard}
    all_products = [by_id[number] for number in found.product_id.tolist()]
    all_pictures = [(product, image) for product in all_products for image in product.images]
    for number, (product, image) in enumerate(all_pictures):
        pictures[image].append((number, product))
    repeated = repeats.find(found)
    assert len(repeated.times) == len(pictures)
    for members in pictures.values():
        numbers, some = zip(*members, strict=True)
        (one,) = set(repeated.group[list(numbers)].tolist())
        assert sorted(repeated.members(one).tolist()) == list(numbers)
        assert repeated.times[one] == len(members)
        assert repeated.products[one] == len({product.product_id for product in some})
        assert repeated.labels[one] == len({product.label for product in some} - {-1})
        bits = {'train': 1, 'val': 2, 'test': 4}
        assert repeated.splits[one] == sum({bits[product.split] for product in some})
        labels = found.label[found.product[repeated.members(one)]].tolist()
        assert labels == sorted(labels), 'members stand in order of their label'
    assert repeated.within == sum(len(product.images) - len(set(product.images)) for product in all_products) > 0


@pytest.mark.parametrize(('name', 'sources'), [('val', ('train',)), ('test', ('train',)), ('test', ('train', 'val'))])
def test_known_pictures_are_those_of_the_ensemble(folder, found, tmp_path, name, sources):
    engine = beam_job.engine(['--runner=FnApiRunner'])
    expected = known_images.find(engine, str(folder), name, sources=sources, output_dir=str(tmp_path))
    known = repeats.known(found, repeats.find(found), name, sources=sources)
    for field in dataclasses.fields(expected):
        assert getattr(known, field.name).tolist() == getattr(expected, field.name).tolist()
    assert 0 < (known.label >= 0).sum() < (known.seen > 0).sum() < 60, 'of every kind there are some'
