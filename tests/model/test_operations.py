"""Multiply-adds against those worked out by hand, and published ones."""

import keras
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from model import backbone, classifier, operations


def network(*steps):
    image = keras.Input([8, 8, 6])
    x = image
    for step in steps:
        x = step(x)
    return keras.Model(image, x)


@pytest.mark.parametrize(
    ('steps', 'expected'),
    [
        ([layers.Conv2D(10, 3, padding='same')], 64 * 10 * 9 * 6),
        ([layers.Conv2D(10, 3, strides=2)], 9 * 10 * 9 * 6),  # (8 - 3) // 2 + 1 = 3 a side
        ([layers.Conv2D(10, 1, groups=2)], 64 * 10 * 3),
        ([layers.DepthwiseConv2D(3, padding='same')], 64 * 6 * 9),
        ([layers.SeparableConv2D(10, 3, padding='same')], 64 * 6 * 9 + 64 * 10 * 6),
        ([layers.GlobalAveragePooling2D(), layers.Dense(7), layers.Dense(5)], 6 * 7 + 7 * 5),
        ([layers.BatchNormalization(), layers.ReLU()], 0),
    ],
)
def test_the_count_is_that_worked_out_by_hand(steps, expected):
    assert operations.multiply_adds(network(*steps)) == expected


def test_resnet50_has_the_count_that_is_published():
    """3.8 thousand million at 224 pixels with 1000 categories: He et al., CVPR 2016, table 1."""
    made = classifier.build(backbone.build('resnet50', image_size=224, width=1), classes=1000)
    assert operations.multiply_adds(made) == pytest.approx(3.86e9, rel=0.01)


def test_the_count_is_that_of_the_profiler():
    """TensorFlow's own counts two operations for each multiply-add, and some for what isn't counted here."""
    made = classifier.build(backbone.build('xception_small', image_size=64, width=0.25), classes=83)
    traced = tf.function(lambda image: made(image, training=False)).get_concrete_function(tf.TensorSpec([1, 64, 64, 3]))
    constants = convert_variables_to_constants_v2(traced).graph
    with constants.as_default():
        options = tf.compat.v1.profiler.ProfileOptionBuilder(
            tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        )
        found = tf.compat.v1.profiler.profile(constants, options=options.with_empty_output().build())
    assert 1 <= found.total_float_ops / (2 * operations.multiply_adds(made)) < 1.15
