"""Encoded pictures -> pixels by TensorFlow's own operations, for a model that is served: the pixels of pictures.py.

What pictures.py takes as far as it can be decoded, or as grey, is an error here: who asks is told.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.augment import WEIGHT_BITS
from pipeline.pictures import LARGEST, LONGEST, SHAPE

AT_ONCE = 16  # pictures decoded side by side, on as many cores as there are
STRIP = 192  # values a row that are resized at a time: of the longest rows 13 MB


def decode(pictures: Any) -> Any:
    """Decodes pictures: string [n], a JPEG each -> uint8 [n, 180, 180, 3].

    Running it raises InvalidArgumentError if one is no JPEG, is damaged or cut off, or has over LARGEST pixels or a
    side over LONGEST.
    """
    return tf.map_fn(_decode, pictures, fn_output_signature=tf.TensorSpec(SHAPE, tf.uint8), parallel_iterations=AT_ONCE)


def _decode(picture: Any) -> Any:
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(picture))
    # Not the product alone: it may be too large for an int32.
    small = (height <= LONGEST) & (width <= LONGEST) & (height * width <= LARGEST)
    said = f'a picture may have {LARGEST:,} pixels and {LONGEST:,} a side at most; one has (width, height)'
    with tf.control_dependencies([tf.debugging.Assert(small, [said, width, height])]):  # before memory is taken for it
        pixels = tf.io.decode_jpeg(picture, channels=3, dct_method='INTEGER_ACCURATE', fancy_upscaling=True)
    usual = tf.reduce_all(tf.shape(pixels) == SHAPE)
    return tf.ensure_shape(tf.cond(usual, lambda: pixels, lambda: resize(pixels)), SHAPE)


def resize(picture: Any) -> Any:
    """Pillow's BICUBIC resize to the usual size, as pictures.resized: uint8 [height, width, 3] -> [180, 180, 3]."""
    turn = (1, 0, 2)
    return _resize_rows(tf.transpose(_resize_rows(tf.transpose(picture, turn)), turn))


def _resize_rows(picture: Any) -> Any:
    """As many rows as usual: uint8 [height, width, 3] -> uint8 [180, width, 3]."""
    height, width, _ = tf.unstack(tf.shape(picture))
    weights = _weights(height)
    values = tf.reshape(picture, [height, 3 * width])
    values = tf.pad(values, [[0, 0], [0, -3 * width % STRIP]])
    strips = tf.transpose(tf.reshape(values, [height, -1, STRIP]), [1, 0, 2])

    def resized(strip: Any) -> Any:
        levels = tf.floor(weights @ tf.cast(strip, tf.float64) / 2.0**WEIGHT_BITS + 0.5)
        return tf.cast(tf.clip_by_value(levels, 0, 255), tf.uint8)

    strips = tf.map_fn(resized, strips, parallel_iterations=1)
    rows = tf.reshape(tf.transpose(strips, [1, 0, 2]), [SHAPE[0], -1])[:, : 3 * width]
    return tf.reshape(rows, [SHAPE[0], width, 3])


def _weights(size: Any) -> Any:
    """augment.interpolation_matrix() to the usual size, in Pillow's whole numbers: float64 [180, size]."""
    size = tf.cast(size, tf.float64)
    scale = size / SHAPE[0]
    centres = (np.arange(SHAPE[0]) + 0.5)[:, None] * scale
    distance = tf.abs((tf.range(size) + 0.5 - centres) / tf.maximum(scale, 1))
    near = (1.5 * distance - 2.5) * tf.square(distance) + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = tf.where(distance < 1, near, tf.where(distance < 2, far, 0))
    return tf.round(weights / tf.reduce_sum(weights, axis=1, keepdims=True) * 2.0**WEIGHT_BITS)
