"""Backbones and the weights they start from."""

import keras
import numpy as np
import pytest

from model import backbone, classifier
from model.backbone import Backbone
from pipeline.errors import InputError


def small(width: float = 0.05) -> Backbone:
    return backbone.build('xception_small', image_size=32, width=width)


def test_logits_are_float32_in_half_precision():
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        model = classifier.build(small(), classes=3, dropout=0.2)
    finally:
        keras.config.set_dtype_policy('float32')
    assert model.compute_dtype == 'bfloat16'
    assert model(np.zeros([1, 32, 32, 3])).dtype == 'float32'


def test_weights_of_a_run_fill_all_layers_but_a_head_of_other_categories(tmp_path):
    source, network = classifier.build(small(), classes=3, dropout=0), small()
    source.save(tmp_path / 'model.keras')
    target = classifier.build(network, classes=4, dropout=0.2)
    said = classifier.load_weights(target, network, str(tmp_path / 'model.keras'))
    layers = sum(bool(layer.weights) for layer in network.model.layers)
    assert said == f'weights: {tmp_path / "model.keras"} filled {layers} layers'
    for got, expected in zip(target.get_weights()[:-2], source.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_weights_file_of_the_backbone_is_read(tmp_path):
    source, network = small().model, small()
    source.save_weights(tmp_path / 'b.weights.h5')
    target = classifier.build(network, classes=4, dropout=0)
    classifier.load_weights(target, network, str(tmp_path / 'b.weights.h5'))
    np.testing.assert_array_equal(network.model.get_weights()[0], source.get_weights()[0])


def test_weights_that_fit_nothing_are_refused(tmp_path):
    network = small()
    model = classifier.build(network, classes=4, dropout=0)
    image = keras.Input([32, 32, 3])
    keras.Model(image, keras.layers.Conv2D(2, 3, name='other')(image)).save(tmp_path / 'other.keras')
    small(width=0.2).model.save_weights(tmp_path / 'wide.weights.h5')
    (tmp_path / 'text.keras').write_text('no model')
    for weights, message in [
        ('nowhere.keras', '--weights=nowhere.keras: no such file; the other choices are imagenet and none'),
        (str(tmp_path / 'other.keras'), 'nothing in it fits --backbone and --width'),
        (str(tmp_path / 'wide.weights.h5'), "can't be used"),
        (str(tmp_path / 'text.keras'), "can't be used"),
        ('imagenet', 'there are none for this backbone and width; give a file with --weights=PATH, or train .*none'),
    ]:
        with pytest.raises(InputError, match=message):
            classifier.load_weights(model, network, weights)


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
    model = classifier.build(Backbone(network.model, network.blocks, lambda: values), classes=4, dropout=0)
    assert (
        classifier.load_weights(model, Backbone(network.model, (), lambda: values), 'imagenet') == 'weights: ImageNet'
    )
    np.testing.assert_array_equal(model.get_weights()[0], values[0])
