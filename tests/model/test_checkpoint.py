"""Checkpoints are whole or not there, and restore weights and optimizer."""

import keras
import numpy as np
import pytest

from model import checkpoint
from model.accumulate import AccumulatingModel
from model.checkpoint import State


def trained(steps: int, seed: int = 0) -> AccumulatingModel:
    image = keras.Input([2, 2, 3])
    dense = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
    model = AccumulatingModel(keras.Model(image, dense(keras.layers.Flatten()(image))), micro_batch=2)
    model.compile(keras.optimizers.Adam(0.1))
    for step in range(steps):
        model.optimizer.apply([step + variable for variable in model.trainable_variables])
    return model


def variables(model: AccumulatingModel) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in [*model.classifier.variables, *model.optimizer.variables]]


def test_a_checkpoint_restores_weights_and_optimizer(tmp_path):
    saved = trained(3)
    checkpoint.save(saved, State(step=3, stage=1, epoch=2), str(tmp_path))
    restored = trained(0, seed=9)
    checkpoint.restore(restored, str(tmp_path))
    assert checkpoint.read_state(str(tmp_path)) == State(step=3, stage=1, epoch=2)
    for got, expected in zip(variables(restored), variables(saved), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_only_the_last_checkpoint_is_kept(tmp_path):
    for step in (1, 2):
        checkpoint.save(trained(step), State(step=step, stage=0, epoch=step), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoint.json', 'step-000000002.weights.h5']


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    model = trained(1)
    checkpoint.save(model, State(step=1, stage=0, epoch=1), str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: str) -> None:
        with open(path, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(model, 'save_weights', full)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save(model, State(step=2, stage=0, epoch=2), str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_checkpoint_has_no_state(tmp_path):
    assert checkpoint.read_state(str(tmp_path / 'none')) is None
    with pytest.raises(FileNotFoundError):
        checkpoint.restore(trained(0), str(tmp_path))


def test_an_optimizer_of_other_variables_is_not_restored_in_silence(tmp_path):
    """Keras leaves out the optimizer with a warning where a file has another number of variables."""
    checkpoint.save(trained(2), State(step=2, stage=0, epoch=1), str(tmp_path))
    model = trained(0)
    model.classifier.layers[-1].trainable = False
    model.compile(keras.optimizers.Adam())
    with (
        pytest.warns(UserWarning, match='Skipping variable loading for optimizer'),
        pytest.raises(RuntimeError, match="the optimizer's state was not restored"),
    ):
        checkpoint.restore(model, str(tmp_path))
