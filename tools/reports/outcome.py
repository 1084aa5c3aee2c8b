"""What a rule predicts for a split's products, held against the truth, with names for people."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemble.predictions import Predictions
from pipeline.categories import Categories
from tools import page

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions and truth of P products.

    Attributes:
        title: the rule and the logits, for captions.
        found: the predictions.
        truth: category ids int64 [P], predictions.UNKNOWN where there is none.
        label_map: all categories.
    """

    title: str
    found: Predictions
    truth: np.ndarray
    label_map: Categories

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """bool [P]."""
        return self.found.category_id == self.truth

    @functools.cached_property
    def true_labels(self) -> np.ndarray:
        """int64 [P], -1 where the truth isn't known."""
        return self.label_map.labels(self.truth)

    @functools.cached_property
    def predicted_labels(self) -> np.ndarray:
        """int64 [P]."""
        return self.label_map.labels(self.found.category_id)

    @functools.cached_property
    def names(self) -> list[str]:
        """A short name of each category that no other one has."""
        return short_names(self.label_map)

    def name(self, category_id: int) -> Markup:
        """A category's short name; pointed at, its id and whole path."""
        (label,) = self.label_map.labels(np.array([category_id])).tolist()
        return page.hint(self.names[label], f'{category_id}: {path(self.label_map, label)}')

    def place(self, category_id: int) -> Markup | str:
        """A line under a category's name with its whole path, which a phone can't point at; '' if the name is all."""
        (label,) = self.label_map.labels(np.array([category_id])).tolist()
        is_all = self.names[label] == _short(self.label_map.names[label])
        return '' if is_all else page.note(path(self.label_map, label))


def path(label_map: Categories, label: int) -> str:
    """A category's names from level 1 to 3."""
    return label_map.path(label)


def short_names(label_map: Categories) -> list[str]:
    """Of each category the name of its last level; where others share it, with those above, and at last its id."""
    found: list[str | None] = [None] * len(label_map)
    for depth in (2, 1, 0):
        names = [_short(levels[depth:]) for levels in label_map.names]
        counts = Counter(names)
        found = [one or (name if counts[name] == 1 else None) for one, name in zip(found, names, strict=True)]
    return [name or f'{names[label]} ({label_map.ids[label]})' for label, name in enumerate(found)]


def _short(levels: Sequence[str]) -> str:
    """Names of levels, where one repeats another once."""
    return ' / '.join(dict.fromkeys(levels))
