"""Every backbone in model/backbones/: its numbers, its blocks and its life on disk."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest

from model import backbone, classifier, runs, stages
from model.backbone import Backbone
from model.grouped_conv import GroupedConv2D
from pipeline.errors import InputError

APPLICATIONS = {
    'xception': (keras.applications.Xception, keras.applications.xception),
    'resnet50': (keras.applications.ResNet50, keras.applications.resnet),
    'densenet169': (keras.applications.DenseNet169, keras.applications.densenet),
    'inception_resnet_v2': (keras.applications.InceptionResNetV2, keras.applications.inception_resnet_v2),
}
PARAMETERS = {
    'xception': 20_861_480,
    'resnet50': 23_587_712,
    'densenet169': 12_642_880,
    'inception_resnet_v2': 54_336_736,
}
# With a dense layer of 1,000 categories, without the statistics of batch normalisation, as PyTorch counts; features.
PUBLISHED = {'densenet161': (28_681_000, 2208), 'dpn92': (37_668_392, 2688)}
WITH_WIDTH = ('densenet161', 'dpn92', 'xception', 'xception_small')
SIZE = 75  # the least that all take


def marked(names):
    """The names, with the one that takes over ten seconds marked slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name == 'inception_resnet_v2')) for name in names]


@functools.cache
def built(name: str) -> Backbone:
    return backbone.build(name, image_size=SIZE, width=0.1 if name in WITH_WIDTH else 1)


@functools.cache
def reference(name: str) -> keras.Model:
    """Keras' own network with weights of which no two arrays are equal."""
    model = APPLICATIONS[name][0](weights=None, include_top=False, pooling='avg', input_shape=(SIZE, SIZE, 3))
    random = np.random.default_rng(0)
    # Biases and batch normalisation begin at 0 and 1.
    model.set_weights(
        [value + (value.ndim == 1) * random.uniform(0, 0.1, value.shape) for value in model.get_weights()]
    )
    return model


def layers_with_weights(model: keras.Model) -> list[keras.Layer]:
    return [layer for layer in model.layers if layer.weights]


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, [2, SIZE, SIZE, 3]).astype('f')


def test_an_unknown_backbone_lists_the_known_ones():
    known = 'densenet161, densenet169, dpn92, inception_resnet_v2, resnet50, xception, xception_small'
    with pytest.raises(InputError, match=f'--backbone=vgg: no such backbone; known are {known}'):
        backbone.build('vgg', image_size=180, width=1)


@pytest.mark.parametrize('name', sorted(set(backbone.names()) - set(WITH_WIDTH)))
def test_a_width_that_a_backbone_does_not_have_names_those_that_do(name):
    message = f'--width=0.25: {name} has only .* --width=1; any is taken by {", ".join(WITH_WIDTH)}'
    with pytest.raises(InputError, match=message):
        backbone.build(name, image_size=SIZE, width=0.25)


@pytest.mark.parametrize(
    ('name', 'smallest'),
    [('inception_resnet_v2', 75), ('resnet50', 32), ('densenet169', 32), ('densenet161', 29), ('xception', 7)],
)
def test_pictures_that_are_too_small_are_refused(name, smallest):
    with pytest.raises(InputError, match=f'--image_size={smallest - 1}: {name} takes {smallest} pixels a side or more'):
        backbone.build(name, image_size=smallest - 1, width=1)


@pytest.mark.parametrize(
    ('name', 'size'),
    [('xception', 7), ('xception_small', 7), ('resnet50', 32), ('densenet161', 29), ('dpn92', 1)],
)
def test_the_smallest_pictures_are_taken(name, size):
    model = backbone.build(name, image_size=size, width=0.05 if name in WITH_WIDTH else 1).model
    assert np.isfinite(model(np.zeros([1, size, size, 3], 'f'))).all()


@pytest.mark.parametrize(
    ('filters', 'width', 'expected'), [(32, 1, 32), (728, 0.25, 184), (728, 2, 1456), (32, 0.01, 8), (100, 0.25, 24)]
)
def test_filters_are_scaled_to_multiples_of_8(filters, width, expected):
    assert backbone.scaled(filters, width) == expected


@pytest.mark.parametrize('name', marked(APPLICATIONS))
def test_a_backbone_computes_what_kerass_does_with_the_same_weights(name):
    ours = (backbone.build(name, image_size=SIZE, width=1) if name in WITH_WIDTH else built(name)).model
    assert ours.count_params() == reference(name).count_params() == PARAMETERS[name]
    ours.set_weights(reference(name).get_weights())
    expected = reference(name)(APPLICATIONS[name][1].preprocess_input(images())).numpy()
    np.testing.assert_allclose(ours(images()).numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_network_of_pytorchs_has_the_published_parameters_and_features(name):
    parameters, features = PUBLISHED[name]
    model = backbone.build(name, image_size=SIZE, width=1).model
    assert model.output_shape == (None, features)
    learning = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    assert learning + 1000 * (features + 1) == parameters


@pytest.mark.parametrize(('name', 'epsilon'), [('densenet161', 1e-5), ('dpn92', 1e-3)])
def test_its_batch_normalisation_is_pytorchs(name, epsilon):
    """PyTorch's momentum of 0.1 is Keras' of 0.9."""
    norms = [layer for layer in built(name).model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.9, epsilon)}


@pytest.mark.parametrize(
    ('name', 'width', 'features'),
    [
        ('densenet161', 0.1, ((((16 + 6 * 8) // 2 + 12 * 8) // 2) + 36 * 8) // 2 + 24 * 8),
        ('densenet161', 0.5, ((((48 + 6 * 24) // 2 + 12 * 24) // 2) + 36 * 24) // 2 + 24 * 24),
        ('dpn92', 0.1, 208 + 5 * 16),
        ('dpn92', 0.5, 1024 + 5 * 64),
    ],
)
def test_every_channel_is_scaled_by_the_width(name, width, features):
    assert backbone.build(name, image_size=SIZE, width=width).model.output_shape == (None, features)


@pytest.mark.parametrize('name', backbone.names())
def test_blocks_follow_each_other_and_hold_every_layer_with_weights(name):
    """Layers are in an order in which none comes before its input, so a frozen prefix of blocks is one of the graph."""
    blocks = [layer.name.split('_')[0] for layer in layers_with_weights(built(name).model)]
    assert tuple(block for block, _ in itertools.groupby(blocks)) == built(name).blocks


@pytest.mark.parametrize('name', backbone.names())
def test_names_do_not_hang_on_what_was_built_before(name):
    again = backbone.build(name, image_size=SIZE, width=0.1 if name in WITH_WIDTH else 1)
    names = [layer.name for layer in layers_with_weights(again.model)]
    assert names == [layer.name for layer in layers_with_weights(built(name).model)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ('name', 'block', 'layer_before'),
    [
        ('resnet50', 'conv5', 'conv4_block6_out'),
        ('densenet169', 'conv5', 'pool4_pool'),
        ('inception_resnet_v2', 'mixed7a', 'block17_20_ac'),
    ],
)
def test_the_layers_from_a_block_on_learn(name, block, layer_before):
    names = [layer.name for layer in reference(name).layers]
    expected = sum(layer.count_params() for layer in reference(name).layers[names.index(layer_before) + 1 :])
    model = classifier.build(built(name), classes=10)
    try:
        stages.set_trainable(model, block, built(name).blocks)
        learning = sum(layer.count_params() for layer in model.layers if layer.trainable)
    finally:
        stages.set_trainable(model, 'all', built(name).blocks)
    assert learning == expected + 10 * built(name).model.output.shape[-1] + 10


@pytest.mark.parametrize('name', marked(backbone.names()))
def test_a_saved_classifier_comes_back_with_the_same_names_and_logits(name, tmp_path):
    model = classifier.build(built(name), classes=3, options=classifier.Options(dropout=0.2))
    model.save(tmp_path / 'model.keras')
    again = keras.models.load_model(tmp_path / 'model.keras', compile=False)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(again(images()), model(images()))
    clone = keras.models.clone_model(model)
    assert [layer.name for layer in layers_with_weights(clone)] == [layer.name for layer in layers_with_weights(model)]


def test_a_saved_layer_of_ours_is_found_by_a_program_that_builds_no_backbone(tmp_path, monkeypatch):
    path = tmp_path / runs.MODEL_NAME
    built('dpn92').model.save(path)
    monkeypatch.delitem(keras.saving.get_custom_objects(), 'model>GroupedConv2D')
    monkeypatch.setattr(runs, 'read_settings', lambda run_dir: {})
    model = runs.load_model(str(tmp_path))
    assert isinstance(model.get_layer('conv2_block1_2_conv'), GroupedConv2D)
