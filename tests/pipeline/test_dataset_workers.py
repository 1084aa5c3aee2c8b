"""Machines that train together: each has shards of its own, and all of them once a pass."""

from __future__ import annotations

import pytest

from pipeline import dataset
from pipeline.dataset import Products, Shards
from pipeline.errors import InputError
from pipeline.manifest import FileInfo
from tests import shards as small

SHARDS = 5


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Shards:
    return small.write(tmp_path_factory.mktemp('shards'), train=28, shards=SHARDS)


def pictures_of(shards: Shards, files: list[FileInfo]) -> list[bytes]:
    return [
        images[0].numpy().tobytes()
        for file in files
        for images, *_ in dataset.views(shards, file, batch_size=1, tta=1, seed=0)
    ]


@pytest.mark.parametrize('workers', [1, 2, 3, SHARDS])
def test_the_first_passes_of_all_workers_are_every_picture_once(shards, workers):
    files = shards.manifest.of_split('train')
    everything: list[bytes] = []
    for worker in range(workers):
        own = pictures_of(shards, files[worker::workers])
        for start in (0, len(own)):  # the first pass and the second
            stream = dataset.train(shards, seed=0, batch_size=1, start_step=start, worker=worker, workers=workers)
            seen = [images[0].numpy().tobytes() for images, *_ in stream.take(len(own))]
            assert sorted(seen) == sorted(own)
        everything += own
    assert len(everything) == len(set(everything)) == shards.manifest.images('train')


@pytest.mark.parametrize('kind', [Products(2), Products(3, fewer=True)])
@pytest.mark.parametrize('workers', [1, 2])
def test_the_first_passes_of_all_workers_are_every_product_once(shards, kind, workers):
    files = shards.manifest.of_split('train')
    everything: list[bytes] = []
    for worker in range(workers):
        own = [
            images[0].numpy().tobytes()
            for file in files[worker::workers]
            for images, *_ in dataset.views(shards, file, batch_size=1, tta=1, seed=0, products=kind)
        ]
        for start in (0, len(own)):
            options = {'start_step': start, 'worker': worker, 'workers': workers}
            stream = dataset.train(shards, seed=0, batch_size=1, products=kind, **options)
            assert sorted(images[0].numpy().tobytes() for images, *_ in stream.take(len(own))) == sorted(own)
        everything += own
    assert len(everything) == len(set(everything)) == dataset.rows(shards, 'train', kind)


def test_where_a_worker_has_no_such_products_all_refuse(shards):
    """Of the 28 products in five shards only 3, 10, 17 and 24 have four pictures: none of those in the fourth."""
    rule = 'the training shards of worker 4 of 5 hold no products with exactly 4 pictures; train with another'
    for worker in (0, 3):
        with pytest.raises(InputError, match=rule):
            dataset.train(shards, seed=0, batch_size=1, products=Products(4), worker=worker, workers=5)


def test_workers_draw_augmentations_of_their_own(shards):
    first, second = (
        next(iter(dataset.train(shards, seed=0, batch_size=8, worker=worker, workers=2)))[1] for worker in (0, 1)
    )
    assert not (first.numpy() == second.numpy()).any()


def test_more_workers_than_shards_are_refused(shards):
    with pytest.raises(InputError, match='5 training shards are too few for 6 workers; .* smaller --shard_mb'):
        dataset.train(shards, seed=0, batch_size=1, worker=0, workers=SHARDS + 1)
