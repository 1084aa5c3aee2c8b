"""Upscale-and-crop and flip, on the device, as two matrix products a picture: Pillow's pixels, to the bit.

TensorFlow's bicubic resize has no GPU kernel and no XLA kernel (tensorflow issues 83877, 108660). But a resize, a crop
and a flip are each a linear map of rows and one of columns: so picture -> rows @ picture @ columns^T, with
the matrices gathered, picture by picture, from one small table.

Pillow's weights are multiples of 2^-22. A product in TensorFloat-32, which TensorFlow lets newer GPUs use for float32,
keeps 11 bits of each: up to 400 values in a million were then two grey levels off. So each weight is a sum of two that
need 11 bits at most: all that is multiplied and added is exact, whatever the device and the order of summing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

DRAWS = 4  # random numbers a picture: crop or not, row offset, column offset, flip or not
PLAIN = 1.0  # as a draw: "as it is", because it is below no probability

WEIGHT_BITS = 22  # after the point: Pillow's PRECISION_BITS (src/libImaging/Resample.c)
HIGH_BITS = 10  # of which the first of the two weights has these, so that each has at most 11 bits up to a weight of 2
BANDS = (4, 3, 2, 1)  # parts a product is taken in, if the size divides by them: 1.4 times as fast as in one


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary; the defaults are the paper's configuration "aug".

    Attributes:
        crop_probability: share of pictures upscaled and cropped back at a random place, 0..1.
        crop_upscale: pixels a side after the upscale; a crop's offsets are 0 to crop_upscale - side, both included.
        flip_probability: share of pictures mirrored left to right, 0..1.
    """

    crop_probability: float = 0.75
    crop_upscale: int = 200
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ('crop_probability', 'flip_probability'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be from 0 to 1, and is {getattr(self, name)}')


NONE = Augmentation(crop_probability=0, flip_probability=0)


def upscale_crop_flip(images: Any, draws: Any, *, augmentation: Augmentation, size: int) -> Any:
    """Augmented pictures at the model's size.

    The same numbers give the same pixels on every device, in float32 and under mixed precision, with and without XLA.

    Args:
        images: uint8 [n, side, side, 3].
        draws: float32 [n, DRAWS], uniform in [0, 1), or PLAIN for pictures to leave as they are.
        augmentation: how they vary.
        size: pixels a side of the output.

    Returns:
        float32 [n, size, size, 3], whole numbers 0..255. At size == side this is Pillow's BICUBIC resize, a crop and a
        flip, exactly; elsewhere the crop's resize to `size` is part of the same two products.

    Raises:
        ValueError: the pictures are larger than what they shall be upscaled to.
    """
    if augmentation.crop_probability == 0 == augmentation.flip_probability:
        return resize(images, size=size)
    side, upscale = images.shape[1], augmentation.crop_upscale
    if upscale < side:
        raise ValueError(f'crop_upscale must be at least the {side} pixels a side of the pictures, and is {upscale}')
    plain, enlarge = interpolation_matrix(side, size), interpolation_matrix(side, upscale)
    offsets = upscale - side + 1
    table, sources = _table([plain @ enlarge[offset : offset + side] for offset in range(offsets)] + [plain])

    # All in float32, and cast last: on a GPU, TensorFlow does arithmetic of int32 on the host.
    upscaled = draws[:, 0] < augmentation.crop_probability
    flipped = draws[:, 3] < augmentation.flip_probability
    row, column = (tf.floor(draws[:, k] * offsets) for k in (1, 2))
    column = tf.where(flipped, offsets - 1 - column, column)  # mirrored before it is cropped: from the other side then
    rows, columns = (
        tf.gather(table, tf.cast(tf.where(upscaled, place, offsets), tf.int32), axis=1) for place in (row, column)
    )
    mirrored = tf.where(flipped[:, None, None], np.float32(side - 1 - sources), np.float32(sources))
    return _two_products(images, rows, columns, row_sources=sources, column_sources=tf.cast(mirrored, tf.int32))


def resize(images: Any, *, size: int) -> Any:
    """Pictures as they are, at the model's size, as by Pillow's BICUBIC resize, exactly.

    Args:
        images: uint8 [n, side, side, 3].
        size: pixels a side of the output.

    Returns:
        float32 [n, size, size, 3], whole numbers 0..255.
    """
    side = images.shape[1]
    if size == side:
        return tf.cast(images, tf.float32)
    matrix, sources = _table([interpolation_matrix(side, size)])
    return _two_products(images, matrix, matrix, row_sources=sources, column_sources=sources)


def _two_products(images: Any, rows: Any, columns: Any, *, row_sources: Any, column_sources: Any) -> Any:
    """rows @ picture @ columns^T for each channel: columns first and rounded, like Pillow.

    Either product is along the axis that stands first, with all that follows as one long row: thus a picture needs no
    more than two transpositions, and one of them in bytes.
    """
    turn = (0, 2, 1, 3)
    pictures = tf.cast(tf.transpose(images, turn), tf.float32)
    pictures = _product(columns, pictures, column_sources)
    return _product(rows, tf.transpose(pictures, turn), row_sources)


def _product(matrices: Any, pictures: Any, sources: Any) -> Any:
    """matrix @ picture, rounded to whole grey levels.

    Args:
        matrices: as from _table, for one picture each, or one for all.
        pictures: float32 [n, side, across, 3].
        sources: int32 [bands, width], or [n, bands, width].

    Returns:
        float32 [n, size, across, 3].
    """
    *_, bands, height, width = matrices.shape
    across = pictures.shape[2]
    windows = tf.gather(pictures, sources, axis=1, batch_dims=len(sources.shape) - 2)
    high, low = tf.unstack(tf.matmul(matrices, tf.reshape(windows, [-1, bands, width, across * 3])))
    # floor(high + low + 0.5), halves upwards like Pillow; but high + low has more bits than a float32.
    high += 0.5
    whole = tf.floor(high)
    levels = tf.clip_by_value(whole + tf.floor(high - whole + low), 0, 255)
    return tf.reshape(levels, [-1, bands * height, across, 3])


def _table(matrices: Sequence[np.ndarray]) -> tuple[Any, np.ndarray]:
    """The matrices in bands of rows, without the columns that no matrix uses in a band.

    Args:
        matrices: float64 [size, side] each.

    Returns:
        float32 [2, matrices, bands, size // bands, width], two weights whose sum is Pillow's; and which columns they
        belong to, int32 [bands, width].
    """
    size, side = matrices[0].shape
    bands = next(count for count in BANDS if size % count == 0)
    weights = np.stack(matrices).reshape([-1, bands, size // bands, side])
    used = (weights != 0).any(axis=(0, 2))
    first, end = used.argmax(axis=1), side - used[:, ::-1].argmax(axis=1)
    width = (end - first).max()
    sources = np.minimum(first, side - width)[:, None] + np.arange(width)
    weights = np.take_along_axis(weights, sources[None, :, None], axis=3)
    weights = _rounded(weights, WEIGHT_BITS)
    high = _rounded(weights, HIGH_BITS)
    return tf.constant(np.stack([high, weights - high]), tf.float32), sources.astype(np.int32)


def _rounded(weights: np.ndarray, bits: int) -> np.ndarray:
    """To this many bits after the point."""
    return np.round(weights * 2.0**bits) / 2.0**bits


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The linear map of Pillow's BICUBIC resize along one axis.

    Keys' kernel (1981) with a = -0.5, pixel centres at halves, weights at the edges made to sum to 1; when it shrinks,
    the kernel is stretched so that no source pixel is passed over.

    Returns:
        float64 [size_out, size_in]; each row sums to 1.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs((np.arange(size_in)[None] + 0.5 - centres[:, None]) / stretch)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)
