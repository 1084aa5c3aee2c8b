"""The chain without files between answers as prediction and combination do; so does the model that is served."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ensemble import combine, predictions
from model import answers, predict, runs, serving
from model.accumulate import AccumulatingModel
from model.answers import Chain, Options
from pipeline import dataset, pictures
from pipeline.dataset import Shards
from pipeline.errors import InputError
from pipeline.records import Product
from tests import catalogue
from tests import shards as small
from tests.model import finished_run

# A step of float16 in a logit: batches of another size may add up in another order.
CLOSE = 2**-8
COUNTS = (1, 3, 2, 4, 1, 4, 2)


@pytest.fixture(scope='module')
def images() -> list[tuple[bytes, ...]]:
    """The pictures of seven products."""
    return [
        tuple(catalogue.jpeg(10 * number + place, number) for place in range(count))
        for number, count in enumerate(COUNTS)
    ]


@pytest.fixture(scope='module')
def shards(images, tmp_path_factory) -> Shards:
    """The products with the ids 0 to 6, all in val."""
    folder = tmp_path_factory.mktemp('shards')
    products = [Product(number, 1000 + number, number, 'val', some) for number, some in enumerate(images)]
    small.write_products(folder, {'val': [products]})
    return dataset.open_shards(str(folder))


@pytest.fixture(scope='module')
def run_dir(shards, tmp_path_factory) -> Path:
    """A run with the logits of these products, of one view and of three."""
    folder = tmp_path_factory.mktemp('runs') / 'one'
    finished_run.write(folder, shards.label_map, seed=4)
    for views in ('--tta=1', '--tta=3'):
        predict.main(
            ['predict', f'--run_dir={folder}', f'--shards_dir={shards.folder}', '--split=val', '--seed=5', views]
        )
    return folder


@pytest.fixture(scope='module')
def model(run_dir) -> AccumulatingModel:
    return AccumulatingModel(runs.load_model(str(run_dir)), micro_batch=8)


@pytest.fixture(scope='module')
def pixels(images) -> list[np.ndarray]:
    made = []
    for some in images:
        made.append(np.empty((len(some), *pictures.SHAPE), np.uint8))
        assert pictures.decode_into(made[-1], [memoryview(image) for image in some]) == []
    return made


@pytest.fixture
def combined(run_dir, tmp_path):
    """What ensemble.combine writes by a rule."""

    def by(rule: str, logits: str) -> predictions.Predictions:
        words = [f'--rule={rule}', f'--logits={run_dir}/logits/{logits}', f'--output_dir={tmp_path}']
        combine.main(['combine', '--runner=FnApiRunner', *words])
        return predictions.read(str(tmp_path / 'predictions' / logits))

    return by


@pytest.mark.parametrize(('rule', 'tta'), [('product', 1), ('mean', 1), ('first', 1), ('product', 3)])
def test_products_get_the_answers_of_predict_and_combine(model, shards, pixels, combined, rule, tta):
    expected = combined(rule, 'val' if tta == 1 else f'val-tta{tta}')
    labels, probabilities = Chain(model, Options(rule=rule, tta=tta, seed=5))(pixels)
    np.testing.assert_array_equal(shards.label_map.ids[labels], expected.likeliest)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=CLOSE)
    if tta == 1:
        one_by_one = [Chain(model, Options(rule=rule))([one]) for one in pixels[:2]]
        np.testing.assert_array_equal(np.concatenate([found for found, _ in one_by_one]), labels[:2])


def test_more_views_than_go_through_the_network_together_are_all_seen(model, pixels, monkeypatch):
    expected = Chain(model, Options(tta=3))(pixels)
    monkeypatch.setattr(answers, 'AT_ONCE', 4)
    labels, probabilities = Chain(model, Options(tta=3))(pixels)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(probabilities, expected[1], rtol=CLOSE)


def test_however_many_views_there_are_their_pixels_are_not_in_memory_together(model, pixels):
    chain = Chain(model, Options(tta=1000))
    chain._forward = lambda pixels, draws: np.zeros((len(pixels), 7), np.float16)
    tracemalloc.start()
    chain([pixels[1]])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100 * pixels[1][0].nbytes, '64 views and what stands beside them, not 3000'


def test_an_unknown_rule_is_refused_before_a_picture_is_looked_at():
    with pytest.raises(InputError, match="unknown rule 'best'"):
        Options(rule='best')


@pytest.mark.parametrize('rule', ['product', 'mean', 'median'])
def test_the_served_model_answers_as_the_chain(model, shards, images, pixels, tmp_path, rule):
    label_map = shards.label_map
    serving.write(str(tmp_path / '1'), model, label_map, Options(rule=rule))
    served = tf.saved_model.load(str(tmp_path / '1')).signatures['serving_default']
    columns = tf.constant([[*some, *[b''] * (4 - len(some))] for some in images])
    found = {name: value.numpy() for name, value in served(pictures=columns).items()}
    labels, probabilities = Chain(model, Options(rule=rule))(pixels)
    np.testing.assert_array_equal(found['category_id'], label_map.ids[labels])
    np.testing.assert_allclose(found['probability'], probabilities, rtol=1e-5, atol=1e-30)
    names = [[' > '.join(label_map.names[label]).encode() for label in row] for row in labels]
    assert found['category'].tolist() == names


@pytest.fixture(scope='module')
def served(model, shards, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('served') / '1')
    serving.write(folder, model, shards.label_map, Options(rule='first'))
    return tf.saved_model.load(folder).signatures['serving_default']


def test_where_the_empty_places_are_does_not_matter(served, images):
    one, two, three = (images[number][0] for number in (0, 1, 2))
    packed = served(pictures=tf.constant([[one, two], [three, b'']]))
    spread = served(pictures=tf.constant([[b'', one, b'', two, b''], [b'', b'', b'', b'', three]]))
    for name, value in packed.items():
        np.testing.assert_array_equal(value, spread[name])


def products_together(counts: Sequence[int], monkeypatch: pytest.MonkeyPatch, *, at_once: int) -> list[int]:
    """How many products are taken at a time, of so many pictures each; all must be answered for, in order."""
    monkeypatch.setattr(serving, 'AT_ONCE', at_once)
    given = tf.constant([[f'{place}'] * count + [''] * (4 - count) for place, count in enumerate(counts)])
    sizes = []

    def function(some: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        sizes.append(len(some))
        assert tf.math.count_nonzero(some != '') <= at_once
        return tf.strings.to_number(some[:, :1], tf.int32), tf.strings.to_number(some[:, :1])

    for found in serving._in_slices(function, given, count=1):
        assert found[:, 0].numpy().tolist() == list(range(len(counts)))
    return sizes


def test_as_many_products_are_taken_together_as_have_few_enough_pictures(monkeypatch):
    for products, sizes in ((1, [1]), (63, [63]), (64, [64]), (65, [64, 1]), (130, [64, 64, 2])):
        assert products_together([1] * products, monkeypatch, at_once=64) == sizes
    assert products_together([4] * 17, monkeypatch, at_once=64) == [16, 1]
    assert products_together(COUNTS, monkeypatch, at_once=4) == [2, 1, 1, 1, 1, 1]
    assert products_together(COUNTS, monkeypatch, at_once=6) == [3, 2, 2]


@pytest.mark.parametrize('rule', ['product', 'first'])
def test_many_products_get_the_answers_that_they_get_alone(model, shards, images, pixels, tmp_path, monkeypatch, rule):
    monkeypatch.setattr(serving, 'AT_ONCE', 4)
    serving.write(str(tmp_path / '1'), model, shards.label_map, Options(rule=rule))
    served = tf.saved_model.load(str(tmp_path / '1')).signatures['serving_default']
    found = served(pictures=tf.constant([[*some, *[b''] * (6 - len(some))] for some in images * 9]))
    labels, probabilities = Chain(model, Options(rule=rule))(pixels)
    np.testing.assert_array_equal(found['category_id'], np.tile(shards.label_map.ids[labels], (9, 1)))
    np.testing.assert_allclose(found['probability'], np.tile(probabilities, (9, 1)), rtol=CLOSE, atol=1e-30)


def test_what_is_no_product_is_refused_with_its_place(served, images):
    one = images[0][0]
    for given, message in (
        ([[one, b''], [b'', b'']], r'every product must have a picture.*\[\[1\]\]'),
        ([[one] * 4 + [b''], [one] * 5], r'may have 4 pictures at most.*\[\[1\]\]'),
        ([[one, b''], [one, b'GIF89a']], r'must be a JPEG file.*\[\[1 1\]\]'),
        ([[one, one[:1000]]], 'Invalid JPEG data'),
        (tf.zeros([0, 4], tf.string), 'there must be a product'),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            served(pictures=tf.constant(given))


def test_the_served_model_takes_one_view(model, shards, tmp_path):
    with pytest.raises(ValueError, match='tta must be 1, is 2'):
        serving.write(str(tmp_path / '1'), model, shards.label_map, Options(tta=2))
