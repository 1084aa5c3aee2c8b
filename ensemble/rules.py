"""The rules that turn the logits of a product's pictures and views into one prediction.

Synopsis:

    import numpy as np
    from ensemble import logits, rules

    product_id, image_index, view, label = np.array([[5, 5, 8], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    values = np.array([[-1, 3], [0, 2], [4, 1]], np.float16)
    rows = logits.Rows(product_id, image_index, view, label, values)
    scores = rules.combine(rules.Products(rows), rules.find('product'))
    label, probability = rules.likeliest(scores)
    print(label.tolist(), probability)

The rules are those of the paper's Table I. With q[i, c] the softmax probability of class c for row i (a picture's
view), a product's score of c over its rows i is
  mean     sum q             rms     sqrt(sum q^2)
  product  product q         median  median q (of an even number: the mean of the two middle ones)
  max      max q             power   (sum q^p)^(1/p): near product for small p, near max for large p
  first    q of the first view of the first picture
The highest score wins, the lowest label on a tie; scores divided by their sum are the product's probabilities. The rows
are all views of all pictures (pooled, the paper's way), or a rule goes over the views of each picture first and over
what it says of the pictures second (nested).

Nothing underflows: rules are reductions of logs. Only mean and rms sum q and q^2 themselves, which takes half the time,
and only where no sum of a block is too small for float32; else the block takes the way through logs too (the last bit
of a score may differ). Scores are equal if they are the same float32: classes that every row gives the same logit
always are.

A reduction's state is a set of float32 rows [C] of each product; the empty state has none.
  lift     the state of a block: a row for each picture and view
  merge    reduces a state's rows: to their sum, maximum or first one, or not at all (median)
  compute  the logs of the scores, of a merged state
The law: with + for putting the rows of two states together, in order, merge(merge(a) + merge(b)) = merge(a + b) for
every way to part the rows, and empty + a = a. Except for `first`, merge(a + b) = merge(b + a) too.
To add a rule: add a Rule to _rules().
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ensemble.logits import Rows
from pipeline.errors import UsageError

POWER = 0.1  # the paper's x0.1, with product the best of Table I
# Below, float32 can't tell the sum of q^p from the number of rows well enough; above, max is the same.
POWER_RANGE = (0.001, 1000.0)
VIEWS = ('pooled', 'nested')
LIKELIEST = 5
# Sums of q or q^2 below are taken from logs. Terms under 1e-38 are lost to float32: of 100 rows, 1e-6 of such a sum.
SMALLEST_SUM = 1e-30
LOWEST = np.finfo(np.float32).min  # stands for -inf where that would make nan


class State(NamedTuple):
    """What a rule keeps of a block's products.

    Attributes:
        values: float32 [s, C].
        product: int64 [s], ascending: which product of the block, 0..P-1, a row of values belongs to.
    """

    values: tf.Tensor
    product: np.ndarray


class Scores(NamedTuple):
    """A product's scores of all classes, up to a factor for each product.

    Attributes:
        values: float32 [P, C].
        in_logs: whether these are the logs of the scores.
    """

    values: tf.Tensor
    in_logs: bool


@dataclass(frozen=True)
class Rule:
    """A reduction over the rows of a product; the module's docstring gives its law.

    Attributes:
        lift: values float32 [n, C] of a block, one row a picture and view.
        merge: reduces the rows of each product.
        compute: logs of the scores, float32 [P, C], of a merged state.
        exponent: p, if the scores are (sum q^p)^(1/p) and q^p is quickly made; 0 if not.
    """

    lift: Callable[[Block], tf.Tensor]
    merge: Callable[[State], State]
    compute: Callable[[State], tf.Tensor]
    exponent: int = 0


class Block:
    """Rows ready to be reduced; what several rules need is computed once, when the first of them asks for it.

    Attributes:
        logits: float32 [n, C].
        product: int64 [n], ascending: which product 0..P-1 a row belongs to.
    """

    def __init__(self, logits: tf.Tensor, product: np.ndarray) -> None:
        self.logits = logits
        self.product = product

    @functools.cached_property
    def probabilities(self) -> tf.Tensor:
        """float32 [n, C]."""
        return tf.nn.softmax(self.logits)

    @functools.cached_property
    def log_probabilities(self) -> tf.Tensor:
        """float32 [n, C], by the likeliest class (tf.nn.log_softmax takes three times as long as the softmax).

        A row that rules out all classes (-inf) has no probability for any.
        """
        sums = np.asarray(self.logits).max(axis=1) - np.log(np.asarray(self.probabilities).max(axis=1))
        return self.logits - np.nan_to_num(sums)[:, None]


class Products:
    """The rows of whole products, in order of picture and view, and what is the same for every rule.

    Attributes:
        product_id: int64 [P].
        pictures: int64 [P], 1..4: how many pictures each product has.
        label: int64 [P], the truth, or -1 where it isn't known (test).
        pooled: Block of all rows.
        picture: int64 [n], ascending: which picture 0..Q-1 of the block a row is a view of.
        product_of_picture: int64 [Q], which product a picture belongs to.
    """

    def __init__(self, rows: Rows) -> None:
        starts = rows.starts()
        product = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
        order = np.lexsort((rows.view, rows.image_index, product))
        in_order = bool((order == np.arange(len(rows))).all())
        logits = tf.cast(tf.constant(rows.logits if in_order else rows.logits[order]), tf.float32)
        self.pooled = Block(logits, product)
        new = np.diff(rows.image_index[order], prepend=-1) != 0
        new[starts] = True
        self.picture = np.cumsum(new) - 1
        self.product_of_picture = product[new]
        self.product_id = rows.product_id[starts]
        self.label = rows.label[starts]
        self.pictures = np.bincount(self.product_of_picture) if rows.pictures is None else rows.pictures[starts]


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
        raise UsageError(f'power must be from {low:g} to {high:g}, is {power:g}; beyond that, use product or max')
    rules = _rules(power)
    if name not in rules:
        raise UsageError(f'unknown rule {name!r}; the rules are {", ".join(rules)}')
    return rules[name]


def combine(products: Products, rule: Rule, *, views: str = 'pooled') -> Scores:
    """The scores of P products.

    Args:
        products: their rows.
        rule: how to reduce them.
        views: pooled (all views of all pictures alike), or nested (the views of each picture first).
    """
    block = products.pooled
    if views == 'nested' and len(products.product_of_picture) < len(products.picture):
        of_pictures = reduce(Block(block.logits, products.picture), rule)
        block = Block(log_probabilities(of_pictures), products.product_of_picture)
    return reduce(block, rule)


def reduce(block: Block, rule: Rule) -> Scores:
    """The scores of each product by its rows."""
    if rule.exponent:
        raised = block.probabilities if rule.exponent == 1 else tf.square(block.probabilities)
        sums = tf.math.segment_sum(raised, block.product)
        if np.asarray(sums).min() >= SMALLEST_SUM:
            return Scores(sums if rule.exponent == 1 else tf.sqrt(sums), in_logs=False)
    return Scores(rule.compute(rule.merge(State(rule.lift(block), block.product))), in_logs=True)


def log_probabilities(scores: Scores) -> tf.Tensor:
    """The logs of the scores' shares of their sum, float32 [P, C]; where all scores are 0, of equal shares."""
    logs = scores.values if scores.in_logs else tf.constant(log(scores.values))
    none = np.isneginf(np.asarray(logs).max(axis=1))
    logs = tf.where(none[:, None], 0.0, logs) if none.any() else logs
    return Block(logs, np.arange(len(logs))).log_probabilities


def likeliest(scores: Scores, *, count: int = LIKELIEST) -> tuple[np.ndarray, np.ndarray]:
    """The classes with the highest scores: labels int64 [P, k] and probabilities float32 [P, k], the best first.

    k is `count`, or the number of classes if that is less; equal scores stand in order of their labels. Where all
    scores are 0, all classes are alike.
    """
    values = np.array(scores.values)  # a copy, because what is found is crossed out
    rows = np.arange(len(values))
    labels = np.empty((len(values), min(count, values.shape[1])), np.int64)
    found = np.empty(labels.shape, np.float32)
    for place in range(labels.shape[1]):
        labels[:, place] = winner = values.argmax(axis=1)  # numpy's, the quickest there is
        found[:, place] = values[rows, winner]
        values[rows, winner] = -math.inf
    if np.isneginf(found).any():  # fewer classes have a score; the others must differ from those crossed out
        return likeliest(scores._replace(values=tf.maximum(scores.values, LOWEST)), count=count)
    if scores.in_logs:
        best = np.asarray(tf.nn.softmax(scores.values))[rows, labels[:, 0]]
        return labels, best[:, None] * np.exp(found - found[:, :1])
    return labels, found / np.asarray(scores.values).sum(axis=1, keepdims=True)


def exp(values: tf.Tensor | np.ndarray) -> np.ndarray:
    """The exponentials, float32: the same of the same values, wherever they stand, so that ties stay ties.

    TensorFlow's exp and log differ in the last bit for the last few values of a tensor, which don't fill a vector.
    """
    return np.exp(np.asarray(values))


def log(values: tf.Tensor | np.ndarray) -> np.ndarray:
    """The natural logs, float32, as exp(); -inf of 0."""
    with np.errstate(divide='ignore'):
        return np.log(np.asarray(values))


def _rules(power: float) -> dict[str, Rule]:
    def power_mean(exponent: float, *, quick: bool) -> Rule:
        return Rule(
            lambda block: exponent * block.log_probabilities,
            _log_sum,
            lambda state: state.values / exponent,
            exponent=int(exponent) if quick else 0,
        )

    return {
        'mean': power_mean(1, quick=True),
        # The logits differ from log q by a constant of each row: it falls out when the scores are divided by their sum.
        'product': Rule(lambda block: block.logits, _sum, _values),
        'rms': power_mean(2, quick=True),
        'median': Rule(lambda block: block.log_probabilities, lambda state: state, _median),
        'power': power_mean(power, quick=False),
        'max': Rule(lambda block: block.log_probabilities, _max, _values),
        'first': Rule(lambda block: block.logits, _first, _values),
    }


def _values(state: State) -> tf.Tensor:
    return state.values


def _sum(state: State) -> State:
    products, segments = np.unique(state.product, return_inverse=True)
    return State(tf.math.segment_sum(state.values, segments), products)


def _max(state: State) -> State:
    products, segments = np.unique(state.product, return_inverse=True)
    return State(tf.math.segment_max(state.values, segments), products)


def _log_sum(state: State) -> State:
    """The log of the sum of exponentials; each class's highest value is taken out first, so none is lost."""
    products, segments = np.unique(state.product, return_inverse=True)
    highest = tf.maximum(tf.math.segment_max(state.values, segments), LOWEST)
    sums = tf.math.segment_sum(exp(state.values - tf.gather(highest, segments)), segments)
    return State(highest + log(sums), products)


def _first(state: State) -> State:
    products, starts = np.unique(state.product, return_index=True)
    return State(tf.gather(state.values, starts), products)


def _median(state: State) -> tf.Tensor:
    """Each class's median over the rows, of all products with the same number of rows at once."""
    counts = np.bincount(state.product)
    starts = np.cumsum(counts) - counts
    medians, places = [], []
    for count in np.unique(counts):
        place = np.flatnonzero(counts == count)
        medians.append(_middle([tf.gather(state.values, starts[place] + row) for row in range(count)]))
        places.append(place)
    return tf.gather(tf.concat(medians, axis=0), np.argsort(np.concatenate(places)))


def _middle(rows: list[tf.Tensor]) -> tf.Tensor:
    """The log of the median of k probabilities, given their logs as k tensors [P, C].

    Sorts by odd-even transposition: whole tensors are compared, which for the few rows of a product is much faster than
    sorting them class by class.
    """
    for step in range(len(rows)):
        for i in range(step % 2, len(rows) - 1, 2):
            rows[i], rows[i + 1] = tf.minimum(rows[i], rows[i + 1]), tf.maximum(rows[i], rows[i + 1])
    low, high = rows[(len(rows) - 1) // 2], rows[len(rows) // 2]
    if len(rows) % 2:
        return low
    return high + log((1 + exp(low - tf.maximum(high, LOWEST))) / 2)
