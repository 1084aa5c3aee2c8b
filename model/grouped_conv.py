"""A convolution in groups whose gradient is quick on a CPU."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package='model')
class GroupedConv2D(keras.layers.Conv2D):
    """Conv2D without padding, done by TensorFlow's own kernels.

    Keras has XLA compile a convolution with groups, because TensorFlow's plain kernel for CPUs has no gradient for
    them; those of oneDNN, which are taken on x86 in float32 and bfloat16, and of cuDNN have one. XLA's took 90 to 900
    times as long on a CPU (DPN-92's of four sizes, tensorflow 2.17).
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """As in keras.layers.Conv2D."""
        return tf.nn.conv2d(inputs, kernel, self.strides, 'VALID')
