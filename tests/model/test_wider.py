"""More features than a backbone was trained with: the network computes the same before it is trained on."""

import keras
import numpy as np
import pytest
from keras import layers

from model import backbone, classifier, wider
from model.backbone import Backbone
from model.classifier import Options
from model.inputs import Inputs
from pipeline.errors import UsageError

CLASSES = 5


def images(size: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.float32)


def small() -> Backbone:
    return backbone.build('xception_small', image_size=32, width=0.05)


def statistics_of_their_own(model: keras.Model) -> None:
    """Batch normalisation as after training, so that no layer is the identity."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            values = layer.get_weights()
            layer.set_weights([*(random.uniform(0.5, 1.5, value.shape) for value in values)])


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in backbone.names() if name != 'xception_small']


@pytest.mark.parametrize('name', ['xception_small', *LARGE])
def test_the_features_of_every_backbone_stay_as_they_are_and_new_ones_follow(name):
    width = 0.1 if name in ('xception', 'densenet161', 'dpn92') else 1  # the others have only this one
    built = backbone.build(name, image_size=75, width=width)
    have = built.model.output.shape[-1]
    model = keras.Model(built.model.input, wider.features(built, have + 64))
    statistics_of_their_own(model)
    given = images(75, 2)
    found, before = model.predict(given, verbose=0), built.model.predict(given, verbose=0)
    np.testing.assert_allclose(found[:, :have], before, rtol=1e-5, atol=1e-5)
    assert found.shape == (2, have + 64)
    assert (np.ptp(found[:, have:], axis=0) > 0).mean() > 0.1, 'of the new ones, too, some tell pictures apart'


@pytest.mark.parametrize('options', [Options(features=150), Options(features=150, units=9)], ids=['one', 'two'])
@pytest.mark.parametrize('precision', ['float32', 'mixed_bfloat16'])
def test_a_trained_classifier_computes_the_same_with_more_features(tmp_path, options, precision):
    trained = classifier.build(small(), classes=CLASSES, options=Options(units=options.units))
    statistics_of_their_own(trained)
    trained.save(tmp_path / 'one.keras')
    keras.config.set_dtype_policy(precision)
    try:
        built = small()
        wide = classifier.build(built, classes=CLASSES, options=options)
    finally:
        keras.config.set_dtype_policy('float32')
    said = classifier.load_weights(wide, built, str(tmp_path / 'one.keras'), options)
    assert said.endswith('filled 45 of 47 layers, the dense layer among them' if not options.units
                         else 'filled 46 of 48 layers, the dense layer among them')  # fmt: skip
    given = images(32)
    tolerance = 1e-5 if precision == 'float32' else 0.1
    np.testing.assert_allclose(wide(given), trained(given), rtol=tolerance, atol=tolerance)


def test_all_new_weights_learn(tmp_path):
    trained = classifier.build(small(), classes=CLASSES)
    trained.save(tmp_path / 'one.keras')
    built, options = small(), Options(features=150)
    wide = classifier.build(built, classes=CLASSES, options=options)
    classifier.load_weights(wide, built, str(tmp_path / 'one.keras'), options)
    wide.compile(keras.optimizers.Adam(0.01), 'mse')
    new = {name: wide.get_layer(name).get_weights() for name in ('wider_conv', 'wider_bn')}
    for _ in range(2):  # the filters' gradient comes through the dense layer, whose new rows were zeros
        wide.train_on_batch(images(32, 8), np.eye(CLASSES)[np.arange(8) % CLASSES])
    for name, before in new.items():
        assert all((value != old).any() for value, old in zip(wide.get_layer(name).get_weights(), before, strict=True))
    rows = wide.get_layer('logits').kernel.numpy()[small().model.output.shape[-1] :]
    assert (rows != 0).all()


def test_no_fewer_features_than_there_are():
    have = small().model.output.shape[-1]
    for count in (8, have):
        with pytest.raises(UsageError, match=f'--features={count}: must be more than the {have}'):
            wider.features(small(), count)
    assert wider.features(small(), have + 1).shape == (None, have + 1)


@pytest.mark.parametrize(
    ('saved', 'loaded', 'taken'),
    [
        # As many rows, which mean something else: two pictures' features, or one's with as many new ones.
        (Options(inputs=Inputs(2), join='concat'), Options(inputs=Inputs(2), join='mean', features=208), False),
        (Options(inputs=Inputs(2), join='mean', features=208), Options(inputs=Inputs(2), join='concat'), False),
        (Options(inputs=Inputs(2), join='concat'), Options(inputs=Inputs(2), join='concat', features=150), True),
        (Options(features=150), Options(features=208), True),
    ],
)
def test_a_dense_layer_of_other_features_is_not_taken_for_ones_own(tmp_path, saved, loaded, taken):
    classifier.build(small(), classes=CLASSES, options=saved).save(tmp_path / 'one.keras')
    built = small()
    model = classifier.build(built, classes=CLASSES, options=loaded)
    said = classifier.load_weights(model, built, str(tmp_path / 'one.keras'), loaded)
    assert said.endswith('the dense layer among them' if taken else 'the dense layer is new')
