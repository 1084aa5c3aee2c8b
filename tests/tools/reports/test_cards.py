"""The products that a page shows one by one: which, in which order, and what is told of them."""

from __future__ import annotations

import re

import numpy as np

from tests.tools.reports import outcomes
from tools.reports import cards


def test_mistakes_begin_with_the_most_probable_and_leave_out_what_is_right():
    found = outcomes.outcome([0, 0, 0, 0], [1, 0, 1, 1], [0.5, 0.99, 0.9, 0.5], product_id=[8, 7, 6, 5])
    assert cards.most_confident_mistakes(found).tolist() == [2, 3, 0], 'on a tie the lower product id first'


def test_the_least_certain_may_be_right():
    found = outcomes.outcome([0, 0, 0], [1, 0, 1], [0.5, 0.25, 0.5], product_id=[8, 7, 6])
    assert cards.least_certain(found).tolist() == [1, 2, 0]


def test_as_many_as_there_is_place_for():
    many = cards.SHOWN + 5
    found = outcomes.outcome([0] * many, [1] * many, np.linspace(0, 1, many).tolist())
    assert cards.most_confident_mistakes(found).tolist() == list(range(many))[: -cards.SHOWN - 1 : -1]
    assert cards.least_certain(found).tolist() == list(range(cards.SHOWN))


def marks(found, place=0):
    (block,) = cards.section('title', 'words', found, np.array([place]), []).blocks[1:]
    return re.findall(r'<span class="(right|wrong)"><span title="(\d+)', block), block


def test_the_true_category_is_marked_right_and_a_wrong_prediction_wrong():
    found = outcomes.outcome([1, 0, 3, -1], [0, 0, 0, 0], [0.5] * 4)
    assert marks(found, 0)[0] == [('wrong', '1000'), ('right', '1010')]
    assert marks(found, 1)[0] == [('right', '1000')]
    told = 'The true category is not among the 2 likeliest'
    assert marks(found, 2)[0] == [('wrong', '1000')]
    assert [told in marks(found, place)[1] for place in range(4)] == [False, False, True, False]


def test_without_the_truth_nothing_is_said_of_it():
    said, block = marks(outcomes.outcome([-1], [0], [0.5]))
    assert said == []
    assert 'true' not in block
    assert '&lt;script&gt;' in block
    assert '<script>' not in block


def test_whole_names_are_told_without_pointing():
    """A phone has no pointer."""
    _, block = marks(outcomes.outcome([1], [2], [0.5]))
    told = re.findall('<p>(true|predicted): .*?<small class="faint">(.*?)</small>', block)
    assert told == [('true', 'A &gt; X &gt; shoe &amp; co'), ('predicted', 'A &gt; Y &gt; RUG')]


def test_no_mistake_is_told():
    found = outcomes.outcome([0], [0], [0.5])
    places = cards.most_confident_mistakes(found)
    assert 'There are none' in cards.section('title', 'words', found, places, []).blocks[0]
