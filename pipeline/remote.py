"""s3:// az:// http(s):// hdfs:// through tensorflow-io 0.37.1, and what has to be put right around it.

What a server has to complain about is an InputError of one line; pipeline.storage is the door to all this.
"""

from __future__ import annotations

import contextlib
import ctypes
import email.utils
import functools
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipeline.errors import InputError, one_line

# Where the user sets nothing: tensorflow-io waits five minutes, ten times. A connection without progress for 30 s is
# taken for dead, and `standard` is three attempts (AWS SDKs and Tools Reference Guide, "Retry behavior").
S3_SETTINGS = {
    'AWS_RETRY_MODE': 'standard',
    'S3_CONNECT_TIMEOUT_MSEC': '10000',
    'S3_REQUEST_TIMEOUT_MSEC': '30000',
}
HTTP_TIMEOUT = 30  # seconds


def is_s3(path: str) -> bool:
    """Whether it is the path of an object: it appears whole or not at all by itself, and there are no folders."""
    return path.startswith('s3://')


def open_read(path: str) -> BinaryIO:
    """As pipeline.storage.open_read."""
    if not exists(path):
        raise _no_file(path)
    return cast(BinaryIO, _File(path, 'rb'))


def open_write(path: str) -> BinaryIO:
    """The file, open for writing bytes from its start on."""
    return cast(BinaryIO, _File(path, 'wb'))


def exists(path: str) -> bool:
    """As pipeline.storage.exists.

    Raises:
        InputError: it can't be known: no answer, no access, or no such bucket.
    """
    if _is_http(path):
        return _http_facts(path) is not None
    with _file_system(path) as gfile:
        found = gfile.exists(_folder(path) if path.count('/') == 2 else path)  # s3://bucket alone is refused
    if not found and is_s3(path):  # which is also said when the server refuses or doesn't answer
        _check_bucket(path)
    return found


def size(path: str) -> int:
    """As pipeline.storage.size."""
    if _is_http(path):
        return _http_facts_of_file(path)[0]
    with _file_system(path) as gfile:
        return gfile.stat(path).length


def modified_ns(path: str) -> int:
    """As pipeline.storage.modified_ns; 0 if a web server doesn't tell."""
    if _is_http(path):
        return _http_facts_of_file(path)[1]
    with _file_system(path) as gfile:
        return gfile.stat(path).mtime_nsec


def list_names(folder: str) -> list[str]:
    """The names in a folder that exists, in any order."""
    with _file_system(folder) as gfile:
        return [name.rstrip('/') for name in gfile.listdir(_folder(folder))]


def make_folder(path: str) -> None:
    """As pipeline.storage.make_folder; on S3 it only looks for the bucket."""
    if is_s3(path):
        _check_bucket(path)
        return
    with _file_system(path) as gfile:
        gfile.makedirs(path)


def remove(path: str) -> None:
    """As pipeline.storage.remove."""
    with _file_system(path) as gfile:
        (gfile.rmtree if gfile.isdir(path) else gfile.remove)(path)


def rename(old: str, new: str) -> None:
    """Gives a file another name, in place of an earlier one of that name. On S3 it is copied, and must not be empty."""
    with _file_system(new) as gfile:
        gfile.rename(old, new, overwrite=True)


@contextlib.contextmanager
def object_writer(path: str) -> Iterator[BinaryIO]:
    """An S3 object: uploaded when the block ends; if the block raises, nothing was."""
    file = open_write(path)
    file.write(b'')  # without it, no object would be made of nothing
    yield file
    file.close()


class _File:
    """A remote file that is open, as tf.io.gfile.GFile has it, but with errors of one line."""

    def __init__(self, path: str, mode: str) -> None:
        self._path = path
        with _file_system(path) as gfile:
            self._file = gfile.GFile(path, mode)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush(self) -> None:
        """Does nothing: on S3 it would upload what is there so far, as the whole object."""

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._file, name)
        return functools.partial(self._call, member) if callable(member) else member

    def _call(self, method: Any, *args: Any) -> Any:
        with _file_system(self._path):
            return method(*args)


def _check_bucket(path: str) -> None:
    """Looks for the bucket of a path on S3, which is the one question whose answer says what is wrong.

    Raises:
        InputError: there is none of this name, or no access to it, or no answer.
    """
    bucket = '/'.join(path.split('/')[:3])
    with _file_system(path, missing='no such bucket; make it, or mend the path') as gfile:
        gfile.stat(_folder(bucket))


def _folder(path: str) -> str:
    return path.rstrip('/') + '/'


@contextlib.contextmanager
def _file_system(path: str, missing: str = 'no such file') -> Iterator[Any]:
    """TensorFlow's file systems, for something to do with `path`; what goes wrong is raised as an InputError."""
    gfile = _gfile()
    if is_s3(path):
        _end_without_taking_down()
    import tensorflow as tf

    try:
        yield gfile
    except tf.errors.NotFoundError as error:
        rule = 'no such bucket; make it, or mend the path' if 'NoSuchBucket' in str(error) else missing
        raise InputError(f'{path}: {rule}') from None
    except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError):
        remedy = 'check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they allow' if is_s3(path) else 'check rights'
        raise InputError(f'{path}: the server refuses access; {remedy}') from None
    except tf.errors.UnimplementedError as error:
        raise InputError(f'{path}: can not be written to ({one_line(error)}); use a local path or s3://') from None
    except tf.errors.OpError as error:
        remedy = 'check the network, S3_ENDPOINT and AWS_REGION' if is_s3(path) else 'check the address and the network'
        raise InputError(f'{path}: {one_line(error).lstrip(": ")}; {remedy}') from None


def _gfile() -> Any:
    """TensorFlow's file systems, with those of tensorflow-io registered; imported only when a path needs them."""
    for name, value in S3_SETTINGS.items():
        os.environ.setdefault(name, value)  # read once, at the first use of S3
    try:
        import tensorflow_io  # noqa: F401
    except Exception as error:
        raise InputError(
            'a remote path needs tensorflow-io, which loads with tensorflow 2.17.1 only: install the versions in '
            f'constraints.txt, or use a local path ({type(error).__name__})'
        ) from error
    import tensorflow as tf

    return tf.io.gfile


@functools.cache
def _end_without_taking_down() -> None:
    """Keeps the process from being aborted at its very end.

    There the S3 client of tensorflow-io is taken down, and dies of "pure virtual method called"
    (https://github.com/tensorflow/io/issues/2039). So the process ends just before, with the exit code it has; Python
    has tidied up by then.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, 'on_exit'):  # in glibc, for which alone tensorflow-io is built on Linux
        c_library.on_exit(c_library._exit, None)


def _is_http(path: str) -> bool:
    return path.startswith(('http://', 'https://'))


def _no_file(path: str) -> InputError:
    return InputError(f'{path}: no such file')


def _http_facts_of_file(url: str) -> tuple[int, int]:
    facts = _http_facts(url)
    if facts is None:
        raise _no_file(url)
    return facts


def _http_facts(url: str) -> tuple[int, int] | None:
    """Length in bytes and time of change in ns of a file on a web server (0 if it doesn't tell); None if there is none.

    tensorflow-io would download all of the file to tell. Here one byte is asked for, which also shows whether the
    server gives parts of files at all; one that doesn't would have tensorflow-io read the wrong bytes.
    """
    request = urllib.request.Request(url, headers={'Range': 'bytes=0-0'})
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT) as answer:
            headers, code = answer.headers, answer.status
    except urllib.error.HTTPError as error:
        headers, code = error.headers, error.code
        error.close()
    except OSError as error:  # URLError is one
        reason = one_line(getattr(error, 'reason', error))
        raise InputError(f'{url}: no answer ({reason}); check the address and the network') from None
    if code in (404, 410):
        return None
    if code in (401, 403, 407):
        raise InputError(f'{url}: the server refuses access ({code}); it must be readable without a password')
    length = re.fullmatch(r'bytes (?:0-0|\*)/([0-9]+)', headers.get('Content-Range', ''))
    if code == 200 and headers.get('Content-Length') == '0':
        return 0, _time_ns(headers)
    if code not in (206, 416) or not length:
        raise InputError(f'{url}: the server does not give parts of files (it answers {code}); use a local copy')
    return int(length[1]), _time_ns(headers)


def _time_ns(headers: Any) -> int:
    try:
        return int(email.utils.parsedate_to_datetime(headers.get('Last-Modified', '')).timestamp()) * 10**9
    except ValueError:
        return 0
