"""How likely weights of several models make the true categories, and the weights that make them the most likely.

Synopsis:

    import numpy as np
    from ensemble import likelihood

    log_q = np.log([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8]])  # of three products' true categories, by two models
    weights = likelihood.maximise(likelihood.arithmetic(log_q), np.full(2, 0.5))
    print(weights.round(2))

With q[m, c] the probability of class c by model m, a product's log-likelihood by weights w >= 0 is
  arithmetic  log sum_m w[m] q[m, true] - sum w + 1: highest where the weights sum to 1, as those of a mean do
  geometric   sum_m w[m] log q[m, true] - log sum_c exp sum_m w[m] log q[m, c]: the weights' sum is free, and says how
              certain the mean's probabilities shall be
and that of several products is the mean. Both are concave. A penalty too small to matter makes one set of weights the
best where several would do, the smallest: so models that say the same share alike, and one that says nothing gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Times half the sum of squared weights, nats a product: the log-likelihood found is at most this much below the highest
# for weights of sum 1. It also keeps the weights finite where all predictions are right.
PENALTY = 1e-6
TOLERANCE = 1e-12  # nats a product that a last step may promise: a millionth of the penalty, and above float64's noise
STEPS = 100  # three to twelve are usual
HALVINGS = 30
SLOPE = 1e-9  # of the parabola, nats a product and weight: too little to let a weight leave 0
# Values of log q looked at together, in float64: 8 MB and a few copies, which the caches of a core nearly hold.
CHUNK_VALUES = 2**20


class Terms(NamedTuple):
    """The log-likelihood at some weights.

    Attributes:
        value: nats a product.
        gradient: float64 [M].
        curvature: float64 [M, M], the second derivatives with their sign turned.
    """

    value: float
    gradient: np.ndarray
    curvature: np.ndarray


Function = Callable[[np.ndarray], Terms]


def arithmetic(log_q: np.ndarray) -> Function:
    """The log-likelihood by the weights of an arithmetic mean.

    Args:
        log_q: float [n, M], logs of the true classes' probabilities by each model.
    """
    highest = log_q.max(axis=1, keepdims=True).astype(np.float64)
    ratios = np.exp(log_q - highest)

    def terms(weights: np.ndarray) -> Terms:
        sums = ratios @ weights
        if sums.min() <= 0:
            return Terms(-math.inf, np.zeros(len(weights)), np.zeros((len(weights), len(weights))))
        shares = ratios / sums[:, None]
        value = float(highest.mean() + np.log(sums).mean() - weights.sum() + 1)
        return Terms(value, shares.mean(axis=0) - 1, shares.T @ shares / len(shares))

    return terms


def geometric(log_q: np.ndarray, label: np.ndarray, places: np.ndarray) -> Function:
    """The log-likelihood by the weights of a geometric mean.

    Args:
        log_q: float32 [n, M, C], logs of all classes' probabilities by each model.
        label: int64 [n], the true classes.
        places: int64 [k], which of the n products count.
    """
    models, classes = log_q.shape[1:]
    chunks = np.array_split(places, max(1, math.ceil(len(places) * models * classes / CHUNK_VALUES)))

    def terms(weights: np.ndarray) -> Terms:
        value, gradient, curvature = 0.0, np.zeros(models), np.zeros((models, models))
        for chunk in chunks:
            logs = log_q[chunk].astype(np.float64)
            mixed = weights @ logs
            highest = mixed.max(axis=1, keepdims=True)
            shares = np.exp(mixed - highest)
            sums = shares.sum(axis=1, keepdims=True)
            shares /= sums
            rows = np.arange(len(chunk))
            value += float((mixed[rows, label[chunk]] - highest[:, 0] - np.log(sums[:, 0])).sum())
            expected = (logs @ shares[:, :, None])[:, :, 0]
            gradient += (logs[rows, :, label[chunk]] - expected).sum(axis=0)
            logs -= expected[:, :, None]
            curvature += ((logs * shares[:, None]) @ logs.transpose(0, 2, 1)).sum(axis=0)
        return Terms(value / len(places), gradient / len(places), curvature / len(places))

    return terms


def maximise(function: Function, start: np.ndarray, *, steps: int = STEPS) -> np.ndarray:
    """The weights, none below 0, with the highest log-likelihood: float64 [M].

    Newton's method: each step leads towards the top that the parabola through value, gradient and curvature has where
    no weight is below 0, and is halved until the log-likelihood rises. It ends with the step that promises to raise it
    by less than TOLERANCE: near the top, what a step promises is twice what is left, and what the next one does about
    the square of that.

    Args:
        function: of the weights.
        start: float [M], weights with a finite log-likelihood.
        steps: at most so many.
    """
    weights = start.astype(np.float64)
    here = _penalised(function, weights)
    for _ in range(steps):
        step = _top(here, weights) - weights
        if here.gradient @ step < TOLERANCE:
            return weights + step
        step *= min(1.0, (1 + weights.sum()) / np.abs(step).max())  # where there's hardly any curvature, not too far
        for _halving in range(HALVINGS):
            there = np.maximum(weights + step, 0)  # only rounding falls below
            found = _penalised(function, there)
            if found.value > here.value + 1e-4 * float(here.gradient @ step):
                break
            step /= 2
        weights, here = there, found
    return weights


def _penalised(function: Function, weights: np.ndarray) -> Terms:
    terms = function(weights)
    return Terms(
        terms.value - PENALTY / 2 * float(weights @ weights),
        terms.gradient - PENALTY * weights,
        terms.curvature + PENALTY * np.eye(len(weights)),
    )


def _top(terms: Terms, weights: np.ndarray) -> np.ndarray:
    """The weights at the top of the parabola at `weights`, where none is below 0: float64 [M].

    An active set, begun at `weights` (C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, 1974, chapter 23).
    """
    curvature = terms.curvature
    slope = terms.gradient + curvature @ weights  # at 0
    top = weights.copy()
    free = weights > 0
    for _ in range(10 * len(weights)):
        wanted = np.zeros(len(weights))
        wanted[free] = np.linalg.solve(curvature[np.ix_(free, free)], slope[free])
        low = free & (wanted < 0)
        if low.any():  # go as far as the first weight falls to 0, and hold it there
            shares = top[low] / (top[low] - wanted[low])
            top += shares.min() * (wanted - top)
            free[np.flatnonzero(low)[shares == shares.min()]] = False
            top[~free] = 0
            continue
        top = wanted
        gradient = np.where(free, 0, slope - curvature @ top)
        if gradient.max() <= SLOPE:
            break
        free |= gradient == gradient.max()
    return top
