"""Beam jobs run the same way everywhere: mistyped flags are refused, a step's error is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest
from absl import flags

from pipeline import beam_job
from pipeline.errors import CatalogueError, InputError

IN_MEMORY = '--runner=FnApiRunner'
TWO_PROCESSES = ['--runner=DirectRunner', '--direct_num_workers=2']


def run_step(argv: list[str], step: Callable[[int], object]) -> None:
    beam_job.engine(argv).run(lambda pipeline: pipeline | 'Numbers' >> beam.Create([1]) | 'Step' >> beam.Map(step))


@pytest.mark.parametrize('argv', [[IN_MEMORY], ['--runner', 'FnApiRunner'], TWO_PROCESSES])
def test_every_local_runner_runs_the_steps(tmp_path: Path, argv):
    path = str(tmp_path / 'done')

    def step(number: int) -> None:
        Path(path).write_text(str(number))

    run_step(argv, step)
    assert Path(path).read_text() == '1'


@pytest.mark.parametrize(
    ('words', 'error'),
    [
        (['--shard_md=1'], 'unknown flag --shard_md, perhaps --shard_mb is meant'),
        (['--shard_md', '1'], 'unknown flag --shard_md, perhaps --shard_mb is meant'),
        (['--direct_num_worker=2'], 'unknown flag --direct_num_worker, perhaps --direct_num_workers is meant'),
        (['--shard-mb=1'], 'unknown flag --shard-mb, perhaps --shard_mb is meant'),
        (['--shard-mb', '1'], 'unknown flag --shard-mb, perhaps --shard_mb is meant'),
        (['--qqqq=2'], 'unknown flag --qqqq'),
        (['--direct_num_workers=x'], "argument --direct_num_workers: invalid int value: 'x'"),
        (['word'], "unexpected argument 'word': every option is written --name=value"),
        (['--direct_num_workers=2', 'word'], "unexpected argument 'word': every option is written --name=value"),
    ],
)
@pytest.mark.parametrize(
    'runner',
    [[], ['--runner=DirectRunner'], [IN_MEMORY], ['--runner=FlinkRunner', '--flink_master=[local]']],
    ids=['default', 'direct', 'in memory', 'flink'],
)
def test_what_beam_does_not_know_either_is_refused(runner, words, error):
    with pytest.raises(flags.Error, match=f'^{re.escape(error)}$'):
        beam_job.engine([*runner, *words], known=['shard_mb'])


def test_an_unknown_runner_is_refused_by_name():
    with pytest.raises(flags.Error, match='^--runner=NoRunner: .*Valid values are .*DirectRunner.*FlinkRunner'):
        beam_job.engine(['--runner=NoRunner'])


@pytest.mark.parametrize('argv', [[IN_MEMORY], ['--runner=FnApiRunner'], TWO_PROCESSES])
def test_what_the_system_refuses_a_step_is_one_line(tmp_path, argv):
    (tmp_path / 'file').touch()
    path = str(tmp_path / 'file' / 'folder')
    with pytest.raises(
        InputError, match=rf"^\[Errno 20\] Not a directory: '{path}'; a file stands where a folder must"
    ):
        run_step(argv, lambda _: Path(path).mkdir())


@pytest.mark.parametrize('argv', [[IN_MEMORY], TWO_PROCESSES], ids=['in memory', 'two processes'])
def test_the_input_error_of_a_step_keeps_its_own_text_and_nothing_else(argv, capfd):
    text = "data/tr'ain.bson: byte 7: is {1: 'x'} [5:6], must be -1; get the file again"

    def step(number: int) -> None:
        raise CatalogueError(text)

    with pytest.raises(InputError) as error:
        run_step(argv, step)
    assert str(error.value) == text
    assert capfd.readouterr().err == '', 'no traceback of a worker'


@pytest.mark.parametrize('argv', [[IN_MEMORY], TWO_PROCESSES], ids=['in memory', 'two processes'])
def test_any_other_error_of_a_step_is_not_hidden(argv):
    def step(number: int) -> None:
        raise ZeroDivisionError('of the step')

    with pytest.raises(Exception, match='of the step') as error:
        run_step(argv, step)
    assert not isinstance(error.value, InputError)


LATE_WORKER = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from pipeline import beam_job

def fail(number):
    raise beam_job.InputError('of the step')

command = f'mkdir first 2>/dev/null || sleep 2; exec {sys.executable} -m pipeline.beam_worker'
runner = FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))
engine = beam_job.Engine(runner, PipelineOptions(['--direct_num_workers=2']))
engine.run(lambda pipeline: pipeline | beam.Create([1]) | beam.Map(fail))
"""


def test_a_failed_job_ends_though_a_process_of_it_starts_late(tmp_path: Path):
    """With Beam's own handler of workers it waits for ever, most times."""
    done = subprocess.run([sys.executable, '-c', LATE_WORKER], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith('pipeline.errors.InputError: of the step\n')


def test_a_worker_that_is_killed_ends_the_job_in_one_line():
    def step(_: int) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match='^a worker process was killed, perhaps for want of memory; '):
        run_step(TWO_PROCESSES, step)
