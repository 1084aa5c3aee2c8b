"""A run that is stopped goes on, and ends as if nothing had been: weights bit for bit, and the same history."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from model import checkpoint, runs, train
from pipeline import dataset, worklog
from pipeline.errors import InputError
from tests import shards as small
from tests.model import tiny

# 24 updates: stage head ends at 8, artificial epochs at 3, 6, 8, 11, 14, 17, 20, 23, 24.
FLAGS = (
    '--backbone=tiny', '--weights=none', '--image_size=32', '--micro_batch=4',
    '--accumulate=2', '--epoch_images=24', '--val_images=20', '--history_images=16', '--dropout=0.2', '--epochs=2',
    '--flip_probability=0.5', '--unfreeze=block2@0,all@0.67', '--decay_at=1.1', '--predict=',
)  # fmt: skip
# Whole products and their titles: 12 updates, half as many.
PRODUCTS = ('--pictures=4', '--fewer_pictures', '--title=text', '--head_units=5', '--head_dropout=0.2')
MIRRORED = ('--strategy=mirrored', '--micro_batch=2')


@pytest.fixture(scope='module', autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.known():
        yield


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> dataset.Shards:
    """48 products of 96 pictures to train with, 12 of 24 to validate."""
    return small.write(tmp_path_factory.mktemp('shards'), train=48, val=12, shards=2)


@pytest.fixture(scope='module')
def undisturbed(shards, tmp_path_factory) -> Path:
    """Runs that nothing stopped: one/ on one device, two/ on two, products/ on one."""
    folder = tmp_path_factory.mktemp('undisturbed')
    for name, more in (('one', ()), ('two', MIRRORED), ('products', PRODUCTS)):
        train.main(arguments(shards, folder / name, *more))
    return folder


def arguments(shards: dataset.Shards, run_dir: Path, *more: str) -> list[str]:
    return ['train', f'--shards_dir={shards.folder}', f'--run_dir={run_dir}', *FLAGS, *more]


def stopped(name: str, moment: str, args: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs training in a process of its own, which sends itself a signal at a moment."""
    command = [sys.executable, '-m', 'tests.model.stopped_run', args[0], name, moment, *args[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def state(run_dir: Path) -> checkpoint.State:
    """How far its last checkpoint is."""
    found = checkpoint.read(str(run_dir / 'checkpoints'))
    assert found
    return found.state


def history(run_dir: Path) -> list[dict[str, str]]:
    """Its rows, without the speed."""
    with open(run_dir / 'history.csv', newline='') as file:
        return [
            {name: cell for name, cell in row.items() if name != 'images_per_second'} for row in csv.DictReader(file)
        ]


def assert_same_end(run_dir: Path, expected: Path) -> None:
    for name in ('model.keras', 'best.keras'):
        ended, undisturbed = (keras.models.load_model(folder / name, compile=False) for folder in (run_dir, expected))
        for got, value in zip(ended.get_weights(), undisturbed.get_weights(), strict=True):
            np.testing.assert_array_equal(got, value)
    assert history(run_dir) == history(expected)
    assert (run_dir / 'accuracy_by_category.csv').read_bytes() == (expected / 'accuracy_by_category.csv').read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('devices', 'more', 'kills'),
    [
        # The moment, and the update that the next start goes on from. From 0 to update 5; from 3 to 9, past the change
        # of stage at 8; from 8 to the middle of saving at 17; from 14 to 16.
        ('one', (), [('update 5', 3), ('update 6', 8), ('save 2', 14), ('update 2', 14)]),
        ('two', MIRRORED, [('update 5', 3), ('update 6', 8)]),
        ('products', PRODUCTS, [('update 5', 4)]),
    ],
)
def test_a_run_that_was_killed_ends_as_if_nothing_had_been(shards, undisturbed, tmp_path, devices, more, kills):
    """kill -9 past an artificial epoch, past a change of stage, and while a checkpoint is written."""
    args = arguments(shards, tmp_path / 'run', *more)
    for moment, step in kills:
        done = stopped('KILL', moment, args)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert state(tmp_path / 'run').step == step
        assert not runs.is_finished(str(tmp_path / 'run'))
    train.main(args)
    assert_same_end(tmp_path / 'run', undisturbed / devices)
    (entry,) = worklog.read(str(tmp_path / 'run'))
    assert entry.counts['updates'] == state(tmp_path / 'run').step - kills[-1][1], 'what was killed left no line'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('devices', 'more', 'moments'),
    [
        # In the middle of an artificial epoch and of a row of history.csv; during a validation; in the last evaluation.
        ('one', (), [('update 4', 5), ('validation 2', 6), ('validation 46', 24)]),
        ('two', MIRRORED, [('update 4', 5)]),
    ],
)
def test_sigterm_saves_within_an_update_and_exits_0(shards, undisturbed, tmp_path, devices, more, moments):
    args = arguments(shards, tmp_path / 'run', *more)
    for moment, step in moments:
        done = stopped('TERM', moment, args)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines().count('ending after this update, then saving') == 1
        path = str(tmp_path / 'run' / 'checkpoints' / f'step-{step:09d}.npz')
        assert done.stdout.splitlines()[-1].startswith(f'wrote {path}: ended as asked; next: python -m model.train --')
        assert sorted(os.listdir(tmp_path / 'run' / 'checkpoints'))[-1] == os.path.basename(path)
        assert not runs.is_finished(str(tmp_path / 'run'))
    train.main([*args, '--save_minutes=0', '--tensorboard_graph'])  # flags that change no result may change
    assert_same_end(tmp_path / 'run', undisturbed / devices)
    steps = [0, *(step for _, step in moments), state(tmp_path / 'run').step]
    updates = [entry.counts['updates'] for entry in worklog.read(str(tmp_path / 'run'))]
    assert updates == np.diff(steps).tolist(), 'a line for each start, and every update once'


@pytest.mark.slow
def test_the_same_command_goes_on_with_the_prediction_too(shards, undisturbed, tmp_path, capsys):
    args = [*arguments(shards, tmp_path / 'run'), '--predict=val']
    done = stopped('TERM', 'end 0', args)
    assert (done.returncode, runs.is_finished(str(tmp_path / 'run'))) == (0, True), done.stderr
    assert not (tmp_path / 'run' / 'logits').exists()
    assert stopped('KILL', 'block 1', args).returncode == -signal.SIGKILL  # in the second of two shards of logits
    train.main(args)
    assert f'predicting val into {tmp_path}/run/logits/val: 1 of 2 shards kept\n' in capsys.readouterr().out
    assert_same_end(tmp_path / 'run', undisturbed / 'one')


@pytest.mark.slow
def test_a_row_written_before_a_checkpoint_was_lost_is_not_written_twice(shards, undisturbed, tmp_path):
    """Ended at the last update of an artificial epoch; killed after its validation, while that was being saved."""
    args = arguments(shards, tmp_path / 'run')
    assert stopped('TERM', 'update 2', args).returncode == 0
    assert state(tmp_path / 'run').step == 3
    assert stopped('KILL', 'save 0', args).returncode == -signal.SIGKILL
    assert (state(tmp_path / 'run').step, state(tmp_path / 'run').epoch) == (3, 0)
    train.main(args)
    assert_same_end(tmp_path / 'run', undisturbed / 'one')


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_as_interrupted(shards, tmp_path):
    done = stopped('INT', 'update 1', arguments(shards, tmp_path / 'run'))
    assert done.returncode == 130
    assert done.stderr.endswith('error: interrupted\n')
    assert state(tmp_path / 'run').step == 2


def test_checkpoints_within_an_artificial_epoch_change_nothing(shards, undisturbed, tmp_path):
    """Saved after every update."""
    train.main(arguments(shards, tmp_path / 'run', '--save_minutes=0'))
    assert_same_end(tmp_path / 'run', undisturbed / 'one')
    assert sorted(os.listdir(tmp_path / 'run' / 'checkpoints')) == ['step-000000023.npz', 'step-000000024.npz']


def test_a_checkpoint_has_the_seed_and_the_flags(shards, undisturbed):
    found = state(undisturbed / 'one')
    assert (found.step, found.epoch, found.stage) == (24, 9, 1)
    assert found.settings == runs.read_settings(str(undisturbed / 'one'))
    assert (found.settings['seed'], found.settings['decay_at']) == (0, ['1.1'])


def test_a_run_whose_settings_file_is_lost_is_held_to_its_checkpoint(shards, undisturbed, tmp_path):
    shutil.copytree(undisturbed / 'one' / 'checkpoints', tmp_path / 'run' / 'checkpoints')
    with pytest.raises(InputError, match='began with seed=0, now it is 1'):
        train.main(arguments(shards, tmp_path / 'run', '--seed=1'))
    train.main(arguments(shards, tmp_path / 'run'))
    assert runs.read_settings(str(tmp_path / 'run')) == runs.read_settings(str(undisturbed / 'one'))


@pytest.mark.parametrize(
    ('flag', 'named'),
    [
        ('--seed=1', 'seed=0, now it is 1'),
        ('--micro_batch=8', 'micro_batch x accumulate=8, now it is 16'),
        ('--learning_rate=0.1', r'learning_rate=0.005, now it is 0.1'),
        ('--unfreeze=all@0', r'unfreeze=block2@0,all@0.67, now it is all@0'),
        ('--precision=mixed_bfloat16', 'precision=float32, now it is mixed_bfloat16'),
        ('--strategy=mirrored', 'replicas=1, now it is 2'),
    ],
)
def test_a_flag_that_would_make_another_run_is_refused_by_name(shards, undisturbed, flag, named):
    with pytest.raises(InputError, match=f'began with {named}; give the same flags to go on, or another --run_dir'):
        train.main(arguments(shards, undisturbed / 'one', flag))
    keras.config.set_dtype_policy('float32')
