"""Categories have short names that tell them apart."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.categories import Categories
from tests.tools.reports import outcomes
from tools.reports import outcome


def test_a_short_name_is_the_last_level_unless_others_share_it():
    names = (('A', 'X', 'BAG'), ('A', 'X', 'RUG'), ('B', 'Y', 'RUG'), ('A', 'Z', 'HAT'), ('B', 'Z', 'HAT'))
    label_map = Categories(np.arange(5), names)
    assert outcome.short_names(label_map) == ['BAG', 'X / RUG', 'Y / RUG', 'A / Z / HAT', 'B / Z / HAT']


def test_categories_of_the_same_names_are_told_apart_by_their_ids():
    label_map = Categories(np.array([7, 9]), (('A', 'A', 'B'),) * 2)
    assert outcome.short_names(label_map) == ['A / B (7)', 'A / B (9)']


def test_a_name_tells_id_and_path_when_pointed_at():
    found = outcomes.outcome([0], [2], [0.5])
    assert found.name(1020) == '<span title="1020: A &gt; Y &gt; RUG">Y / RUG</span>'
    assert '<script>' not in found.name(1000)
    assert '&lt;script&gt;' in found.name(1000)


def test_a_line_tells_the_path_where_the_name_does_not():
    names = (('A', 'X', 'RUG'), ('HAT', 'HAT', 'HAT'), ('A', 'Z', 'CUP'), ('B', 'Z', 'CUP'))
    found = dataclasses.replace(outcomes.outcome([0], [0], [0.5]), label_map=Categories(np.arange(4), names))
    told = '<small class="faint">A &gt; X &gt; RUG</small>'
    assert [found.place(number) for number in range(4)] == [told, '', '', '']


def test_what_is_not_known_is_not_right():
    found = outcomes.outcome([-1, 3], [3, 3], [0.5, 0.5])
    assert found.correct.tolist() == [False, True]
    assert found.true_labels.tolist() == [-1, 3]
