"""What can be said of a Flink job before Flink is started; tests/tools/test_flink_cluster.py starts it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import tempfile

import pytest
from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions

from pipeline import beam_job, flink
from pipeline.errors import InputError


@pytest.fixture(autouse=True)
def settings_of_this_process(monkeypatch):
    """As they were, afterwards."""
    monkeypatch.setattr(tempfile, 'tempdir', tempfile.gettempdir())
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def prepared(*words: str) -> PipelineOptions:
    options = PipelineOptions(list(words))
    flink.prepare(options)
    return options


def run(*words: str) -> None:
    beam_job.engine(['--runner=FlinkRunner', *words]).run(lambda pipeline: pytest.fail('must not be built'))


def test_without_a_cluster_there_is_a_worker_process_a_core():
    portable = prepared('--flink_master=[local]').view_as(PortableOptions)
    assert portable.environment_type == 'PROCESS'
    assert portable.sdk_worker_parallelism == os.cpu_count()
    (option,) = portable.environment_options
    command = option.removeprefix('process_command=')
    assert os.access(command, os.X_OK), 'Flink starts it as one word'


def test_what_the_command_line_says_stays():
    words = ['--environment_type=LOOPBACK', '--environment_cache_millis=7', '--job_server_jvm_property=-Xmx1g']
    options = prepared(*words)
    portable = options.view_as(PortableOptions)
    assert (portable.environment_type, portable.environment_options) == ('LOOPBACK', None)
    assert portable.environment_cache_millis == 7
    folder, memory = options.view_as(JobServerOptions).job_server_jvm_properties
    assert folder.startswith('-Djava.io.tmpdir=')
    assert memory == '-Xmx1g'


def test_a_missing_jar_is_named():
    error = '--flink_job_server_jar=no.jar: no such file; tools/flink.sh fetch gets one'
    with pytest.raises(InputError, match=f'^{error}$'):
        run('--flink_job_server_jar=no.jar')


@pytest.mark.parametrize('scheme', ['', 'http://'])
def test_a_cluster_that_does_not_answer_is_named_at_once(scheme):
    with socket.socket() as taken:  # bound, so that nobody else listens there, but not listening
        taken.bind(('127.0.0.1', 0))
        master = f'{scheme}127.0.0.1:{taken.getsockname()[1]}'
        with pytest.raises(InputError, match=f'^--flink_master={master}: no Flink cluster answers .*refused'):
            run(f'--flink_master={master}')


def test_a_job_server_that_cannot_be_downloaded_is_one_line_with_the_remedy():
    error = flink.input_error(RuntimeError('Unable to fetch remote job server jar at URL:\n404. Stage the jar.'))
    assert re.match('Unable to fetch .* URL: 404.*; get it by tools/flink.sh fetch, and give --flink', str(error))
    assert flink.input_error(RuntimeError('Pipeline failed.')) is None


def test_a_job_servers_messages_stay_away_from_the_terminal_and_nothing_else_does():
    def record(module: str) -> logging.LogRecord:
        return logging.LogRecord('root', logging.ERROR, f'/somewhere/{module}.py', 1, 'message', None, None)

    assert not flink.is_not_of_job_server(record('portable_runner'))
    assert flink.is_not_of_job_server(record('convert'))


def test_what_was_started_with_the_folder_is_killed_and_nothing_else(tmp_path):
    (tmp_path / 'ours' / 'more').mkdir(parents=True)
    ours, other = (
        subprocess.Popen(['sh', '-c', 'echo; read line', f'-Djava.io.tmpdir={tmp_path}/{name}'],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE) for name in ('ours', 'other')
    )  # fmt: skip
    for process in (ours, other):
        assert process.stdout and process.stdout.readline()  # it runs
    flink._leave_nothing(f'{tmp_path}/ours')
    assert not os.path.exists(f'/proc/{ours.pid}') and not (tmp_path / 'ours').exists()
    assert other.poll() is None
    other.communicate()
    ours.communicate()
