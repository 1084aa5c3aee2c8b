"""The conversion from and to S3 and from a web server, with real servers on this machine.

S3 is moto's, in a process of its own. tensorflow-io reads S3_ENDPOINT once a process, so a test that needs another
endpoint starts a program.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import convert, dataset, manifest, remote, storage, worklog
from pipeline.errors import InputError
from tests import catalogue

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('tensorflow_io') is None, reason='tensorflow-io is built for tensorflow 2.17.1 only'
)
REPOSITORY = Path(convert.__file__).parents[1]
DATA = ('train.bson', 'test.bson', 'category_names.csv')
TIME_LIMIT = 120  # seconds a program may take to say that there is no server


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder without the worklog."""
    paths = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_bytes() for path in paths if path.name != worklog.NAME}


def run(source: str | Path, output: str | Path, *words: str) -> None:
    words = ('--runner=FnApiRunner', '--shard_mb=1', *words)
    convert.main(['convert', f'--input_dir={source}', f'--output_dir={output}', *words])


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


def wait_for(port: int) -> None:
    """Until something listens there."""
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(('127.0.0.1', port)):
            return
        time.sleep(0.1)
    pytest.fail('moto did not start within a minute')


@dataclass(frozen=True)
class Bucket:
    """A bucket of moto's server, seen past tensorflow-io.

    Attributes:
        url: of the bucket.
        name: of the bucket.
    """

    url: str
    name: str

    def request(self, method: str, key: str = '', data: bytes | None = None) -> bytes:
        address = f'{self.url}/{key}' if key else self.url
        # moto wants to know who asks, not a valid signature.
        who = 'AWS4-HMAC-SHA256 Credential=testing/20200101/us-east-1/s3/aws4_request'
        headers = {'Authorization': who, 'Content-Type': 'application/octet-stream'}
        request = urllib.request.Request(address, method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def contents(self, folder: str) -> dict[str, bytes]:
        """The objects whose keys start with the folder's name, without the worklog."""
        listed = self.request('GET', f'?list-type=2&prefix={folder}/').decode()
        keys = re.findall('<Key>(.*?)</Key>', listed)
        names = (key.removeprefix(f'{folder}/') for key in keys)
        return {name: self.request('GET', f'{folder}/{name}') for name in names if name != worklog.NAME}

    def uploads(self) -> int:
        """How many uploads in parts were begun and neither completed nor given up."""
        return self.request('GET', '?uploads').decode().count('<UploadId>')


@pytest.fixture(scope='module')
def bucket() -> Iterator[Bucket]:
    """An empty bucket, and the environment that leads to it."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('S3_ENDPOINT', f'http://127.0.0.1:{port}')
        patch.setenv('AWS_REGION', 'us-east-1')
        patch.setenv('AWS_ACCESS_KEY_ID', 'testing')
        patch.setenv('AWS_SECRET_ACCESS_KEY', 'testing')
        command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            made = Bucket(f'http://127.0.0.1:{port}/catalogues', 'catalogues')
            wait_for(port)
            made.request('PUT')
            yield made
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A catalogue of 5 MB, so several shards to train on, in 48 products, because a read from S3 takes its time."""
    folder = tmp_path_factory.mktemp('source')
    draw = np.random.default_rng(0)
    documents = []
    for product in range(48):
        pictures = [noise(draw) for _ in range(1 + product % 4)]
        documents.append(catalogue.document(product, pictures, product % 3 if product < 40 else None))
    (folder / 'train.bson').write_bytes(b''.join(documents[:40]))
    (folder / 'test.bson').write_bytes(b''.join(documents[40:]))
    catalogue.write_names(folder, range(3))
    return folder


def noise(draw: np.random.Generator) -> bytes:
    """A picture of 40 kB."""
    buffer = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (catalogue.SIDE, catalogue.SIDE, 3), np.uint8)).save(buffer, 'JPEG')
    return buffer.getvalue()


@pytest.fixture(scope='module')
def local(source, tmp_path_factory) -> Path:
    """Its shards, made on the local disk."""
    folder = tmp_path_factory.mktemp('local')
    run(source, folder)
    assert len(list(folder.glob('train-*.tfrecord'))) > 1
    return folder


@pytest.fixture(scope='module')
def uploaded(bucket, source) -> str:
    """The same catalogue on S3."""
    for name in DATA:
        bucket.request('PUT', f'data/{name}', (source / name).read_bytes())
    return 's3://catalogues/data'


@pytest.fixture(scope='module')
def converted(bucket, uploaded) -> str:
    """Its shards, from S3 to S3 by the command as typed."""
    words = [f'--input_dir={uploaded}', '--output_dir=s3://catalogues/shards', '--shard_mb=1', '--runner=DirectRunner']
    program = start('-m', 'pipeline.convert', *words)
    said, errors = program.communicate(timeout=300)
    assert program.returncode == 0, errors
    assert not [line for line in errors.splitlines() if line and not re.match('(read and plan|write): ', line)]
    assert 'to s3://catalogues/shards\n' in said
    return 's3://catalogues/shards'


# S3.


@pytest.mark.slow
def test_the_objects_on_s3_are_the_files_of_a_local_conversion_and_nothing_else_is_left(bucket, converted, local):
    assert bucket.contents('shards') == contents(local)
    assert bucket.uploads() == 0
    (entry,) = worklog.read(converted)
    assert entry.name == 'convert'
    assert entry.command.startswith('python -m pipeline.convert --input_dir=s3://catalogues/data ')


@pytest.mark.slow
@pytest.mark.parametrize('split', ['val', 'test'])
def test_pictures_are_read_from_s3_as_from_the_local_disk_to_evaluate(converted, local, split):
    streams = [
        dataset.evaluation(dataset.open_shards(folder), split, batch_size=8, limit=10**6)
        for folder in (converted, str(local))
    ]
    assert_same(*streams)


@pytest.mark.slow
def test_pictures_are_read_from_s3_as_from_the_local_disk_to_train(converted, local):
    batches = -(-manifest.read(converted, kind='shards', remedy='').images('train') // 8)
    streams = [
        dataset.train(dataset.open_shards(folder), seed=0, batch_size=8).take(batches)
        for folder in (converted, str(local))
    ]
    assert_same(*streams)


def assert_same(one: tf.data.Dataset, other: tf.data.Dataset) -> None:
    count = 0
    for row, expected in zip(one.as_numpy_iterator(), other.as_numpy_iterator(), strict=True):
        for column, expected_column in zip(row, expected, strict=True):
            np.testing.assert_array_equal(column, expected_column)
        count += 1
    assert count


def test_another_size_of_shards_leaves_none_of_the_earlier_ones(bucket, uploaded, source, tmp_path):
    for size in (1, 2):
        run(uploaded, 's3://catalogues/again/', f'--shard_mb={size}')
    run(source, tmp_path, '--shard_mb=2')
    assert bucket.contents('again') == contents(tmp_path)


def test_shards_can_lie_at_the_top_of_a_bucket(bucket, source, local):
    Bucket(bucket.url.replace('catalogues', 'shards'), 'shards').request('PUT')
    run(source, 's3://shards')
    assert storage.list_names('s3://shards') == sorted([*contents(local), worklog.NAME])


def test_a_large_object_goes_up_and_comes_down_in_parts(bucket):
    data = np.random.default_rng(0).bytes(60 * 2**20)  # a part has 50 MiB
    with storage.atomic_writer('s3://catalogues/large/one') as file:
        for start in range(0, len(data), 2**20):
            file.write(data[start : start + 2**20])
    assert bucket.contents('large') == {'one': data}
    with storage.open_read('s3://catalogues/large/one') as file:
        file.seek(55 * 2**20)
        assert file.read() == data[55 * 2**20 :]
    storage.remove('s3://catalogues/large')


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_object_that_is_not_finished_is_never_uploaded(bucket, error):
    bucket.request('PUT', 'half/replaced', b'earlier')
    for name in ('new', 'replaced'):
        with pytest.raises(error), storage.atomic_writer(f's3://catalogues/half/{name}') as file:
            file.write(b'half')
            file.flush()
            raise error
    assert bucket.contents('half') == {'replaced': b'earlier'}


def test_a_folder_on_s3_tells_what_is_in_it(bucket):
    assert not storage.exists('s3://catalogues/deep')
    assert storage.list_names('s3://catalogues/deep') == []
    storage.make_folder('s3://catalogues/deep')
    names = [f'{number:03}' for number in range(101)]  # a page of a list has 100
    for name in names:
        bucket.request('PUT', f'deep/er/{name}', b'x')
    with storage.atomic_writer('s3://catalogues/deep/empty'):
        pass
    assert storage.exists('s3://catalogues/deep')
    assert storage.exists('s3://catalogues/deep/er/')
    assert storage.list_names('s3://catalogues/deep/') == ['empty', 'er']
    assert storage.list_names('s3://catalogues/deep/er') == names
    assert [storage.size(f's3://catalogues/deep/{name}') for name in ('empty', 'er/000')] == [0, 1]
    assert abs(storage.modified_ns('s3://catalogues/deep/empty') / 1e9 - time.time()) < 300
    storage.remove('s3://catalogues/deep/empty')
    storage.remove('s3://catalogues/deep')
    assert bucket.contents('deep') == {}


def test_a_file_can_be_renamed_on_s3(bucket):
    bucket.request('PUT', 'renamed/new', b'earlier')
    with storage.atomic_path('s3://catalogues/renamed/new') as temporary:
        bucket.request('PUT', temporary.removeprefix('s3://catalogues/'), b'moved')
    assert bucket.contents('renamed') == {'new': b'moved'}


def test_a_program_that_used_s3_ends_with_its_own_exit_code(bucket):
    program = start('-c', "from pipeline import storage; exit(7 + storage.exists('s3://catalogues/none'))")
    assert program.communicate(timeout=TIME_LIMIT) == ('', '')
    assert program.returncode == 7


# A web server.


@dataclass
class Site:
    """A web server of a folder's files.

    Attributes:
        url: of the folder.
        sent: the lengths of the answers so far.
    """

    url: str
    sent: list[int] = field(default_factory=list)


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives files and parts of them: none below /none, no access below /secret, only whole files below /whole."""

    def __init__(self, *words: object, folder: Path, sent: list[int]) -> None:
        self.folder, self.sent = folder, sent
        super().__init__(*words)  # type: ignore[arg-type]

    def do_GET(self) -> None:  # noqa: N802
        parts = Path(self.path).parts[1:]
        path = self.folder / parts[-1]
        part = re.fullmatch('bytes=([0-9]+)-([0-9]+)', self.headers.get('Range', ''))
        data = path.read_bytes() if path.is_file() else b''
        if parts[0] == 'secret':
            self.answer(403, b'')
        elif parts[0] == 'none' or not path.is_file():
            self.answer(404, b'')
        elif not part or parts[0] == 'whole':
            self.answer(200, data)
        elif int(part[1]) >= len(data):
            self.answer(416, b'', f'bytes */{len(data)}')
        else:
            last = min(int(part[2]), len(data) - 1)
            self.answer(206, data[int(part[1]) : last + 1], f'bytes {part[1]}-{last}/{len(data)}')

    do_HEAD = do_GET  # noqa: N815

    def answer(self, code: int, data: bytes, place: str = '') -> None:
        self.sent.append(len(data))
        self.send_response(code)
        self.send_header('Content-Length', str(len(data)))
        self.send_header('Last-Modified', 'Wed, 21 Oct 2015 07:28:00 GMT')
        if place:
            self.send_header('Content-Range', place)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client may hang up
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(source) -> Iterator[Site]:
    sent: list[int] = []
    answers = functools.partial(Answers, folder=source, sent=sent)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield Site(f'http://127.0.0.1:{server.server_port}/data', sent)
        server.shutdown()
        thread.join()


def test_a_catalogue_can_be_read_from_a_web_server(site, local, tmp_path):
    run(site.url, tmp_path)
    assert contents(tmp_path) == contents(local)


def test_a_file_on_a_web_server_tells_its_length_without_being_downloaded(site, source):
    path = f'{site.url}/train.bson'
    assert storage.exists(path)
    assert storage.size(path) == (source / 'train.bson').stat().st_size
    assert storage.modified_ns(path) == 1_445_412_480 * 10**9
    assert site.sent == [1, 1, 1]


def test_a_file_on_a_web_server_can_be_empty(site, source):
    (source / 'empty').touch()
    assert storage.size(f'{site.url}/empty') == 0
    assert storage.size(f'{site.url.replace("data", "whole")}/empty') == 0
    with storage.open_read(f'{site.url}/empty') as file:
        assert file.read() == b''


# What goes wrong.

MEND = 'check the network, S3_ENDPOINT and AWS_REGION'
NO_FILE = 'no such file; make a catalogue with python -m tools.demo_catalogue .*'
KEYS = 'check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they allow'
# Input folder, server, and what is said of its train.bson.
S3_ERRORS = {
    'no such object': ('s3://catalogues/none', 'moto', NO_FILE),
    'no such bucket': ('s3://nobucket/data', 'moto', 'no such bucket; make it, or mend the path'),
    'no access': ('s3://catalogues/secret', 'site', f'the server refuses access; {KEYS}'),
    'no answer': ('s3://catalogues/data', 'closed', f"curlCode: 7, Couldn't connect to server; {MEND}"),
}


@pytest.fixture(scope='module')
def failures(bucket, uploaded, tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Exit code, what was printed, and errors of a conversion for each of S3_ERRORS; run together to save time."""
    answers = functools.partial(Answers, folder=tmp_path_factory.mktemp('nothing'), sent=[])
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), answers) as server:
        threading.Thread(target=server.serve_forever).start()
        endpoints = {
            'moto': os.environ['S3_ENDPOINT'],
            'site': f'http://127.0.0.1:{server.server_port}/secret',
            'closed': f'http://127.0.0.1:{free_port()}',
        }
        programs = {
            name: start('-m', 'pipeline.convert', f'--input_dir={folder}', S3_ENDPOINT=endpoints[where])
            for name, (folder, where, _) in S3_ERRORS.items()
        }
        said = {name: program.communicate(timeout=TIME_LIMIT) for name, program in programs.items()}
        server.shutdown()
    return {name: (programs[name].returncode, *said[name]) for name in S3_ERRORS}


@pytest.mark.slow
@pytest.mark.parametrize('name', S3_ERRORS)
def test_what_s3_refuses_is_one_line_that_names_the_path_and_the_remedy(failures, name):
    folder, _, rule = S3_ERRORS[name]
    code, said, errors = failures[name]
    assert re.fullmatch(f'error: {folder}/train.bson: {rule}\n', errors)
    assert (code, said) == (1, '')


def test_a_bucket_that_is_not_there_is_noticed_before_anything_is_read(bucket, source):
    rule = '^s3://nobucket/shards: no such bucket; make it, or mend the path$'
    with pytest.raises(InputError, match=rule):
        run(source, 's3://nobucket/shards')
    for do in (storage.exists, storage.list_names, storage.make_folder):
        with pytest.raises(InputError, match=rule):
            do('s3://nobucket/shards')
    with pytest.raises(InputError, match=rule), storage.atomic_writer('s3://nobucket/shards') as file:
        file.write(b'x')


def test_an_object_that_is_not_there_is_one_line(bucket):
    for do in (storage.open_read, storage.size, storage.modified_ns):
        with pytest.raises(InputError, match='^s3://catalogues/none: no such file$'):
            do('s3://catalogues/none')


def test_an_object_that_goes_away_while_it_is_read_is_one_line(bucket):
    bucket.request('PUT', 'gone', b'x')
    with storage.open_read('s3://catalogues/gone') as file:
        bucket.request('DELETE', 'gone')
        with pytest.raises(InputError, match='^s3://catalogues/gone: no such file$'):
            file.read(1)


@pytest.mark.parametrize(
    ('folder', 'rule'),
    [
        ('none', NO_FILE),
        ('secret', r'the server refuses access \(403\); it must be readable without a password'),
        ('whole', r'the server does not give parts of files \(it answers 200\); use a local copy'),
    ],
)
def test_what_a_web_server_refuses_is_one_line(site, tmp_path, folder, rule):
    url = site.url.replace('data', folder)
    with pytest.raises(InputError, match=f'^{url}/train.bson: {rule}$'):
        run(url, tmp_path / 'shards')
    assert contents(tmp_path / 'shards') == {}


def test_a_web_server_that_does_not_answer_is_one_line(tmp_path):
    url = f'http://127.0.0.1:{free_port()}'
    rule = r'no answer \(\[Errno 111\] Connection refused\); check the address and the network'
    with pytest.raises(InputError, match=f'^{url}/train.bson: {rule}$'):
        run(url, tmp_path)


def test_nothing_can_be_written_to_a_web_server(site, source):
    rule = r'can not be written to \(RecursivelyCreateDir not implemented\); use a local path or s3://'
    with pytest.raises(InputError, match=f'^{site.url}: {rule}$'):
        run(source, site.url)


def test_the_users_own_limits_stay(monkeypatch):
    monkeypatch.setenv('S3_REQUEST_TIMEOUT_MSEC', '1234')
    monkeypatch.delenv('AWS_RETRY_MODE', raising=False)
    remote._gfile()
    assert os.environ['S3_REQUEST_TIMEOUT_MSEC'] == '1234'
    assert os.environ['AWS_RETRY_MODE'] == remote.S3_SETTINGS['AWS_RETRY_MODE']
