"""A backbone with a dense layer on it, and the weights it starts from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from model.backbone import Backbone
from pipeline import storage
from pipeline.errors import InputError, one_line

HEAD = 'logits'


def build(backbone: Backbone, *, classes: int, dropout: float) -> keras.Model:
    """Pictures float32 [n, size, size, 3], 0..255 -> logits float32 [n, classes].

    The logits stay float32 under every precision: a softmax over thousands of classes needs it.
    """
    features = backbone.model.output
    if dropout:
        features = layers.Dropout(dropout, name='dropout')(features)
    logits = layers.Dense(classes, dtype='float32', name=HEAD)(features)
    return keras.Model(backbone.model.input, logits)


def load_weights(classifier: keras.Model, backbone: Backbone, weights: str) -> str:
    """Fills a classifier with the weights it starts from.

    Args:
        classifier: what build() made of `backbone`.
        backbone: the backbone.
        weights: imagenet, none, or the path of a .keras file of ours (every layer of the same name and shapes is
            filled) or of a backbone's .h5 file without head.

    Returns:
        What was done, for the log.

    Raises:
        InputError: the weights can't be had or fit nothing.
    """
    if weights == 'none':
        return 'weights: random'
    if weights == 'imagenet':
        return _load_imagenet(backbone)
    if not storage.exists(weights):
        raise InputError(f'--weights={weights}: no such file; the other choices are imagenet and none')
    if weights.endswith('.keras'):
        source = _load(weights, lambda: keras.models.load_model(weights, compile=False))
        filled = _copy_layers(source, classifier)
    else:
        before = backbone.model.get_weights()
        _load(weights, lambda: backbone.model.load_weights(weights))
        filled = sum(not np.array_equal(*pair) for pair in zip(before, backbone.model.get_weights(), strict=True))
    if not filled:
        raise InputError(f'--weights={weights}: nothing in it fits --backbone and --width')
    return f'weights: {weights} filled {filled} {"layers" if weights.endswith(".keras") else "variables"}'


def _load_imagenet(backbone: Backbone) -> str:
    remedy = 'give a file with --weights=PATH, or train from random weights with --weights=none'
    if backbone.imagenet is None:
        raise InputError(f'--weights=imagenet: there are none for this backbone and width; {remedy}')
    try:
        values = backbone.imagenet()
    except Exception as error:  # Keras raises plain Exception where a download fails
        raise InputError(f"--weights=imagenet: can't be downloaded ({one_line(error)}); {remedy}") from None
    backbone.model.set_weights(values)
    return 'weights: ImageNet'


def _load(path: str, load: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings(action='ignore'):  # a line for every layer that a file doesn't have
            return load()
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"--weights={path}: can't be used ({one_line(error)})") from None


def _copy_layers(source: keras.Model, target: keras.Model) -> int:
    by_name = {layer.name: layer.get_weights() for layer in source.layers}
    filled = 0
    for layer in target.layers:
        values, own = by_name.get(layer.name, []), layer.get_weights()
        if own and [value.shape for value in values] == [value.shape for value in own]:
            layer.set_weights(values)
            filled += 1
    return filled
