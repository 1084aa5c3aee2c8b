"""The title as a second input: where it is printed, a small network that reads it, and what it adds to the logits.

Synopsis:

    band = title.crop(images, mode='text')      # uint8 [n, 180, 180, 3] -> float32 [n, 60, 180, 3]
    branch = title.branch()                     # a Keras model: band -> features
    logits = title.add(logits, branch.output, uses=title.uses(label_map, ['LIVRES']))
    classifier = keras.Model([picture, branch.input], logits)

Pictures are cropped as they are decoded, before augmentation: mirrored letters teach nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from model.backbone import scaled
from model.weights import TITLE_BRANCH, TITLE_HEAD
from pipeline.categories import Categories
from pipeline.errors import UsageError

MODES = ('top', 'text')
HEIGHT = 60  # rows of the band: the upper third of a picture
SIDE = 180
FLAG = '--title_levels'

FILTERS = (32, 64, 128, 128, 256, 256)  # of the branch's layers
HALVED_AFTER = (1, 3)  # of its separable convolutions

# Chosen on 600 covers, harder ones than those of tests/covers.py, among 36 settings (contrasts 20 to 64, runs of 1 to 5
# rows): within 0.2 points of the best, 97.3 % of the titles' rows. With a run of 1 it was 92 %, with a reach of 2 91 %.
CONTRAST = 32  # grey levels by which a stroke stands out from both its sides, at least
REACHES = (2, 4)  # pixels to either side at which that is looked at: strokes of up to 3 and 7 pixels
RUN = 5  # rows that a stroke goes on for, at least, which the grain of photographs does not


def crop(images: Any, *, mode: str) -> Any:
    """The band of a picture where its title is.

    `top` takes the upper third; `text` the band with most strokes of letters: pixels that are darker, or lighter, than
    what is to their left and to their right, several rows on. One strong edge is no stroke, and the grain of
    photographs seldom goes on for rows. Of bands with as many strokes the topmost is taken.

    Everything is whole numbers below 2^24 in float32, by operations that have GPU and XLA kernels: the same rows on
    every device. Finding the text takes a million operations a picture where Xception's forward pass at 180 pixels
    takes 5,700 million, and on 2 CPU cores 0.4 ms (0.15 ms under XLA), 0.3 % of its time.

    Args:
        images: uint8 [n, 180, 180, 3], decoded and not augmented.
        mode: one of MODES.

    Returns:
        float32 [n, HEIGHT, 180, 3], whole numbers 0..255.
    """
    if mode not in MODES:
        raise ValueError(f'mode must be one of {", ".join(MODES)}, and is {mode}')
    if mode == 'top':
        return tf.cast(images[:, :HEIGHT], tf.float32)
    levels = tf.cast(images, tf.float32)
    score = tf.matmul(_strokes(levels), _windows(), transpose_b=True)
    # From a table, for there is no arithmetic of whole numbers on a GPU.
    bands = tf.constant(np.arange(SIDE - HEIGHT + 1)[:, None] + np.arange(HEIGHT), tf.int32)
    return tf.gather(levels, tf.gather(bands, tf.argmax(score, axis=1)), axis=1, batch_dims=1)


def _strokes(levels: Any) -> Any:
    """How many pixels of each row are in strokes: float32 [n, 180, 180, 3] -> float32 [n, 181 - RUN].

    Row i is about the RUN rows from i on.
    """
    grey = tf.reduce_sum(levels, axis=3)
    reach, contrast = max(REACHES), float(3 * CONTRAST)
    middle = grey[:, :, reach : SIDE - reach]
    dark = light = tf.constant(False)
    for step in REACHES:
        left = grey[:, :, reach - step : SIDE - reach - step]
        right = grey[:, :, reach + step : SIDE - reach + step]
        dark |= tf.minimum(left, right) - middle > contrast
        light |= middle - tf.maximum(left, right) > contrast
    return tf.reduce_sum(tf.cast(_going_on(dark) | _going_on(light), tf.float32), axis=2)


def _going_on(marks: Any) -> Any:
    """Where a column is marked RUN rows on: bool [n, 180, columns] -> bool [n, 181 - RUN, columns]."""
    rows = SIDE + 1 - RUN
    found = marks[:, :rows]
    for row in range(1, RUN):
        found &= marks[:, row : row + rows]
    return found


def _windows() -> Any:
    """What each row's strokes count for each place of the band: float32 [121, 181 - RUN].

    Half as much at the band's edge as in its middle, so that titles come to lie there.
    """
    firsts = np.arange(SIDE - HEIGHT + 1)[:, None]
    rows = np.arange(SIDE + 1 - RUN) + RUN // 2
    twice_the_distance = np.abs(2 * (rows - firsts) - (HEIGHT - 1))
    weights = np.where(twice_the_distance < HEIGHT, 2 * HEIGHT - twice_the_distance, 0)
    return tf.constant(weights, tf.float32)


def branch(*, width: float = 1) -> keras.Model:
    """A network that reads: float32 [n, HEIGHT, 180, 3], 0..255 -> features [n, F], F = 512 at width 1.

    The band's sides are halved three times only, to 8 rows of 23 places, each of which sees 61 pixels: some five
    letters. A word may stand at any of them: the highest of each feature says whether it is there, the mean how often.

    Args:
        width: times the filters.
    """
    filters = [scaled(count, width) for count in FILTERS]
    band = keras.Input([HEIGHT, SIDE, 3], name='title')
    x = layers.Rescaling(1 / 127.5, offset=-1, name='title_scale')(band)
    x = layers.Conv2D(filters[0], 3, strides=2, padding='same', use_bias=False, name=TITLE_BRANCH)(x)
    x = layers.BatchNormalization(name='title_conv_bn')(x)
    x = layers.Activation('relu', name='title_conv_act')(x)
    for number, count in enumerate(filters[1:], start=1):
        name = f'title_sepconv{number}'
        x = layers.SeparableConv2D(count, 3, padding='same', use_bias=False, name=name)(x)
        x = layers.BatchNormalization(name=f'{name}_bn')(x)
        x = layers.Activation('relu', name=f'{name}_act')(x)
        if number in HALVED_AFTER:
            x = layers.MaxPooling2D(2, padding='same', name=f'title_pool{number}')(x)
    highest = layers.GlobalMaxPooling2D(name='title_max')(x)
    mean = layers.GlobalAveragePooling2D(name='title_mean')(x)
    return keras.Model(band, layers.Concatenate(name='title_features')([highest, mean]), name='title_branch')


@keras.saving.register_keras_serializable(package='model.title')
class Head(layers.Layer):
    """What the title adds to the logits: features [n, F] -> float32 [n, C], under every precision.

    A dense layer without bias of the features for the categories that use the title, and one learned number for all the
    others. All are 0 at first: a classifier with a title begins as the one without.

    A .keras file with this layer is loaded where this module is imported.
    """

    def __init__(self, uses: Sequence[bool], **options: Any) -> None:
        """Makes the layer.

        Args:
            uses: bool [C], which categories use the title.
            options: Keras' own, such as name.
        """
        super().__init__(**{**options, 'dtype': 'float32'})
        self.uses = [bool(one) for one in uses]
        if not any(self.uses):
            raise ValueError('uses must have a category that uses the title, and has none')

    def build(self, input_shape: tuple[int | None, int]) -> None:
        """Makes the weights."""
        # A column for each category, those that don't use it too: so weights fit whichever categories use it.
        self.kernel = self.add_weight(name='kernel', shape=[input_shape[-1], len(self.uses)], initializer='zeros')
        if not all(self.uses):
            self.constant = self.add_weight(name='constant', shape=[], initializer='zeros')

    def call(self, features: Any) -> Any:
        """The numbers to add to each picture's logits."""
        values = ops.matmul(features, self.kernel)
        return values if all(self.uses) else ops.where(np.array(self.uses), values, self.constant)

    def compute_output_shape(self, input_shape: tuple[int | None, int]) -> tuple[int | None, int]:
        """[n, F] -> [n, C]."""
        return input_shape[0], len(self.uses)

    def get_config(self) -> dict[str, Any]:
        """What makes it anew."""
        return {**super().get_config(), 'uses': list(self.uses)}


def add(logits: Any, features: Any, *, uses: Sequence[bool]) -> Any:
    """Logits with what the title adds, float32 under every precision.

    Args:
        logits: Keras tensor float32 [n, C].
        features: Keras tensor [n, F], of the branch or of another network that looked at the band.
        uses: bool [C], which categories use the title.

    Returns:
        Keras tensor float32 [n, C].
    """
    return layers.Add(dtype='float32', name='title_sum')([logits, Head(uses, name=TITLE_HEAD)(features)])


def uses(label_map: Categories, levels: Sequence[str]) -> np.ndarray:
    """Which categories use the title.

    Args:
        label_map: the categories.
        levels: names of level 1; empty: all.

    Returns:
        bool [C].

    Raises:
        UsageError: no category has one of the names at level 1.
    """
    firsts = np.array([names[0] for names in label_map.names])
    known = sorted(set(firsts.tolist()))
    for name in levels:
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, n=3)
            said = f'the nearest are {", ".join(near)}' if near else f'known are {", ".join(known)}'
            raise UsageError(f'{FLAG}={",".join(levels)}: no name of level 1 is {name!r}; {said}')
    return np.isin(firsts, levels) if levels else np.ones(len(label_map), bool)
