"""The classifier, and the weights it starts from; files of weights are in test_weights.py."""

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
