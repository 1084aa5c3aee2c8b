"""DPN-92 (Chen et al. 2017, arXiv 1707.01629, table 1; github.com/cypw/DPNs), with `width` times its filters.

Two paths go through each stage: a residual one, to which every block adds, and a dense one, to which it appends. conv1
is the first convolution, conv2 to conv5 are the paper's stages. Its ImageNet weights are PyTorch's
(tools.import_weights), so padding and batch normalisation are as there. The last activation is a ReLU, as in the
authors' code, which trained these weights (timm's code names ELU, but its current versions end in a ReLU too).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import layers

from model.backbone import Backbone, from_pytorch, scaled
from model.grouped_conv import GroupedConv2D

MIN_IMAGE_SIZE = 1  # everything pads
BLOCKS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
# Of each stage: blocks, then their Sizes.
STAGES = ((3, 96, 256, 16), (4, 192, 512, 32), (20, 384, 1024, 24), (3, 768, 2048, 128))
GROUPS = 32  # of the 3x3 convolutions
# Of red, green and blue in 0..255, and one factor for all, as the published weights were trained.
MEANS = (124, 117, 104)
SCALE = 0.0167


class Sizes(NamedTuple):
    """Channels of a stage's blocks.

    Attributes:
        bottleneck: of the grouped convolution.
        residual: of the residual path.
        added: that each block appends to the dense path, and the first one twice more.
    """

    bottleneck: int
    residual: int
    added: int


def build(*, image_size: int, width: float) -> Backbone:
    """DPN-92 as published, 35.1 million parameters and 2,688 features at width 1.

    Args:
        image_size: pixels a side.
        width: times the published numbers of filters; the bottlenecks have a multiple of 32.
    """
    image = keras.Input([image_size, image_size, 3])
    x = layers.Rescaling(SCALE, offset=[-mean * SCALE for mean in MEANS], name='scale')(image)
    x = layers.ZeroPadding2D(3, name='conv1_pad')(x)
    x = layers.Conv2D(scaled(64, width), 7, strides=2, use_bias=False, name='conv1_conv')(x)
    x = _norm_relu(x, name='conv1')
    x = layers.ZeroPadding2D(1, name='pool1_pad')(x)  # after a ReLU zeros are as good as PyTorch's minus infinity
    x = layers.MaxPooling2D(3, strides=2, name='pool1')(x)
    for stage, (blocks, bottleneck, residual, added) in zip(BLOCKS[1:], STAGES, strict=True):
        sizes = Sizes(
            GROUPS * max(1, round(bottleneck * width / GROUPS)), scaled(residual, width), scaled(added, width)
        )
        x = _block(x, sizes, name=f'{stage}_block1', projects=True, strides=1 if stage == 'conv2' else 2)
        for number in range(2, blocks + 1):
            x = _block(x, sizes, name=f'{stage}_block{number}')
    x = _norm_relu(x, name='conv5')
    features = layers.GlobalAveragePooling2D(name='pool')(x)
    imagenet = from_pytorch('dpn92') if width == 1 else None
    return Backbone(keras.Model(image, features), BLOCKS, imagenet)


def _block(x: Any, sizes: Sizes, *, name: str, projects: bool = False, strides: int = 1) -> Any:
    """One block; what goes in and comes out is the residual path's channels, then the dense path's."""
    before = x
    if projects:
        before = _norm_relu_conv(x, sizes.residual + 2 * sizes.added, name=f'{name}_0', strides=strides)
    x = _norm_relu_conv(x, sizes.bottleneck, name=f'{name}_1')
    x = _norm_relu(x, name=f'{name}_2')
    x = layers.ZeroPadding2D(1, name=f'{name}_2_pad')(x)
    x = GroupedConv2D(sizes.bottleneck, 3, strides=strides, groups=GROUPS, use_bias=False, name=f'{name}_2_conv')(x)
    x = _norm_relu_conv(x, sizes.residual + sizes.added, name=f'{name}_3')
    shortcut, dense = keras.ops.split(before, [sizes.residual], axis=-1)
    residual, new = keras.ops.split(x, [sizes.residual], axis=-1)
    total = layers.Add(name=f'{name}_add')([shortcut, residual])
    return layers.Concatenate(name=f'{name}_concat')([total, dense, new])


def _norm_relu_conv(x: Any, filters: int, *, name: str, strides: int = 1) -> Any:
    x = _norm_relu(x, name=name)
    return layers.Conv2D(filters, 1, strides=strides, use_bias=False, name=f'{name}_conv')(x)


def _norm_relu(x: Any, *, name: str) -> Any:
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f'{name}_bn')(x)
    return layers.Activation('relu', name=f'{name}_relu')(x)
