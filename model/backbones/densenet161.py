"""DenseNet161 (Huang et al. 2016, arXiv 1608.06993, as torchvision has it), with `width` times its filters.

conv1 is the first convolution, conv2 to conv5 are the four dense blocks, each with the transition that follows it. Its
ImageNet weights are PyTorch's (tools.import_weights), so padding and batch normalisation are as there.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from model.backbone import Backbone, from_pytorch, scaled
from model.backbones.densenet169 import BLOCKS, DEVIATIONS, MEANS

MIN_IMAGE_SIZE = 29  # below it the last transition has nothing left to halve
LAYERS = (6, 12, 36, 24)  # in each dense block
GROWTH = 48  # channels that a layer adds
BOTTLENECK = 4  # times the growth: what a layer's 1x1 convolution makes for its 3x3 one


def build(*, image_size: int, width: float) -> Backbone:
    """DenseNet161 as published, 26.7 million parameters and 2,208 features at width 1.

    Args:
        image_size: pixels a side.
        width: times the published numbers of filters.
    """
    growth = scaled(GROWTH, width)
    image = keras.Input([image_size, image_size, 3])
    scale = [1 / (255 * deviation) for deviation in DEVIATIONS]
    offset = [-mean / deviation for mean, deviation in zip(MEANS, DEVIATIONS, strict=True)]
    x = layers.Rescaling(scale, offset=offset, name='scale')(image)
    x = layers.ZeroPadding2D(3, name='conv1_pad')(x)
    x = layers.Conv2D(2 * growth, 7, strides=2, use_bias=False, name='conv1_conv')(x)
    x = _norm_relu(x, name='conv1')
    x = layers.ZeroPadding2D(1, name='pool1_pad')(x)  # after a ReLU zeros are as good as PyTorch's minus infinity
    x = layers.MaxPooling2D(3, strides=2, name='pool1')(x)
    for block, depth in zip(BLOCKS[1:], LAYERS, strict=True):
        for number in range(1, depth + 1):
            new = _norm_relu(x, name=f'{block}_block{number}_1')
            new = layers.Conv2D(BOTTLENECK * growth, 1, use_bias=False, name=f'{block}_block{number}_1_conv')(new)
            new = _norm_relu(new, name=f'{block}_block{number}_2')
            new = layers.Conv2D(growth, 3, padding='same', use_bias=False, name=f'{block}_block{number}_2_conv')(new)
            x = layers.Concatenate(name=f'{block}_block{number}_concat')([x, new])
        if block != BLOCKS[-1]:
            x = _norm_relu(x, name=f'{block}_transition')
            x = layers.Conv2D(x.shape[-1] // 2, 1, use_bias=False, name=f'{block}_transition_conv')(x)
            x = layers.AveragePooling2D(2, name=f'{block}_transition_pool')(x)
    x = _norm_relu(x, name=BLOCKS[-1])
    features = layers.GlobalAveragePooling2D(name='pool')(x)
    imagenet = from_pytorch('densenet161') if width == 1 else None
    return Backbone(keras.Model(image, features), BLOCKS, imagenet)


def _norm_relu(x: Any, *, name: str) -> Any:
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f'{name}_bn')(x)
    return layers.Activation('relu', name=f'{name}_relu')(x)
