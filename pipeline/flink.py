"""What Beam leaves open for --runner=FlinkRunner: where workers come from, what is left behind, what can be mended.

Beam starts a Java program, the job server, which translates the job for Flink and hands it to a cluster, or with
--flink_master=[local] runs it itself. There Beam would run the Python steps as threads of this process, one core's
worth; here they get a process a core, as under the DirectRunner.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import FlinkRunnerOptions, JobServerOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability.flink_runner import MAGIC_HOST_NAMES, FlinkRunner

from pipeline.errors import InputError, one_line

# A task manager ends its Python workers between two stages, and starting them again takes seconds.
KEEP_WORKERS_MS = 10_000
ANSWER_SECONDS = 10


def prepare(options: PipelineOptions) -> None:
    """Fills in Beam's options for Flink where the command line leaves them open, just before a job.

    Raises:
        InputError: the job server's jar isn't there, or no cluster answers.
    """
    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    jar = flink.flink_job_server_jar
    if jar and '://' not in jar and not os.path.exists(jar):
        raise InputError(f'--flink_job_server_jar={jar}: no such file; tools/flink.sh fetch gets one')
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit)
    folder = _temporary_folder()
    server = options.view_as(JobServerOptions)
    server.job_server_jvm_properties = [f'-Djava.io.tmpdir={folder}', *server.job_server_jvm_properties]
    portable.environment_cache_millis = int(portable.environment_cache_millis) or KEEP_WORKERS_MS
    if portable.job_endpoint:
        return
    if flink.flink_master not in MAGIC_HOST_NAMES:
        _refuse_silent(flink.flink_master)
    elif not portable.environment_type:
        portable.environment_type = 'PROCESS'
        portable.environment_options = [f'process_command={_worker_command(folder)}']
        portable.sdk_worker_parallelism = os.cpu_count()


def input_error(error: Exception) -> InputError | None:
    """The error of a job that couldn't begin because its job server couldn't be downloaded, in one line."""
    if not str(error).startswith('Unable to fetch remote job server jar'):
        return None
    return InputError(f'{one_line(error)}; get it by tools/flink.sh fetch, and give --flink_job_server_jar=PATH')


def is_not_of_job_server(record: logging.LogRecord) -> bool:
    """A filter for the root logger: Beam logs a job server's messages under no name of its own."""
    return record.module not in ('portable_runner', 'subprocess_server')


def _exit(number: int, _: object) -> NoReturn:
    """Ends this process in order, so that Beam ends the job server, which would run the job to its end."""
    raise SystemExit(128 + number)


def _temporary_folder() -> Path:
    """A folder for what Beam and its job server leave behind; it goes after Beam, at exit as well, has ended that."""
    folder = tempfile.mkdtemp(prefix='beam-flink-')
    atexit.register(_leave_nothing, folder)
    tempfile.tempdir = folder  # Beam makes folders as it stages a job, and has no flag that says where
    return Path(folder)


def _leave_nothing(folder: str) -> None:
    """Kills what was started with the folder in its command, and removes the folder.

    Beam has ended what it knows of by then, which isn't all: a signal that comes just as it starts the job server has
    it forget that.
    """
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if os.fsencode(folder) in (process / 'cmdline').read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                os.waitpid(int(process.name), 0)
    shutil.rmtree(folder, ignore_errors=True)


def _worker_command(folder: Path) -> Path:
    """Flink starts a worker as one word, so that it must be a file."""
    path = folder / 'worker'
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipeline.beam_worker "$@"\n')
    path.chmod(0o755)
    return path


def _refuse_silent(master: str) -> None:
    """Where no cluster answers, Beam tries for a minute and then names no address."""
    address = urlsplit(FlinkRunner.add_http_scheme(master))
    try:
        socket.create_connection((address.hostname, address.port or 80), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f'--flink_master={master}: no Flink cluster answers ({one_line(error)})') from None
