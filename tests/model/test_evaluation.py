"""Loss, accuracy by level and by category, in closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from model import devices, evaluation
from model.accumulate import AccumulatingModel
from model.evaluation import Evaluation, Evaluator
from pipeline.categories import Categories

SIDE = 4
# RUG and LAMP stand under several parents, X under two, and the last two categories have the same names.
NAMES = (
    ('A', 'X', 'RUG'),
    ('A', 'X', 'LAMP'),
    ('A', 'Y', 'RUG'),
    ('B', 'X', 'RUG'),
    ('B', 'X', 'LAMP'),
    ('B', 'X', 'LAMP'),
)
LABEL_MAP = Categories(np.arange(6) * 10 + 1000, NAMES)
# Label, what is predicted, and how many levels are right then.
PICTURES = ((0, 0, 3), (0, 1, 2), (0, 2, 1), (0, 3, 0), (4, 4, 3), (2, 0, 1), (5, 4, 3))
EXPECTED = Evaluation(
    # A category's share is 4/9 if it is predicted, 1/9 if not; two of seven are right.
    loss=np.log(9) - 2 / 7 * np.log(4),
    levels=(6 / 7, 4 / 7, 3 / 7),
    images=np.array([4, 0, 1, 0, 1, 1]),
    hits=np.array([1, 0, 0, 0, 1, 0]),
)


def classifier() -> keras.Model:
    """A picture's first six bytes are its logits, times log 2: the odds are powers of two."""
    image = keras.Input([SIDE, SIDE, 3])
    dense = layers.Dense(len(NAMES))
    made = keras.Model(image, dense(layers.Flatten()(image)))
    dense.set_weights([np.log(2) * np.eye(SIDE * SIDE * 3, len(NAMES)), np.zeros(len(NAMES))])
    return made


def batches(batch_size: int) -> tf.data.Dataset:
    """PICTURES, filled up with one of weight 0 that would be right, and then with some that would be wrong."""
    count = -(-len(PICTURES) // batch_size) * batch_size
    images = np.zeros([count, SIDE * SIDE * 3], np.uint8)
    labels, weights = np.full(count, 1), np.zeros(count, np.float32)
    images[:, 1] = np.arange(count) == len(PICTURES)
    images[:, 3] = 1
    for number, (label, predicted, _) in enumerate(PICTURES):
        images[number, :6] = 2 * (np.arange(6) == predicted)
        labels[number], weights[number] = label, 1
    return tf.data.Dataset.from_tensor_slices((images.reshape(-1, SIDE, SIDE, 3), labels, weights)).batch(batch_size)


def evaluator(devices_name: str) -> Evaluator:
    strategy = devices.strategy(devices_name)
    with strategy.scope():
        return Evaluator(AccumulatingModel(classifier(), micro_batch=2), strategy, LABEL_MAP)


@pytest.mark.parametrize('devices_name', ['one', 'mirrored'])
@pytest.mark.parametrize('batch_size', [2, 4, 6, 8, 14])
def test_an_evaluation_counts_each_picture_once_and_filling_never(devices_name, batch_size):
    """In batches of 6 and of 14 the second of two replicas has nothing but filling at the end."""
    made = evaluator(devices_name)
    for _ in range(2):  # a second evaluation starts from nothing
        found = made.evaluate(made.strategy.experimental_distribute_dataset(batches(batch_size)))
        assert found
        assert found.loss == pytest.approx(EXPECTED.loss, rel=1e-6)
        assert found.levels == pytest.approx(EXPECTED.levels)
        np.testing.assert_array_equal(found.images, EXPECTED.images)
        np.testing.assert_array_equal(found.hits, EXPECTED.hits)
        assert found.accuracy == 2 / 7


@pytest.mark.parametrize('devices_name', ['one', 'mirrored'])
@pytest.mark.parametrize('batches_before', [0, 1, 3])
def test_an_evaluation_that_is_asked_to_end_between_two_batches_finds_nothing(devices_name, batches_before):
    made = evaluator(devices_name)
    answers = iter([True] * batches_before + [False])
    data = made.strategy.experimental_distribute_dataset(batches(2))
    assert made.evaluate(data, go_on=lambda: next(answers)) is None
    assert list(answers) == [], 'it was asked before every batch, and then no more'


def test_history_gets_the_columns_of_an_evaluation():
    assert EXPECTED.columns() == {
        'val_loss': EXPECTED.loss,
        'val_accuracy': 2 / 7,
        'val_level1': 6 / 7,
        'val_level2': 4 / 7,
        'val_level3': 3 / 7,
    }


def test_a_category_without_pictures_has_no_accuracy(tmp_path):
    found = Evaluation(1.0, (1.0, 1.0, 1.0), np.array([3, 0, 8, 1, 0, 2]), np.array([1, 0, 8, 0, 0, 1]))
    evaluation.write_by_category(found, LABEL_MAP, str(tmp_path / 'found.csv'))
    assert (tmp_path / 'found.csv').read_text().splitlines() == [
        'label,category_id,level1,level2,level3,images,accuracy',
        '0,1000,A,X,RUG,3,0.3333',
        '1,1010,A,X,LAMP,0,',
        '2,1020,A,Y,RUG,8,1.0',
        '3,1030,B,X,RUG,1,0.0',
        '4,1040,B,X,LAMP,0,',
        '5,1050,B,X,LAMP,2,0.5',
    ]
