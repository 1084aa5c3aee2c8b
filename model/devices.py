"""Which devices train, and in which precision."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator

import keras
import tensorflow as tf

from pipeline.errors import InputError, TemporaryError, one_line

ONE_MACHINE = ('auto', 'one', 'mirrored')
STRATEGIES = (*ONE_MACHINE, 'multiworker')
PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')
XLA = ('auto', 'on', 'off')
# What TensorFlow raises when another machine has gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


@functools.cache  # a second MirroredStrategy in one process mixes up the first's all-reduces (tensorflow issue 61314)
def strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of this name; to be made before TensorFlow computes anything.

    Args:
        name: one (the first device), mirrored (MirroredStrategy over all GPUs, or over all logical CPUs where there are
            no GPUs), auto: mirrored where there are several GPUs, or multiworker (MultiWorkerMirroredStrategy over the
            machines that TF_CONFIG lists; waits until all of them are there).

    Raises:
        InputError: multiworker, and TF_CONFIG doesn't say which machines there are, or one has gone meanwhile.
    """
    if name == 'multiworker':
        place_in_cluster()
        with lost_in_one_line():
            return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices('GPU')
    if name == 'mirrored' or (name == 'auto' and len(gpus) > 1):
        return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices('CPU')])
    return tf.distribute.get_strategy()


def place(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """The number of this machine, and of how many; number 0 is the chief, which alone writes the run."""
    cluster = strategy.cluster_resolver
    return (cluster.task_id, cluster.cluster_spec().num_tasks('worker')) if cluster else (0, 1)


def place_in_cluster() -> tuple[int, int]:
    """place() by TF_CONFIG, without meeting the other machines.

    Raises:
        InputError: TF_CONFIG doesn't say which machines there are.
    """
    return _check_cluster(os.environ.get('TF_CONFIG', ''))


def set_precision(name: str) -> None:
    """Sets what layers compute in; variables stay float32."""
    keras.config.set_dtype_policy(name)


def xla(name: str) -> bool:
    """Whether XLA compiles: on, off, or auto: where there is a GPU, as Keras does too; on a CPU it gains nothing."""
    return bool(tf.config.list_logical_devices('GPU')) if name == 'auto' else name == 'on'


def check_agreement(strategy: tf.distribute.Strategy, number: int, *, what: str) -> None:
    """Refuses machines that don't all have the same number, of an update for example; one alone always agrees.

    Raises:
        InputError: they differ.
    """
    _, workers = place(strategy)
    if workers == 1:
        return

    @tf.function
    def gathered(number: tf.Tensor) -> tf.Tensor:
        return strategy.run(lambda: tf.distribute.get_replica_context().all_gather(number[None], axis=0))

    numbers = strategy.experimental_local_results(gathered(tf.constant(number, tf.int32)))[0].numpy()
    if len(set(numbers.tolist())) > 1:
        raise InputError(f'the machines do not begin with {what} ({numbers.tolist()}); is --run_dir a shared folder?')


@contextlib.contextmanager
def first_machine_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The other machines begin what is in the block when the first one has ended it."""
    worker, _ = place(strategy)
    if worker:
        check_agreement(strategy, 0, what='the same work')
    yield
    if not worker:
        check_agreement(strategy, 0, what='the same work')


@contextlib.contextmanager
def lost_in_one_line() -> Iterator[None]:
    """Around what several machines do together: says it in one line where TensorFlow misses one of them.

    Raises:
        TemporaryError: another machine has gone.
    """
    try:
        yield
    except LOST as error:
        raise TemporaryError(
            f'another machine has gone ({reason(error)}); give the same command on all machines to go on from the last '
            'checkpoint'
        ) from None


def reason(error: tf.errors.OpError) -> str:
    """What an error of TensorFlow says, in one line without the places where the graph was made."""
    places = ('Graph execution error', 'Detected at node', 'File "')
    lines = [line.strip() for line in error.message.splitlines()]
    return one_line(Exception(next((line for line in lines if line and not line.startswith(places)), error.message)))


def _check_cluster(config: str) -> tuple[int, int]:
    """This machine's number, and of how many."""
    try:
        found = json.loads(config)
        workers, task = found['cluster']['worker'], found['task']
        sound = (
            task['type'] == 'worker' and set(found['cluster']) == {'worker'} and task['index'] in range(len(workers))
        )
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise InputError(
            '--strategy=multiworker: TF_CONFIG must list the machines and say which of them this is, such as '
            '{"cluster": {"worker": ["host0:4000", "host1:4000"]}, "task": {"type": "worker", "index": 0}}, '
            f'not {config!r}'
        )
    return task['index'], len(workers)
