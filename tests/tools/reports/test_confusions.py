"""Confusions counted by hand."""

from __future__ import annotations

import numpy as np

from tools.reports import confusions


def test_pairs_are_counted_in_both_directions_the_most_frequent_first():
    true = np.array([0, 0, 0, 1, 2, 2, 2, 2, 3])
    predicted = np.array([1, 1, 0, 0, 2, 0, 3, 3, 3])
    pairs = confusions.count(true, predicted, classes=5)
    rows = list(zip(pairs.true, pairs.predicted, pairs.products, pairs.reverse, strict=True))
    assert rows == [(0, 1, 2, 1), (2, 3, 2, 0), (1, 0, 1, 2), (2, 0, 1, 0)], 'equal counts stand in order of labels'
    worst = pairs.worst_of(5).tolist()
    assert worst == [0, 2, 1, -1, -1]
    assert pairs.predicted[worst[2]] == 3, 'more often than 0'


def test_where_all_is_right_there_is_no_pair():
    pairs = confusions.count(np.array([0, 1]), np.array([0, 1]), classes=2)
    assert len(pairs.true) == len(pairs.reverse) == 0
    assert pairs.worst_of(2).tolist() == [-1, -1]


def test_a_thousand_categories_do_not_mix():
    """As numbers true * classes + predicted, where the last and the first category must not meet."""
    pairs = confusions.count(np.array([0, 999]), np.array([999, 0]), classes=1000)
    assert (pairs.true.tolist(), pairs.predicted.tolist(), pairs.reverse.tolist()) == ([0, 999], [999, 0], [1, 1])
