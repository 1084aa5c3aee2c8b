"""The rules: against tables worked out by hand, against float64, and against the law of reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tensorflow as tf

from ensemble import rules
from ensemble.logits import Rows
from ensemble.rules import Rule, State
from pipeline.errors import InputError

A, B, C = 0, 1, 2
NO_TIES = 1e-4  # float32 decides between scores that differ by less at random

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


def one_product(values: np.ndarray) -> Rows:
    """Logits [k, C] as the pictures of one product."""
    index = np.arange(len(values))
    return Rows(index * 0 + 7, index, index * 0, index * 0 - 1, values.astype(np.float16))


def random_rows(counts: Sequence[int], classes: int, *, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    product = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    values = generator.normal(scale=4, size=(len(product), classes)).astype(np.float16)
    return Rows(product, index, product * 0, product % classes, values)


def reference(values: np.ndarray, rule: str, *, power: float = 0.1) -> np.ndarray:
    """Normalised log scores float64 [C] of one product's logits [k, C], in log space throughout."""

    def log_sum(array: np.ndarray, axis: int) -> np.ndarray:
        return np.logaddexp.reduce(array, axis=axis, keepdims=True)

    log_q = values.astype(float) - log_sum(values.astype(float), 1)
    ordered = np.sort(log_q, axis=0)
    middle = ordered[[(len(values) - 1) // 2, len(values) // 2]]
    scores = {
        'mean': log_sum(log_q, 0)[0],
        'product': log_q.sum(axis=0),
        'rms': log_sum(2 * log_q, 0)[0] / 2,
        'median': log_sum(middle, 0)[0],
        'power': log_sum(power * log_q, 0)[0] / power,
        'max': ordered[-1],
        'first': log_q[0],
    }[rule]
    return scores - log_sum(scores, 0)


def check_against_reference(rows: Rows, *, power: float = 0.1) -> None:
    names = rules.names()
    found = rules.predict(rows, [rules.find(name, power=power) for name in names])
    assert found.prediction.shape == found.probability.shape == (7, len(found.product_id))
    for place, product in enumerate(found.product_id):
        values = rows.logits[rows.product_id == product]
        for row, name in enumerate(names):
            expected = reference(values, name, power=power)
            winner = found.prediction[row, place]
            assert expected[winner] > expected.max() - NO_TIES, (name, product)
            assert found.probability[row, place] == pytest.approx(math.exp(expected.max()), rel=2e-4), (name, product)


@pytest.mark.parametrize(('rule', 'pictures', 'winner', 'probability'), TABLE)
def test_each_rule_gives_what_is_worked_out_by_hand(
    make_rows: Callable[..., Rows], rule: str, pictures: list, winner: int, probability: float
) -> None:
    found = rules.predict(make_rows([(7, 0, pictures)]), [rules.find(rule)])
    assert found.prediction.tolist() == [[winner]]
    # Logits in float16 are rounded to 1/2048 of their size, so the probabilities to about 1/1000 of theirs.
    assert found.probability[0, 0] == pytest.approx(probability, rel=2e-3)


@pytest.mark.parametrize('rule', rules.names())
def test_of_one_picture_every_rule_gives_its_probabilities(make_rows: Callable[..., Rows], rule: str) -> None:
    found = rules.predict(make_rows([(7, 2, [(2, 5, 9)])]), [rules.find(rule)])
    assert (found.prediction[0, 0], found.probability[0, 0]) == (C, pytest.approx(9 / 16, rel=1e-3))


def test_each_product_is_reduced_by_itself_in_the_order_given(make_rows: Callable[..., Rows]) -> None:
    rows = make_rows([(9, 2, [(1, 2, 5)]), (4, 1, THREE), (6, 0, TWO), (5, 0, [(5, 2, 1)])])
    found = rules.predict(rows, [rules.find('max'), rules.find('product')])
    assert found.product_id.tolist() == [9, 4, 6, 5]
    assert found.label.tolist() == [2, 1, 0, 0]
    assert found.pictures.tolist() == [1, 3, 2, 1]
    assert found.prediction.tolist() == [[C, A, A, A], [C, B, B, A]]
    assert (found.prediction.dtype, found.probability.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize('classes', [1, 2, 50])
def test_random_logits_agree_with_float64(classes: int) -> None:
    check_against_reference(random_rows([1, 2, 3, 4, 5, 20, 1, 80, 2, 2, 7], classes, seed=classes))


@pytest.mark.parametrize('power', [0.001, 0.1, 1, 3, 1000])
def test_every_power_agrees_with_float64(power: float) -> None:
    rows = random_rows([1, 2, 3, 4] * 5, 20, seed=1)
    found = rules.predict(rows, [rules.find('power', power=power)])
    for place in range(20):
        expected = reference(rows.logits[rows.product_id == place], 'power', power=power)
        # A sum of k powers is rounded to 6e-8 of itself, which its root magnifies by 1 / power.
        assert found.probability[0, place] == pytest.approx(math.exp(expected.max()), rel=1e-4 + 1e-6 / power)
        assert expected[found.prediction[0, place]] > expected.max() - NO_TIES - 1e-6 / power


def spikes(*labels: int, height: float, classes: int = 6) -> np.ndarray:
    """One picture for each label, sure of it by `height`."""
    return np.where(np.arange(classes) == np.array(labels)[:, np.newaxis], 0.0, -height)


ADVERSARIAL = {
    'one sure picture': spikes(3, height=1000),
    'sure and agreed': spikes(3, 3, 3, height=1000),
    'sure and opposed': spikes(4, 2, height=1000),
    'two against one': spikes(4, 2, 4, height=1000),
    'all differ': spikes(5, 4, 3, 2, height=1000),
    'as far apart as float16 allows': spikes(5, 1, 1, height=60000) + 5000,
    'all equal': np.full((3, 6), 17.0),
    'all zero': np.zeros((4, 6)),
    'a class out of the question once': np.array([[0.0, 1, 2, 3, 4, -1000], [0, 1, 2, 3, -1000, 5]]),
    'four pictures of twenty views, all sure': spikes(*[2, 3, 2, 4] * 20, height=1000),
    'eighty views that know next to nothing': np.tile(np.array([[0.0, 0.01, 0, 0, 0, 0]]), (80, 1)),
}


@pytest.mark.parametrize('case', ADVERSARIAL)
def test_adversarial_logits_agree_with_float64(case: str) -> None:
    check_against_reference(one_product(ADVERSARIAL[case]))


@pytest.mark.parametrize(
    ('case', 'rule', 'winner', 'probability'),
    [
        ('sure and opposed', 'product', 2, 1 / 2),  # both were named once: the lower label
        ('two against one', 'product', 4, 1),
        ('two against one', 'mean', 4, 2 / 3),
        ('all differ', 'product', 2, 1 / 4),  # every probability is below exp(-2000)
        ('all differ', 'median', 0, 1 / 6),  # each is 0 to three pictures: the median is exp(-1000) for all
        ('all equal', 'rms', 0, 1 / 6),
        ('four pictures of twenty views, all sure', 'product', 2, 1),  # by exp(20 * 1000) over 3 and 4
        ('four pictures of twenty views, all sure', 'max', 2, 1 / 3),
        ('four pictures of twenty views, all sure', 'first', 2, 1),
        ('eighty views that know next to nothing', 'product', 1, math.exp(0.8) / (math.exp(0.8) + 5)),
    ],
)
def test_nothing_underflows_and_the_lowest_label_wins_a_tie(
    case: str, rule: str, winner: int, probability: float
) -> None:
    found = rules.predict(one_product(ADVERSARIAL[case]), [rules.find(rule)])
    assert found.prediction[0, 0] == winner
    assert found.probability[0, 0] == pytest.approx(probability, rel=1e-3)


def test_power_becomes_product_when_small_and_max_when_large() -> None:
    rows = random_rows([1, 2, 3, 4] * 100, 30, seed=3)
    names, powers = ('product', 'max'), rules.POWER_RANGE
    limits = rules.predict(rows, [rules.find(name) for name in names]).prediction
    found = rules.predict(rows, [rules.find('power', power=power) for power in powers]).prediction
    for row, name in enumerate(names):
        clear = []
        for product in range(400):
            first, second = np.sort(reference(rows.logits[rows.product_id == product], name))[:-3:-1]
            clear.append(first - second > 0.2)  # at 0.001 the limit is reached only up to about 0.05
        assert sum(clear) > 200
        np.testing.assert_array_equal(found[row][clear], limits[row][clear])


@pytest.mark.parametrize(
    ('power', 'winner', 'probability'),
    [
        (0.001, B, 270 ** (1 / 3) / (48 ** (1 / 3) + 270 ** (1 / 3) + 12 ** (1 / 3))),  # the geometric mean
        (1, B, 22 / 48),  # the mean
        (2, B, 13.784 / 32.876),  # rms
        (1000, A, 12 / 28),  # max
    ],
)
def test_power_means_of_known_exponents(
    make_rows: Callable[..., Rows], power: float, winner: int, probability: float
) -> None:
    found = rules.predict(make_rows([(7, 0, THREE)]), [rules.find('power', power=power)])
    assert found.prediction[0, 0] == winner
    assert found.probability[0, 0] == pytest.approx(probability, rel=3e-3)


def test_the_order_of_a_products_rows_does_not_matter_not_even_to_first() -> None:
    rows = random_rows([4] * 30, 9, seed=4)
    view, picture = rows.image_index % 2, rows.image_index // 2  # two pictures in two views
    rows = Rows(rows.product_id, picture, view, rows.label, rows.logits)
    generator = np.random.default_rng(5)
    order = np.concatenate([generator.permutation(4) + 4 * product for product in range(30)])
    shuffled = Rows(rows.product_id, picture[order], view[order], rows.label, rows.logits[order])
    chosen = [rules.find(name) for name in rules.names()]
    expected, found = rules.predict(rows, chosen), rules.predict(shuffled, chosen)
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    np.testing.assert_array_equal(found.pictures, [2] * 30)
    np.testing.assert_allclose(found.probability, expected.probability, rtol=1e-5)


def join(*states: State) -> State:
    """The rows of several states together, those of each product in order."""
    product = np.concatenate([state.product for state in states])
    order = np.argsort(product, kind='stable')
    return State(tf.gather(tf.concat([state.values for state in states], axis=0), order), product[order])


def part(state: State, chosen: np.ndarray) -> State:
    return State(tf.boolean_mask(state.values, chosen), state.product[chosen])


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('name', rules.names())
def test_merging_parts_is_merging_all_at_once(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 9, size=12)
    rows = random_rows(counts.tolist(), 6, seed=seed)
    rule: Rule = rules.find(name)
    block = rules.Block(rows)
    state = State(rule.lift(block), block.product)
    expected = rule.compute(rule.merge(state)).numpy()

    def check(merged: State) -> None:
        np.testing.assert_allclose(rule.compute(merged).numpy(), expected, rtol=2e-5, atol=1e-7)

    # Each product is cut at two places of its own; a part may have no row of some products, or of none.
    cuts = np.sort(generator.integers(0, counts + 1, size=(2, 12)), axis=0)[:, rows.product_id]
    first, last = rows.image_index < cuts[0], rows.image_index >= cuts[1]
    a, b, c = (rule.merge(part(state, chosen)) for chosen in (first, ~first & ~last, last))
    check(rule.merge(join(rule.merge(join(a, b)), c)))
    check(rule.merge(join(a, rule.merge(join(b, c)))))
    empty = State(tf.zeros([0, 6]), np.zeros(0, np.int64))
    check(rule.merge(join(empty, state)))
    check(rule.merge(join(rule.merge(state), empty)))
    if name != 'first':
        check(rule.merge(join(c, b, a)))


@pytest.mark.parametrize('name', ['', 'Product', 'sum', 'all'])
def test_an_unknown_rule_is_refused_with_the_list_of_those_there_are(name: str) -> None:
    known = 'mean, product, rms, median, power, max, first'
    with pytest.raises(InputError, match=f"unknown rule '{name}'; the rules are {known}$"):
        rules.find(name)


@pytest.mark.parametrize('power', [0, -1, 0.0009, 1001, math.inf, math.nan])
def test_a_power_that_float32_can_not_take_is_refused(power: float) -> None:
    with pytest.raises(InputError, match='power must be from 0.001 to 1000, is .*; beyond that, use product or max'):
        rules.find('power', power=power)


def test_predictions_of_several_blocks_are_put_together(make_rows: Callable[..., Rows]) -> None:
    chosen = [rules.find('max'), rules.find('first')]
    parts = [rules.predict(make_rows([(product, 1, THREE)]), chosen) for product in (3, 1)]
    both = rules.Predictions.concatenate(parts)
    assert both.product_id.tolist() == [3, 1]
    assert both.prediction.tolist() == [[A, A], [A, A]]
    assert both.probability.shape == (2, 2)
