"""The rules: against tables worked out by hand, against float64, and against their algebra."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ensemble import rules
from ensemble.logits import Rows
from ensemble.rules import Products
from pipeline.errors import InputError
from tests.ensemble import reference

A, B, C = 0, 1, 2
each_way = pytest.mark.parametrize('views', rules.VIEWS)

# Three pictures, in sixteenths:  A   B   C
THREE = [(12, 3, 1),
         (4, 10, 2),
         (1, 9, 6)]  # fmt: skip
# Two pictures that are each other's mirror image.
TWO = [(8, 6, 2),
       (2, 6, 8)]  # fmt: skip
TABLE = [
    # sums 17, 22, 9 of 48
    ('mean', THREE, B, 22 / 48),
    # products 48, 270, 12 of 330
    ('product', THREE, B, 270 / 330),
    # squares 144+16+1 = 161, 9+100+81 = 190, 1+4+36 = 41; roots 12.689, 13.784, 6.403 of 32.876
    ('rms', THREE, B, 13.784 / 32.876),
    # the middle ones 4, 9, 2 of 15
    ('median', THREE, B, 9 / 15),
    # 12^0.1 + 4^0.1 + 1 = 3.4308, 3^0.1 + 10^0.1 + 9^0.1 = 3.6208, 1 + 2^0.1 + 6^0.1 = 3.2680;
    # the shares of their tenth powers: 0.3004, 0.5149, 0.1847
    ('power', THREE, B, 0.5149),
    # 12, 10, 6 of 28
    ('max', THREE, A, 12 / 28),
    # 12 of 16
    ('first', THREE, A, 12 / 16),
    # sums 10, 12, 10
    ('mean', TWO, B, 12 / 32),
    # products 16, 36, 16
    ('product', TWO, B, 36 / 68),
    # squares 68, 72, 68; roots 8.2462, 8.4853, 8.2462
    ('rms', TWO, B, 8.4853 / 24.9777),
    # of two, the middle ones are both: as the mean
    ('median', TWO, B, 12 / 32),
    # 8, 6, 8: on a tie the lowest label
    ('max', TWO, A, 8 / 22),
    ('first', TWO, A, 8 / 16),
]
# THREE as two views of one picture and one of another, the views first:
NESTED = [
    # 16, 13, 3 of 32 and 2, 18, 12 of 32: 18, 31, 15 of 64
    ('mean', B, 31 / 64),
    # 48, 30, 2 of 80 times 1, 9, 6: as if pooled
    ('product', B, 270 / 330),
    # roots of 160, 109, 5: shares 0.4995, 0.4123, 0.0883; with 1, 9, 6 of 16: 0.5034, 0.6974, 0.3853 of 1.5860
    ('rms', B, 0.6974 / 1.5860),
    # of two, the middle ones are both, twice: as the mean
    ('median', B, 31 / 64),
    # 12, 10, 2 of 24 and 1, 9, 6 of 16, in 48ths: 24, 27, 18 of 69, where pooled it is A
    ('max', B, 27 / 69),
    ('first', A, 12 / 16),
]


def confident_rows(counts: Sequence[int], classes: int, *, seed: int, views: int = 1) -> Rows:
    """One class of each row at +100, the others far below."""
    rows = reference.random_rows(counts, classes, seed=seed, spread=8, views=views)
    rows.logits[np.arange(len(rows)), np.random.default_rng(seed).integers(0, min(classes, 4), len(rows))] = 100
    return rows


def check_against_reference(rows: Rows, views: str) -> None:
    products = Products(rows)
    for name, power in reference.EVERY:
        found = rules.likeliest(rules.combine(products, rules.find(name, power=power), views=views))
        expected = reference.log_probabilities(rows, name, power=power, views=views)
        reference.check(*found, expected, reference.tolerance(rows, name, power))
        reference.check_ties(found[0], rows.logits)


@pytest.mark.parametrize(('rule', 'pictures', 'winner', 'probability'), TABLE)
def test_each_rule_gives_what_is_worked_out_by_hand(
    make_rows: Callable[..., Rows], rule: str, pictures: list, winner: int, probability: float
) -> None:
    labels, probabilities = rules.likeliest(rules.combine(Products(make_rows([(7, 0, pictures)])), rules.find(rule)))
    assert labels[0, 0] == winner
    # Logits in float16 are rounded to 1/2048 of their size, so the probabilities to about 1/1000 of theirs.
    assert probabilities[0, 0] == pytest.approx(probability, rel=2e-3)


@pytest.mark.parametrize(('rule', 'winner', 'probability'), NESTED)
def test_nested_takes_the_views_of_each_picture_first(
    make_rows: Callable[..., Rows], rule: str, winner: int, probability: float
) -> None:
    rows = make_rows([(7, 0, THREE)])
    rows.image_index[:], rows.view[:] = [0, 0, 1], [0, 1, 0]
    labels, probabilities = rules.likeliest(rules.combine(Products(rows), rules.find(rule), views='nested'))
    assert (labels[0, 0], probabilities[0, 0]) == (winner, pytest.approx(probability, rel=2e-3))


@each_way
@pytest.mark.parametrize('rule', rules.names())
def test_of_one_picture_every_rule_gives_its_probabilities(
    make_rows: Callable[..., Rows], rule: str, views: str
) -> None:
    products = Products(make_rows([(7, 2, [(2, 5, 9)])]))
    labels, probabilities = rules.likeliest(rules.combine(products, rules.find(rule), views=views))
    assert labels.tolist() == [[C, B, A]]
    np.testing.assert_allclose(probabilities, [[9 / 16, 5 / 16, 2 / 16]], rtol=1e-3)
    assert (labels.dtype, probabilities.dtype) == (np.int64, np.float32)


def test_each_product_is_reduced_by_itself_in_the_order_given(make_rows: Callable[..., Rows]) -> None:
    products = Products(make_rows([(9, 2, [(1, 2, 5)]), (4, 1, THREE), (6, 0, TWO), (5, -1, [(5, 2, 1)])]))
    assert products.product_id.tolist() == [9, 4, 6, 5]
    assert products.label.tolist() == [2, 1, 0, -1]
    assert products.pictures.tolist() == [1, 3, 2, 1]
    for name, winners in (('max', [C, A, A, A]), ('product', [C, B, B, A])):
        assert rules.likeliest(rules.combine(products, rules.find(name)))[0][:, 0].tolist() == winners


def test_views_of_a_picture_count_as_one_picture() -> None:
    rows = reference.random_rows([1, 6, 5, 40], 3, seed=0, views=20)
    assert Products(rows).pictures.tolist() == [1, 1, 1, 2]
    assert Products(reference.random_rows([5, 4, 1, 2], 3, seed=0, views=2)).pictures.tolist() == [3, 2, 1, 1]


@each_way
@pytest.mark.parametrize('spread', [1, 10, 100])
def test_random_logits_agree_with_float64(spread: float, views: str) -> None:
    counts = np.random.default_rng(1).integers(1, 9, size=250).tolist()  # with pictures of one view and of two
    check_against_reference(reference.random_rows(counts, 21, seed=int(spread), spread=spread, views=2), views)


@each_way
@pytest.mark.parametrize('make', [reference.random_rows, confident_rows])
def test_four_pictures_of_twenty_views_agree_with_float64(make: Callable[..., Rows], views: str) -> None:
    check_against_reference(make([80, 61, 80, 1, 20], 33, seed=2, views=20), views)


@each_way
@pytest.mark.parametrize('make', [reference.random_rows, confident_rows])
def test_all_of_kaggles_categories_agree_with_float64(make: Callable[..., Rows], views: str) -> None:
    check_against_reference(make([1, 2, 3, 4, 8], 5270, seed=3, views=2), views)


@each_way
@pytest.mark.parametrize('classes', [1, 2, 4, 5, 6])
def test_few_classes_agree_with_float64(classes: int, views: str) -> None:
    check_against_reference(reference.random_rows([1, 2, 3, 4, 7], classes, seed=classes, views=2), views)


@each_way
@pytest.mark.parametrize('case', reference.ADVERSARIAL)
def test_adversarial_logits_agree_with_float64(case: str, views: str) -> None:
    rows = reference.rows_of(
        reference.ADVERSARIAL[case], views=20 if len(reference.ADVERSARIAL[case]) == 80 else 1 + ('views' in case)
    )
    check_against_reference(rows, views)
    # Beside a product of two views a picture, so that the views of all are reduced first.
    other = reference.random_rows([4], rows.logits.shape[1], seed=1, views=2)
    check_against_reference(Rows.concatenate([rows, other]), views)


@pytest.mark.parametrize(
    ('case', 'rule', 'winner', 'probability'),
    [
        ('sure and opposed', 'product', 2, 1 / 2),  # both were named once: the lower label
        ('two against one', 'product', 4, 1),
        ('two against one', 'mean', 4, 2 / 3),
        ('all differ', 'product', 2, 1 / 4),  # every probability is below exp(-2000)
        ('all differ', 'median', 0, 1 / 6),  # each is 0 to three pictures: the median is exp(-1000) for all
        ('all equal', 'rms', 0, 1 / 6),
        ('one class left', 'power', 3, 1),
        ('two pictures rule out all classes', 'product', 0, 1 / 6),  # no score is left: all classes are alike
        ('two pictures rule out all classes', 'mean', 2, 1 / 2),
        ('three pictures rule out all classes twice', 'median', 0, 1 / 6),
        ('four pictures of twenty views, all sure', 'product', 2, 1),  # by exp(20 * 1000) over 3 and 4
        ('four pictures of twenty views, all sure', 'max', 2, 1 / 3),
        ('four pictures of twenty views, all sure', 'first', 2, 1),
        ('eighty views that know next to nothing', 'product', 1, math.exp(0.8) / (math.exp(0.8) + 5)),
    ],
)
def test_nothing_underflows_and_the_lowest_label_wins_a_tie(
    case: str, rule: str, winner: int, probability: float
) -> None:
    scores = rules.combine(Products(reference.rows_of(reference.ADVERSARIAL[case])), rules.find(rule))
    labels, probabilities = rules.likeliest(scores)
    assert (labels[0, 0], probabilities[0, 0]) == (winner, pytest.approx(probability, rel=1e-3))


@each_way
@pytest.mark.parametrize('rule', rules.names())
def test_a_picture_that_rules_out_all_classes_has_no_say(rule: str, views: str) -> None:
    rows = reference.rows_of(np.array([[0, 1, 2], [reference.OUT] * 3, [0, 1, 2], [4, 1, 1]]), views=2)
    labels, probabilities = rules.likeliest(rules.combine(Products(rows), rules.find(rule), views=views))
    assert sorted(labels[0].tolist()) == [A, B, C]
    assert probabilities.sum() == pytest.approx(1, rel=1e-6)
    if views == 'pooled':
        reference.check(labels, probabilities, reference.log_probabilities(rows, rule), 1e-5)


def test_the_likeliest_are_all_there_when_fewer_are_possible() -> None:
    rows = reference.rows_of(reference.ADVERSARIAL['one class left'])
    for name in rules.names():
        assert rules.likeliest(rules.combine(Products(rows), rules.find(name)))[0].tolist() == [[3, 0, 1, 2, 4]]


@each_way
@pytest.mark.parametrize(('spread', 'quick'), [(2, True), (400, False)])
def test_classes_that_are_alike_stand_in_order_of_their_labels(spread: float, quick: bool, views: str) -> None:
    """Wherever a class stands: kernels treat the last few of a tensor apart."""
    generator = np.random.default_rng(6)
    for classes in [3, 6, 7, 8, 9, 11, 15, 17, 23] * 2:
        rows = reference.random_rows(generator.integers(1, 6, size=9).tolist(), 2, seed=classes, spread=spread, views=2)
        rows = dataclasses.replace(rows, logits=rows.logits[:, generator.integers(0, 2, classes)])
        for name, power in reference.EVERY:
            scores = rules.combine(Products(rows), rules.find(name, power=power), views=views)
            if classes > 6 and name in ('mean', 'rms') and views == 'pooled':
                assert scores.in_logs != quick
            reference.check_ties(rules.likeliest(scores)[0], rows.logits)


def test_count_says_how_many_of_the_likeliest() -> None:
    rows = reference.random_rows([2, 3], 9, seed=1)
    scores = rules.combine(Products(rows), rules.find('mean'))
    labels, probabilities = rules.likeliest(scores, count=20)
    assert [sorted(row) for row in labels.tolist()] == [list(range(9))] * 2
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(rules.likeliest(scores, count=1)[0], labels[:, :1])


@pytest.mark.parametrize('name', ['', 'Product', 'sum', 'all'])
def test_an_unknown_rule_is_refused_with_the_list_of_those_there_are(name: str) -> None:
    known = 'mean, product, rms, median, power, max, first'
    with pytest.raises(InputError, match=f"unknown rule '{name}'; the rules are {known}$"):
        rules.find(name)


@pytest.mark.parametrize('power', [0, -1, 0.0009, 1001, math.inf, math.nan])
def test_a_power_that_float32_can_not_take_is_refused(power: float) -> None:
    with pytest.raises(InputError, match='power must be from 0.001 to 1000, is .*; beyond that, use product or max'):
        rules.find('power', power=power)
