"""Training on several machines: two processes on this one stand for them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ensemble import logits
from model import checkpoint, devices, train
from pipeline import dataset, program
from pipeline.errors import InputError
from tests import shards as small
from tests.model import tiny

README = Path(__file__).parents[2] / 'README.md'
# 9 updates: artificial epochs and the first stage end at 3, 6, 9; rows of history at 2 updates and at each end.
FLAGS = (
    '--backbone=tiny', '--weights=none', '--image_size=32', '--micro_batch=8',
    '--accumulate=2', '--epoch_images=96', '--val_images=1000', '--history_images=64', '--dropout=0.2',
    '--flip_probability=0.5', '--epochs=2', '--unfreeze=block2@0,all@0.67', '--predict=val',
)  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.known():
        yield


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> dataset.Shards:
    """70 products in 4 shards to train with, 140 pictures; 10 in 4 shards to validate."""
    return small.write(tmp_path_factory.mktemp('shards'), train=70, val=10, shards=4)


def test_each_replica_takes_batches_of_its_own_and_the_stream_goes_on_at_any_update(shards):
    program.parse(train.FLAGS, ['train', *FLAGS], doc='')
    expected = list(dataset.train(shards, seed=0, batch_size=16).take(6))
    for strategy in (devices.strategy('one'), devices.strategy('mirrored')):
        replicas = strategy.num_replicas_in_sync
        for step in (0, 1, 2):
            columns = next(iter(train._stream(shards, strategy, start_step=step)))
            for column, *batches in zip(columns, *expected[step * replicas : (step + 1) * replicas], strict=True):
                for got, batch in zip(strategy.experimental_local_results(column), batches, strict=True):
                    np.testing.assert_array_equal(got, batch)


@pytest.mark.parametrize(
    'config',
    [
        '',
        '{',
        '[]',
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}',
    ],
)
def test_a_cluster_that_is_not_told_is_refused_in_one_line(monkeypatch, config):
    monkeypatch.setenv('TF_CONFIG', config)
    with pytest.raises(InputError, match=f'^--strategy=multiworker: TF_CONFIG must .*, not {re.escape(repr(config))}$'):
        devices.strategy('multiworker')


@pytest.fixture(scope='module')
def undisturbed(shards, tmp_path_factory) -> Path:
    """A run of two machines that nothing stopped."""
    folder = tmp_path_factory.mktemp('undisturbed')
    first, second = run_workers(folder, shards)
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    assert second.output == 'worker 1 of 2 is done; the first one predicts\n'
    return folder


@pytest.mark.slow
def test_two_machines_train_one_model_each_on_its_own_shards(shards, undisturbed):
    """Over two passes: the same weights on both to the bit, and a validation that is that of the finished model."""
    assert sorted(os.listdir(undisturbed)) == ['latest', 'run', 'worker0.npz', 'worker1.npz'], 'only the first writes'
    assert_same_end(undisturbed, undisturbed)
    files = shards.manifest.of_split('train')
    for worker in (0, 1):
        seen = np.load(undisturbed / f'worker{worker}.npz')['seen'].tolist()
        own = {
            product
            for file in files[worker::2]
            for _, _, product_id, *_ in dataset.views(shards, file, batch_size=1, tta=1, seed=0)
            for product in product_id.numpy().tolist()
        }
        assert {product for product in seen if product <= 3 * 69 + 1} == own

    assert [int(row['step']) for row in history(undisturbed)] == [2, 3, 5, 6, 8, 9], '280 pictures in batches of 32'
    store = str(undisturbed / 'run' / 'logits' / 'val')
    found = logits.Rows.concatenate(
        [rows for file in logits.read_manifest(store).files for rows in logits.read_shard(store, file)]
    )
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(found.label, found.logits.astype(np.float32))
    assert float(history(undisturbed)[-1]['val_loss']) == pytest.approx(np.mean(losses), rel=1e-2)


@pytest.mark.slow
def test_two_replicas_of_one_machine_that_take_the_streams_of_two_make_the_same_run(
    shards, undisturbed, tmp_path, monkeypatch
):
    """With batch normalisation, dropout and two stages; bit for bit the same where this was written."""

    def streams(shards: dataset.Shards, strategy: Any, *, start_step: int) -> Iterator[Any]:
        options: dict[str, Any] = {'seed': 0, 'batch_size': 16, 'start_step': start_step, 'workers': 2}
        workers = [iter(dataset.train(shards, worker=worker, **options)) for worker in (0, 1)]
        while True:
            yield strategy.experimental_distribute_values_from_function(
                lambda context: next(workers[context.replica_id_in_sync_group])
            )

    monkeypatch.setattr(train, '_stream', streams)
    run_dir = tmp_path / 'run'
    train.main(['train', f'--shards_dir={shards.folder}', *FLAGS, f'--run_dir={run_dir}', '--strategy=mirrored'])
    for got, expected in zip(weights(tmp_path), weights(undisturbed), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    numbers, expected_numbers = (
        [[float(cell or 0) for cell in row.values()] for row in history(folder)] for folder in (tmp_path, undisturbed)
    )
    np.testing.assert_allclose(numbers, expected_numbers, atol=2e-6)


@pytest.mark.slow
def test_a_machine_that_is_killed_ends_the_other_and_the_same_command_goes_on(shards, undisturbed, tmp_path):
    """The second one, in the middle of the second artificial epoch; then the first one, in the third."""
    for worker, moment, step in ((1, 'update 4', 3), (0, 'update 4', 6)):
        ended = run_workers(tmp_path, shards, stops={worker: ('KILL', moment)})
        killed, survivor = ended[worker], ended[1 - worker]
        assert killed.code == -signal.SIGKILL, killed.errors
        assert survivor.code == 75, survivor.errors
        assert re.search(
            r'^error: another machine has gone \([^()]+\); '
            'give the same command on all machines to go on from the last checkpoint$',
            survivor.errors,
            re.MULTILINE,
        )
        assert 'Traceback' not in survivor.errors
        assert last_step(tmp_path) == step
    assert [one.code for one in run_workers(tmp_path, shards)] == [0, 0]
    assert_same_end(tmp_path, undisturbed)


def readme_loop() -> str:
    """The shell loop of README around any command, with a shorter pause."""
    (loop,) = re.findall(r'^    (while python -m [^;]*;[^;]*; done)$', README.read_text(), re.MULTILINE)
    return re.sub('python .*', '"$@"', loop).replace('sleep 10', 'sleep 1')


@pytest.mark.parametrize(
    ('ends', 'runs'),
    [
        *[(f'exit {code}', 1) for code in (0, 1, 2, 5, 7, 130, 141)],
        ('kill -TERM $$', 1),
        ('exit 75', 2),
        ('kill -KILL $$', 2),
        ('kill -ABRT $$', 2),
    ],
)
def test_the_loop_starts_again_what_was_lost_or_killed_and_nothing_else(tmp_path, ends, runs):
    once = f'echo >> runs; [ $(wc -l < runs) = 2 ] || {ends}'
    subprocess.run(['sh', '-c', readme_loop(), 'sh', 'sh', '-c', once], cwd=tmp_path, check=True)
    assert len((tmp_path / 'runs').read_text().splitlines()) == runs


@pytest.mark.slow
def test_machines_that_start_it_again_by_themselves_need_nobody(shards, undisturbed, tmp_path):
    """The shell loop of README. The first one is killed just after it met the other, the other in an update."""
    stops = {0: ('KILL', 'model 0'), 1: ('KILL', 'update 4')}
    ended = run_workers(tmp_path, shards, stops=stops, shell=readme_loop())
    assert [one.code for one in ended] == [0, 0], ended
    assert {'worker0 model 0', 'worker1 update 4'} <= set(os.listdir(tmp_path)), 'they were killed'
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_sigterm_to_one_machine_or_to_both_ends_both_after_the_same_update(shards, undisturbed, tmp_path):
    both = {0: ('TERM', 'update 1'), 1: ('TERM', 'update 1')}
    for stops, step in (({1: ('TERM', 'update 4')}, 5), (both, 7)):
        ended = run_workers(tmp_path, shards, stops=stops)
        assert [one.code for one in ended] == [0, 0], ended
        path = tmp_path / 'run' / 'checkpoints' / f'step-{step:09d}.npz'
        said = ended[0].output.splitlines()[-1]
        assert said.startswith(f'wrote {path}: ended as asked; next: python -m model.train --')
        assert last_step(tmp_path) == step
        first, second = (np.load(tmp_path / f'worker{worker}.npz') for worker in (0, 1))
        assert first['updates'] == second['updates']
        for name in first.files:
            if name.startswith('arr_'):
                np.testing.assert_array_equal(first[name], second[name])
    assert [one.code for one in run_workers(tmp_path, shards)] == [0, 0]
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(('worker', 'last'), [(0, '; next: python -m ensemble.combine'), (1, 'worker 1 of 2 is done;')])
def test_a_machine_that_comes_back_to_a_finished_run_does_not_wait_for_the_others(
    shards, undisturbed, monkeypatch, capsys, worker, last
):
    """As after kill -9 while the first one predicts, the others having ended; their ports are no one's."""
    cluster = {'worker': ['localhost:1', 'localhost:2']}
    monkeypatch.setenv('TF_CONFIG', json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': worker}}))
    command = ['train', f'--shards_dir={shards.folder}', f'--run_dir={undisturbed}/run', *FLAGS]
    train.main([*command, '--strategy=multiworker'])
    assert last in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(InputError, match='began with seed=0, now it is 1'):
        train.main([*command, '--strategy=multiworker', '--seed=1'])


@pytest.mark.slow
def test_a_checkpoint_that_only_one_machine_sees_is_refused_by_both(shards, undisturbed, tmp_path):
    own = tmp_path / 'run'
    shutil.copytree(undisturbed / 'run' / 'checkpoints', own / 'checkpoints')
    shutil.copy(undisturbed / 'run' / 'run.json', own)
    for one in run_workers(tmp_path, shards, run_dirs=('run', 'other')):
        assert one.code == 1
        assert one.errors.splitlines()[-1] == (
            'error: the machines do not begin with the same checkpoint ([9, 0]); is --run_dir a shared folder?'
        ), one.errors


@dataclass(frozen=True)
class Ended:
    """A worker that has ended."""

    code: int
    output: str
    errors: str


def run_workers(
    folder: Path,
    shards: dataset.Shards,
    *,
    stops: Mapping[int, tuple[str, str]] = {},  # noqa: B006
    run_dirs: tuple[str, str] = ('run', 'run'),
    shell: str = 'exec "$@"',
) -> list[Ended]:
    """Runs model.train on two workers of this machine; `stops` has which gets which signal at which moment."""
    for _ in range(3):
        ended = _run_workers(folder, shards, stops, run_dirs, shell)
        # TensorFlow gives up a worker that is silent for 10 seconds: here one that was suspended, with the machine.
        if stops or not any(one.code and 'heartbeat timeout' in one.errors for one in ended):
            break
    return ended


def _run_workers(
    folder: Path, shards: dataset.Shards, stops: Mapping[int, tuple[str, str]], run_dirs: tuple[str, str], shell: str
) -> list[Ended]:
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.create_server(('localhost', 0))) for _ in range(2)]
        cluster = {'worker': [f'localhost:{one.getsockname()[1]}' for one in free]}
    with contextlib.ExitStack() as running:
        workers = []
        for index in range(2):
            config = json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': index}})
            command = [sys.executable, '-m', 'tests.model.one_worker', str(folder / f'worker{index}')]
            flags = [f'--shards_dir={shards.folder}', f'--run_dir={folder / run_dirs[index]}', '--strategy=multiworker']
            worker = subprocess.Popen(
                ['sh', '-c', shell, 'sh', *command, *stops.get(index, ('KILL', 'never')), *FLAGS, *flags],
                env={**os.environ, 'TF_CONFIG': config}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            running.enter_context(worker)
            running.callback(_kill_group, worker.pid)
            workers.append(worker)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # both are read, so that neither waits for the other
            said = list(pool.map(lambda worker: worker.communicate(timeout=400), workers))
        return [Ended(worker.returncode, *both) for worker, both in zip(workers, said, strict=True)]


def _kill_group(pid: int) -> None:
    """Ends a worker with its shell."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def weights(folder: Path) -> list[np.ndarray]:
    """Of the finished model."""
    return keras.models.load_model(folder / 'run' / 'model.keras', compile=False).get_weights()


def history(folder: Path) -> list[dict[str, str]]:
    """The run's rows, without the speed."""
    with open(folder / 'run' / 'history.csv', newline='') as file:
        return [
            {name: cell for name, cell in row.items() if name != 'images_per_second'} for row in csv.DictReader(file)
        ]


def last_step(folder: Path) -> int:
    """The last checkpoint's."""
    found = checkpoint.read(str(folder / 'run' / 'checkpoints'))
    assert found
    return found.state.step


def assert_same_end(folder: Path, expected: Path) -> None:
    """Bit for bit the weights of another run, on both machines, and the same history."""
    for worker in (0, 1):
        found = np.load(folder / f'worker{worker}.npz')
        for number, value in enumerate(weights(expected)):
            np.testing.assert_array_equal(found[f'arr_{number}'], value)
    for got, value in zip(weights(folder), weights(expected), strict=True):
        np.testing.assert_array_equal(got, value)
    assert history(folder) == history(expected)
