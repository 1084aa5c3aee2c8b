"""Checkpoints are whole or not there, and restore weights, optimizer and place."""

import os

import keras
import numpy as np
import pytest

from model import checkpoint
from model.accumulate import AccumulatingModel
from model.checkpoint import State
from model.history import Window


def trained(steps: int, seed: int = 0) -> AccumulatingModel:
    image = keras.Input([2, 2, 3])
    dense = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
    dropped = keras.layers.Dropout(0.5)(keras.layers.Flatten()(image))
    model = AccumulatingModel(keras.Model(image, dense(dropped)), micro_batch=2)
    model.compile(keras.optimizers.Adam(0.1))
    for step in range(steps):
        model.optimizer.apply([step + variable for variable in model.trainable_variables])
        model.classifier(np.zeros([1, 2, 2, 3]), training=True)  # draws a mask
    return model


def variables(model: AccumulatingModel) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in [*model.classifier.variables, *model.optimizer.variables]]


def read(folder) -> checkpoint.Checkpoint:
    found = checkpoint.read(str(folder))
    assert found
    return found


STATE = State(
    step=3,
    epoch=2,
    stage=1,
    window=Window(64, 3.5, 20, 0.25),
    best_accuracy=0.5,
    settings={'seed': 7, 'decay_at': ['1']},
)


def test_a_checkpoint_restores_weights_optimizer_dropout_and_state(tmp_path):
    saved = trained(3)
    assert any('seed' in variable.path for variable in saved.classifier.variables)
    path = checkpoint.save(saved, STATE, str(tmp_path))
    assert path == str(tmp_path / 'step-000000003.npz')
    restored = trained(0, seed=9)
    found = read(tmp_path)
    checkpoint.restore(restored, found)
    assert (found.path, found.state) == (path, STATE)
    for got, expected in zip(variables(restored), variables(saved), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_last_two_checkpoints_are_kept(tmp_path):
    model = trained(0)
    for step in (9, 10, 11, 100):
        checkpoint.save(model, State(step=step), str(tmp_path))
        if step == 10:
            (tmp_path / '.tmp-0123-step-000000012.npz').write_text('left by a killed run')
    (tmp_path / 'put aside').mkdir()
    checkpoint.save(model, State(step=101), str(tmp_path))
    names = ['put aside', 'step-000000100.npz', 'step-000000101.npz']
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert read(tmp_path).state.step == 101


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    model = trained(1)
    checkpoint.save(model, State(step=1), str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **arrays) -> None:
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save(model, State(step=2), str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize('damage', ['cut', 'empty', 'text', 'flip in the weights', 'flip in the state'])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path, capsys, damage):
    model = trained(2)
    for step in (1, 2):
        checkpoint.save(model, State(step=step), str(tmp_path))
    path = tmp_path / 'step-000000002.npz'
    data = bytearray(path.read_bytes())
    if damage == 'cut':
        data = data[:-30]
    elif damage == 'empty':
        data = bytearray()
    elif damage == 'text':
        data = bytearray(b'no checkpoint')
    else:
        mark = b'"epoch": ' if 'state' in damage else model.classifier.get_weights()[0].tobytes()
        data[data.index(mark) + 3] ^= 1
    path.write_bytes(data)
    assert read(tmp_path).state.step == 1
    said = capsys.readouterr().out
    assert said.startswith(f'{path}: damaged (')
    assert said.endswith('); taking the checkpoint before it\n')
    checkpoint.save(model, State(step=1), str(tmp_path))
    assert os.listdir(tmp_path) == ['step-000000001.npz'], 'the damaged one is gone, the sound one is not'


def test_a_folder_without_checkpoint_has_none(tmp_path):
    assert checkpoint.read(str(tmp_path / 'none')) is None


def test_an_optimizer_of_other_variables_is_not_restored_in_silence(tmp_path):
    checkpoint.save(trained(2), State(step=2), str(tmp_path))
    model = trained(0)
    model.classifier.layers[-1].trainable = False
    model.compile(keras.optimizers.Adam())
    with pytest.raises(RuntimeError, match='its optimizer has other shapes than the model'):
        checkpoint.restore(model, read(tmp_path))
