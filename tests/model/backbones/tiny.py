"""A network that a step of is traced in a second: two convolutions, in blocks 1 and 2, with batch normalisation."""

import keras
from keras import layers

from model.backbone import Backbone

MIN_IMAGE_SIZE = 8


def build(*, image_size: int) -> Backbone:
    image = keras.Input([image_size, image_size, 3])
    x = layers.Rescaling(1 / 127.5, offset=-1, name='scale')(image)
    for block in ('block1', 'block2'):
        x = layers.Conv2D(8, 3, strides=2, use_bias=False, name=f'{block}_conv')(x)
        x = layers.BatchNormalization(name=f'{block}_bn')(x)
        x = layers.Activation('relu', name=f'{block}_act')(x)
    return Backbone(keras.Model(image, layers.GlobalAveragePooling2D(name='pool')(x)), ('block1', 'block2'), None)
