"""Predictions -> Kaggle's submission.csv.gz, and the solution to score them with.

Synopsis:

    import numpy as np
    from ensemble import submission

    product_id, category_id = np.array([8, 5]), np.array([1000, 1010])
    submission.write('submission.csv.gz', product_id, category_id, expected=2)
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass

import numpy as np

from pipeline import storage, tables
from pipeline.categories import Categories
from pipeline.errors import InputError

NAME = 'submission.csv.gz'
COLUMNS = ('_id', 'category_id')
LINES = 2**17  # as text at a time: 2.5 MB


@dataclass(frozen=True, eq=False)
class Solution:
    """The true categories of the test products, from solution.csv.

    Attributes:
        path: where it was read.
        product_id: int64 [n], ascending.
        category_id: int64 [n].
        part: whether only some of its products are predicted.
    """

    path: str
    product_id: np.ndarray
    category_id: np.ndarray
    part: bool = False

    def of(self, product_id: np.ndarray) -> np.ndarray:
        """The categories of predicted products: int64, in the order of `product_id` (int64, each once).

        Raises:
            InputError: the solution and the predictions are not of the same products.
        """
        faults = []
        others = np.setdiff1d(self.product_id, product_id)
        for what, ids in (
            ('lacks', np.setdiff1d(product_id, self.product_id)),
            ('has besides', others[:0] if self.part else others),
        ):
            if len(ids):
                faults.append(f'{what} {len(ids):,} (the first is {ids[0]})')
        if faults:
            raise InputError(
                f'{self.path}: must hold the {len(product_id):,} products predicted, {" and ".join(faults)}; '
                'give the solution of this test set'
            )
        return self.category_id[np.searchsorted(self.product_id, product_id)]


def check_products(product_id: np.ndarray, *, expected: int) -> None:
    """Checks that each product is predicted once and none is lost.

    Raises:
        InputError: a product stands twice, or there are not as many as expected.
    """
    ids, counts = np.unique(product_id, return_counts=True)
    if len(ids) != len(product_id):
        raise InputError(f'product {ids[np.argmax(counts > 1)]} is predicted more than once; make the logits again')
    if len(ids) != expected:
        raise InputError(f'{len(ids):,} products are predicted, the manifest has {expected:,}; make the logits again')


def write(path: str, product_id: np.ndarray, category_id: np.ndarray, *, expected: int) -> None:
    """Writes the file that Kaggle takes: `_id,category_id`, one row a product, ascending; the same bytes every time.

    Args:
        path: of the .csv.gz file; it appears whole or not at all.
        product_id: int64 [P].
        category_id: int64 [P], Kaggle's ids, not labels.
        expected: how many products the test set has.

    Raises:
        InputError: a product stands twice, or there are not as many as expected.
    """
    check_products(product_id, expected=expected)
    order = np.argsort(product_id)
    with storage.atomic_writer(path) as file, gzip.GzipFile(filename='', mode='wb', fileobj=file, mtime=0) as packed:
        packed.write(f'{",".join(COLUMNS)}\n'.encode())
        for some in np.split(order, range(LINES, len(order), LINES)):
            pairs = zip(product_id[some].tolist(), category_id[some].tolist(), strict=True)
            packed.write(''.join(f'{product},{category}\n' for product, category in pairs).encode())


def read_solution(path: str, label_map: Categories, *, part: bool = False) -> Solution:
    """Reads a solution.csv: `_id,category_id`, in any order.

    Args:
        path: of the file.
        label_map: the model's categories.
        part: whether only some of its products are predicted.

    Raises:
        InputError: a wrong header, a row that isn't two numbers, a product that stands twice, an unknown category.
    """
    rows = tables.read(path, COLUMNS)
    found: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        if not all(re.fullmatch('[0-9]{1,18}', cell) for cell in row):  # 18 digits fit int64
            raise tables.bad_row(path, number, row, COLUMNS)
        if int(row[0]) in found:
            raise InputError(f'{path}: row {number} repeats product {row[0]}; each must stand once')
        found[int(row[0])] = int(row[1])
    product_id = np.array(list(found), np.int64)
    category_id = np.array(list(found.values()), np.int64)
    label = label_map.labels(category_id)
    if (label < 0).any():
        place = int(np.argmin(label))
        raise InputError(f'{path}: row {place + 2}: category {rows[place][1]} is none of the model')
    order = np.argsort(product_id)
    return Solution(path, product_id[order], category_id[order], part)
