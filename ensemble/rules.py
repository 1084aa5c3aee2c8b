"""The rules that turn the logits of a product's pictures and views into one prediction.

Synopsis:

    import numpy as np
    from ensemble import logits, rules

    product_id, image_index, view, label = np.array([[5, 5, 8], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    values = np.array([[-1, 3], [0, 2], [4, 1]], np.float16)
    rows = logits.Rows(product_id, image_index, view, label, values)
    found = rules.predict(rows, [rules.find('product'), rules.find('power', power=0.1)])
    print(found.product_id, found.prediction, found.probability)

The rules are those of the paper's Table I. With q[i, c] the softmax probability of class c for row i (a picture's
view), a product's score of c over its rows i is
  mean     sum q             rms     sqrt(sum q^2)
  product  product q         median  median q (of an even number: the mean of the two middle ones)
  max      max q             power   (sum q^p)^(1/p): near product for small p, near max for large p
  first    q of the first view of the first picture
The highest score wins, the lowest label on a tie; scores divided by their sum are the product's probabilities.

Nothing underflows. A row's best q is at least 1/C, so where scores are sums or maxima of q or q^2, the winner's is far
above float32's 1e-38. A product, a power or a median can be below it for every class: these are computed in log space,
and the log of the best class is moved to 0 before the exponential.

A rule is a reduction. Its state is a set of float32 rows [C] of each product; the empty state has none.
  lift     the state of a block: a row for each picture and view
  merge    reduces a state's rows: to their sum, maximum or first one, or not at all (median)
  compute  the scores of a merged state
The law: with + for putting the rows of two states together, in order, merge(merge(a) + merge(b)) = merge(a + b) for
every way to part the rows, and empty + a = a. Except for `first`, merge(a + b) = merge(b + a) too.
To add a rule: add a Rule to _rules().
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ensemble.logits import Rows
from pipeline.errors import InputError

POWER = 0.1  # the paper's x0.1, with product the best of Table I
# Below, float32 can't tell the sum of q^p from the number of rows well enough; above, max is the same.
POWER_RANGE = (0.001, 1000.0)


class State(NamedTuple):
    """What a rule keeps of a block's products.

    Attributes:
        values: float32 [s, C].
        product: int64 [s], ascending: which product of the block, 0..P-1, a row of values belongs to.
    """

    values: tf.Tensor
    product: np.ndarray


@dataclass(frozen=True)
class Rule:
    """A reduction over the rows of a product; the module's docstring gives its law.

    Attributes:
        lift: values float32 [n, C] of a block, one row a picture and view.
        merge: reduces the rows of each product.
        compute: scores float32 [P, C] of a merged state, not negative, up to a factor for each product.
    """

    lift: Callable[[Block], tf.Tensor]
    merge: Callable[[State], State]
    compute: Callable[[State], tf.Tensor]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What R rules say about P products.

    Attributes:
        product_id: int64 [P].
        pictures: int64 [P], 1..4: how many pictures each product has.
        label: int64 [P], the truth, or -1 where it isn't known (test).
        prediction: int64 [R, P], labels.
        probability: float32 [R, P], 0..1: the prediction's share of the rule's scores.
    """

    product_id: np.ndarray
    pictures: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray

    @staticmethod
    def concatenate(parts: Sequence[Predictions]) -> Predictions:
        """The products of all parts, in their order."""
        names = Predictions.__dataclass_fields__
        return Predictions(**{name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names})


class Block:
    """Rows ready to be reduced; what several rules need is computed once, when the first of them asks for it.

    Attributes:
        starts: int64 [P], where each product begins.
        product: int64 [n], which product 0..P-1 a row belongs to.
        pictures: int64 [P], how many pictures each product has.
        logits: float32 [n, C], in order of image_index and view within each product.
    """

    def __init__(self, rows: Rows) -> None:
        self.starts = rows.starts()
        self.product = np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(rows)))
        order = np.lexsort((rows.view, rows.image_index, self.product))
        in_order = bool((order == np.arange(len(rows))).all())
        self.logits = tf.cast(tf.constant(rows.logits if in_order else rows.logits[order]), tf.float32)
        picture = rows.image_index[order]
        new = np.diff(picture, prepend=-1) != 0
        new[self.starts] = True
        self.pictures = np.add.reduceat(new, self.starts, dtype=np.int64)

    @functools.cached_property
    def probabilities(self) -> tf.Tensor:
        """float32 [n, C]."""
        return tf.nn.softmax(self.logits)

    @functools.cached_property
    def log_probabilities(self) -> tf.Tensor:
        """float32 [n, C]."""
        return tf.nn.log_softmax(self.logits)


def names() -> tuple[str, ...]:
    """The names of all rules."""
    return tuple(_rules(POWER))


def find(name: str, *, power: float = POWER) -> Rule:
    """The rule of this name; `power` is the exponent p of the rule power.

    Raises:
        InputError: there is no such rule (lists those there are), or the exponent is outside POWER_RANGE.
    """
    low, high = POWER_RANGE
    if not low <= power <= high:
        raise InputError(f'power must be from {low:g} to {high:g}, is {power:g}; beyond that, use product or max')
    rules = _rules(power)
    if name not in rules:
        raise InputError(f'unknown rule {name!r}; the rules are {", ".join(rules)}')
    return rules[name]


def predict(rows: Rows, rules: Sequence[Rule]) -> Predictions:
    """Reduces the rows of each product by each rule.

    Args:
        rows: whole products, at least one row; the rows of a product are adjacent.
        rules: R rules.
    """
    block = Block(rows)
    results = [_winners(rule.compute(rule.merge(State(rule.lift(block), block.product)))) for rule in rules]
    return Predictions(
        product_id=rows.product_id[block.starts],
        pictures=block.pictures,
        label=rows.label[block.starts],
        prediction=np.stack([winner for winner, _ in results]),
        probability=np.stack([probability for _, probability in results]),
    )


def _winners(scores: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [P] and probabilities float32 [P] of the highest scores (numpy's argmax is 7 times TensorFlow's)."""
    values = scores.numpy()
    winner = values.argmax(axis=1)
    return winner, values[np.arange(len(values)), winner] / values.sum(axis=1)


def _rules(power: float) -> dict[str, Rule]:
    return {
        'mean': Rule(lambda block: block.probabilities, _sum, lambda state: state.values),
        # The logits differ from log q by a constant of each row: it falls out when the scores are divided by their sum.
        'product': Rule(lambda block: block.logits, _sum, _softmax),
        'rms': Rule(lambda block: tf.square(block.probabilities), _sum, lambda state: tf.sqrt(state.values)),
        'median': Rule(lambda block: block.log_probabilities, lambda state: state, _median),
        'power': Rule(
            lambda block: power * block.log_probabilities, _log_sum, lambda state: tf.nn.softmax(state.values / power)
        ),
        'max': Rule(lambda block: block.probabilities, _max, lambda state: state.values),
        'first': Rule(lambda block: block.logits, _first, _softmax),
    }


def _sum(state: State) -> State:
    sums = tf.math.segment_sum(state.values, state.product)
    return State(sums, np.arange(len(sums)))


def _max(state: State) -> State:
    maxima = tf.math.segment_max(state.values, state.product)
    return State(maxima, np.arange(len(maxima)))


def _log_sum(state: State) -> State:
    """The log of the sum of exponentials; each class's highest value is taken out first, so none is lost."""
    highest = tf.maximum(tf.math.segment_max(state.values, state.product), tf.float32.min)  # not -inf: of no rows
    sums = tf.math.segment_sum(tf.exp(state.values - tf.gather(highest, state.product)), state.product)
    return State(highest + tf.math.log(sums), np.arange(len(sums)))


def _first(state: State) -> State:
    products, starts = np.unique(state.product, return_index=True)
    return State(tf.gather(state.values, starts), products)


def _softmax(state: State) -> tf.Tensor:
    return tf.nn.softmax(state.values)


def _median(state: State) -> tf.Tensor:
    """Each class's median over the rows, of all products with the same number of rows at once."""
    counts = np.bincount(state.product)
    starts = np.cumsum(counts) - counts
    medians, places = [], []
    for count in np.unique(counts):
        place = np.flatnonzero(counts == count)
        medians.append(_middle([tf.gather(state.values, starts[place] + row) for row in range(count)]))
        places.append(place)
    return tf.nn.softmax(tf.gather(tf.concat(medians, axis=0), np.argsort(np.concatenate(places))))


def _middle(rows: list[tf.Tensor]) -> tf.Tensor:
    """The log of the median of k probabilities, given their logs as k tensors [P, C].

    Sorts by odd-even transposition: whole tensors are compared, which for the few rows of a product is much faster than
    sorting them class by class.
    """
    for step in range(len(rows)):
        for i in range(step % 2, len(rows) - 1, 2):
            rows[i], rows[i + 1] = tf.minimum(rows[i], rows[i + 1]), tf.maximum(rows[i], rows[i + 1])
    low, high = rows[(len(rows) - 1) // 2], rows[len(rows) // 2]
    return low if len(rows) % 2 else high + tf.math.log1p(tf.exp(low - high)) - math.log(2)
