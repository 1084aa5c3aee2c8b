"""The algebra of the rules: what must not matter to them, and which is a case or a limit of which."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from ensemble import rules
from ensemble.logits import Rows
from ensemble.rules import Block, Products, Rule, State
from tests.ensemble import reference
from tests.ensemble.reference import EVERY, random_rows

each_way = pytest.mark.parametrize('views', rules.VIEWS)
each_rule = pytest.mark.parametrize(('name', 'power'), EVERY)


def part(rows: Rows, chosen: np.ndarray) -> Rows:
    """The rows chosen, in that order."""
    return Rows(*(getattr(rows, name)[chosen] for name in ('product_id', 'image_index', 'view', 'label', 'logits')))


def log_shares(rows: Rows, name: str, *, power: float = rules.POWER, views: str = 'pooled') -> np.ndarray:
    """The logs of the probabilities [P, C]."""
    scores = rules.combine(Products(rows), rules.find(name, power=power), views=views)
    return rules.log_probabilities(scores).numpy()


@each_rule
@each_way
def test_rows_in_any_order_give_the_same_not_even_first_minds(name: str, power: float, views: str) -> None:
    rows = random_rows([6, 1, 4, 3] * 8, 9, seed=4, views=2)
    shuffled = np.lexsort((np.random.default_rng(5).random(len(rows)), rows.product_id))
    expected = log_shares(rows, name, power=power, views=views)
    np.testing.assert_array_equal(log_shares(part(rows, shuffled), name, power=power, views=views), expected)


@each_rule
@each_way
def test_which_picture_comes_first_matters_only_to_first(name: str, power: float, views: str) -> None:
    rows = random_rows([6, 1, 4, 3] * 8, 9, seed=4, views=2)
    expected = log_shares(rows, name, power=power, views=views)
    turned = dataclasses.replace(rows, image_index=3 - rows.image_index, view=1 - rows.view)
    found = log_shares(turned, name, power=power, views=views)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 + 1e-6 / power) == (name != 'first')


@each_rule
def test_every_row_twice_gives_the_same_but_for_product(name: str, power: float) -> None:
    rows = random_rows([1, 2, 3, 4, 5] * 5, 9, seed=5)
    again = dataclasses.replace(rows, view=rows.view + 1)
    twice = part(
        Rows.concatenate([rows, again]), np.repeat(np.arange(len(rows)), 2) + np.tile([0, len(rows)], len(rows))
    )
    found = log_shares(twice, name, power=power)
    if name == 'product':
        doubled = reference.shares(2 * log_shares(rows, name).astype(float))
        np.testing.assert_allclose(found, doubled, rtol=1e-5, atol=1e-4)
    else:
        np.testing.assert_allclose(found, log_shares(rows, name, power=power), rtol=1e-5, atol=1e-5 + 1e-6 / power)


@each_rule
@each_way
def test_classes_in_another_order_give_their_results_in_that_order(name: str, power: float, views: str) -> None:
    rows = random_rows([1, 2, 3, 4, 5] * 5, 19, seed=6, views=2)
    order = np.random.default_rng(7).permutation(19)
    found = log_shares(dataclasses.replace(rows, logits=rows.logits[:, order]), name, power=power, views=views)
    expected = log_shares(rows, name, power=power, views=views)[:, order]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 + 1e-6 / power)


@each_rule
@each_way
def test_a_constant_added_to_a_rows_logits_changes_nothing(name: str, power: float, views: str) -> None:
    rows = random_rows([1, 2, 3, 4, 5] * 5, 19, seed=8, views=2)
    quarters = np.round(4 * rows.logits) / 4  # so that float16 holds them exactly with any of these constants
    constants = np.random.default_rng(9).integers(-200, 200, size=(len(rows), 1))
    found, expected = (
        log_shares(dataclasses.replace(rows, logits=values.astype(np.float16)), name, power=power, views=views)
        for values in (quarters + constants, quarters)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5 + 1e-6 / power)


@pytest.mark.parametrize('power', [0.1, 0.01, 0.001])
def test_power_becomes_product_when_small(power: float) -> None:
    """Of n rows, the power mean is above the geometric one: by Hoeffding's lemma, at most by p R^2 / 8 in logs.

    R is how far apart a class's log probabilities are. The geometric mean is the n-th root of product's score.
    """
    rows = random_rows([1, 2, 3, 4] * 50, 30, seed=3)
    counts = np.bincount(rows.product_id)
    log_q = reference.log_softmax(rows.logits)
    starts = rows.starts()
    width = np.maximum.reduceat(log_q, starts) - np.minimum.reduceat(log_q, starts)
    geometric = np.add.reduceat(log_q, starts) / counts[:, None]
    scores = rules.combine(Products(rows), rules.find('power', power=power)).values.numpy()
    above = scores - np.log(counts)[:, None] / power - geometric
    limit = power * width**2 / 8
    rounding = 1e-5 + 1e-6 / power
    assert (above >= -rounding).all()
    assert (above <= limit + rounding).all()
    clear = np.sort(geometric)[:, -1] - np.sort(geometric)[:, -2] > limit.max(axis=1) + rounding
    assert clear.sum() > {0.1: 50, 0.01: 100, 0.001: 180}[power]
    product = rules.combine(Products(rows), rules.find('product')).values.numpy()
    np.testing.assert_array_equal(scores.argmax(axis=1)[clear], product.argmax(axis=1)[clear])


@pytest.mark.parametrize('power', [10, 100, 1000])
def test_power_becomes_max_when_large(power: float) -> None:
    """Of n rows, its score is above the highest probability, by at most log(n) / p in logs."""
    rows = random_rows([1, 2, 3, 4, 20] * 20, 30, seed=3)
    highest = rules.combine(Products(rows), rules.find('max')).values.numpy()
    above = rules.combine(Products(rows), rules.find('power', power=power)).values.numpy() - highest
    assert (above >= -1e-5).all()
    assert (above <= np.log(np.bincount(rows.product_id))[:, None] / power + 1e-5).all()
    assert power == 1000 or above.max() > 0.1 / power


@each_way
@pytest.mark.parametrize(('name', 'power'), [('mean', 1), ('rms', 2)])
@pytest.mark.parametrize('spread', [4, 100])
def test_power_1_is_mean_and_power_2_is_rms(name: str, power: float, spread: float, views: str) -> None:
    rows = random_rows([1, 2, 3, 4, 9] * 20, 30, seed=3, spread=spread, views=2)
    found, expected = log_shares(rows, 'power', power=power, views=views), log_shares(rows, name, views=views)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@each_rule
def test_nested_is_pooled_where_a_picture_has_one_view(name: str, power: float) -> None:
    rows = random_rows([1, 2, 3, 4] * 10, 9, seed=3)
    expected = log_shares(rows, name, power=power)
    np.testing.assert_array_equal(log_shares(rows, name, power=power, views='nested'), expected)
    # Nor does a product in two views beside them change that.
    beside = Rows.concatenate([rows, random_rows([4], 9, seed=1, views=2)])
    found = log_shares(beside, name, power=power, views='nested')[:-1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 + 1e-6 / power)


def test_nested_product_is_pooled_product() -> None:
    rows = random_rows([1, 2, 3, 4, 5, 40] * 5, 9, seed=3, views=2)
    found = log_shares(rows, 'product', views='nested')
    np.testing.assert_allclose(found, log_shares(rows, 'product'), rtol=1e-5, atol=1e-3)


def join(*states: State) -> State:
    """The rows of several states together, those of each product in order."""
    product = np.concatenate([state.product for state in states])
    order = np.argsort(product, kind='stable')
    return State(tf.gather(tf.concat([state.values for state in states], axis=0), order), product[order])


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(('name', 'power'), [*EVERY[:7], ('power', 3)])
def test_merging_parts_is_merging_all_at_once(name: str, power: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 9, size=12)
    rows = random_rows(counts.tolist(), 6, seed=seed)
    rule: Rule = rules.find(name, power=power)
    block = Block(tf.constant(rows.logits.astype(np.float32)), rows.product_id)
    state = State(rule.lift(block), block.product)
    expected = rule.compute(rule.merge(state)).numpy()

    def check(merged: State) -> None:
        np.testing.assert_allclose(rule.compute(merged).numpy(), expected, rtol=2e-5, atol=1e-5)

    # Each product is cut at two places of its own; a part may have no row of some products, or of none.
    cuts = np.sort(generator.integers(0, counts + 1, size=(2, 12)), axis=0)[:, rows.product_id]
    first, last = rows.image_index < cuts[0], rows.image_index >= cuts[1]
    parts = [State(tf.boolean_mask(state.values, chosen), state.product[chosen])
             for chosen in (first, ~first & ~last, last)]  # fmt: skip
    a, b, c = (rule.merge(one) for one in parts)
    check(rule.merge(join(rule.merge(join(a, b)), c)))
    check(rule.merge(join(a, rule.merge(join(b, c)))))
    empty = State(tf.zeros([0, 6]), np.zeros(0, np.int64))
    check(rule.merge(join(empty, state)))
    check(rule.merge(join(rule.merge(state), empty)))
    if name != 'first':
        check(rule.merge(join(c, b, a)))
