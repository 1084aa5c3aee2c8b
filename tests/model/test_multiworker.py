"""Training on several machines: two processes on this one stand for them."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ensemble import logits
from model import devices, train
from pipeline import dataset, program
from pipeline.errors import InputError
from tests import shards as small

FLAGS = (
    '--backbone=xception_small', '--width=0.01', '--weights=none', '--image_size=32', '--micro_batch=8',
    '--accumulate=2', '--epoch_images=192', '--val_images=1000', '--dropout=0.2', '--flip_probability=0.5',
    '--predict=val',
)  # fmt: skip


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


@pytest.mark.slow
def test_two_machines_train_one_model_each_on_its_own_shards(shards, tmp_path):
    """Over two passes: the same weights on both to the bit, and a validation that is that of the finished model."""
    outputs = run_workers(tmp_path, f'--shards_dir={shards.folder}', '--epochs=2')
    assert outputs[1] == 'worker 1 of 2 is done; the first one predicts\n'
    assert sorted(os.listdir(tmp_path)) == ['latest', 'run', 'worker0.npz', 'worker1.npz'], 'only the first writes'

    finished = keras.models.load_model(tmp_path / 'run' / 'model.keras', compile=False).get_weights()
    files = shards.manifest.of_split('train')
    for worker in (0, 1):
        found = np.load(tmp_path / f'worker{worker}.npz')
        for number, expected in enumerate(finished):
            np.testing.assert_array_equal(found[f'arr_{number}'], expected)
        own = {
            product
            for file in files[worker::2]
            for ids in dataset.products(shards, [file], batch_size=1)
            for product in ids[2].numpy().tolist()
        }
        trained = {product for product in found['seen'].tolist() if product <= 3 * 69 + 1}
        assert trained == own

    with open(tmp_path / 'run' / 'history.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == [6, 9], '280 pictures in batches of 32'
    store = str(tmp_path / 'run' / 'logits' / 'val')
    found = logits.Rows.concatenate(
        [rows for file in logits.read_manifest(store).files for rows in logits.read_shard(store, file)]
    )
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(found.label, found.logits.astype(np.float32))
    assert float(rows[-1]['val_loss']) == pytest.approx(np.mean(losses), rel=1e-2)


def run_workers(folder, *flags: str) -> list[str]:
    """Runs model.train on two workers of this machine; what each printed."""
    for _ in range(3):
        codes, outputs, errors = zip(*run_workers_once(folder, *flags), strict=True)
        # TensorFlow gives up a worker that is silent for 10 seconds: here one that was suspended, with the machine.
        if not any('heartbeat timeout' in error for error in errors):
            break
    assert codes == (0, 0), errors
    return list(outputs)


def run_workers_once(folder, *flags: str) -> list[tuple[int, str, str]]:
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.create_server(('localhost', 0))) for _ in range(2)]
        cluster = {'worker': [f'localhost:{one.getsockname()[1]}' for one in free]}
    with contextlib.ExitStack() as running:
        workers = []
        for index in range(2):
            config = json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': index}})
            command = [sys.executable, '-m', 'tests.model.one_worker', str(folder / f'worker{index}'), *FLAGS, *flags]
            worker = subprocess.Popen(
                [*command, '--strategy=multiworker', f'--run_dir={folder}/run'],
                env={**os.environ, 'TF_CONFIG': config}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            running.enter_context(worker)
            running.callback(worker.kill)
            workers.append(worker)
        said = [worker.communicate(timeout=300) for worker in workers]
        return [(worker.returncode, *both) for worker, both in zip(workers, said, strict=True)]
