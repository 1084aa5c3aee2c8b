"""Inception-ResNet-v2 (Szegedy et al. 2016, arXiv 1602.07261), as keras.applications has it: 54.3 million parameters.

The blocks have the names of the first published code: block35, block17 and block8 are the paper's Inception-ResNet-A
(ten times), B (twenty times) and C (ten times), mixed6a and mixed7a the reductions between them.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable

import keras
from keras import layers

from model.backbone import Backbone, from_keras

MIN_IMAGE_SIZE = 75  # below it the last reduction has nothing left to reduce
# Block: its layers with weights, in order.
BLOCKS = {
    'stem': 10,
    'mixed5b': 14,
    'block35': 130,
    'mixed6a': 8,
    'block17': 180,
    'mixed7a': 14,
    'block8': 90,
    'conv7b': 2,
}


def build(*, image_size: int) -> Backbone:
    """Inception-ResNet-v2 for pictures of `image_size` pixels a side."""
    image = keras.Input([image_size, image_size, 3])
    scaled = layers.Rescaling(1 / 127.5, offset=-1, name='scale')(image)
    network = from_keras(keras.applications.InceptionResNetV2, image, scaled, blocks=tuple(BLOCKS))
    _name_layers(layer for layer in network.model.layers if layer.weights)
    return network


def _name_layers(with_weights: Iterable[keras.Layer]) -> None:
    """Names layers by block, such as block35_conv12: Keras numbers most of them by what the process built before.

    Layers come in order of depth, and each block begins where the one before ends, so the order keeps blocks together.
    """
    blocks = itertools.chain.from_iterable(itertools.repeat(*item) for item in BLOCKS.items())
    counts: collections.Counter[str] = collections.Counter()
    for layer, block in zip(with_weights, blocks, strict=True):
        name = f'{block}_conv' if isinstance(layer, layers.Conv2D) else f'{block}_bn'
        counts[name] += 1
        layer.name = f'{name}{counts[name]}'
