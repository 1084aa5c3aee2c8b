"""category_names.csv <-> labels 0..C-1.

Labels number the category ids in ascending order, so they depend only on the set of ids, not on the file's order.
Kaggle's level-3 names repeat, so a name is never a key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from pipeline import storage, tables
from pipeline.errors import CatalogueError, InputError

SOURCE_NAME = 'category_names.csv'
NAME = 'categories.csv'
SOURCE_COLUMNS = ('category_id', 'category_level1', 'category_level2', 'category_level3')
COLUMNS = ('label', *SOURCE_COLUMNS)


@dataclass(frozen=True)
class Categories:
    """The label map.

    Attributes:
        ids: int64 [C], ascending; ids[label] is the category id.
        names: C tuples of the names of levels 1, 2 and 3.
    """

    ids: np.ndarray
    names: tuple[tuple[str, str, str], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, category_ids: np.ndarray) -> np.ndarray:
        """The labels of category ids: int64 [n] -> int64 [n] in 0..C-1, or -1 for an id that isn't there."""
        places = np.minimum(np.searchsorted(self.ids, category_ids), len(self.ids) - 1)
        return np.where(self.ids[places] == category_ids, places, -1).astype(np.int64)

    def levels(self) -> np.ndarray:
        """int64 [3, C]: categories whose names are the same as far as level k have one number in row k - 1."""
        rows = []
        for depth in (1, 2, 3):
            numbers: dict[tuple[str, ...], int] = {}
            rows.append([numbers.setdefault(names[:depth], len(numbers)) for names in self.names])
        return np.array(rows, np.int64)

    def path(self, label: int) -> str:
        """A category's full name: those of its three levels, also where one repeats the one above."""
        return ' > '.join(self.names[label])

    def digest(self) -> str:
        """SHA-256 of the ids in order, in hexadecimal: what a model's outputs mean."""
        return hashlib.sha256(self.ids.astype('<i8').tobytes()).hexdigest()


def read_source(folder: str) -> Categories:
    """Reads Kaggle's category_names.csv from a catalogue's folder.

    Raises:
        CatalogueError: a wrong header, a row that isn't an id and three names, or an id that stands twice.
    """
    return _read(storage.join(folder, SOURCE_NAME), SOURCE_COLUMNS)


def read(folder: str) -> Categories:
    """Reads the categories.csv of a shards, run or logits folder."""
    return _read(storage.join(folder, NAME), COLUMNS)


def is_in(categories: Categories, folder: str) -> bool:
    """Whether the folder has a sound categories.csv of these ids."""
    try:
        return read(folder).digest() == categories.digest()
    except InputError:
        return False


def write(categories: Categories, folder: str) -> None:
    """Writes categories.csv: label, category id and names."""
    pairs = zip(categories.ids, categories.names, strict=True)
    rows = ([label, category_id, *names] for label, (category_id, names) in enumerate(pairs))
    tables.write(storage.join(folder, NAME), COLUMNS, rows)


def _read(path: str, columns: tuple[str, ...]) -> Categories:
    names: dict[int, tuple[str, str, str]] = {}
    for number, row in enumerate(tables.read(path, columns), start=2):
        cells = row[-4:]
        if not re.fullmatch('[0-9]{1,18}', cells[0]):  # 18 digits fit int64
            raise tables.bad_row(path, number, row, columns)
        if int(cells[0]) in names:
            raise CatalogueError(f'{path}: row {number} repeats category {cells[0]}; each must stand once')
        names[int(cells[0])] = (cells[1], cells[2], cells[3])
    if not names:
        raise CatalogueError(f'{path}: holds no category; get the file again')
    ids = sorted(names)
    return Categories(np.array(ids, np.int64), tuple(names[category_id] for category_id in ids))
