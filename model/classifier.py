"""A backbone with what makes logits of its features, and the weights it starts from.

Synopsis:

    network = classifier.build(backbone, classes=5270, options=Options(units=4096, inputs=Inputs(pictures=2)))
    print(classifier.load_weights(network, backbone, 'runs/one'))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from model import join, runs, title, wider
from model import weights as weight_files
from model.backbone import Backbone
from model.inputs import SINGLE, Inputs
from model.weights import HEAD, HEAD_DENSE
from pipeline import storage
from pipeline.errors import InputError, UsageError, one_line

JOIN = 'join'
HEAD_LAYERS = ('dropout', HEAD_DENSE, 'head_dropout', HEAD)  # all but the last only if they are asked for
ACTIVATIONS = ('relu', 'elu', 'selu', 'gelu', 'silu')


@dataclass(frozen=True, eq=False)
class Options:
    """What lies between a backbone and its logits.

    Attributes:
        inputs: what the classifier is given.
        features: how many the backbone shall have, with new filters in its last convolution; 0: those it has.
        join: how the features of a product's pictures become one, join.KINDS.
        dropout: share of features left out at random while it trains.
        units: of a dense layer before that of the logits; 0: there is none.
        activation: of that layer.
        units_dropout: share of its outputs left out at random while it trains.
        title_width: times the filters of the title's own branch.
        title_uses: bool [classes], the categories whose logits the title counts for; None: all.
    """

    inputs: Inputs = SINGLE
    features: int = 0
    join: str = 'gated'
    dropout: float = 0
    units: int = 0
    activation: str = 'relu'
    units_dropout: float = 0
    title_width: float = 1
    title_uses: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.units_dropout and not self.units:
            raise UsageError('--head_dropout is of the layer that --head_units=N makes; give both or neither')

    @property
    def plain(self) -> bool:
        """Whether it is the paper's network: a backbone and one dense layer."""
        return self.inputs == SINGLE and not self.features and not self.units


PLAIN = Options()


def build(backbone: Backbone, *, classes: int, options: Options = PLAIN) -> keras.Model:
    """What Inputs.prepare() gives -> logits float32 [n, classes].

    The logits stay float32 under every precision: a softmax over thousands of classes needs it.
    """
    inputs, given = options.inputs, [backbone.model.input]
    features = wider.features(backbone, options.features)
    titles = None
    if inputs.shares:
        features, titles = _parted(features, inputs)
    if inputs.pictures:
        present = keras.Input([inputs.pictures], name='present')
        given.append(present)
    if inputs.title != 'off' and not inputs.shares:
        branch = title.branch(width=options.title_width)
        given.append(branch.input)
        titles = branch.output
    if inputs.pictures:
        features = join.Join(options.join, inputs.pictures, name=JOIN)(features, present)
        if titles is not None:
            titles = join.Join(options.join, inputs.pictures, name='join_titles')(titles, present)
    logits = head(features, classes=classes, options=options)
    if titles is not None:
        uses = np.ones(classes, bool) if options.title_uses is None else options.title_uses
        logits = title.add(logits, titles, uses=uses.tolist())
    return keras.Model(given if len(given) > 1 else given[0], logits)


def head(features: Any, *, classes: int, options: Options) -> Any:
    """The dense layers: features [n, F] -> logits float32 [n, classes]."""
    if options.dropout:
        features = layers.Dropout(options.dropout, name=HEAD_LAYERS[0])(features)
    if options.units:
        features = layers.Dense(options.units, activation=options.activation, name=HEAD_DENSE)(features)
        if options.units_dropout:
            features = layers.Dropout(options.units_dropout, name=HEAD_LAYERS[2])(features)
    return layers.Dense(classes, dtype='float32', name=HEAD)(features)


def features_model(classifier: keras.Model) -> keras.Model:
    """A backbone's part of a classifier of single pictures: pictures -> what its dense layers take, [n, features]."""
    first = next(layer for layer in classifier.layers if layer.name in HEAD_LAYERS)
    return keras.Model(classifier.input, first.input)


def head_of(classifier: keras.Model) -> keras.Model:
    """The other part of a classifier of products, its layers and weights shared with it.

    Returns:
        [features float32 [n * pictures, features], present float32 [n, pictures]] -> logits float32 [n, classes].
    """
    joined = classifier.get_layer(JOIN)
    given = [keras.Input(joined.input[0].shape[1:], name='features'), keras.Input([joined.pictures], name='present')]
    features = joined(*given)
    for layer in classifier.layers:
        if layer.name in HEAD_LAYERS:
            features = layer(features)
    return keras.Model(given, features)


def _parted(features: Any, inputs: Inputs) -> tuple[Any, Any]:
    """The features of pictures and those of titles, which go through the backbone row by row."""
    count, each = features.shape[-1], inputs.pictures_a_row // 2
    rows = keras.ops.reshape(features, [-1, 2, each, count])
    return tuple(keras.ops.reshape(rows[:, part], [-1, count]) for part in (0, 1))


def load_weights(classifier: keras.Model, backbone: Backbone, weights: str, options: Options = PLAIN) -> str:
    """Fills a classifier with the weights it starts from.

    Args:
        classifier: what build() made of the other two.
        backbone: the backbone.
        weights: imagenet, none, the folder of a finished run, or the path of a .keras, .weights.h5 or .h5 file of this
            network (model/weights.py), with or without dense layers; those of as many classes are taken over. The file
            may be of single pictures or have fewer features: then the classifier computes the same at first, of a
            product the same as of the mean of its pictures' features. What the file hasn't begins as it is made.
        options: the classifier's.

    Returns:
        What was done, for the log.

    Raises:
        InputError: the weights can't be had or fit nothing.
    """
    if weights == 'none':
        return 'weights: random'
    if weights == 'imagenet':
        return _load_imagenet(classifier, backbone)
    if not storage.exists(weights):
        raise InputError(f'--weights={weights}: no such file or run; the other choices are imagenet and none')
    if storage.exists(storage.join(weights, runs.SETTINGS_NAME)):
        weights = runs.finished_model(weights)
    if options.plain:
        return weight_files.fill(classifier, weights)
    plain = build(backbone, classes=classifier.output_shape[-1])
    parts = options.inputs.pictures if options.join == 'concat' else 1
    return weight_files.fill(classifier, weights, plain=plain, parts=max(1, parts))


def _load_imagenet(classifier: keras.Model, backbone: Backbone) -> str:
    remedy = 'give a file with --weights=PATH, or train from random weights with --weights=none'
    if backbone.imagenet is None:
        raise InputError(f'--weights=imagenet: there are none for this backbone and width; {remedy}')
    try:
        values = backbone.imagenet()
    except InputError as error:  # what Keras hasn't
        raise InputError(f'--weights=imagenet: {error}; {remedy}') from None
    except Exception as error:  # Keras raises plain Exception where a download fails
        raise InputError(f"--weights=imagenet: can't be downloaded ({one_line(error)}); {remedy}") from None
    backbone.model.set_weights(values)
    filled, layers_there = (sum(bool(layer.weights) for layer in one.layers) for one in (backbone.model, classifier))
    return weight_files.told(
        'ImageNet (keras.applications; Keras checks the MD5)', filled=filled, layers=layers_there, head=False
    )
