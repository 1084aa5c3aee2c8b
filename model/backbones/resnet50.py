"""ResNet50 (He et al. 2015, arXiv 1512.03385, table 1), as keras.applications has it: 23.6 million parameters."""

from __future__ import annotations

import keras
from keras import layers

from model.backbone import Backbone, from_keras

MIN_IMAGE_SIZE = 32  # as in keras.applications
BLOCKS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5')  # the paper's conv2_x is conv2
MEANS = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red, as the published weights were trained


def build(*, image_size: int) -> Backbone:
    """ResNet50 for pictures of `image_size` pixels a side; Keras' names begin with the blocks."""
    image = keras.Input([image_size, image_size, 3])
    blue_green_red = keras.ops.flip(image, axis=-1)
    scaled = layers.Rescaling(1.0, offset=[-mean for mean in MEANS], name='scale')(blue_green_red)
    return from_keras(keras.applications.ResNet50, image, scaled, blocks=BLOCKS)
