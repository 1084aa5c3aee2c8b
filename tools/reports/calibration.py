"""Whether probabilities are what they say: of the predictions with probability 0.8, are 80 % right?

Synopsis:

    import numpy as np
    from tools.reports import calibration

    found = calibration.measure(np.array([0.9, 0.9, 0.6]), np.array([True, False, True]))
    print(found.error, found.excess)

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017: expected
calibration error over bins of equal width (section 2), 15 of them (table 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions by their probability; bin m of M has those in ((m - 1)/M, m/M].

    Attributes:
        products: int64 [M], how many.
        confidence: float64 [M], their mean probability; nan where there are none.
        accuracy: float64 [M], the share of them that is right; nan where there are none.
    """

    products: np.ndarray = field(repr=False)
    confidence: np.ndarray = field(repr=False)
    accuracy: np.ndarray = field(repr=False)

    @property
    def error(self) -> float:
        """Expected calibration error, 0..1: the bins' gaps between confidence and accuracy, weighted by products."""
        return float(np.nansum(np.abs(self.confidence - self.accuracy) * self._weights))

    @property
    def excess(self) -> float:
        """Mean confidence less accuracy, -1..1: above 0 where a rule is too sure of itself."""
        return float(np.nansum((self.confidence - self.accuracy) * self._weights))

    @property
    def mean_confidence(self) -> float:
        """Mean probability of all predictions."""
        return float(np.nansum(self.confidence * self._weights))

    @property
    def _weights(self) -> np.ndarray:
        return self.products / self.products.sum()


def measure(probability: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> Calibration:
    """Sorts predictions into bins of equal width.

    Args:
        probability: float [P], 0..1, of the predictions; P is at least 1.
        correct: bool [P], whether they are right.
        bins: how many.
    """
    place = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    products = np.bincount(place, minlength=bins)
    divisor = np.where(products, products, np.nan)
    confidence = np.bincount(place, probability, minlength=bins) / divisor
    return Calibration(products, confidence, np.bincount(place, correct, minlength=bins) / divisor)
