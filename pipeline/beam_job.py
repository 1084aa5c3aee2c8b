"""Runs a Beam job the same way from every program: runner flags, processes, one-line errors.

In Beam 2.77 the plain `DirectRunner` first tries to download another runner and ignores the process count. So here the
name stands for Beam's FnApiRunner with one process a core; every other Beam flag passes through as given. What Flink
needs beyond that is in flink.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import grpc
from absl import flags
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf import json_format, text_format

from pipeline import beam_worker, flink, program
from pipeline.errors import InputError, with_remedy

KILLED = (
    'a worker process was killed, perhaps for want of memory; give the same command again, or fewer processes '
    '(--direct_num_workers)'
)


@dataclass(frozen=True)
class Report:
    """What the steps of a job told, all processes together.

    Attributes:
        spans: by name, when the first span() began and the last one ended, seconds since 1970.
        counts: by name, how often count() was called.
    """

    spans: dict[str, tuple[float, float]]
    counts: dict[str, int]


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Times what a step does, for the job's report."""
    moments = Metrics.distribution('spans', name)
    moments.update(time.time_ns() // 10**6)
    try:
        yield
    finally:
        moments.update(time.time_ns() // 10**6)


def count(name: str) -> None:
    """Counts something that a step does, for the job's report."""
    Metrics.counter('counts', name).inc()


@dataclass(frozen=True)
class Engine:
    """What runs a program's pipelines.

    Attributes:
        runner: Beam's runner.
        options: Beam's options.
    """

    runner: beam.runners.PipelineRunner
    options: PipelineOptions

    def run(self, build: Callable[[beam.Pipeline], object]) -> Report:
        """Builds a pipeline and runs it to its end.

        Args:
            build: adds the steps to the pipeline.

        Returns:
            what the steps told by span() and count().

        Raises:
            InputError: a step raised one or an OSError, in whichever process; the message is the step's own. Or Flink
                can't be reached or downloaded.
        """
        if isinstance(self.runner, FlinkRunner):
            flink.prepare(self.options)
        try:
            pipeline = beam.Pipeline(runner=self.runner, options=self.options)
            build(pipeline)
            with _quiet_threads():
                result = pipeline.run()
                result.wait_until_finish()
            told = result.metrics().query()
            spans = {metric.key.metric.name: metric.result for metric in told['distributions']}
            return Report(
                {name: (moments.min / 1000, moments.max / 1000) for name, moments in spans.items()},
                {metric.key.metric.name: metric.result for metric in told['counters']},
            )
        except Exception as error:
            raise _input_error(error) or flink.input_error(error) or error from None


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Beam's threads that read from a worker die with a traceback when it is killed; the job's own error tells it."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, grpc.RpcError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def engine(argv: list[str], *, known: Iterable[str] = ()) -> Engine:
    """The engine that a command line asks for.

    Args:
        argv: Beam's flags: what the program itself didn't know.
        known: the program's own flags, which a mistyped one may be.

    Raises:
        flags.Error: a flag, value or runner that Beam doesn't know either, or a stray word.
    """
    options = _options(argv)
    runner = options.view_as(StandardOptions).runner or 'DirectRunner'
    if runner in ('DirectRunner', 'FnApiRunner', 'FlinkRunner'):
        _quiet_logs()
        _refuse_unknown(argv, known)
    return Engine(_local_processes(argv, options) if runner == 'DirectRunner' else _runner(runner), options)


def _options(argv: list[str]) -> PipelineOptions:
    """Beam's parser ends the process with a hundred lines of usage; only its last words say what is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(argv)
            options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise flags.Error(said.getvalue().strip().rpartition('error: ')[2]) from None
    return options


def _local_processes(argv: list[str], options: PipelineOptions) -> FnApiRunner:
    direct = options.view_as(DirectOptions)
    if any(word.startswith('--direct_running_mode') for word in argv):
        return FnApiRunner()
    if not any(word.startswith('--direct_num_workers') for word in argv):
        direct.direct_num_workers = os.cpu_count()
    if hasattr(os, 'fork') and threading.active_count() == 1 and 'tensorflow' not in sys.modules:
        _forked.extend(_Forked() for _ in range(direct.direct_num_workers - len(_forked)))
    command = f'exec {shlex.quote(sys.executable)} -m pipeline.beam_worker --program={os.getpid()}'
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


class _Forked:
    """A worker process that waits for its job: forked early, before there are threads, it has Beam loaded already."""

    def __init__(self) -> None:
        program = os.getpid()
        read, self._write = os.pipe()
        if sys.stdout:
            sys.stdout.flush()
        self._process = os.fork()
        if self._process:
            os.close(read)
            return
        try:  # what is raised here must not climb into the program's own code
            beam_worker.end_with(program)
            with os.fdopen(read) as told:
                os.environ.update(json.loads(told.readline()))
            beam_worker.work()
        finally:
            os._exit(0)

    def begin(self, environment: dict[str, str]) -> None:
        """Tells it its job."""
        with os.fdopen(self._write, 'w') as told:
            told.write(json.dumps(environment) + '\n')

    def wait(self) -> None:
        """Returns when it has ended."""
        os.waitpid(self._process, 0)


_forked: list[_Forked] = []


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _Worker(SubprocessSdkWorkerHandler):
    """Beam's handler of a worker process, without its hangs.

    Beam 2.77 tells only the workers connected by then that the job is over, and waits for all of them to exit. Where
    one fails before another has started up, the other would wait for work for ever. And it may wait for ever for the
    answer of a worker that was killed.
    """

    def start_worker(self) -> None:
        """Gives the job to a forked worker, or starts a process."""
        if _forked:
            wait = self._begin(_forked.pop())
        else:
            wait = SubprocessSdkWorker(
                self._worker_command_line, self.control_address, self.provision_info, self.worker_id
            ).run
        self.worker_thread = threading.Thread(target=self._watch, args=(wait,))
        self.worker_thread.start()

    def _begin(self, worker: _Forked) -> Callable[[], None]:
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        options = self.provision_info.provision_info.pipeline_options
        worker.begin(
            {
                'WORKER_ID': self.worker_id,
                'CONTROL_API_SERVICE_DESCRIPTOR': text_format.MessageToString(control),
                'PIPELINE_OPTIONS': json_format.MessageToJson(options),
            }
        )
        return worker.wait

    def _watch(self, wait: Callable[[], None]) -> None:
        """Ends what waits for an answer from the worker when there is no worker any more."""
        with contextlib.suppress(RuntimeError):  # Beam's, of an exit code that isn't 0
            wait()
        self.control_conn.abort(InputError(KILLED))

    def stop_worker(self) -> None:
        """Leaves the word that the job is over for a worker that comes too late to hear it."""
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)
        super().stop_worker()


def _runner(name: str) -> beam.runners.PipelineRunner:
    try:
        return beam.runners.create_runner(name)
    except (ValueError, ImportError) as error:
        raise flags.Error(f'--runner={name}: {error}') from None


def _refuse_unknown(argv: list[str], own: Iterable[str]) -> None:
    """Beam drops what it doesn't know with no more than a warning; a mistyped flag must not be lost so quietly."""
    options = PipelineOptions(argv)
    known = options.get_all_options(retain_unknown_options=False)
    for name in options.get_all_options(retain_unknown_options=True):
        if name not in known:
            typed = [word.lstrip('-').partition('=')[0] for word in argv]
            as_typed = [word for word in typed if word.replace('-', '_') == name]
            raise program.unknown_flag([*as_typed, name][0], [*own, *known])
    for before, word in zip(['', *argv], argv, strict=False):
        if not word.startswith('-') and (not before.startswith('-') or '=' in before):
            raise flags.Error(f'unexpected argument {word!r}: every option is written --name=value')


def _quiet_logs() -> None:
    """Hides what Beam logs of a run: notes on itself, and errors that are raised to us anyway."""
    logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(flink.is_not_of_job_server)


def _input_error(error: Exception) -> InputError | None:
    """The InputError or OSError (such as a full disk) that a step raised, as an InputError.

    Workers hand it over as text: a traceback, then name and message.
    """
    if 'Channel closed prematurely' in str(error):  # Beam's words for it
        return InputError(KILLED)
    raised = r'pipeline\.errors\.\w+: |\w+Error: (?=\[Errno )'
    pattern = re.compile(rf'^(?:builtins\.RuntimeError: )?(?:{raised})(.+)$', re.MULTILINE)
    text = f'{type(error).__module__}.{type(error).__qualname__}: {error}'
    found = pattern.findall(text) or pattern.findall(text.replace('\\n', '\n'))
    return InputError(with_remedy(re.sub(r" \[while running '.*$", '', found[-1]))) if found else None
