"""What predictions are worth where the truth is known: accuracies with intervals, and paired comparisons.

Synopsis:

    import numpy as np
    from ensemble import scores

    product, mean = np.array([True, True, False, True]), np.array([True, False, False, True])
    print(scores.accuracy(product))
    print(scores.gain(product, over=mean), scores.p_value(product, mean))

The 95 % intervals are of the bootstrap: the middle 95 % of DRAWS values, each of P products drawn with replacement. No
array is resampled: how many of the products drawn are right is exactly binomial, and how many of them only the one or
only the other rule has right is multinomial, so these numbers themselves are drawn, in a millisecond whatever P is.
Where all predictions are right, or none, such an interval has no width. gain_over_seeds() draws seeds as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.categories import Categories

DRAWS = 10_000  # the ends of an interval vary by about a hundredth of its width from seed to seed
SEED = 0
ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Score:
    """A share, or a difference of two, with its 95 % interval; nan where there is nothing to count.

    Attributes:
        value: 0..1 (a difference: -1..1).
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of products.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f'{self.value:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}, {self.count:,} products)'


def accuracy(correct: np.ndarray, *, seed: int = SEED) -> Score:
    """The share of correct predictions (bool [P]); `seed` is of the bootstrap."""
    count, right = len(correct), int(np.count_nonzero(correct))
    if not count:
        return Score(math.nan, math.nan, math.nan, 0)
    drawn = np.random.default_rng(seed).binomial(count, right / count, DRAWS)
    return _score(right, drawn, count)


def gain(correct: np.ndarray, over: np.ndarray, *, seed: int = SEED) -> Score:
    """How much more accurate one rule is than another on the same products (bool [P] each).

    The bootstrap draws products with both predictions, so the interval doesn't suffer from what is hard for both.
    """
    count, (better, worse) = len(correct), _discordant(correct, over)
    if not count:
        return Score(math.nan, math.nan, math.nan, 0)
    shares = [better / count, worse / count, (count - better - worse) / count]
    drawn = np.random.default_rng(seed).multinomial(count, shares, DRAWS)
    return _score(better - worse, drawn[:, 0] - drawn[:, 1], count)


def gain_over_seeds(correct: np.ndarray, over: np.ndarray, *, seed: int = SEED) -> Score:
    """How much more accurate one way to train is than another, in the mean over S seeds (bool [S, P] each).

    Row s of both is by the same seed and column p of the same product, so the difference d [S, P] of the two is what is
    looked at. A draw takes S of its rows and, independently, P of its columns, both with replacement, and the mean of d
    where they cross (A. B. Owen's pigeonhole bootstrap, Annals of Applied Statistics 1 (2007) 386-411). Products with
    the same column are alike to it, and of the at most 3^S kinds of columns how many are drawn is multinomial: so these
    numbers are drawn, as in gain().

    With one seed it is gain(). Of three seeds that differ only in which products they get right, the interval is too
    wide: it holds the truth in 98 to 100 of 100 cases, not 95. Where one seed is better than another on the whole, by
    much more than the products tell, three are too few to know by how much, and it is too narrow: 75 of 100.
    """
    seeds, count = correct.shape
    if not count:
        return Score(math.nan, math.nan, math.nan, 0)
    differences = correct.astype(np.int8) - over.astype(np.int8)
    kinds, numbers = np.unique(differences, axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    columns = generator.multinomial(count, numbers / count, DRAWS)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS)
    drawn = (columns @ kinds.T.astype(np.int64) * rows).sum(axis=1)
    low, high = np.quantile(drawn, ENDS) / differences.size
    return Score(float(differences.mean()), float(low), float(high), count)


def p_value(correct: np.ndarray, over: np.ndarray) -> float:
    """The probability, if two rules were equally good, of a difference as large as between these (bool [P] each).

    McNemar's exact test, two-sided: of the products that only one of the two has right, as many should be the one's as
    the other's. 1 where there are none. Source: Q. McNemar, Psychometrika 12 (1947) 153-157.
    """
    better, worse = _discordant(correct, over)
    count, fewer = better + worse, min(better, worse)
    if better == worse:
        return 1.0
    # The largest term of the tail, count! / (fewer! (count - fewer)!) / 2^count, and the others as multiples of it:
    # nothing overflows, and what underflows is nothing beside it.
    largest = math.lgamma(count + 1) - math.lgamma(fewer + 1) - math.lgamma(count - fewer + 1) - count * math.log(2)
    below = np.arange(fewer, 0, -1)
    multiples = np.cumprod(below / (count - below + 1))
    return min(2 * math.exp(largest) * (1 + float(multiples.sum())), 1.0)


def right_by_level(category_id: np.ndarray, true_category_id: np.ndarray, label_map: Categories) -> np.ndarray:
    """Whether predictions are right as far as level 1, 2 and 3 of the categories' names: bool [3, P].

    Args:
        category_id: int64 [P], predicted.
        true_category_id: int64 [P].
        label_map: has all of them.
    """
    levels = label_map.levels()
    return levels[:, label_map.labels(category_id)] == levels[:, label_map.labels(true_category_id)]


def among_likeliest(likeliest: np.ndarray, true_category_id: np.ndarray) -> np.ndarray:
    """Whether the true categories (int64 [P]) are among the likeliest (int64 [P, k]): bool [P]."""
    return (likeliest == true_category_id[:, None]).any(axis=1)


def _discordant(correct: np.ndarray, over: np.ndarray) -> tuple[int, int]:
    """How many products only the first has right, and how many only the second."""
    return int(np.count_nonzero(correct & ~over)), int(np.count_nonzero(over & ~correct))


def _score(value: int, drawn: np.ndarray, count: int) -> Score:
    low, high = np.quantile(drawn, ENDS)
    return Score(value / count, float(low) / count, float(high) / count, count)
