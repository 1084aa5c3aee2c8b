"""The order of the stream: every row once a pass, from anywhere to anywhere, at the size of Kaggle's catalogue too."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pipeline import order


def rows_of(one: order.Pass, chunk_rows: np.ndarray) -> np.ndarray:
    """All rows of a pass in the order of the stream, by their place in the shards."""
    starts = np.cumsum(chunk_rows) - chunk_rows
    groups = [np.concatenate([np.arange(starts[c], starts[c] + chunk_rows[c]) for c in group]) for group in one.groups]
    windows = []
    for number in range(len(groups)):
        needed, rows = one.window(number)
        windows.append(np.concatenate([groups[group] for group in needed])[rows])
    assert [len(window) for window in windows] == one.window_rows().tolist()
    return np.concatenate(windows)


@functools.cache
def kaggle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pass over 11 million pictures in 50,000 chunks of 128 products: pictures of each chunk and product, order."""
    pictures = np.random.default_rng(0).choice([1, 2, 3, 4], size=50_000 * 128, p=[0.6, 0.17, 0.11, 0.12])
    chunk_rows = pictures.reshape(-1, 128).sum(axis=1)
    one = order.one_pass(chunk_rows, seed=0, number=0, shuffle_rows=60_000, lanes=order.LANES)
    return chunk_rows, pictures, rows_of(one, chunk_rows)


@pytest.mark.parametrize('lanes', [1, order.LANES])
@pytest.mark.parametrize('chunks', [1, 2, 3, 4, 5, 6, 7, 8, 40])
@pytest.mark.parametrize('most', [1, 2, 5, 9])
@pytest.mark.parametrize('shuffle_rows', [1, 30, 10_000])
def test_every_row_comes_once_a_pass(lanes, chunks, most, shuffle_rows):
    chunk_rows = np.random.default_rng(chunks).integers(1, most + 1, chunks)
    one = order.one_pass(chunk_rows, seed=0, number=0, shuffle_rows=shuffle_rows, lanes=lanes)
    assert sorted(rows_of(one, chunk_rows)) == list(range(chunk_rows.sum()))


def test_every_picture_of_kaggles_comes_once():
    chunk_rows, _, rows = kaggle()
    assert np.array_equal(np.sort(rows), np.arange(chunk_rows.sum()))


def test_the_order_has_nothing_of_the_shards():
    """Spearman's rank correlation; of 50,000 chunks in a random order it is 0, give or take 0.0045."""
    _, _, rows = kaggle()
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.02


def test_neighbours_in_the_shards_are_far_apart():
    _, _, rows = kaggle()
    place = np.empty_like(rows)
    place[rows] = np.arange(len(rows))
    apart = np.abs(np.diff(place))
    # Those of one chunk come one to six windows of 6,700 apart; but none in the same batch, and few near to it.
    assert np.median(apart) > 10_000
    assert (apart < 1536).mean() < 0.001


@pytest.mark.parametrize('batch_size', [128, 1536])
def test_no_batch_has_two_pictures_of_a_product_but_by_chance(batch_size):
    _, pictures, rows = kaggle()
    batch = np.empty_like(rows)
    batch[rows] = np.arange(len(rows)) // batch_size
    product = np.repeat(np.arange(len(pictures)), pictures)
    together = sum(
        ((product[apart:] == product[:-apart]) & (batch[apart:] == batch[:-apart])).sum() for apart in (1, 2, 3)
    )
    pairs = (pictures * (pictures - 1) // 2).sum()
    assert together / pairs <= batch_size / len(rows)  # what a wholly random order would have


@pytest.mark.parametrize(('seed', 'number'), [(1, 0), (0, 1)])
def test_each_pass_and_each_seed_has_an_order_of_its_own(seed, number):
    chunk_rows = np.full(200, 10)
    first, other = (
        rows_of(order.one_pass(chunk_rows, seed=seed, number=number, shuffle_rows=900, lanes=4), chunk_rows)
        for seed, number in ((0, 0), (seed, number))
    )
    assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(200)  # five standard deviations of the chunks' order


def test_no_more_rows_are_held_than_allowed():
    chunk_rows = np.random.default_rng(0).integers(100, 300, 5000)
    one = order.one_pass(chunk_rows, seed=0, number=0, shuffle_rows=60_000, lanes=4)
    for window in range(len(one.groups)):
        held = {*one.held(window), (window + 1) % len(one.groups)}
        assert set(one.window(window)[0]) <= set(one.held(window))
        assert one.group_rows[list(held)].sum() <= 60_000
