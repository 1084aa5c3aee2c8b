"""Xception (Chollet 2017, arXiv 1610.02357, figure 5), with `width` times its filters.

At width 1 the layers and their weights are those of keras.applications.Xception without its top, in the same order, so
its ImageNet weights fit; here every layer's name starts with its block (there some are named by a global counter).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from model.backbone import Backbone, scaled

MIN_IMAGE_SIZE = 7  # the first two convolutions don't pad; keras.applications asks for 71, without need
MIDDLE_BLOCKS = 8


def build(*, image_size: int, width: float) -> Backbone:
    """Xception as published, 20.9 million parameters at width 1.

    Args:
        image_size: pixels a side.
        width: times the published numbers of filters.
    """
    return build_xception(
        image_size=image_size, width=width, stem_strides=2, middle_blocks=MIDDLE_BLOCKS, imagenet=_imagenet
    )


def build_xception(
    *, image_size: int, width: float, stem_strides: int, middle_blocks: int, imagenet: Any = None
) -> Backbone:
    """An Xception of any depth; block numbers go on after the middle blocks."""
    filters = {count: scaled(count, width) for count in (32, 64, 128, 256, 728, 1024, 1536, 2048)}
    image = keras.Input([image_size, image_size, 3])
    x = layers.Rescaling(1 / 127.5, offset=-1, name='scale')(image)
    x = _conv(x, filters[32], name='block1_conv1', strides=stem_strides)
    x = _conv(x, filters[64], name='block1_conv2')
    x = _down_block(x, filters[128], filters[128], name='block2', relu_first=False)
    x = _down_block(x, filters[256], filters[256], name='block3')
    x = _down_block(x, filters[728], filters[728], name='block4')
    for number in range(5, 5 + middle_blocks):
        x = _middle_block(x, filters[728], name=f'block{number}')
    last = 5 + middle_blocks
    x = _down_block(x, filters[728], filters[1024], name=f'block{last}')
    x = _separable(x, filters[1536], name=f'block{last + 1}_sepconv1', relu='after')
    x = _separable(x, filters[2048], name=f'block{last + 1}_sepconv2', relu='after')
    features = layers.GlobalAveragePooling2D(name='pool')(x)
    blocks = tuple(f'block{number}' for number in range(1, last + 2))
    return Backbone(keras.Model(image, features), blocks, imagenet if width == 1 else None)


def _imagenet() -> Any:
    return keras.applications.Xception(weights='imagenet', include_top=False, pooling='avg').get_weights()


def _conv(x: Any, filters: int, *, name: str, strides: int = 1) -> Any:
    x = layers.Conv2D(filters, 3, strides=strides, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f'{name}_bn')(x)
    return layers.Activation('relu', name=f'{name}_act')(x)


def _separable(x: Any, filters: int, *, name: str, relu: str) -> Any:
    """A separable convolution with batch normalisation, and the ReLU `before`, `after` or `none`."""
    if relu == 'before':
        x = layers.Activation('relu', name=f'{name}_act')(x)
    x = layers.SeparableConv2D(filters, 3, padding='same', use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f'{name}_bn')(x)
    if relu == 'after':
        x = layers.Activation('relu', name=f'{name}_act')(x)
    return x


def _down_block(x: Any, filters1: int, filters2: int, *, name: str, relu_first: bool = True) -> Any:
    """Two separable convolutions and a halving of the sides, with a 1x1 convolution past them."""
    shortcut = layers.Conv2D(filters2, 1, strides=2, padding='same', use_bias=False, name=f'{name}_shortcut')(x)
    shortcut = layers.BatchNormalization(name=f'{name}_shortcut_bn')(shortcut)
    x = _separable(x, filters1, name=f'{name}_sepconv1', relu='before' if relu_first else 'none')
    x = _separable(x, filters2, name=f'{name}_sepconv2', relu='before')
    x = layers.MaxPooling2D(3, strides=2, padding='same', name=f'{name}_pool')(x)
    return layers.Add(name=f'{name}_add')([x, shortcut])


def _middle_block(x: Any, filters: int, *, name: str) -> Any:
    shortcut = x
    for number in (1, 2, 3):
        x = _separable(x, filters, name=f'{name}_sepconv{number}', relu='before')
    return layers.Add(name=f'{name}_add')([x, shortcut])
