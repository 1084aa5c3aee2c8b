"""history.csv: how training went, for the paper's Figure 3. A row for every 20,000 pictures or so.

Where a run learns products, images and images_per_second count those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import storage, tables
from pipeline.errors import InputError

NAME = 'history.csv'
COLUMNS = (
    'step', 'images', 'passes', 'epoch', 'stage', 'learning_rate', 'loss', 'accuracy', 'images_per_second',
    'val_loss', 'val_accuracy', 'val_level1', 'val_level2', 'val_level3',
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """What was seen since the last row.

    Attributes:
        images: how many pictures.
        loss: sum over them.
        hits: how many of them were right.
        seconds: time taken.
    """

    images: int = 0
    loss: float = 0
    hits: float = 0
    seconds: float = 0

    def plus(self, *, images: int, loss: float, accuracy: float, seconds: float) -> Window:
        """With another effective batch, of mean `loss` and `accuracy`."""
        return Window(
            self.images + images,
            self.loss + images * loss,
            self.hits + images * accuracy,
            self.seconds + seconds,
        )

    def means(self) -> dict[str, float]:
        """The columns that it gives."""
        return {
            'loss': self.loss / self.images,
            'accuracy': self.hits / self.images,
            'images_per_second': self.images / self.seconds,
        }


class History:
    """The file; rows are added at its end."""

    def __init__(self, run_dir: str, *, step: int) -> None:
        """Opens it for a run whose last row was closed at an update: later rows, and one cut off, are dropped."""
        self.path = storage.join(run_dir, NAME)
        kept = [row for row in _whole_rows(self.path) if row[0].isdigit() and int(row[0]) <= step]
        tables.write(self.path, COLUMNS, kept)

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row; columns that it lacks stay empty."""
        cells = [row.get(name, '') for name in COLUMNS]
        text = ','.join(f'{cell:.7g}' if isinstance(cell, float) else str(cell) for cell in cells)
        with open(self.path, 'a', encoding='utf-8', newline='') as file:
            file.write(text + '\n')


def read(run_dir: str) -> dict[str, np.ndarray]:
    """The rows so far by column, float64 [rows]; nan where a cell is empty.

    Raises:
        InputError: a cell is no number.
    """
    path = storage.join(run_dir, NAME)
    try:
        values = np.array([[float(cell or 'nan') for cell in row] for row in _whole_rows(path)])
    except ValueError as error:
        raise InputError(f'{path}: every cell must be a number or empty ({error}); remove its row') from None
    return dict(zip(COLUMNS, values.reshape(-1, len(COLUMNS)).T, strict=True))


def _whole_rows(path: str) -> list[list[str]]:
    """The rows after the header but for one that was cut off, or is just being written; [] if there is no file."""
    if not storage.exists(path):
        return []
    with open(path, encoding='utf-8', newline='') as file:
        rows = [line.rstrip('\n').split(',') for line in file if line.endswith('\n')]
    return [row for row in rows[1:] if len(row) == len(COLUMNS)]
