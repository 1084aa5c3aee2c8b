"""Which devices train, and in which precision."""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

STRATEGIES = ('auto', 'one', 'mirrored')
PRECISIONS = ('float32', 'mixed_bfloat16')


@functools.cache  # a second MirroredStrategy in one process mixes up the first's all-reduces (tensorflow issue 61314)
def strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of this name.

    Args:
        name: one (the first device), mirrored (MirroredStrategy over all GPUs, or over all logical CPUs where there are
            no GPUs), or auto: mirrored where there are several GPUs.
    """
    gpus = tf.config.list_logical_devices('GPU')
    if name == 'mirrored' or (name == 'auto' and len(gpus) > 1):
        return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices('CPU')])
    return tf.distribute.get_strategy()


def set_precision(name: str) -> None:
    """Sets what layers compute in; variables stay float32."""
    keras.config.set_dtype_policy(name)
