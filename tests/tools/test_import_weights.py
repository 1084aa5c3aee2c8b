"""PyTorch's weights in our networks compute what they compute in PyTorch."""

import functools
import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import numpy as safetensors

from model import backbone, classifier, weights
from model.backbone import Backbone
from pipeline.errors import InputError, UsageError
from tests.commands import following
from tests.documents import ROOT
from tests.tools import pytorch
from tests.tools.pytorch import Reference
from tools import import_weights

NAMES = sorted(import_weights.NAMES)
NARROW = 0.1
SIZE = 64  # even on every level, where padding on one side only would show


@pytest.fixture(scope='module', params=NAMES)
def narrow(request, tmp_path_factory) -> Reference:
    return pytorch.reference(request.param, width=NARROW, size=SIZE, folder=tmp_path_factory.mktemp('torch') / 'files')


@functools.cache
def built(name: str, width: float = NARROW) -> Backbone:
    return backbone.build(name, image_size=SIZE, width=width)


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """The program, for narrow networks; gives the command that its last line names."""
    monkeypatch.chdir(tmp_path)
    networks = {name: built(name) for name in NAMES}
    for path in ROOT.glob('*.flags'):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(import_weights.backbones, 'build', lambda name, **_: networks[name])

    def run(*words: str) -> str:
        import_weights.main(['import_weights', *words])
        return following(capsys.readouterr().out)

    return run


def filled(name: str, path: str, width: float = NARROW) -> Backbone:
    """A network whose weights are those of a file, by what --weights does."""
    network = built(name, width)
    model = classifier.build(network, classes=10)
    model.set_weights([np.zeros_like(value) for value in model.get_weights()])  # nothing stays of the file before
    said = classifier.load_weights(model, network, path)
    layers = sum(bool(layer.weights) for layer in model.layers)
    assert f'filled {layers - 1} of {layers} layers, the dense layer is new' in said
    return network


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4, of the largest if that is above 1."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


def assert_computes_the_same(network: Backbone, reference: Reference) -> None:
    assert reference.features.std() > 0.01
    assert_close(network.model(reference.pictures).numpy(), reference.features)


@pytest.mark.parametrize(
    'file', ['weights.pth', 'before-1.6.pth', 'before-0.4.pth', 'checkpoint.pth.tar', 'model.safetensors']
)
def test_an_imported_network_gives_pytorchs_features(main, narrow, file):
    path = narrow.folder / file
    if file.endswith('.safetensors'):
        safetensors.save_file(narrow.arrays('tensors'), path)
    assert main(f'--backbone={narrow.name}', f'--input={path}') == (
        f'python -m model.train --flagfile={narrow.name}.flags --weights=weights/{narrow.name}.weights.h5'
    )
    assert_computes_the_same(filled(narrow.name, f'weights/{narrow.name}.weights.h5'), narrow)


def test_its_gradients_are_pytorchs(narrow):
    model = built(narrow.name).model
    import_weights.fill(model, narrow.arrays('tensors'), backbone=narrow.name)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(narrow.pictures, training=False) * narrow.factors)
    places = import_weights.places(model)
    gradients = narrow.arrays('gradients')
    variables = [places[import_weights.place(name, narrow.name)] for name in gradients]
    assert len(variables) == len(model.trainable_variables)
    found = tape.gradient(loss, [variable.value for variable in variables])
    for (name, gradient), ours in zip(gradients.items(), found, strict=True):
        expected = import_weights.as_keras(gradient)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_network_of_the_published_width_gives_pytorchs_features(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = pytorch.reference(name, width=1, size=SIZE, folder=tmp_path / 'torch')
    import_weights.main(['import_weights', f'--backbone={name}', f'--input={reference.folder / "weights.pth"}'])
    assert_computes_the_same(filled(name, f'weights/{name}.weights.h5', width=1), reference)


@pytest.fixture
def first_layers(monkeypatch, tmp_path):
    """Has the program take a network of two layers of DPN-92's for it; gives PyTorch's tensors of them."""
    monkeypatch.chdir(tmp_path)
    image = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(8, 7, use_bias=False, name='conv1_conv')(image)
    model = keras.Model(image, keras.layers.BatchNormalization(name='conv1_bn')(x))
    monkeypatch.setattr(import_weights.backbones, 'build', lambda *_, **__: Backbone(model, ('conv1',), None))
    shapes = {'conv.weight': (8, 3, 7, 7), **{f'bn.{array}': (8,) for array in import_weights.ARRAYS[4]}}
    random = np.random.default_rng(0)
    return {f'features.conv1_1.{name}': random.uniform(0, 1, shape).astype('f') for name, shape in shapes.items()} | {
        'features.conv1_1.bn.num_batches_tracked': np.array(7),
        'classifier.weight': np.zeros([1000, 8, 1, 1], 'f'),
        'classifier.bias': np.zeros(1000, 'f'),
    }


def import_tensors(tensors: dict[str, np.ndarray]) -> None:
    safetensors.save_file(tensors, 'model.safetensors')
    import_weights.main(['import_weights', '--backbone=dpn92', '--input=model.safetensors', '--output=a.weights.h5'])


def test_it_says_what_it_wrote(first_layers, capsys):
    import_tensors(first_layers)
    megabytes = os.path.getsize('a.weights.h5') / 1e6
    assert capsys.readouterr().out.startswith(f'wrote a.weights.h5: dpn92, 1,208 numbers, {megabytes:.1f} MB; next: ')


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_numbers_of_another_precision_are_taken(first_layers, dtype):
    import_tensors({name: value.astype(dtype) for name, value in first_layers.items()})
    saved, _ = weights.read('a.weights.h5')
    (kernel,) = saved['conv2d', 0].values
    expected = first_layers['features.conv1_1.conv.weight'].astype(dtype).astype('f')
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('features.conv1_1.bn.bias', None, 'there is no bias for conv1_bn'),
        ('features.conv1_1.conv.bias', np.zeros(8, 'f'), 'features.conv1_1.conv.bias has no place'),
        ('layer1.0.conv1.weight', np.zeros(8, 'f'), 'layer1.0.conv1.weight has no place'),
        ('features.conv2_1.c1x1_a.bn.bias', np.zeros(8, 'f'), 'features.conv2_1.c1x1_a.bn.bias has no place'),
        ('features.conv1_1.conv.weight', np.zeros([8, 3, 3, 3], 'f'), r'has shape \[8, 3, 3, 3\], not \[8, 3, 7, 7\]'),
        ('features.conv1_1.conv.weight', np.zeros([7, 7, 3, 8], 'f'), r'has shape \[7, 7, 3, 8\], not \[8, 3, 7, 7\]'),
        (
            'features.conv1_1.bn.weight',
            np.zeros([8, 1], 'f'),
            r'features.conv1_1.bn.weight has shape \[8, 1\], not \[8\]',
        ),
        ('features.conv1_1.bn.weight', np.full(8, np.nan, 'f'), 'bn.weight has numbers that are not finite'),
    ],
)
def test_a_file_of_which_a_tensor_does_not_fit_is_refused_with_its_name(first_layers, name, value, message):
    changed = first_layers | {name: value}
    expected = f'model.safetensors: .*{message}; it must be of dpn92 as timm or torchvision has it'
    with pytest.raises(InputError, match=expected):
        import_tensors({name: value for name, value in changed.items() if value is not None})
    assert os.listdir() == ['model.safetensors']


def test_a_file_without_the_last_layer_is_taken(first_layers):
    import_tensors({name: value for name, value in first_layers.items() if 'classifier' not in name})


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--input=a.pth'], '--backbone: must be given'),
        (['--backbone=dpn92'], '--input: must be given'),
        (['--backbone=dpn92', '--input=a.pth', '--output=a.h5'], '--output=a.h5: must be a local NAME.weights.h5'),
        (['--backbone=dpn92', '--input=a.pth', '--output=s3://a/b.weights.h5'], 'must be a local'),
    ],
)
def test_flags_that_make_no_sense_are_bad_usage(words, message):
    with pytest.raises(UsageError, match=message):
        import_weights.main(['import_weights', *words])


def test_without_safetensors_it_says_how_to_install_it(first_layers, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(
        InputError, match=r"model.safetensors: needs the package safetensors: pip install .*'.\[import\]'"
    ):
        import_tensors(first_layers)


@pytest.mark.parametrize('name', NAMES)
def test_asking_for_imagenets_weights_names_this_program(name):
    network = Backbone(built(name).model, (), backbone.from_pytorch(name))
    model = classifier.build(network, classes=10)
    with pytest.raises(InputError, match=f'python -m tools.import_weights --backbone={name}.*--weights=PATH'):
        classifier.load_weights(model, network, 'imagenet')
