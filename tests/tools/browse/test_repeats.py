"""What pictures tell of other splits is the same as the ensemble finds on its own way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ensemble import known_images
from pipeline import beam_job, manifest
from pipeline.records import Product
from tests import shards
from tools.browse import repeats, scan


@pytest.mark.parametrize(('name', 'sources'), [('val', ('train',)), ('test', ('train',)), ('test', ('train', 'val'))])
def test_known_pictures_are_those_of_the_ensemble(tmp_path, name, sources):
    draw = np.random.default_rng(5)

    def some(split_name: str, first: int) -> list[Product]:
        products = []
        for number in range(first, first + 60):
            label = -1 if split_name == 'test' else int(draw.integers(shards.CATEGORIES))
            images = [b'%d' % picture for picture in draw.integers(400, size=draw.integers(1, 5))]
            category_id = -1 if label < 0 else 1000 + label
            products.append(Product(number, category_id, label, split_name, tuple(images)))
        return products

    shards.write_products(
        tmp_path,
        {'train': [some('train', 0), some('train', 60)], 'val': [some('val', 120)], 'test': [some('test', 180)]},
    )
    engine = beam_job.engine(['--runner=FnApiRunner'])
    expected = known_images.find(engine, str(tmp_path), name, sources=sources, output_dir=str(tmp_path))
    made = manifest.read(str(tmp_path), kind='shards', remedy='')
    found = scan.read(str(tmp_path), made, categories=shards.CATEGORIES)
    known = repeats.known(found, repeats.find(found), name, sources=sources)
    for field in dataclasses.fields(expected):
        assert getattr(known, field.name).tolist() == getattr(expected, field.name).tolist()
    assert 0 < (known.label >= 0).sum() < (known.seen > 0).sum() < 60, 'of every kind there are some'
