"""Outcomes made by hand, for the tests of what reports on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble.predictions import Predictions
from pipeline.categories import Categories
from tools.reports.outcome import Outcome

# Two names that others share, and one that a page must escape.
NAMES = (('A', 'X', '<script>alert(1)</script>'), ('A', 'X', 'shoe & co'), ('A', 'Y', 'RUG'), ('B', 'Z', 'RUG'))
LABEL_MAP = Categories(np.array([1000, 1010, 1020, 1030]), NAMES)


def outcome(
    true: Sequence[int], predicted: Sequence[int], probability: Sequence[float], *, product_id: Sequence[int] = ()
) -> Outcome:
    """Products of one picture, 0, 1, 2... if they aren't named, by labels; the second likeliest is the next label."""
    labels = np.array(predicted)
    likeliest = LABEL_MAP.ids[np.stack([labels, (labels + 1) % len(LABEL_MAP)], axis=1)]
    shares = np.array(probability, np.float32)
    truth = np.where(np.array(true) < 0, -1, LABEL_MAP.ids[true])
    found = Predictions(
        product_id=np.array(product_id) if len(product_id) else np.arange(len(labels)),
        pictures=np.ones(len(labels), np.int64),
        true_category_id=truth,
        category_id=likeliest[:, 0],
        probability=shares,
        known=np.zeros(len(labels), bool),
        likeliest=likeliest,
        probabilities=np.stack([shares, (1 - shares) / 2], axis=1),
    )
    return Outcome('product on hand', found, truth, LABEL_MAP)
