"""The rules of the served model: against float64, and against rules.py, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ensemble import graph_rules, rules
from ensemble.logits import Rows
from pipeline.errors import InputError
from tests.ensemble import reference

SPECIAL = {name: values for name, values in reference.ADVERSARIAL.items() if len(values) <= 4}


def answer(rows: Rows, name: str, power: float, *, gaps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, in a graph; with `gaps`, no product's first place has a picture."""
    starts = rows.starts()
    counts = np.diff(starts, append=len(rows))
    places = np.concatenate([np.arange(count) for count in counts]) * (1 + gaps) + gaps
    padded = np.full((len(starts), places.max() + 1, rows.logits.shape[1]), np.nan, np.float32)
    product = np.repeat(np.arange(len(starts)), counts)
    padded[product, places] = rows.logits

    @tf.function(input_signature=[tf.TensorSpec([None, None, padded.shape[2]])])
    def run(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        present = ~tf.reduce_all(tf.math.is_nan(logits), axis=2)
        logits = tf.where(tf.math.is_nan(logits), 0.0, logits)
        return graph_rules.likeliest(graph_rules.log_scores(logits, present, rule=name, power=power))

    labels, probabilities = run(padded)
    return labels.numpy(), probabilities.numpy()


def check(rows: Rows, name: str, power: float, *, gaps: bool = False) -> None:
    """Holds a rule to its definition in float64, and to rules.py."""
    labels, probabilities = answer(rows, name, power, gaps=gaps)
    expected = reference.log_probabilities(rows, name, power=power)
    reference.check(labels, probabilities, expected, reference.tolerance(rows, name, power))
    reference.check_ties(labels, rows.logits)
    theirs = rules.likeliest(rules.combine(rules.Products(rows), rules.find(name, power=power)))
    np.testing.assert_allclose(probabilities, theirs[1], rtol=1e-5 + 2e-6 / power, atol=1e-30)
    differ = labels != theirs[0]
    ours, others = (np.take_along_axis(expected, one, axis=1)[differ] for one in (labels, theirs[0]))
    np.testing.assert_allclose(ours, others, atol=reference.tolerance(rows, name, power))


@pytest.mark.parametrize('classes', [1, 3, 5, 21, 83])
@pytest.mark.parametrize(('name', 'power'), reference.EVERY)
def test_each_rule_gives_what_rules_py_gives(name, power, classes):
    counts = np.random.default_rng(1).integers(1, 5, size=60).tolist()
    check(reference.random_rows(counts, classes, seed=classes), name, power)


@pytest.mark.parametrize('pictures', [1, 2, 3])
@pytest.mark.parametrize(('name', 'power'), reference.EVERY)
def test_equal_classes_stand_in_order(name, power, pictures):
    """At the end of a tensor too, where TensorFlow's exp and log may give other last bits: so product by product."""
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(pictures, 7)).astype(np.float16)
        logits = np.tile(values, 5)[:, :29]  # each class has three or four of its like
        shape = [1, pictures]
        scores = graph_rules.log_scores(
            logits[None].astype(np.float32), tf.ones(shape, tf.bool), rule=name, power=power
        )
        labels, probabilities = graph_rules.likeliest(scores, count=29)
        reference.check_ties(labels.numpy(), logits)
        assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize('case', SPECIAL)
@pytest.mark.parametrize(('name', 'power'), reference.EVERY)
def test_sure_and_ruled_out_classes_are_no_trouble(name, power, case):
    check(reference.rows_of(SPECIAL[case]), name, power)


@pytest.mark.parametrize('name', rules.names())
def test_places_without_a_picture_change_nothing(name):
    check(reference.random_rows([1, 2, 3, 4, 1], 9, seed=3), name, rules.POWER, gaps=True)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="unknown rule 'best'"):
        graph_rules.log_scores(tf.zeros([1, 1, 2]), tf.ones([1, 1], tf.bool), rule='best')
