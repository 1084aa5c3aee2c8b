"""A backbone with a dense layer on it, and the weights it starts from."""

from __future__ import annotations

import keras
from keras import layers

from model import weights as weight_files
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
        weights: imagenet, none, or the path of a .keras, .weights.h5 or .h5 file of this network (model/weights.py),
            with or without a dense layer; one of as many classes is taken over.

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
    return weight_files.fill(classifier, weights)


def _load_imagenet(backbone: Backbone) -> str:
    remedy = 'give a file with --weights=PATH, or train from random weights with --weights=none'
    if backbone.imagenet is None:
        raise InputError(f'--weights=imagenet: there are none for this backbone and width; {remedy}')
    try:
        values = backbone.imagenet()
    except Exception as error:  # Keras raises plain Exception where a download fails
        raise InputError(f"--weights=imagenet: can't be downloaded ({one_line(error)}); {remedy}") from None
    backbone.model.set_weights(values)
    filled = sum(bool(layer.weights) for layer in backbone.model.layers)
    return weight_files.told('ImageNet', filled=filled, layers=filled + 1, head=False)
