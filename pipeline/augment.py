"""Upscale-and-crop and flip, on the device, as two matrix products a picture.

TensorFlow's bicubic resize has no GPU kernel and no XLA kernel (tensorflow issues 83877, 108660). But a resize, a crop
and a flip are each a linear map of rows and one of columns: so picture -> rows @ picture @ columns^T, with
the matrices gathered, picture by picture, from one small table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

DRAWS = 4  # random numbers a picture: crop or not, row offset, column offset, flip or not
PLAIN = 1.0  # as a draw: "as it is", because it is below no probability


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary; the defaults are the paper's configuration "aug".

    Attributes:
        crop_probability: share of pictures upscaled and cropped back at a random place, 0..1.
        crop_upscale: pixels a side after the upscale; a crop's offsets are 0 to crop_upscale - size, both included.
        flip_probability: share of pictures mirrored left to right, 0..1.
    """

    crop_probability: float = 0.75
    crop_upscale: int = 200
    flip_probability: float = 0.5


NONE = Augmentation(crop_probability=0, flip_probability=0)


def upscale_crop_flip(images: Any, draws: Any, *, augmentation: Augmentation, size: int) -> Any:
    """Augmented pictures at the model's size.

    Args:
        images: uint8 [n, side, side, 3].
        draws: float32 [n, DRAWS], uniform in [0, 1), or PLAIN for pictures to leave as they are.
        augmentation: how they vary.
        size: pixels a side of the output.

    Returns:
        float32 [n, size, size, 3], whole numbers 0..255. At size == side this is Pillow's BICUBIC resize and a crop,
        within one grey level: like Pillow, columns first, rounded, then rows.
    """
    side = images.shape[1]
    table, offsets = _table(side, size, augmentation.crop_upscale)
    upscaled = draws[:, 0] < augmentation.crop_probability
    flipped = tf.cast(draws[:, 3] < augmentation.flip_probability, tf.int32)
    row, column = (
        tf.where(upscaled, tf.cast(draws[:, k] * offsets, tf.int32), offsets) for k in (1, 2)
    )  # `offsets` itself is the place of the matrix without upscale
    rows = tf.gather(table, row)
    columns = tf.gather(table, column + flipped * (offsets + 1))
    return _two_products(images, rows, columns)


def resize(images: Any, *, size: int) -> Any:
    """Pictures as they are, at the model's size: uint8 [n, side, side, 3] -> float32 [n, size, size, 3], 0..255."""
    side = images.shape[1]
    if size == side:
        return tf.cast(images, tf.float32)
    matrix = tf.constant(interpolation_matrix(side, size))
    return _two_products(images, matrix[None], matrix[None])


def _two_products(images: Any, rows: Any, columns: Any) -> Any:
    """rows @ picture @ columns^T for each channel; channels stand first meanwhile: twice as fast as einsum here."""
    pictures = tf.transpose(tf.cast(images, tf.float32), [0, 3, 1, 2])
    pictures = _to_grey_levels(tf.matmul(pictures, columns[:, None], transpose_b=True))
    pictures = _to_grey_levels(tf.matmul(rows[:, None], pictures))
    return tf.transpose(pictures, [0, 2, 3, 1])


def _to_grey_levels(pictures: Any) -> Any:
    return tf.clip_by_value(tf.round(pictures), 0, 255)


def _table(side: int, size: int, upscale: int) -> tuple[Any, int]:
    """One matrix [size, side] for each crop offset, then the one without upscale, then all of them mirrored.

    Returns:
        float32 [2 * (offsets + 1), size, side], and the number of crop offsets.
    """
    enlarge, shrink = interpolation_matrix(side, upscale), interpolation_matrix(side, size)
    offsets = upscale - side + 1
    matrices = [shrink @ enlarge[offset : offset + side] for offset in range(offsets)] + [shrink]
    mirrored = [matrix[::-1] for matrix in matrices]
    return tf.constant(np.stack(matrices + mirrored).astype(np.float32)), offsets


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The linear map of Pillow's BICUBIC resize along one axis.

    Keys' kernel (1981) with a = -0.5, pixel centres at halves, weights at the edges made to sum to 1; when it shrinks,
    the kernel is stretched so that no source pixel is passed over.

    Returns:
        float32 [size_out, size_in]; each row sums to 1.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs((np.arange(size_in)[None] + 0.5 - centres[:, None]) / stretch)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
