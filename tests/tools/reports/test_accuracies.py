"""Accuracy by the size of categories, worked out by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.tools.reports import outcomes
from tools.reports import accuracies, confusions

# Right: two of three of category 0, one of one of category 1, none of one of category 2; category 3 has none here.
FOUND = outcomes.outcome([0, 0, 0, 1, 2], [0, 0, 2, 1, 0], [0.5] * 5)
PAIRS = confusions.count(FOUND.true_labels, FOUND.predicted_labels, classes=4)


def test_products_of_categories_of_similar_size_are_taken_together():
    sizes = np.array([7, 4, 8, 100])
    (small, of_small), (large, of_large) = accuracies.by_size(FOUND, sizes)
    assert small == pytest.approx(math.exp((3 * math.log(7) + math.log(4)) / 4))
    assert (of_small.value, of_small.count) == (0.75, 4)
    assert large == pytest.approx(8)
    assert (of_large.value, of_large.low, of_large.high, of_large.count) == (0, 0, 0, 1)


def test_a_category_without_training_products_has_no_place_on_the_axis():
    assert [count.count for _, count in accuracies.by_size(FOUND, np.array([0, 1, 1, 1]))] == [2]


def cells(block: str) -> list[list[str]]:
    rows = re.findall('<tr>(.*?)</tr>', block, re.DOTALL)
    return [re.findall('<td[^>]*>(.*?)</td>', row) for row in rows if '<td' in row]


def test_every_category_has_a_row_also_one_without_products():
    (block,) = accuracies.categories_section(FOUND, PAIRS, None).blocks
    assert cells(block) == [
        ['1000', 'A &gt; X &gt; &lt;script&gt;alert(1)&lt;/script&gt;', '3', '0.667', 'Y / RUG (1)'],
        ['1010', 'A &gt; X &gt; shoe &amp; co', '1', '1.000', ''],
        ['1020', 'A &gt; Y &gt; RUG', '1', '0.000', '&lt;script&gt;alert(1)&lt;/script&gt; (1)'],
        ['1030', 'B &gt; Z &gt; RUG', '0', '', ''],
    ]


def test_where_training_products_are_known_they_are_drawn_and_told():
    plot, block = accuracies.categories_section(FOUND, PAIRS, np.array([7, 4, 8, 0])).blocks
    assert f'each point a category with {accuracies.FEWEST} products or more here (0 of 4)' in plot
    assert [row[2] for row in cells(block)] == ['7', '4', '8', '0']
