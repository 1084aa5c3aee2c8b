"""Cached features by product: what stands where, the order of training, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ensemble import logits
from model import cached_features
from model.cached_features import Cached
from pipeline import split
from pipeline.errors import InputError
from tests.ensemble import stores

FEATURES, PRODUCTS = 5, 700
DIGESTS = {'weights_digest': 'w', 'dataset_digest': 'd'}


@pytest.fixture(scope='module')
def rows() -> list[logits.Rows]:
    """Of two shards, in several blocks each, and of an empty one between them."""
    first, last = (stores.random_rows(PRODUCTS // 2, FEATURES, seed=n, first_id=1000 * n) for n in (1, 2))
    return [first, first[:0], last]


@pytest.fixture
def folder(rows, tmp_path) -> Path:
    path = tmp_path / 'run' / 'features' / 'train'
    names = [split.shard_name('train', number, len(rows)) for number in range(len(rows))]
    files = [
        logits.write_shard(str(path), name, some, split='train', kind='features')
        for name, some in zip(names, rows, strict=True)
    ]
    about: dict = {'split': 'train', 'tta': 1, 'seed': 0, **DIGESTS}
    logits.finish(str(path), files, categories=stores.label_map(FEATURES), kind='features', **about)
    return path


@pytest.fixture
def cached(folder) -> Cached:
    return Cached(str(folder), **DIGESTS)


def some(cached: Cached, count: int, **options: int) -> list[tuple[np.ndarray, ...]]:
    return list(itertools.islice(cached.training_batches(**options), count))


def every_product(rows: list[logits.Rows]) -> Iterator[logits.Rows]:
    whole = logits.Rows.concatenate(rows)
    starts = whole.starts()
    for start, end in itertools.pairwise([*starts.tolist(), len(whole)]):
        yield whole[start:end]


def test_a_product_has_its_pictures_features_then_zeros(cached, rows):
    order = np.random.default_rng(0).permutation(PRODUCTS)
    assert (len(cached), cached.features) == (PRODUCTS, FEATURES)
    features, mask, labels = cached.read(order)
    assert (features.dtype, mask.dtype, labels.dtype) == (np.float16, bool, np.int64)
    expected = list(every_product(rows))
    for number, one, present, label in zip(order, features, mask, labels, strict=True):
        count = len(expected[number])
        np.testing.assert_array_equal(one[:count], expected[number].logits)
        assert not one[count:].any()
        assert present.tolist() == [place < count for place in range(4)]
        assert label == expected[number].label[0]


def test_the_products_of_a_block_are_those_that_are_read_one_by_one(cached, rows):
    features, mask = cached_features.by_product(rows[0])
    for got, expected in zip((features, mask), cached.read(np.arange(len(features))), strict=False):
        np.testing.assert_array_equal(got, expected)


def test_a_pass_has_each_product_once_and_the_next_in_another_order(cached):
    # 7 batches of 100 are a pass.
    found = [batch[0][:, 0] for batch in some(cached, 14, seed=0, batch_size=100)]
    batches = [np.concatenate(part) for part in (found[:7], found[7:])]
    everything = cached.read(np.arange(PRODUCTS))[0][:, 0]
    for batch in batches:
        np.testing.assert_array_equal(np.unique(batch, axis=0), np.unique(everything, axis=0))
    assert not np.array_equal(*batches)


@pytest.mark.parametrize('batch_size', [1, 64, PRODUCTS - 1, PRODUCTS, PRODUCTS + 1, 3 * PRODUCTS])
def test_the_order_goes_on_from_any_step(batch_size):
    def order(start_step: int) -> Iterator[np.ndarray]:
        return cached_features._training_order(PRODUCTS, seed=3, batch_size=batch_size, start_step=start_step)

    whole = list(itertools.islice(order(0), 24))
    assert all(len(batch) == batch_size for batch in whole)
    seen = np.bincount(np.concatenate(whole), minlength=PRODUCTS)
    assert seen.max() - seen.min() <= 1, 'no product comes again before all others have come'
    for start in (1, 11, 20):
        for got, expected in zip(order(start), whole[start:], strict=False):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('limit', [PRODUCTS - 1, PRODUCTS, PRODUCTS + 1])
def test_every_product_is_evaluated_once_and_the_last_batch_is_filled_up(cached, limit):
    batches = list(cached.evaluation(batch_size=64, limit=limit))
    assert len(batches) == 11
    features, mask, labels, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
    count = min(limit, PRODUCTS)
    for got, expected in zip((features, mask, labels), cached.read(np.arange(count)), strict=True):
        np.testing.assert_array_equal(got[:count], expected)
    np.testing.assert_array_equal(weights, np.arange(704) < count)
    assert not mask[count:].any()


@pytest.mark.parametrize(
    ('digest', 'message'),
    [('weights_digest', 'made by other weights than the run has now'), ('dataset_digest', 'made of other shards')],
)
def test_features_of_something_else_are_refused(folder, digest, message):
    with pytest.raises(
        InputError, match=f'{message}; make them again: python -m model.features --run_dir=.*/run --spl'
    ):
        Cached(str(folder), **{**DIGESTS, digest: 'x'})


def test_no_features_are_refused_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(InputError, match='holds no finished features; make them: python -m model.features'):
        Cached(str(tmp_path / 'run' / 'features' / 'val'), **DIGESTS)
    assert not cached_features.are_there(str(tmp_path / 'run'), 'val')


def test_a_damaged_length_is_refused_with_its_place(folder):
    path = folder / 'train-00000-of-00003.tfrecord'
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 0x10]) + data[1:])
    with pytest.raises(InputError, match='train-00000-of-00003.tfrecord: byte 0: damaged'):
        Cached(str(folder), **DIGESTS)


def test_a_file_that_was_cut_off_meanwhile_is_refused(cached, folder):
    with open(folder / 'train-00002-of-00003.tfrecord', 'r+b') as file:
        file.truncate(100)
    with pytest.raises(InputError, match='train-00002-of-00003.tfrecord: was cut off meanwhile'):
        cached.read(np.arange(PRODUCTS))
