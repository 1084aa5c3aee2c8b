"""Files of weights as Keras has written them through the years, with and without a dense layer."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from model import backbone, classifier
from model.backbone import Backbone
from pipeline.errors import InputError


def small(width: float = 0.05) -> Backbone:
    return backbone.build('xception_small', image_size=32, width=width)


def save_old(model: keras.Model, path, *, whole_model: bool = False) -> None:
    """Writes a file as Keras 1 and 2 did: weights alone, or those of a whole model."""
    with h5py.File(path, 'w') as file:
        legacy_h5_format.save_weights_to_hdf5_group(file.create_group('model_weights') if whole_model else file, model)


def save(model: keras.Model, path) -> str:
    if path.name.endswith('.keras'):
        model.save(path)
    elif path.name.endswith('.weights.h5'):
        model.save_weights(path)
    else:
        save_old(model, path, whole_model=path.name.startswith('whole'))
    return str(path)


def load(path: str, *, classes: int = 4, width: float = 0.05) -> tuple[str, keras.Model]:
    network = small(width)
    model = classifier.build(network, classes=classes, options=classifier.Options(dropout=0.2))
    return classifier.load_weights(model, network, path), model


def assert_equal_weights(some: list[np.ndarray], others: list[np.ndarray]) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


FILES = ['a.keras', 'a.weights.h5', 'a.h5', 'whole.h5']


@pytest.mark.parametrize('name', FILES)
def test_a_dense_layer_of_other_categories_stays_new(tmp_path, name):
    source = classifier.build(small(), classes=3)
    path = save(source, tmp_path / name)
    said, target = load(path, classes=4)
    md5 = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    layers = sum(bool(layer.weights) for layer in source.layers)
    assert said == f'weights: {path} (MD5 {md5}) filled {layers - 1} of {layers} layers, the dense layer is new'
    assert_equal_weights(target.get_weights()[:-2], source.get_weights()[:-2])


@pytest.mark.parametrize('name', FILES)
def test_a_dense_layer_of_as_many_categories_is_filled_too(tmp_path, name):
    source = classifier.build(small(), classes=4)
    said, target = load(save(source, tmp_path / name), classes=4)
    assert said.endswith('filled 45 of 45 layers, the dense layer among them')
    assert_equal_weights(target.get_weights(), source.get_weights())


@pytest.mark.parametrize('name', FILES)
def test_a_file_of_a_bare_backbone_is_read(tmp_path, name):
    source = small().model
    said, target = load(save(source, tmp_path / name))
    assert said.endswith('filled 44 of 45 layers, the dense layer is new')
    assert_equal_weights(target.get_weights()[:-2], source.get_weights())


@pytest.mark.parametrize('name', FILES)
def test_equal_weights_are_counted_as_filled(tmp_path, name):
    network = small()
    model = classifier.build(network, classes=4)
    path = save(model, tmp_path / name)
    assert 'filled 45 of 45' in classifier.load_weights(model, network, path)


@pytest.mark.parametrize('name', ['a.keras', 'a.weights.h5'])
def test_the_state_of_an_optimizer_is_left_out(tmp_path, name):
    source = classifier.build(small(), classes=4, options=classifier.Options(dropout=0.2))
    source.compile(keras.optimizers.Adam(), loss='mse')
    source.optimizer.build(source.trainable_variables)
    said, target = load(save(source, tmp_path / name))
    assert 'filled 45 of 45' in said
    assert_equal_weights(target.get_weights(), source.get_weights())


def test_the_classifier_of_a_trainer_is_read(tmp_path):
    class Trainer(keras.Model):
        def __init__(self):
            super().__init__()
            self.classifier = classifier.build(small(), classes=4, options=classifier.Options(dropout=0.2))

        def call(self, x):
            return self.classifier(x)

    source = Trainer()
    source(np.zeros([1, 32, 32, 3]))
    said, target = load(save(source, tmp_path / 'a.weights.h5'))
    assert 'filled 45 of 45' in said
    assert_equal_weights(target.get_weights(), source.get_weights())


@pytest.mark.parametrize('name', ['a.keras', 'a.weights.h5'])
def test_a_backbone_in_a_model_is_read_without_what_is_on_it(tmp_path, name):
    inner = small().model
    source = keras.Sequential([keras.Input([32, 32, 3]), inner, keras.layers.Dense(4)])
    said, target = load(save(source, tmp_path / name))
    assert said.endswith('filled 44 of 45 layers, the dense layer is new')
    assert_equal_weights(target.get_weights()[:-2], inner.get_weights())


def test_names_of_layers_longer_than_an_attribute_holds_are_read(tmp_path):
    source = classifier.build(small(), classes=4)
    save_old(source, tmp_path / 'a.h5')
    with h5py.File(tmp_path / 'a.h5', 'a') as file:  # as Keras cuts what is over 64 kB
        names = file.attrs.pop('layer_names')
        file.attrs['layer_names0'], file.attrs['layer_names1'] = names[:20], names[20:]
    said, target = load(str(tmp_path / 'a.h5'))
    assert 'filled 45 of 45' in said
    assert_equal_weights(target.get_weights(), source.get_weights())


def test_files_without_the_names_of_layers_are_read(tmp_path):
    """As the first versions of Keras 3 wrote them."""
    source = classifier.build(small(), classes=4)
    path = save(source, tmp_path / 'a.weights.h5')
    with h5py.File(path, 'a') as file:
        for layer in file['layers'].values():
            del layer['vars'].attrs['name']
    said, target = load(path)
    assert 'filled 45 of 45' in said
    assert_equal_weights(target.get_weights(), source.get_weights())


def test_a_keras_file_of_another_depth_fills_the_layers_of_the_same_name_and_shapes(tmp_path):
    source = backbone.build('xception', image_size=32, width=0.05).model
    said, target = load(save(source, tmp_path / 'deep.keras'))
    # The same are blocks 1 to 6, and the first convolution of block 7.
    assert said.endswith('filled 36 of 45 layers, the dense layer is new')
    for block in ('block1_conv1', 'block6_sepconv3'):
        assert_equal_weights(target.get_layer(block).get_weights(), source.get_layer(block).get_weights())


@pytest.mark.parametrize('name', ['a.keras', 'a.weights.h5', 'a.h5', 'whole.h5'])
def test_a_file_of_another_width_is_refused_although_a_few_shapes_are_equal(tmp_path, name):
    path = save(small(width=0.2).model, tmp_path / name)
    network = small()
    model = classifier.build(network, classes=4)
    before = model.get_weights()
    message = (
        r"fits only the --backbone and --width .*; block1_conv2 has \[3, 3, 8, 8\], the file's .* has \[3, 3, 8, 16\]"
    )
    with pytest.raises(InputError, match=message):
        classifier.load_weights(model, network, path)
    assert_equal_weights(model.get_weights(), before)


@pytest.mark.parametrize('name', FILES)
def test_a_file_with_too_few_layers_is_refused(tmp_path, name):
    image = keras.Input([32, 32, 3])
    source = keras.Model(image, keras.layers.Conv2D(8, 3, use_bias=False, name='other')(image))
    with pytest.raises(InputError, match='block1_conv1_bn has .*, the file has no layer there'):
        load(save(source, tmp_path / name))


@pytest.mark.parametrize('name', FILES)
def test_a_file_without_weights_is_refused(tmp_path, name):
    image = keras.Input([32, 32, 3])
    with pytest.raises(InputError, match='holds no layers with weights'):
        load(save(keras.Model(image, keras.layers.ReLU()(image)), tmp_path / name))


@pytest.fixture(scope='module')
def sound(tmp_path_factory) -> dict[str, bytes]:
    """What the files of a classifier hold."""
    folder, source = tmp_path_factory.mktemp('sound'), classifier.build(small(), classes=4)
    return {name: Path(save(source, folder / name)).read_bytes() for name in FILES}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', ['empty', 'text', 'cut', 'overwritten'])
def test_a_damaged_file_is_told_in_one_line(tmp_path, sound, name, damage):
    path, content = tmp_path / name, sound[name]
    third = len(content) // 3
    damaged = {
        'empty': b'', 'text': b'no weights', 'cut': content[:-1000], 'overwritten': b'?' * third + content[third:],
    }  # fmt: skip
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=f"--weights={path}: can't be read as weights of Keras") as error:
        load(str(path))
    assert '\n' not in str(error.value)


def test_a_file_of_another_kind_names_the_kinds_known(tmp_path):
    (tmp_path / 'a.ckpt').write_bytes(b'')
    with pytest.raises(InputError, match='a.ckpt: must be imagenet, none, or a .keras, .weights.h5 or .h5 file'):
        load(str(tmp_path / 'a.ckpt'))
    (tmp_path / 'folder.h5').mkdir()
    with pytest.raises(InputError, match='folder.h5: no such file'):
        load(str(tmp_path / 'folder.h5'))


@dataclass(frozen=True)
class Pair:
    """Keras' own network and a classifier of ours, with what Keras' makes of some pictures; `top`: its logits."""

    source: keras.Model
    top: bool
    network: Backbone
    model: keras.Model
    images: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope='module')
def pair(request) -> Pair:
    """Given our name of a network, that of Keras, its module there, and whether it has a dense layer."""
    name, keras_name, module, top = request.param
    options = {'include_top': True, 'classes': 10, 'classifier_activation': None} if top else {'include_top': False}
    application = getattr(keras.applications, keras_name)
    source = application(weights=None, pooling='avg', input_shape=(75, 75, 3), **options)
    network = backbone.build(name, image_size=75, width=1)
    model = classifier.build(network, classes=10)
    images = np.random.default_rng(0).uniform(0, 255, [2, 75, 75, 3]).astype('f')
    expected = source(getattr(keras.applications, module).preprocess_input(images.copy())).numpy()
    return Pair(source, top, network, model, images, expected)


def assert_computes_the_same(pair: Pair, file) -> None:
    """Writes a file of Keras' own network and reads it into ours of another number of classes, or of as many."""
    model = pair.model
    model.set_weights([np.zeros_like(value) for value in model.get_weights()])  # nothing stays of the file before
    said = classifier.load_weights(model, pair.network, save(pair.source, file))
    layers = sum(bool(layer.weights) for layer in model.layers)
    assert f'filled {layers - 1 + pair.top} of {layers} layers' in said
    got = (model if pair.top else pair.network.model)(pair.images).numpy()
    np.testing.assert_allclose(got, pair.expected, rtol=1e-4, atol=1e-4 * np.abs(pair.expected).max())


@pytest.mark.parametrize('name', ['a.keras', 'a.weights.h5', 'a.h5'])
@pytest.mark.parametrize(
    'pair', [('xception', 'Xception', 'xception', top) for top in (False, True)], indirect=True, ids=['bare', 'whole']
)
def test_files_of_kerass_xception_are_read_into_layers_of_our_names(tmp_path, pair, name):
    assert_computes_the_same(pair, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['a.keras', 'a.weights.h5', 'a.h5'])
@pytest.mark.parametrize(
    'pair',
    [
        ('resnet50', 'ResNet50', 'resnet', True),
        ('densenet169', 'DenseNet169', 'densenet', True),
        ('inception_resnet_v2', 'InceptionResNetV2', 'inception_resnet_v2', True),
    ],
    indirect=True,
    ids=lambda value: value[0],
)
def test_files_of_kerass_other_networks_are_read(tmp_path, pair, name):
    assert_computes_the_same(pair, tmp_path / name)
