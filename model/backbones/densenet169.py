"""DenseNet169 (Huang et al. 2016, arXiv 1608.06993, table 1), as keras.applications has it: 12.6 million parameters.

conv1 is the first convolution, conv2 to conv5 are the four dense blocks, each with the transition that follows it.
"""

from __future__ import annotations

import keras
from keras import layers

from model.backbone import Backbone, from_keras

MIN_IMAGE_SIZE = 32  # as in keras.applications
BLOCKS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')
# Of ImageNet's red, green and blue in 0..1, as the published weights were trained.
MEANS = (0.485, 0.456, 0.406)
DEVIATIONS = (0.229, 0.224, 0.225)


def build(*, image_size: int) -> Backbone:
    """DenseNet169 for pictures of `image_size` pixels a side."""
    image = keras.Input([image_size, image_size, 3])
    scale = [1 / (255 * deviation) for deviation in DEVIATIONS]
    offset = [-mean / deviation for mean, deviation in zip(MEANS, DEVIATIONS, strict=True)]
    scaled = layers.Rescaling(scale, offset=offset, name='scale')(image)
    network = from_keras(keras.applications.DenseNet169, image, scaled, blocks=BLOCKS)
    for number in (2, 3, 4):
        for kind in ('bn', 'conv'):
            network.model.get_layer(f'pool{number}_{kind}').name = f'conv{number}_transition_{kind}'
    network.model.get_layer('bn').name = 'conv5_bn'
    return network
