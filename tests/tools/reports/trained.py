"""Runs that look trained: settings and a history of closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model import runs
from model.history import History

SETTINGS = {
    'backbone': 'tiny', 'epochs': 4.0, 'decay_at': ['1', '3', '3.5'], 'decay_factor': 0.3, 'dropout': 0.2,
    'unfreeze': 'block2@0,all@1.5', 'dataset_digest': 'd', 'weights': '<none>',
}  # fmt: skip


def write_run(folder: Path, *, rows: int = 6, **settings: Any) -> str:
    """A run that was trained for so many half passes, validated after each whole one."""
    runs.write_settings(str(folder), {**SETTINGS, **settings})
    kept = History(str(folder), step=0)
    for number in range(1, rows + 1):
        row = {'step': 10 * number, 'images': 100 * number, 'passes': number / 2, 'loss': 3 / number, 'stage': 0}
        row |= {'accuracy': number / 10, 'images_per_second': 50.0}
        if number % 2 == 0:
            row |= {'val_loss': 4 / number, 'val_accuracy': number / 10 - 0.05}
            row |= {f'val_level{level}': (4 - level) / 4 for level in (1, 2, 3)}
        kept.add(row)
    return str(folder)
