"""The rules by TensorFlow's own operations alone, for a model that is served: what rules.py says of a few pictures.

A product's pictures are rows of one padded tensor here, so each rule is a reduction over an axis; rules.py, for whole
stores, has the products' rows one after the other, and numpy where it is faster. tests/ensemble/test_graph_rules.py
holds the two together. Scores of mean and rms may differ in the last bits, which here always go through logs.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from ensemble import rules
from ensemble.rules import LOWEST

PACKET = 16  # values that a processor's widest instructions take at a time


def log_scores(logits: Any, present: Any, *, rule: str, power: float = rules.POWER) -> Any:
    """The logs of the products' scores by a rule, up to a constant for each product.

    Args:
        logits: float32 [P, K, C].
        present: bool [P, K], where a product has a picture; at least one each.
        rule: one of rules.names().
        power: the exponent of the rule power.

    Returns:
        float32 [P, C].

    Raises:
        InputError: there is no such rule, or the exponent is out of its range.
    """
    rules.find(rule, power=power)
    some = present[..., None]
    if rule == 'product':
        return tf.reduce_sum(tf.where(some, logits, 0), axis=1)
    if rule == 'first':
        return tf.gather(logits, tf.argmax(tf.cast(present, tf.int32), axis=1), axis=1, batch_dims=1)
    logs = _log_probabilities(logits)
    if rule == 'max':
        return tf.reduce_max(tf.where(some, logs, -math.inf), axis=1)
    if rule == 'median':
        return _median(tf.where(some, logs, math.inf), tf.reduce_sum(tf.cast(present, tf.int32), axis=1))
    exponent = {'mean': 1.0, 'rms': 2.0, 'power': power}[rule]
    raised = tf.where(some, exponent * logs, -math.inf)
    highest = tf.maximum(tf.reduce_max(raised, axis=1), LOWEST)
    sums = tf.reduce_sum(_exp(raised - highest[:, None]), axis=1)
    return (highest + _log(sums)) / exponent


def likeliest(scores: Any, *, count: int = rules.LIKELIEST) -> tuple[Any, Any]:
    """The classes with the highest scores, as rules.likeliest().

    Args:
        scores: logs, float32 [P, C].
        count: how many; all, if there are fewer.

    Returns:
        labels int32 [P, k] and probabilities float32 [P, k], the best first, equal ones in order of their labels.
    """
    scores = tf.maximum(scores, LOWEST)
    found, labels = tf.math.top_k(scores, min(count, scores.shape[-1]))
    best = tf.reduce_max(tf.nn.softmax(scores), axis=1, keepdims=True)
    return labels, best * _exp(found - found[:, :1])


def _log_probabilities(logits: Any) -> Any:
    """By the likeliest class, so that equal logits stay equal; a row of nothing but -inf has no probability for any."""
    sums = tf.reduce_max(logits, axis=-1) - tf.math.log(tf.reduce_max(tf.nn.softmax(logits), axis=-1))
    return logits - tf.where(tf.math.is_finite(sums), sums, 0)[..., None]


def _median(logs: Any, counts: Any) -> Any:
    """The logs of the medians: float32 [P, K, C], inf where there is no picture, and int32 [P], how many there are."""
    ordered = tf.sort(logs, axis=1)
    low, high = (tf.gather(ordered, place, axis=1, batch_dims=1) for place in ((counts - 1) // 2, counts // 2))
    between = high + _log((1 + _exp(low - tf.maximum(high, LOWEST))) / 2)
    return tf.where((counts % 2 == 1)[:, None], low, between)


def _exp(values: Any) -> Any:
    return _alike(tf.exp, values)


def _log(values: Any) -> Any:
    return _alike(tf.math.log, values)


def _alike(function: Any, values: Any) -> Any:
    """The same of the same values, wherever they stand, so that ties stay ties.

    TensorFlow's exp and log differ in the last bit for the last few values of a tensor, which don't fill a packet.
    """
    classes = values.shape[-1]
    padding = [[0, 0]] * (len(values.shape) - 1) + [[0, -classes % PACKET]]
    return function(tf.pad(values, padding))[..., :classes]
