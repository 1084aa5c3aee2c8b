"""What TensorBoard shows of a run: scalars, a grid of augmented training pictures and, if wished, the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import augment
from pipeline.augment import Augmentation

GRID = 5  # rows and columns


class Board:
    """The event files of a run; points are by update."""

    def __init__(self, folder: str) -> None:
        self._writer = tf.summary.create_file_writer(folder)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def pictures(self, step: int, images: Any, draws: Any, *, augmentation: Augmentation, size: int) -> None:
        """Shows the first pictures of a batch as the network sees them.

        Args:
            step: the update they are of.
            images: uint8 [n, side, side, 3].
            draws: float32 [n, augment.DRAWS].
            augmentation: how they vary.
            size: pixels a side for the network.
        """
        count = GRID * GRID
        seen = augment.upscale_crop_flip(images[:count], draws[:count], augmentation=augmentation, size=size)
        with self._writer.as_default(step=step):
            tf.summary.image('augmented training pictures', grid(seen.numpy())[None])
        self._writer.flush()

    def graph(self, graph: Any) -> None:
        """Shows the graph of an update."""
        with self._writer.as_default(step=0):
            tf.summary.graph(graph)
        self._writer.flush()


def grid(images: np.ndarray) -> np.ndarray:
    """Tiles pictures in rows of GRID, grey where there are too few: 0..255 [n, s, s, 3] -> uint8 [h, w, 3]."""
    side = images.shape[1]
    rows = -(-len(images) // GRID)
    tiles = np.full((rows * GRID, side, side, 3), 128, np.uint8)
    tiles[: len(images)] = np.rint(images)
    return tiles.reshape(rows, GRID, side, side, 3).swapaxes(1, 2).reshape(rows * side, GRID * side, 3)
