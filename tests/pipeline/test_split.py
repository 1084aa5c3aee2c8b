"""Which split and which shard: exact counts in every category, and the same answer for ever."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import split

TENTH = {1: 0, 2: 1, 3: 1, 4: 1, 5: 1, 14: 1, 15: 2, 16: 2, 24: 2, 25: 3, 26: 3, 99: 10, 100: 10, 104: 10, 105: 11}


@pytest.mark.parametrize(('products', 'held_out'), TENTH.items())
def test_a_tenth_of_a_category_is_held_out_to_the_nearest_whole_number_at_least_one_never_all(products, held_out):
    assert split.val_count(products, val_fraction=0.1) == held_out


@pytest.mark.parametrize(
    ('val_fraction', 'products', 'held_out'),
    [(0, 1, 0), (0, 1000, 0), (0.001, 2, 1), (0.001, 1499, 1), (0.001, 1500, 2), (0.25, 5, 1), (0.25, 6, 2)]
    + [(0.5, 1, 0), (0.5, 2, 1), (0.5, 3, 2), (0.5, 4, 2)],
)
def test_other_fractions_round_the_same_way(val_fraction, products, held_out):
    assert split.val_count(products, val_fraction=val_fraction) == held_out


def test_every_category_gives_its_first_products_by_hash():
    category_ids = np.repeat(np.array(list(TENTH)) + 1000, list(TENTH))
    product_hashes = split.hashes(np.arange(len(category_ids)), seed=0)
    held_out = split.is_val(category_ids, product_hashes, val_fraction=0.1)
    for size, expected in TENTH.items():
        ordered = held_out[category_ids == size + 1000][np.argsort(product_hashes[category_ids == size + 1000])]
        assert ordered.tolist() == [True] * expected + [False] * (size - expected)


def test_the_order_of_the_products_does_not_matter():
    category_ids, product_ids = np.arange(1000) % 7, np.arange(1000)
    held_out = held_out_of(product_ids, category_ids)
    for order in (np.arange(1000)[::-1], np.random.default_rng(0).permutation(1000)):
        assert (held_out_of(product_ids[order], category_ids[order]) == held_out[order]).all()


def test_another_seed_holds_out_other_products():
    product_ids = np.arange(10_000)
    first, other = (held_out_of(product_ids, np.zeros(10_000), seed=seed) for seed in (0, 1))
    assert first.sum() == other.sum() == 1000
    # Two independent draws of 1,000 of 10,000 share 100 on average, give or take a standard deviation of 9.
    assert 100 - 45 < (first & other).sum() < 100 + 45


@pytest.mark.parametrize('seed', [0, 1, -1, 2**63, 2**64 - 1])
@pytest.mark.parametrize('product_id', [0, 1, 12345678, 2**31, 2**63 - 1])
def test_a_hash_is_splitmix64_of_seed_and_id(seed, product_id):
    expected = splitmix64(splitmix64(seed % 2**64) ^ product_id)
    assert split.hashes(np.array([product_id]), seed=seed).tolist() == [expected]


def test_splitmix64_is_the_published_one():
    assert splitmix64(0) == 0xE220A8397B1DCDAF, 'the first number of the generator with state 0'


def test_neighbouring_ids_spread_evenly_over_shards():
    counts = np.bincount(split.shard_index(split.hashes(np.arange(16_000), seed=0), 16), minlength=16)
    # 1,000 expected in each, with a standard deviation of 31.
    assert counts.min() > 1000 - 5 * 31 and counts.max() < 1000 + 5 * 31


@pytest.mark.parametrize(
    ('product_hash', 'shards', 'index'),
    [
        (0, 1, 0), (2**64 - 1, 1, 0),
        (0, 2, 0), (2**63 - 1, 2, 0), (2**63, 2, 1), (2**64 - 1, 2, 1),
        (1431655766 * 2**32 - 1, 3, 0), (1431655766 * 2**32, 3, 1), (2**64 - 1, 3, 2),  # 2**32 / 3 = 1431655765.3
        (2**58 - 1, 64, 0), (2**58, 64, 1), (2**64 - 1, 64, 63), (2**64 - 1, 99_999, 99_998),
    ],
)  # fmt: skip
def test_shards_are_equal_ranges_of_the_hash(product_hash, shards, index):
    assert split.shard_index(np.array([product_hash], np.uint64), shards).tolist() == [index]


@pytest.mark.parametrize(('total', 'shards'), [(0, 1), (1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_there_are_as_few_shards_of_100_bytes_as_hold_all(total, shards):
    assert split.shard_count(total, shard_bytes=100) == shards


def test_names_of_shards_sort_in_their_order():
    assert split.shard_name('val', 7, 64) == 'val-00007-of-00064.tfrecord'
    names = [split.shard_name('train', index, 11) for index in range(11)]
    assert names == sorted(names)


def held_out_of(product_ids: np.ndarray, category_ids: np.ndarray, *, seed: int = 0) -> np.ndarray:
    return split.is_val(category_ids, split.hashes(product_ids, seed=seed), val_fraction=0.1)


def splitmix64(state: int) -> int:
    """Java's SplittableRandom (Steele, Lea and Flood 2014, figure 17), in plain whole numbers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_shards_are_even_in_every_split():
    """What is held out has the low hashes of its category: shards must cut another hash."""
    ids = np.arange(40_000)
    held_out = split.is_val(ids % 50, split.hashes(ids, seed=0), val_fraction=0.1)
    for chosen, shards in ((held_out, 4), (~held_out, 36)):
        sizes = np.bincount(split.shard_index(split.order_hashes(ids[chosen], seed=0), shards), minlength=shards)
        assert len(sizes) == shards
        np.testing.assert_allclose(sizes, 1000, atol=150)  # five standard deviations of a random choice


def test_a_shard_is_known_by_its_name():
    for shard in (('train', 0, 1), ('val', 7, 64), ('test', 123_456, 200_000)):
        assert split.parse_shard_name(split.shard_name(*shard)) == shard
    for name in (
        'train-00001-of-00001.tfrecord',
        'train-0-of-1.tfrecord',
        'mine.tfrecord',
        'train-00000-of-00001.json',
    ):
        assert split.parse_shard_name(name) is None
