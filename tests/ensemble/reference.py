"""The rules by their definitions, in float64 and product by product: what ensemble.rules is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ensemble import rules
from ensemble.logits import Rows

FIRST_PLACES = 5
# Every rule, and the rule power with exponents from end to end.
EVERY = [(name, rules.POWER) for name in rules.names()] + [('power', power) for power in (0.001, 1, 2, 3, 1000)]


def rows_of(values: np.ndarray, *, product: Sequence[int] | np.ndarray = (), views: int = 1) -> Rows:
    """Logits [n, C] as rows of the products given (all of one, if none are), the `views` of a picture adjacent."""
    products = np.array(product if len(product) else [7] * len(values))
    index = np.concatenate([np.arange(np.sum(products == one)) for one in dict.fromkeys(products.tolist())])
    return Rows(products, index // views, index % views, products * 0 - 1, values.astype(np.float16))


def random_rows(counts: Sequence[int], classes: int, *, seed: int, spread: float = 4, views: int = 1) -> Rows:
    """A product for each count of rows; a picture has `views` of them, the last one maybe fewer."""
    values = np.random.default_rng(seed).normal(scale=spread, size=(sum(counts), classes))
    return rows_of(np.clip(values, -65504, 65504), product=np.repeat(np.arange(len(counts)), counts), views=views)


def log_sum(logs: np.ndarray, axis: int) -> np.ndarray:
    """The log of the sum of exponentials, with the axis kept; -inf stands for 0."""
    highest = np.maximum(logs.max(axis=axis, keepdims=True), np.finfo(float).min)
    with np.errstate(divide='ignore'):
        return highest + np.log(np.exp(logs - highest).sum(axis=axis, keepdims=True))


def shares(scores: np.ndarray) -> np.ndarray:
    """Logs of scores [..., C] divided by their sum; equal shares where all scores are 0."""
    possible = np.where(scores.max(axis=-1, keepdims=True) == -np.inf, 0.0, scores)
    return possible - log_sum(possible, -1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[k, C]; no probability for any class in a row that rules out all."""
    values = logits.astype(float)
    return values - np.maximum(log_sum(values, 1), np.finfo(float).min)


def log_scores(log_q: np.ndarray, rule: str, power: float) -> np.ndarray:
    """Logs of the scores [C] by the logs of the probabilities [k, C]."""
    ordered = np.sort(log_q, axis=0)
    middle = ordered[[(len(log_q) - 1) // 2, len(log_q) // 2]]
    return {
        'mean': lambda: log_sum(log_q, 0)[0],
        'product': lambda: log_q.sum(axis=0),
        'rms': lambda: log_sum(2 * log_q, 0)[0] / 2,
        'median': lambda: log_sum(middle, 0)[0] - np.log(2),
        'power': lambda: log_sum(power * log_q, 0)[0] / power,
        'max': lambda: ordered[-1],
        'first': lambda: log_q[0],
    }[rule]()


def log_probabilities(rows: Rows, rule: str, *, power: float = 0.1, views: str = 'pooled') -> np.ndarray:
    """Logs of the probabilities of the products' classes, float64 [P, C]."""
    found = []
    for product in dict.fromkeys(rows.product_id.tolist()):
        pictures = []
        for picture in sorted(set(rows.image_index[rows.product_id == product].tolist())):
            chosen = np.flatnonzero((rows.product_id == product) & (rows.image_index == picture))
            pictures.append(log_softmax(rows.logits[chosen[np.argsort(rows.view[chosen])]]))
        if views == 'nested':
            pictures = [shares(log_scores(picture, rule, power))[None] for picture in pictures]
        found.append(shares(log_scores(np.concatenate(pictures), rule, power)))
    return np.stack(found)


def likeliest(log_shares: np.ndarray) -> np.ndarray:
    """Labels [P, k] from the likeliest down, equal ones in order."""
    return np.argsort(-log_shares, axis=1, kind='stable')[:, :FIRST_PLACES]


def check(labels: np.ndarray, probabilities: np.ndarray, log_shares: np.ndarray, tolerance: float) -> None:
    """Holds the likeliest labels and probabilities [P, k] to the reference's log probabilities [P, C].

    Labels may stand in another order where the reference's differ by no more than the tolerance.
    """
    expected = likeliest(log_shares)
    assert labels.shape == probabilities.shape == expected.shape
    assert all(len(set(row)) == len(row) for row in labels.tolist())
    best = np.take_along_axis(log_shares, expected, axis=1)
    given = np.take_along_axis(log_shares, labels, axis=1)
    wrong = (best != given) & ~(best <= given + tolerance)
    assert not wrong.any(), (np.flatnonzero(wrong.any(axis=1)), labels[wrong], expected[wrong])
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities, np.exp(best), rtol=1e-5 + tolerance, atol=1e-37)


def check_ties(labels: np.ndarray, logits: np.ndarray) -> None:
    """Classes with the same logits in all rows [n, C] stand in order in the likeliest labels [P, k], none left out."""
    group = np.unique(logits, axis=1, return_inverse=True)[1].ravel()
    for row in labels:
        for place, label in enumerate(row):
            alike = np.flatnonzero(group[:label] == group[label])
            assert set(alike) <= set(row[:place]), (row, label, alike)


def tolerance(rows: Rows, name: str, power: float) -> float:
    """How far float32 may be off in the log of a score."""
    finite = np.where(np.isfinite(rows.logits), rows.logits, 0).astype(float)
    size = np.abs(finite).max()
    if name == 'product':  # a sum as large as its terms together
        size *= np.bincount(np.unique(rows.product_id, return_inverse=True)[1]).max()
    # A sum of k powers is rounded to 6e-8 of itself, which its root magnifies by 1 / power.
    return 1e-5 + 1e-7 * size + (1e-6 / power if name == 'power' else 0)


def spikes(*labels: int, height: float, classes: int = 6) -> np.ndarray:
    """One picture for each label, sure of it by `height`."""
    return np.where(np.arange(classes) == np.array(labels)[:, np.newaxis], 0.0, -height)


OUT = -math.inf
ADVERSARIAL = {
    'one sure picture': spikes(3, height=1000),
    'sure and agreed': spikes(3, 3, 3, height=1000),
    'sure and opposed': spikes(4, 2, height=1000),
    'two against one': spikes(4, 2, 4, height=1000),
    'all differ': spikes(5, 4, 3, 2, height=1000),
    'as far apart as float16 allows': spikes(5, 1, 1, height=2 * 65504) + 65504,
    'the same, and all differ': spikes(3, 2, 1, height=2 * 65504) + 65504,
    'all equal': np.full((3, 6), 17.0),
    'all zero': np.zeros((4, 6)),
    'all as high as float16 allows': np.full((80, 6), 65504.0),
    'a class almost ruled out once': np.array([[0.0, 1, 2, 3, 4, -1000], [0, 1, 2, 3, -1000, 5]]),
    'a class ruled out once': np.array([[0.0, 1, 2, 3, 4, OUT], [0, 1, 2, 3, OUT, 5]]),
    'one class left': np.array([[OUT, OUT, OUT, 0, OUT, OUT]] * 3),
    'two pictures rule out all classes': spikes(4, 2, height=math.inf),
    'three pictures rule out all classes twice': spikes(4, 2, 3, height=math.inf),
    'two views rule out all classes, a picture does not': np.array([[OUT, 0, OUT], [1, OUT, OUT], [0, 1, 3.0]]),
    'four pictures of twenty views, all sure': spikes(*[2, 3, 2, 4] * 20, height=1000),
    'eighty views that know next to nothing': np.tile(np.array([[0.0, 0.01, 0, 0, 0, 0]]), (80, 1)),
    # q of the order of 1e-38, and q^2: label 2 is above label 1 by terms that are 0 in float32.
    'seventy-nine views below float32': np.array([[0, -82.6875, -82.875]] + [[0, -100, -87.375]] * 79),
    'seventy-nine squares below float32': np.array([[0, -41.34375, -41.4375]] + [[0, -50, -43.6875]] * 79),
}
