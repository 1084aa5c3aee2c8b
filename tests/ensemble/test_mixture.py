"""Several models' logits of the same products: against float64, and against the single model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from ensemble import rules
from ensemble.logits import Rows
from ensemble.mixture import ACROSS, Mixture, Models
from ensemble.rules import Products
from pipeline.errors import InputError
from tests.ensemble import reference
from tests.ensemble.reference import random_rows

COUNTS = [1, 2, 3, 4, 7] * 6
each_mean = pytest.mark.parametrize('across', ACROSS)
each_way = pytest.mark.parametrize('views', rules.VIEWS)
each_rule = pytest.mark.parametrize('rule', rules.names())


def expected(models: Sequence[Rows], mixture: Mixture) -> np.ndarray:
    """The reference's log probabilities [P, C]."""
    each = [
        reference.log_probabilities(rows, mixture.rule, power=mixture.power, views=mixture.views) for rows in models
    ]
    used = [(logs, weight) for logs, weight in zip(each, mixture.weights, strict=True) if weight]
    if mixture.across == 'geometric':
        mean = np.sum([weight * logs for logs, weight in used], axis=0) / sum(mixture.weights)
        return reference.shares(mixture.sharpness * mean)
    return reference.shares(reference.log_sum(np.stack([np.log(weight) + logs for logs, weight in used]), 0)[0])


def check(models: Sequence[Rows], mixture: Mixture, *, tolerance: float = 1e-4) -> None:
    found = rules.likeliest(Models([Products(rows) for rows in models]).scores(mixture))
    reference.check(*found, expected(models, mixture), tolerance)


@each_mean
@each_way
@each_rule
def test_the_mean_over_models_agrees_with_float64(rule: str, views: str, across: str) -> None:
    models = [random_rows(COUNTS, 21, seed=seed, views=2) for seed in range(3)]
    check(models, Mixture(rule, views=views, weights=(1, 2.5, 0.25), across=across))


@pytest.mark.parametrize('sharpness', [0.1, 1, 3])
def test_a_geometric_mean_may_be_sharper(sharpness: float) -> None:
    models = [random_rows(COUNTS, 21, seed=seed) for seed in range(3)]
    check(models, Mixture(weights=(1, 2.5, 0.25), across='geometric', sharpness=sharpness))


@each_mean
def test_by_hand(across: str) -> None:
    models = [reference.rows_of(np.log([row])) for row in ([8, 4, 4], [1, 8, 7])]
    labels, probabilities = rules.likeliest(
        Models([Products(rows) for rows in models]).scores(Mixture(weights=(1, 3), across=across))
    )
    # One part of (8, 4, 4) to three of (1, 8, 7): 11, 28, 25 of 64; or roots of 8, 2048, 1372: 1.6818, 6.7272, 6.0861.
    highest = {'arithmetic': 28 / 64, 'geometric': 6.7272 / 14.4951}[across]
    assert (labels.tolist(), probabilities[0, 0]) == ([[1, 2, 0]], pytest.approx(highest, rel=2e-3))


@each_mean
@each_rule
def test_models_may_have_other_numbers_of_views(rule: str, across: str) -> None:
    counts = np.array([1, 3, 2, 4] * 5)
    models = [random_rows((counts * views).tolist(), 9, seed=views, views=views) for views in (1, 5)]
    for views in rules.VIEWS:
        check(models, Mixture(rule, views=views, weights=(2, 1), across=across))


@each_mean
@pytest.mark.parametrize('spread', [100, 20000])
def test_nothing_underflows(spread: float, across: str) -> None:
    models = [random_rows(COUNTS, 9, seed=seed, spread=spread) for seed in range(2)]
    check(models, Mixture('product', weights=(1, 1e-6), across=across), tolerance=1e-6 * spread * max(COUNTS))


@each_mean
@each_rule
def test_models_that_rule_out_one_anothers_classes_leave_no_nan(rule: str, across: str) -> None:
    out = -math.inf
    first, second = np.array([[0, 1, out, 3]] * 2), np.array([[out, out, 0, out]] * 2)
    for values in (second, second[:, ::-1]):
        check([reference.rows_of(first), reference.rows_of(values)], Mixture(rule, weights=(1, 1), across=across))


@each_mean
@each_way
@each_rule
def test_equal_models_are_the_single_one(rule: str, views: str, across: str) -> None:
    rows = random_rows(COUNTS, 21, seed=1, views=2)
    labels, probabilities = rules.likeliest(Models([Products(rows)]).scores(Mixture(rule, views=views)))
    mixture = Mixture(rule, views=views, weights=(1, 3, 0.1), across=across)
    found, shares = rules.likeliest(Models([Products(rows)] * 3).scores(mixture))
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(shares, probabilities, rtol=1e-4)


@each_mean
def test_a_model_of_weight_0_is_left_out(across: str) -> None:
    model, other = (Products(random_rows(COUNTS, 21, seed=seed)) for seed in (1, 2))
    _, probabilities = rules.likeliest(Models([model]).scores(Mixture('mean')))
    for models, weights in (([model, other], (0.3, 0)), ([other, model], (0, 7))):
        found = rules.likeliest(Models(models).scores(Mixture('mean', weights=weights, across=across)))[1]
        np.testing.assert_allclose(found, probabilities, rtol=1e-5)
    # Not even what it rules out counts.
    none = Products(reference.rows_of(np.full((1, 3), [[-math.inf, -math.inf, 0]])))
    some = Products(reference.rows_of(np.array([[1, 2, -math.inf]])))
    scores = Models([none, some]).scores(Mixture(weights=(0, 1), across=across))
    assert rules.likeliest(scores)[0].tolist() == [[1, 0, 2]]


@each_mean
def test_only_the_proportion_of_the_weights_counts(across: str) -> None:
    models = Models([Products(random_rows(COUNTS, 21, seed=seed)) for seed in (1, 2)])
    few, many = (
        rules.likeliest(models.scores(Mixture(weights=weights, across=across))) for weights in ((1, 3), (1e4, 3e4))
    )
    np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_allclose(few[1], many[1], rtol=1e-4)


@each_mean
@each_rule
@pytest.mark.parametrize('spread', [2, 400])
def test_classes_that_are_alike_stand_in_order_of_their_labels(spread: float, rule: str, across: str) -> None:
    generator = np.random.default_rng(6)
    for classes in [3, 5, 6, 7, 9, 15, 17, 23] * 8:
        place = generator.integers(0, 2, classes)
        two = [random_rows([2], 2, seed=seed, spread=spread) for seed in generator.integers(0, 999, 3)]
        models = [dataclasses.replace(rows, logits=rows.logits[:, place]) for rows in two]
        scores = Models([Products(rows) for rows in models]).scores(Mixture(rule, weights=(1, 1, 1), across=across))
        reference.check_ties(rules.likeliest(scores)[0], models[0].logits)


def test_several_mixtures_of_the_same_models_do_not_disturb_one_another() -> None:
    rows = [random_rows(COUNTS, 9, seed=seed, views=2) for seed in (1, 2)]
    models = Models([Products(one) for one in rows])
    for rule, power in reference.EVERY:
        for views in rules.VIEWS:
            mixture = Mixture(rule, power=power, views=views, weights=(1, 2))
            found = rules.likeliest(models.scores(mixture))
            reference.check(*found, expected(rows, mixture), 1e-4 + 1e-6 / power)


@each_way
@pytest.mark.parametrize('power', [0.001, 3])
def test_a_single_model_is_the_rule_alone_whatever_its_weight(power: float, views: str) -> None:
    products = Products(random_rows(COUNTS, 9, seed=1, views=2))
    mixture = Mixture('power', power=power, views=views, weights=(0.3,))
    found = Models([products]).scores(mixture).values
    alone = rules.combine(products, rules.find('power', power=power), views=views).values
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize(
    ('weights', 'said'),
    [
        ((1.0, -0.5), '1,-0.5'),
        ((math.nan, 1.0), 'nan,1'),
        ((math.inf, 1.0), 'inf,1'),
        ((0.0, 0.0), '0,0'),
        ((), ''),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(InputError, match=f'weights must be 0 or more, and one of them above 0; they are {said}$'):
        Mixture(weights=weights)


@pytest.mark.parametrize('weights', [(1,), (1, 1, 1)])
def test_there_is_a_weight_for_each_model(weights: tuple[float, ...]) -> None:
    products = Products(random_rows([1, 2], 3, seed=1))
    with pytest.raises(ValueError, match=f'{len(weights)} weights for 2 models'):
        Models([products, products]).scores(Mixture(weights=weights))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rule': 'sum'}, "unknown rule 'sum'"),
        ({'rule': 'power', 'power': 0.0}, 'power must be from'),
        ({'views': 'both'}, "views must be pooled or nested, is 'both'"),
        ({'sharpness': 0.0}, 'sharpness must be above 0, is 0'),
        ({'sharpness': math.nan}, 'sharpness must be above 0, is nan'),
        ({'across': 'median'}, "across must be arithmetic or geometric, is 'median'"),
    ],
)
def test_what_is_no_option_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixture(**options)
