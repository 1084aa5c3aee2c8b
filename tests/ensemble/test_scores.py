"""Accuracies, differences, their intervals and tests, against what can be worked out otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ensemble import scores
from pipeline.categories import Categories

# Labels 0..3; 1 and 2 have one name at level 3 under the same parents, and 3 has it elsewhere.
LABEL_MAP = Categories(
    np.array([1000, 1010, 1020, 1030]), (('A', 'X', 'RUG'), ('A', 'Y', 'RUG'), ('A', 'Y', 'RUG'), ('B', 'Y', 'RUG'))
)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def right(count: int, of: int) -> np.ndarray:
    return np.arange(of) < count


def pair(better: int, worse: int, of: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rules of which one has `better` products right that the other has wrong, and the other `worse`."""
    numbers = np.arange(of)
    return numbers < better, (better <= numbers) & (numbers < better + worse)


@pytest.mark.parametrize(
    ('count', 'of', 'low', 'high'),
    [
        (1, 2, 0.0, 1.0),  # none or both of two draws: a quarter of all cases each
        (50, 100, 0.40, 0.60),  # P(at most 39) = 0.018, P(at most 40) = 0.028
        (1, 20, 0.0, 0.15),  # P(0) = 0.358, P(at most 2) = 0.925, P(at most 3) = 0.984
        (19, 20, 0.85, 1.0),
        (20, 20, 1.0, 1.0),
        (0, 20, 0.0, 0.0),
    ],
)
def test_an_interval_has_the_middle_of_the_binomial_distribution(count: int, of: int, low: float, high: float) -> None:
    score = scores.accuracy(right(count, of))
    assert score == scores.Score(count / of, low, high, of)


def test_an_interval_is_that_of_products_drawn_with_replacement() -> None:
    correct = right(37, 50)
    drawn = correct[np.random.default_rng(7).integers(50, size=(40_000, 50))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    score = scores.accuracy(correct)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-9)


def test_a_gain_is_that_of_products_drawn_with_both_predictions() -> None:
    one, other = pair(14, 5, 60)
    places = np.random.default_rng(7).integers(60, size=(40_000, 60))
    low, high = np.quantile(one[places].mean(axis=1) - other[places].mean(axis=1), [0.025, 0.975])
    score = scores.gain(one, over=other)
    assert (score.value, score.count) == (9 / 60, 60)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-9)


def test_an_interval_of_many_products_is_the_normal_one() -> None:
    one, other = pair(30_000, 20_000, 700_000)
    score, difference = scores.accuracy(one | other), scores.gain(one, over=other)
    # 1.96 times the deviation of one product, by the root of how many: variances 1/14 x 13/14 and 1/14 - (1/70)^2.
    half = 1.96 * math.sqrt(1 / 14 * 13 / 14 / 700_000)
    assert (score.value - score.low, score.high - score.value) == pytest.approx((half, half), rel=0.03)
    half = 1.96 * math.sqrt((1 / 14 - 1 / 4900) / 700_000)
    ends = difference.value - difference.low, difference.high - difference.value
    assert ends == pytest.approx((half, half), rel=0.03)


def test_a_seed_gives_the_same_interval_and_another_one_about_the_same() -> None:
    correct = right(7_123, 10_000)
    assert scores.accuracy(correct) == scores.accuracy(correct)
    first, second = scores.accuracy(correct), scores.accuracy(correct, seed=1)
    assert first != second
    assert first.high - first.low == pytest.approx(second.high - second.low, rel=0.05)


def test_a_rule_gains_nothing_over_itself() -> None:
    correct = right(3, 8)
    assert scores.gain(correct, over=correct) == scores.Score(0.0, 0.0, 0.0, 8)
    assert scores.p_value(correct, correct) == 1.0


def test_of_no_products_there_is_no_score() -> None:
    none = np.zeros(0, bool)
    for score in (scores.accuracy(none), scores.gain(none, over=none)):
        assert score.count == 0 and all(math.isnan(value) for value in (score.value, score.low, score.high))
    assert scores.p_value(none, none) == 1.0


@pytest.mark.parametrize(
    ('better', 'worse', 'probability'),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (2, 0, 1 / 2),
        (10, 0, 2 / 1024),
        (3, 1, 2 * (1 + 4) / 16),
        (1, 3, 2 * (1 + 4) / 16),
        (2, 1, 1.0),  # 2 (1 + 3) / 8
        (5, 5, 1.0),
        (7, 2, 2 * (1 + 9 + 36) / 512),
        (340, 260, 2 * sum(math.comb(600, fewer) for fewer in range(261)) / 2**600),
        (900, 100, 2 * sum(math.comb(1000, fewer) for fewer in range(101)) / 2**1000),
    ],
)
def test_the_test_is_mcnemars_exact_one(better: int, worse: int, probability: float) -> None:
    assert scores.p_value(*pair(better, worse, 1_100)) == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize(('better', 'worse'), [(176_000, 174_000), (174_000, 176_000), (175_001, 175_000)])
def test_of_many_products_the_test_is_the_normal_one(better: int, worse: int) -> None:
    deviations = (abs(better - worse) - 1) / math.sqrt(better + worse)  # 1 for the step from a number to the next
    expected = math.erfc(deviations / math.sqrt(2))
    assert scores.p_value(*pair(better, worse, 700_000)) == pytest.approx(expected, rel=1e-3)


def test_what_is_beyond_doubt_has_probability_0() -> None:
    assert scores.p_value(*pair(350_000, 0, 350_000)) == 0.0


def test_a_level_is_right_only_under_the_right_parents() -> None:
    found = scores.right_by_level(ids(1000, 1010, 1020, 1030), ids(1000, 1000, 1010, 1000), LABEL_MAP)
    assert found.tolist() == [[True, True, True, False], [True, False, True, False], [True, False, True, False]]


def test_the_true_category_may_be_anywhere_among_the_likeliest() -> None:
    likeliest = np.array([[1000, 1010], [1010, 1000], [1020, 1030]])
    assert scores.among_likeliest(likeliest, ids(1000, 1000, 1000)).tolist() == [True, True, False]


def test_a_score_is_printed_with_its_interval() -> None:
    score = scores.Score(0.71234, 0.7, 0.725, 12345)
    assert str(score) == '0.7123 (95 % interval 0.7000 to 0.7250, 12,345 products)'


def test_a_gain_over_several_seeds_is_that_of_rows_and_columns_drawn() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.random((3, 40)) < 0.7, generator.random((3, 40)) < 0.5
    difference = one.astype(np.int64) - other.astype(np.int64)
    rows, columns = generator.integers(3, size=(20_000, 3, 1)), generator.integers(40, size=(20_000, 1, 40))
    low, high = np.quantile(difference[rows, columns].mean(axis=(1, 2)), [0.025, 0.975])
    score = scores.gain_over_seeds(one, other)
    assert (score.value, score.count) == (pytest.approx(difference.mean()), 40)
    assert (score.low, score.high) == pytest.approx((low, high), abs=0.01)


def test_over_one_seed_a_gain_is_that_of_the_products() -> None:
    one, other = pair(14, 5, 60)
    score = scores.gain_over_seeds(one[None], other[None])
    alone = scores.gain(one, over=other)
    assert score.value == pytest.approx(alone.value)
    assert (score.low, score.high) == pytest.approx((alone.low, alone.high), abs=1 / 60)


def test_where_all_products_agree_the_interval_is_that_of_the_seeds() -> None:
    """Gains of 0, 0 and 1 by three seeds: a draw of three has k ones with probability (8, 12, 6, 1) / 27."""
    one, none = np.array([[False], [False], [True]]).repeat(5, axis=1), np.zeros((3, 5), bool)
    score = scores.gain_over_seeds(one, none)
    assert (score.value, score.low, score.high) == (pytest.approx(1 / 3), 0.0, 1.0)
    assert scores.gain_over_seeds(none, none) == scores.Score(0.0, 0.0, 0.0, 5)


def test_the_interval_of_a_gain_over_seeds_holds_the_truth_as_often_as_it_says() -> None:
    """Every product is right by chance in every seed, 0.6 and 0.5: 95 of 100 at least, as no seed is better."""
    held, widths = 0, []
    for number in range(60):
        generator = np.random.default_rng(number)
        one, other = generator.random((3, 300)) < 0.6, generator.random((3, 300)) < 0.5
        score = scores.gain_over_seeds(one, other, seed=number)
        held += score.low <= 0.1 <= score.high
        widths.append(score.high - score.low)
    assert held >= 55
    # 900 pairs drawn, 2 * 1.96 * 0.7 / 30 = 0.091: this too counts what differs by chance as of products and of seeds.
    assert 0.1 < np.mean(widths) < 0.17


def test_where_seeds_differ_on_the_whole_three_are_too_few_for_the_interval() -> None:
    """Much more by the seed than by the product: it holds the truth in some 75 of 100 cases, as is told."""
    held = 0
    for number in range(100):
        generator = np.random.default_rng(number)
        one, other = (generator.random((3, 1000)) < generator.normal(mean, 0.1, (3, 1)) for mean in (0.6, 0.5))
        score = scores.gain_over_seeds(one, other, seed=number)
        held += score.low <= 0.1 <= score.high
    assert 65 <= held <= 90


def test_of_no_products_there_is_no_gain_over_seeds() -> None:
    assert math.isnan(scores.gain_over_seeds(np.zeros((3, 0), bool), np.zeros((3, 0), bool)).value)
