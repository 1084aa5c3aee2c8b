"""A wider feature space: more filters in the last convolution of a backbone that was trained without them."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from model.backbone import Backbone
from model.weights import WIDER
from pipeline.errors import UsageError

NAME = WIDER.removesuffix('_conv')


def features(backbone: Backbone, count: int) -> Any:
    """The backbone's features, and after them new ones: `count` in all.

    The last convolution gets more filters: they read what the old ones read, and have batch normalisation, ReLU and the
    mean over the picture of their own. The old filters and features stay as they are. With zeros for the new features
    in the dense layer that reads them (weights.fill does that) the network computes what it did before, and still
    every new weight learns: the dense layer's from the first update on, the filters from the second. Copies of trained
    filters (Net2Net, Chen et al. 2016, arXiv 1511.05641) would keep the function, too, but remain copies of each other
    under Adam, whose steps don't hang on the size of a gradient.

    Args:
        backbone: the network.
        count: of features; 0: those that it has.

    Raises:
        UsageError: there would be no more than there are.
    """
    output = backbone.model.output
    have = output.shape[-1]
    if not count:
        return output
    if count <= have:
        raise UsageError(f'--features={count}: must be more than the {have} that the backbone has; 0 leaves them')
    last = next(
        one for one in reversed(backbone.model.layers) if isinstance(one, layers.Conv2D | layers.SeparableConv2D)
    )
    more = {'filters': count - have, 'name': WIDER, 'use_bias': False}
    x = type(last).from_config({**last.get_config(), **more})(last.input)
    x = layers.BatchNormalization(name=f'{NAME}_bn')(x)
    x = layers.Activation('relu', name=f'{NAME}_act')(x)
    x = layers.GlobalAveragePooling2D(name=f'{NAME}_pool')(x)
    return keras.layers.Concatenate(name=f'{NAME}_features')([output, x])
