"""What TensorBoard reads back from a run's event files."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from model import board, history
from model.board import Board
from pipeline import augment

SIDE = 180


def read_back(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def values(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(name)]


def test_training_and_validation_share_the_charts_of_loss_and_accuracy(tmp_path):
    made = Board(str(tmp_path))
    made.scalars(20, {'loss': 2.5, 'accuracy': 0.25, 'learning_rate': 0.5})
    made.scalars(40, {'loss': 1.5, 'accuracy': 0.5, 'val_loss': 2.0, 'val_accuracy': 0.75, 'val_level1': 1.0})
    train, validation = read_back(tmp_path / 'train'), read_back(tmp_path / 'validation')
    assert values(train, 'quality/loss') == [(20, 2.5), (40, 1.5)]
    assert values(train, 'quality/accuracy') == [(20, 0.25), (40, 0.5)]
    assert values(train, 'training/learning_rate') == [(20, 0.5)]
    assert values(validation, 'quality/loss') == [(40, 2.0)]
    assert values(validation, 'quality/accuracy') == [(40, 0.75)]
    assert values(validation, 'quality/accuracy_level1') == [(40, 1.0)]


def test_every_column_of_the_history_that_is_measured_has_a_curve():
    place = {'step', 'images', 'passes', 'epoch', 'stage'}
    assert set(board.CURVES) == set(history.COLUMNS) - place


def test_a_run_that_goes_on_adds_to_its_curves_and_shows_no_update_twice(tmp_path):
    """It was killed after update 4, its last checkpoint was of update 2; its new process makes a second file."""
    first = Board(str(tmp_path))
    for step in (1, 2, 3, 4):
        first.scalars(step, {'loss': step, 'val_loss': step + 0.5})
    again = Board(str(tmp_path), first_step=3)
    for step in (3, 5):
        again.scalars(step, {'loss': 10.0 * step})
    assert len(list((tmp_path / 'train').iterdir())) == 2
    assert values(read_back(tmp_path / 'train'), 'quality/loss') == [(1, 1), (2, 2), (3, 30), (5, 50)]
    assert values(read_back(tmp_path / 'validation'), 'quality/loss') == [(1, 1.5), (2, 2.5)]


@pytest.mark.parametrize(('size', 'count'), [(180, 30), (60, 7)])
def test_the_pictures_are_the_augmented_ones_pixel_by_pixel(tmp_path, size, count):
    """At most 25 of them, in rows of 5, and grey where there are too few."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [count, SIDE, SIDE, 3], np.uint8)
    draws = rng.random([count, augment.DRAWS]).astype(np.float32)
    augmentation = augment.Augmentation(crop_probability=0.5, flip_probability=0.5)
    Board(str(tmp_path)).pictures(7, images, draws, augmentation=augmentation, size=size)

    (event,) = read_back(tmp_path / 'train').Tensors('augmented training pictures')
    assert event.step == 7
    width, height, png = tf.make_ndarray(event.tensor_proto)
    shown = tf.io.decode_png(png).numpy()
    rows = -(-min(count, 25) // 5)
    assert (int(height), int(width)) == shown.shape[:2] == (rows * size, 5 * size)
    expected = augment.upscale_crop_flip(images, draws, augmentation=augmentation, size=size).numpy()
    varied = (expected != augment.resize(images, size=size).numpy()).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(varied, (draws[:, [0, 3]] < 0.5).any(axis=1))
    for number in range(rows * 5):
        top, left = number // 5 * size, number % 5 * size
        tile = shown[top : top + size, left : left + size]
        np.testing.assert_array_equal(tile, expected[number] if number < count else np.full([size, size, 3], 128))


def test_a_grid_is_filled_row_by_row():
    pictures = np.stack([np.full([2, 2, 3], 10.0 * number) for number in range(6)])
    made = board.grid(pictures)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[::2, ::2, 0], [[0, 10, 20, 30, 40], [50, 128, 128, 128, 128]])


def test_the_graph_is_that_of_the_function(tmp_path):
    graph = tf.function(lambda x: tf.sin(x, name='of_an_update')).get_concrete_function(tf.constant(0.0)).graph
    Board(str(tmp_path)).graph(graph)
    assert 'of_an_update' in [node.name for node in read_back(tmp_path / 'train').Graph().node]
