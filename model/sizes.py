"""What a classifier costs beside the plain one of the same backbone: parameters, memory, pictures a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from model import memory
from model.accumulate import AccumulatingModel
from pipeline import augment
from pipeline.pictures import SHAPE

PICTURES = 8  # at a time: enough to tell models from each other
STEPS = 3


def describe(name: str, model: AccumulatingModel, *, accumulate: int) -> str:
    """A line of the table; the model is trained for STEPS + 1 updates on noise.

    Args:
        name: what the line is called.
        model: the model, made outside any strategy.
        accumulate: micro batches a replica, for the memory.
    """
    inputs = model.inputs_of_row
    rows = max(1, PICTURES // max(1, inputs.pictures))
    taken = memory.needed(model.classifier, micro_batch=model.micro_batch, accumulate=accumulate, inputs=inputs).total
    model.compile(keras.optimizers.Adam())
    step = tf.function(model.train_step, autograph=False)
    noise = np.random.default_rng(0)
    each = (inputs.pictures,) if inputs.pictures else ()
    images = tf.constant(noise.integers(0, 256, (rows, *each, *SHAPE), np.uint8))
    mask = (tf.ones((rows, *each), tf.bool),) if inputs.pictures else ()
    draws = tf.constant(noise.random((rows, *each, augment.DRAWS), np.float32))
    seconds = _seconds(lambda: step((images, *mask, draws, tf.zeros([rows], tf.int64))))
    rate = rows * max(1, inputs.pictures) / seconds
    parameters = model.classifier.count_params()
    return f'{name:9}  {parameters:13,} parameters  {taken / 1e9:6.2f} GB a device  {rate:8,.1f} images/s'


def _seconds(step: Callable[[], object]) -> float:
    """Of one step; the first isn't counted, for it compiles."""
    found = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        for value in tf.nest.flatten(step()):
            float(value)
        found.append(time.perf_counter() - started)
    return float(np.median(found[1:]))
