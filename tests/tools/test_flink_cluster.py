"""The jobs on real Flink: embedded, on a cluster, with a task manager lost; always the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import worklog
from tests import catalogue
from tests.commands import following
from tests.ensemble import stores

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / 'tools' / 'flink.sh'
# Starts Flink. As slow as they are, quick runs (-m "not slow") leave them out too.
on_flink = [pytest.mark.flink, pytest.mark.slow]
SHARDS = 70  # at least: so many of 1 MB that a task manager can be killed between the first and the last
# Java's better compiler takes twice the time of such short runs.
JAVA = {'JAVA_TOOL_OPTIONS': '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC'}


@dataclass(frozen=True)
class Cluster:
    """A job manager and two task managers.

    Attributes:
        environment: what tools/flink.sh must be called with.
        folder: its logs, process numbers and flags.
        url: of Flink's REST API.
    """

    environment: dict[str, str]
    folder: Path
    url: str

    def call(self, command: str) -> None:
        subprocess.run([SCRIPT, command], env=self.environment, check=True, stdout=subprocess.DEVNULL)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f'{self.url}/{path}', timeout=30) as answer:
            return json.load(answer)

    def writing(self) -> str | None:
        """The task manager that the newest job's first step of writing runs on."""
        for vertex in self.newest_job()['vertices']:
            if 'Write' in vertex['name']:
                for task in self.get(f'jobs/{self.newest_job()["jid"]}/vertices/{vertex["id"]}')['subtasks']:
                    if task['status'] == 'RUNNING':
                        return task['taskmanager-id']
        return None

    def newest_job(self) -> dict[str, Any]:
        jobs = self.get('jobs/overview')['jobs']
        return self.get(f'jobs/{max(jobs, key=lambda job: job["start-time"])["jid"]}')


def mentioning(path: Path, program: str = '') -> list[str]:
    """The numbers of the processes that have a path in their command or environment; of one program, or of any."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        try:
            line = (process / 'cmdline').read_bytes()
            told = line + (process / 'environ').read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if bytes(path) in told and line.startswith(program.encode()):
            found.append(process.name)
    return found


def free_port() -> int:
    """A port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            try:
                second.bind(('127.0.0.1', first.getsockname()[1] + 1))
            except OSError:
                continue
            return first.getsockname()[1]


def wait_for(condition: Callable[[], Any], *, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)
    return found


@pytest.fixture(scope='module')
def server_jar() -> Path:
    subprocess.run([SCRIPT, 'fetch'], check=True)
    return REPOSITORY / '.flink' / 'jars' / 'job-server.jar'


@pytest.fixture(scope='module')
def cluster(server_jar, tmp_path_factory) -> Iterator[Cluster]:
    folder, port = tmp_path_factory.mktemp('cluster') / 'run', free_port()
    settings = {'FLINK_RUN': str(folder), 'FLINK_PORT': str(port), 'PYTHON': sys.executable}
    one = Cluster({**os.environ, **JAVA, **settings}, folder, f'http://127.0.0.1:{port}')
    one.call('start')
    yield one
    one.call('stop')
    assert not folder.exists()
    assert mentioning(folder / 'tmp') == []


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A catalogue of 74 MB: 1,200 products of four pictures that go on for 13 kB after the end of the JPEG."""
    folder = tmp_path_factory.mktemp('source')
    pictures = [catalogue.jpeg(0) + bytes([index]) * 13_000 for index in range(256)]
    documents = [
        catalogue.document(number, [pictures[(number + k) % 256] for k in range(4)], category)
        for number, category in ((number, 1000 + number % 3 if number < 1000 else None) for number in range(1200))
    ]
    (folder / 'train.bson').write_bytes(b''.join(documents[:1000]))
    (folder / 'test.bson').write_bytes(b''.join(documents[1000:]))
    catalogue.write_names(folder, range(1000, 1003))
    return folder


@pytest.fixture(scope='module')
def expected(source, tmp_path_factory) -> dict[str, str]:
    """What the DirectRunner makes of it."""
    folder = tmp_path_factory.mktemp('direct')
    convert(folder, f'--input_dir={source}', '--runner=DirectRunner', '--direct_num_workers=2')
    made = digests(folder)
    assert {'categories.csv', 'manifest.json'} < set(made)
    assert len(made) > SHARDS
    return made


def command(folder: Path, *words: str, program: str = 'pipeline.convert') -> tuple[list[str], dict[str, Any]]:
    """The program as typed, in a folder of its own and with one for temporary files."""
    (folder / 'temporary').mkdir(parents=True)
    environment = {**os.environ, **JAVA, 'PYTHONPATH': str(REPOSITORY), 'TMPDIR': str(folder / 'temporary')}
    return [sys.executable, '-m', program, *words], {'cwd': folder, 'env': environment, 'text': True}


def to_shards(folder: Path) -> list[str]:
    return [f'--output_dir={folder / "shards"}', '--shard_mb=1']


def convert(folder: Path, *words: str) -> str:
    """Converts, and expects no word but the program's own and nothing left behind; what it printed."""
    line, settings = command(folder, *to_shards(folder), *words)
    done = subprocess.run(line, capture_output=True, **settings)
    assert (done.returncode, without_progress(done.stderr)) == (0, [])
    assert list((folder / 'temporary').iterdir()) == []
    return done.stdout


def without_progress(stderr: str) -> list[str]:
    lines = re.split('[\r\n]+', stderr)
    return [line for line in lines if line and not line.startswith(('read and plan: ', 'write: '))]


def digests(folder: Path) -> dict[str, str]:
    """Of the shards and what lies beside them, without the worklog."""
    paths = (path for path in (folder / 'shards').iterdir() if path.name != worklog.NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def embedded(jar: Path) -> list[str]:
    return ['--runner=FlinkRunner', '--flink_master=[local]', f'--flink_job_server_jar={jar}']


class TestOnFlink:
    pytestmark = on_flink

    def test_every_runner_on_this_machine_gives_the_same_bytes(self, source, expected, server_jar, tmp_path):
        megabytes = f'{sum(path.stat().st_size for path in source.glob("*.bson")) / 1e6:.1f}'
        for name, words in {'one': ['--runner=FnApiRunner'], 'flink': embedded(server_jar)}.items():
            said = convert(tmp_path / name, f'--input_dir={source}', *words)
            assert digests(tmp_path / name) == expected
            first_words = ['converting', 'split', 'train', 'val', 'test', megabytes, 'wrote']
            assert [line.split()[0] for line in said.splitlines()] == first_words
            assert following(said).startswith('python -m model.train ')

    def test_a_cluster_gives_the_same_bytes(self, source, expected, cluster, tmp_path):
        convert(tmp_path / 'made', f'--input_dir={source}', f'--flagfile={cluster.folder}/flags')
        assert digests(tmp_path / 'made') == expected
        assert cluster.newest_job()['state'] == 'FINISHED'

    @pytest.mark.parametrize('where', ['embedded', 'cluster'])
    def test_combining_gives_the_same_predictions(self, server_jar, cluster, tmp_path, where):
        words = embedded(server_jar) if where == 'embedded' else [f'--flagfile={cluster.folder}/flags']
        folders = []
        for model in 'ab':
            shards = [stores.random_rows(30, 50, seed=n, first_id=100 * n, labels=False) for n in range(6)]
            folder = tmp_path / model / 'logits' / 'test'
            folders.append(stores.write(folder, shards, stores.label_map(50), weights_digest=model))
        made = {}
        for name, runner in {'one': ['--runner=FnApiRunner'], 'flink': words}.items():
            output = tmp_path / name / 'out'
            line, settings = command(tmp_path / name, program='ensemble.combine')
            line += [f'--logits={",".join(folders)}', '--weights=2,1', f'--output_dir={output}', *runner]
            subprocess.run(line, check=True, **settings)
            paths = (path for path in output.rglob('*') if path.is_file() and path.name != worklog.NAME)
            made[name] = {path.name: path.read_bytes() for path in paths}
        assert set(made['one']) > {'submission.csv.gz', 'manifest.json', 'test-00005-of-00006.parquet'}
        assert made['flink'] == made['one']

    @pytest.mark.parametrize('where', ['embedded', 'cluster'])
    def test_bad_input_is_one_line_and_exit_code_1(self, server_jar, cluster, tmp_path, where):
        catalogue.write_catalogue(tmp_path / 'bad', products=60)
        path = tmp_path / 'bad' / 'test.bson'
        good = path.read_bytes()
        path.write_bytes(good + b'\x05\x00\x00')
        words = embedded(server_jar) if where == 'embedded' else [f'--flagfile={cluster.folder}/flags']
        line, settings = command(tmp_path / 'made', *to_shards(tmp_path / 'made'), f'--input_dir={path.parent}', *words)
        done = subprocess.run(line, capture_output=True, **settings)
        assert done.returncode == 1
        (error,) = without_progress(done.stderr)
        assert error.startswith(f'error: {path}: byte {len(good)}: ')
        assert digests(tmp_path / 'made') == {}

    def test_a_job_that_is_told_to_end_leaves_nothing_behind(self, source, server_jar, tmp_path):
        line, settings = command(tmp_path, *to_shards(tmp_path), f'--input_dir={source}', *embedded(server_jar))
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **settings) as job:
            wait_for(lambda: mentioning(tmp_path / 'temporary', 'java'))
            job.terminate()
        assert job.returncode == 128 + signal.SIGTERM
        assert list((tmp_path / 'temporary').iterdir()) == []
        assert mentioning(tmp_path / 'temporary') == []

    def test_a_task_manager_lost_in_the_middle_changes_nothing(self, source, expected, cluster, tmp_path):
        line, settings = command(
            tmp_path, *to_shards(tmp_path), f'--input_dir={source}', f'--flagfile={cluster.folder}/flags'
        )
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings) as job:
            wait_for(lambda: list(tmp_path.glob('shards/*.tfrecord')))
            name = wait_for(cluster.writing)
            number = int((cluster.folder / f'{name}.pid').read_text())
            os.kill(number, signal.SIGKILL)
            there = len(list(tmp_path.glob('shards/*.tfrecord')))
            assert not (tmp_path / 'shards' / 'manifest.json').exists()
            assert there < SHARDS, 'killed before the last shard'
            errors = job.communicate()[1]
        assert (job.returncode, without_progress(errors)) == (0, [])
        assert digests(tmp_path) == expected
        made = cluster.newest_job()
        assert made['timestamps']['RESTARTING'] > 0
        attempts = [cluster.get(f'jobs/{made["jid"]}/vertices/{vertex["id"]}') for vertex in made['vertices']]
        assert max(task['attempt'] for vertex in attempts for task in vertex['subtasks']) > 0
        causes = cluster.get(f'jobs/{made["jid"]}/exceptions')['exceptionHistory']['entries']
        assert any(name in cause['stacktrace'] for cause in causes), 'restarted for the lost task manager'
        wait_for(lambda: not subprocess.run(['pgrep', '-g', str(number)], capture_output=True).stdout, seconds=60)


@pytest.mark.parametrize('words', [[], ['begin'], ['start', 'stop']])
def test_bad_usage_exits_with_2(words):
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('usage: tools/flink.sh fetch|start|stop|status\n')


def test_no_answer_from_maven_exits_with_3_and_says_so(tmp_path):
    for folder in ('tools', 'bin'):
        (tmp_path / folder).mkdir()
    for name, text in {
        'tools/flink.sh': SCRIPT.read_text(),
        'bin/java': '#!/bin/sh\n',
        'bin/mvn': "#!/bin/sh\necho '[ERROR] Unknown host'\necho '[ERROR] For more, read'\nexit 1\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
    done = subprocess.run([tmp_path / 'tools/flink.sh', 'start'], env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "error: Maven couldn't get the jars: [ERROR] Unknown host; see .flink/maven.log\n"
    assert [path.name for path in (tmp_path / '.flink').iterdir()] == ['maven.log']


def test_stop_and_status_without_a_cluster_are_no_errors(tmp_path):
    environment = {**os.environ, 'FLINK_RUN': str(tmp_path / 'run')}
    for word, said in {'stop': '', 'status': 'not running\n'}.items():
        done = subprocess.run([SCRIPT, word], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, '')
