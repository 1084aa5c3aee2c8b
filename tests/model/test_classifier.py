"""The classifier, and the weights it starts from; files of weights are in test_weights.py."""

import keras
import numpy as np
import pytest

from model import backbone, classifier, product_head, title
from model.backbone import Backbone
from model.classifier import Options
from model.inputs import Inputs
from pipeline.errors import InputError


def small(width: float = 0.05) -> Backbone:
    return backbone.build('xception_small', image_size=32, width=width)


def test_logits_are_float32_in_half_precision():
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = classifier.build(small(), classes=3, options=classifier.Options(dropout=0.2))
    finally:
        keras.config.set_dtype_policy('float32')
    assert model.compute_dtype == 'bfloat16'
    assert model(np.zeros([1, 32, 32, 3])).dtype == 'float32'


def test_random_weights_stay_as_they_are():
    network = small()
    model = classifier.build(network, classes=4)
    before = model.get_weights()
    assert classifier.load_weights(model, network, 'none') == 'weights: random'
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ('nowhere.keras', '--weights=nowhere.keras: no such file or run; the other choices are imagenet and none'),
        ('imagenet', 'there are none for this backbone and width; give a file with --weights=PATH, or train .*none'),
    ],
)
def test_weights_that_are_not_there_are_refused(weights, message):
    network = small()
    with pytest.raises(InputError, match=message):
        classifier.load_weights(network.model, network, weights)


def test_a_failed_download_names_the_other_choices():
    def unreachable():
        raise Exception(
            'URL fetch failure on https://weights.test: None --\nName or service not known'
        )  # as Keras does

    network = Backbone(small().model, (), imagenet=unreachable)
    with pytest.raises(
        InputError, match=r"--weights=imagenet: can't be downloaded \(URL fetch.*known\); .*--weights=PATH.*none"
    ):
        classifier.load_weights(network.model, network, 'imagenet')


def test_imagenet_weights_fill_the_backbone_in_order():
    network = small()
    values = [np.full_like(value, 0.5) for value in network.model.get_weights()]
    model = classifier.build(network, classes=4)
    said = classifier.load_weights(model, Backbone(network.model, network.blocks, lambda: values), 'imagenet')
    assert (
        said
        == 'weights: ImageNet (keras.applications; Keras checks the MD5) filled 44 of 45 layers, the dense layer is new'
    )
    for got, expected in zip(model.get_weights()[:-2], values, strict=True):
        np.testing.assert_array_equal(got, expected)


CLASSES = 4
TOP, SHARED = Inputs(title='top'), Inputs(title='top', title_weights='shared')
SOME = np.arange(CLASSES) < 2


def trained(options: Options, path: str) -> keras.Model:
    """A saved classifier whose layers all do something, those too that begin as zeros."""
    model = classifier.build(small(), classes=CLASSES, options=options)
    random = np.random.default_rng(1)
    values = [
        value if np.ptp(value) else random.uniform(0.5, 1.5, value.shape).astype(value.dtype)
        for value in model.get_weights()
    ]
    model.set_weights(values)
    model.save(path)
    return model


@pytest.mark.parametrize(
    ('saved', 'loaded'),
    [
        (Options(inputs=TOP), Options(inputs=Inputs(2, title='top'), join='concat')),
        (Options(inputs=TOP), Options(inputs=Inputs(2, title='top'), join='gated', features=150)),
        (Options(inputs=SHARED), Options(inputs=Inputs(2, title='top', title_weights='shared'), join='concat')),
        (Options(inputs=SHARED), Options(inputs=SHARED, features=150)),
        (Options(inputs=SHARED, units=9), Options(inputs=SHARED, units=9, features=150)),
        (Options(inputs=TOP), Options(inputs=TOP, title_uses=SOME)),
        (Options(inputs=TOP, title_uses=SOME), Options(inputs=TOP)),
    ],
    ids=['concat', 'gated, wider', 'shared, concat', 'shared, wider', 'with units', 'fewer use it', 'more use it'],
)
def test_what_a_title_has_taught_is_taken_over(tmp_path, saved, loaded):
    one, network = trained(saved, f'{tmp_path}/one.keras'), small()
    model = classifier.build(network, classes=CLASSES, options=loaded)
    said = classifier.load_weights(model, network, f'{tmp_path}/one.keras', loaded)
    assert said.endswith('the dense layer among them')
    random = np.random.default_rng(2)
    pictures = random.integers(0, 256, (4 if saved.inputs.shares else 2, 32, 32, 3)).astype(np.float32)
    bands = random.integers(0, 256, (2, title.HEIGHT, 180, 3)).astype(np.float32)
    given_one = pictures if saved.inputs.shares else [pictures, bands]
    expected = one(given_one).numpy()
    given = [pictures] if saved.inputs.shares else [pictures, bands]
    if loaded.inputs.pictures:  # of each product the same picture twice: its own rows, then those of its titles
        if saved.inputs.shares:
            given = [np.repeat(pictures, 2, axis=0), np.ones([2, 2], np.float32)]
        else:
            given = [np.repeat(pictures, 2, axis=0), np.ones([2, 2], np.float32), np.repeat(bands, 2, axis=0)]
    used = slice(None) if saved.title_uses is None and loaded.title_uses is None else slice(2)
    found = model(given if len(given) > 1 else given[0]).numpy()
    np.testing.assert_allclose(found[:, used], expected[:, used], rtol=1e-4, atol=1e-4)
    silent = keras.Model(one.input, one.get_layer('logits').output)
    assert np.abs(expected - silent(given_one)).min() > 1e-3, 'the title says something'


@pytest.mark.parametrize('units', [0, 9])
def test_a_head_on_features_that_were_widened_begins_with_the_dense_layers(tmp_path, units):
    """As model.train_head begins: the network that it is given has the new filters already."""
    one = trained(Options(features=150, units=units), f'{tmp_path}/one.keras')
    network, options = product_head.backbone(one), Options(inputs=product_head.INPUTS, units=units)
    model = classifier.build(network, classes=CLASSES, options=options)
    said = classifier.load_weights(model, network, f'{tmp_path}/one.keras', options)
    assert said.endswith('the dense layer among them')
    pictures = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    given = [np.repeat(pictures, 4, axis=0), np.array([[1, 0, 0, 0], [1, 1, 1, 1]], np.float32)]
    np.testing.assert_allclose(model(given), one(pictures), rtol=1e-4, atol=1e-4)


def test_logits_of_units_that_are_new_are_new_too(tmp_path):
    """A dense layer of so many units that reads other features isn't theirs."""
    trained(Options(inputs=Inputs(2), join='concat', units=9), f'{tmp_path}/one.keras')
    network, options = small(), Options(inputs=Inputs(2), join='mean', units=9)
    model = classifier.build(network, classes=CLASSES, options=options)
    before = model.get_layer('logits').get_weights()
    said = classifier.load_weights(model, network, f'{tmp_path}/one.keras', options)
    assert said.endswith('the dense layer is new')
    np.testing.assert_array_equal(model.get_layer('logits').get_weights()[0], before[0])
