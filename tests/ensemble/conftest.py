"""Small rows of logits whose results can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ensemble.logits import Rows
from pipeline.categories import Categories

# A product: its id, its label, and a list of probabilities (of any sum) for each picture.
Product = tuple[int, int, Sequence[Sequence[float]]]


def _make_rows(products: Sequence[Product]) -> Rows:
    pictures = [len(rows) for _, _, rows in products]
    return Rows(
        product_id=np.repeat(np.array([product for product, _, _ in products], np.int64), pictures),
        image_index=np.concatenate([np.arange(count, dtype=np.int64) for count in pictures]),
        view=np.zeros(sum(pictures), np.int64),
        label=np.repeat(np.array([label for _, label, _ in products], np.int64), pictures),
        logits=np.log(np.concatenate([np.array(rows, float) for _, _, rows in products])).astype(np.float16),
    )


@pytest.fixture
def make_rows() -> Callable[[Sequence[Product]], Rows]:
    return _make_rows


@pytest.fixture
def label_map() -> Categories:
    return Categories(np.array([1000, 1010, 1020]), (('A', 'A', 'A'), ('B', 'B', 'B'), ('C', 'C', 'C')))
