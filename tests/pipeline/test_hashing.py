"""Random-looking numbers: those of the published generator, and spread as random ones are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import hashing, split

STEP = 0x9E3779B97F4A7C15  # what splitmix64's state grows by from one output to the next
# Rosetta Code's test vector, "Pseudo-random numbers/Splitmix64": the first outputs for seed 1234567.
PUBLISHED = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def splitmix64(state: int) -> int:
    """The output that follows this state, in plain whole numbers (Steele, Lea and Flood 2014, figure 17)."""
    state = (state + STEP) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def chained(seed: int, *keys: int) -> int:
    value = splitmix64(seed % 2**64)
    for key in keys:
        value = splitmix64(value ^ key % 2**64)
    return value


def test_mix_is_the_published_generator():
    states = np.array([(1234567 + place * STEP) % 2**64 for place in range(len(PUBLISHED))], np.uint64)
    assert hashing.mix(states).tolist() == list(PUBLISHED)
    assert [splitmix64(int(state)) for state in states] == list(PUBLISHED)


def test_mix_changes_half_of_the_bits_whichever_bit_is_changed():
    values = hashing.mix(np.arange(1000, dtype=np.uint64))
    for bit in range(64):
        other = hashing.mix(np.arange(1000, dtype=np.uint64) ^ np.uint64(1 << bit))
        changed = np.unpackbits((values ^ other).view(np.uint8)).mean()
        # Of 64,000 bits half are expected, with a standard deviation of 0.5 / sqrt(64,000) = 0.002.
        assert abs(changed - 0.5) < 5 * 0.002


@pytest.mark.parametrize('seed', [0, 1, -1, 1234567, 2**63, 2**64 - 1, 2**64, -(2**70)])
@pytest.mark.parametrize(
    'keys', [(), (0,), (7,), (-1,), (2**63 - 1,), (-(2**63),), (2**63,), (2**64 - 1,), (1, 2), (2, 1), (-3, 0, 9)]
)
def test_a_hash_is_the_chain_of_seed_and_keys(seed, keys):
    assert hashing.hashes(seed, *keys).tolist() == [chained(seed, *keys)]
    assert hashing.hashes(seed, *(np.array([key]) for key in keys)).tolist() == [chained(seed, *keys)]


@pytest.mark.parametrize('dtype', [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64])
def test_a_key_counts_whatever_its_type(dtype):
    assert hashing.hashes(5, np.arange(100).astype(dtype)).tolist() == [chained(5, key) for key in range(100)]
    if np.dtype(dtype).kind == 'i':
        assert hashing.hashes(5, np.array([-7], dtype)).tolist() == [chained(5, -7)]


def test_keys_are_broadcast():
    found = hashing.hashes(3, np.arange(4)[:, None, None], 8, np.arange(5)[:, None], np.arange(2))
    assert found.shape == (4, 5, 2) and found.dtype == np.uint64
    expected = [[[chained(3, a, 8, b, c) for c in range(2)] for b in range(5)] for a in range(4)]
    assert found.tolist() == expected


def test_keys_are_left_as_they_were():
    key = np.arange(5)
    hashing.hashes(0, key, key)
    assert key.tolist() == [0, 1, 2, 3, 4]


def test_no_two_of_a_million_hashes_are_alike():
    assert len(np.unique(hashing.hashes(0, np.arange(-500_000, 500_000)))) == 1_000_000


# The orders and splits of datasets that stand on disks hang on these numbers: they may never change.
PINNED = {
    (0, 1): 0x08B4FDA8C892B50E,
    (0, 12345678): 0xDBD5E491EB94286A,
    (7, 2**31): 0xCE5DAB93E2545151,
    (-1, 2**63 - 1): 0xB29810847C255D81,
}


@pytest.mark.parametrize(('seed', 'product_id'), PINNED)
def test_the_hashes_of_products_never_change(seed, product_id):
    expected = PINNED[seed, product_id]
    assert chained(seed, product_id) == expected
    assert split.hashes(np.array([product_id]), seed=seed).tolist() == [expected]
    assert split.order_hashes(np.array([product_id]), seed=seed).tolist() == [splitmix64(expected)]


# Permutations.


@pytest.mark.parametrize('count', [0, 1, 2, 3, 100, 100_000])
def test_a_permutation_has_each_number_once(count):
    order = hashing.permutation(count, 0, 1)
    assert order.dtype == np.int64
    assert np.sort(order).tolist() == list(range(count))


def test_a_permutation_is_the_order_of_the_hashes():
    assert hashing.permutation(200, 3, 4, 5).tolist() == sorted(range(200), key=lambda n: chained(3, 4, 5, n))


def test_a_permutation_hangs_on_the_seed_and_on_each_key():
    orders = [hashing.permutation(1000, *keys) for keys in [(0,), (1,), (0, 0), (0, 1), (0, 0, 1), (0, 1, 0), (1, 0)]]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Two random orders agree at one place on average, with a standard deviation of 1; their rank correlation is
            # 0, with one of 1 / sqrt(999) = 0.032.
            assert (one == other).sum() <= 6
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 * 0.032
    assert (hashing.permutation(1000, 0, 0, 1) == orders[4]).all()


def test_every_order_of_few_numbers_comes_equally_often():
    orders = np.array([hashing.permutation(4, 0, key) for key in range(6000)])
    _, counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)
    assert len(counts) == 24
    # 250 each, with a standard deviation of sqrt(6,000 * 1/24 * 23/24) = 15.5.
    np.testing.assert_allclose(counts, 250, atol=5 * 15.5)


# Numbers of [0, 1).


def test_uniform_numbers_are_the_first_24_bits_of_the_hashes():
    found = hashing.uniform(1, np.arange(-50, 50)[:, None], np.arange(3))
    assert found.shape == (100, 3) and found.dtype == np.float32
    expected = [[(chained(1, a, b) >> 40) / 2**24 for b in range(3)] for a in range(-50, 50)]
    assert found.tolist() == expected


def test_uniform_numbers_are_below_1_and_may_be_0(monkeypatch):
    ends = np.array([0, 2**40 - 1, 2**40, 2**64 - 1], np.uint64)
    monkeypatch.setattr(hashing, 'hashes', lambda *_: ends)
    assert hashing.uniform(0).tolist() == [0, 0, 2**-24, 1 - 2**-24]


def test_uniform_numbers_are_spread_evenly_and_independently():
    count, columns = 100_000, 6
    draws = hashing.uniform(0, np.arange(count)[:, None], np.arange(columns)).astype(np.float64)
    assert draws.min() >= 0 and draws.max() < 1
    # Mean 1/2, with a standard deviation of sqrt(1/12 / 100,000) = 0.00091.
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 2, atol=5 * 0.00091)
    # Variance 1/12, with one of sqrt((1/80 - 1/144) / 100,000) = 0.00024.
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=5 * 0.00024)
    # Correlation 0, with one of 1 / sqrt(100,000) = 0.0032: between columns, and of each with the row before.
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(columns), atol=5 * 0.0032)
    for column in draws.T:
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 5 * 0.0032
    # In each of 100 equal parts 1,000, with one of sqrt(1,000 * 0.99) = 31.5.
    for column in draws.T:
        np.testing.assert_allclose(np.bincount((column * 100).astype(int), minlength=100), 1000, atol=5 * 31.5)


def test_neighbouring_seeds_give_independent_numbers():
    draws = np.array([hashing.uniform(seed, np.arange(10_000)) for seed in (-1, 0, 1, 2, 2**32)])
    # Correlation 0, with a standard deviation of 1 / sqrt(10,000) = 0.01.
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(len(draws)), atol=5 * 0.01)
