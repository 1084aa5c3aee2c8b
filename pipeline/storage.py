"""The one door to files: local paths, and s3:// az:// http(s):// hdfs:// through tensorflow-io.

Outputs appear whole or not at all: `atomic_writer` writes under a temporary name, syncs, then renames.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from pipeline import remote
from pipeline.errors import InputError

LEFT_OVER_NS = 24 * 3600 * 10**9  # in a temporary folder of a running program something is made sooner
_sync_file_range = getattr(ctypes.CDLL(None), 'sync_file_range', None)  # Linux


def is_remote(path: str) -> bool:
    """Whether `path` names a file system other than this machine's, such as s3://bucket/key."""
    return '://' in path


def join(folder: str, *names: str) -> str:
    """The path of a file in a folder, local or remote."""
    return '/'.join([folder.rstrip('/'), *names]) if is_remote(folder) else os.path.join(folder, *names)


def open_read(path: str) -> BinaryIO:
    """The file, open for reading bytes, with seek and tell.

    Raises:
        InputError: there is no such file.
    """
    if is_remote(path):
        return remote.open_read(path)
    try:
        return open(path, 'rb')
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f'{path}: no such file') from None


class Ranges:
    """A file to read pieces of, from any place, in any order.

    Attributes:
        size: the file's length in bytes.
    """

    def __init__(self, path: str) -> None:
        self._remote = is_remote(path)
        self._file = open_read(path)
        self.size = size(path)
        self._mapped = np.memmap(self._file, np.uint8, 'r') if self.size and not self._remote else np.empty(0, np.uint8)

    def window(self, offset: int, length: int) -> np.ndarray:
        """Up to `length` bytes from `offset` on: uint8, read-only.

        A local file's are mapped: only what is looked at is read from the disk.
        """
        if self._remote:
            self._file.seek(offset)
            return np.frombuffer(self._file.read(length), np.uint8)
        return np.asarray(self._mapped[offset : offset + length])

    def prefetch(self, offsets: np.ndarray, lengths: np.ndarray) -> None:
        """Has the disk read pieces of a local file ahead, many at a time: four times as fast as one after the other."""
        if self._remote or not hasattr(os, 'posix_fadvise'):
            return
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def gather(self, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bytes of several pieces, one after the other: uint8; zeros for what lies after the end of the file."""
        data = np.empty(int(lengths.sum()), np.uint8)
        place = 0
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            count = self.read_into(data.data[place : place + length], offset)
            data[place + count : place + length] = 0
            place += length
        return data

    def read_into(self, memory: memoryview, offset: int) -> int:
        """Fills memory with the bytes from `offset` on, and returns how many there were."""
        if not self._remote:
            return os.preadv(self._file.fileno(), [memory], offset)
        self._file.seek(offset)
        read = self._file.read(len(memory))
        memory[: len(read)] = read
        return len(read)


@contextlib.contextmanager
def open_ranges(path: str) -> Iterator[Ranges]:
    """The file, open for reading pieces of it.

    Raises:
        InputError: there is no such file.
    """
    ranges = Ranges(path)
    with ranges._file:
        yield ranges


def exists(path: str) -> bool:
    """Whether there is a file or a folder of this name."""
    return remote.exists(path) if is_remote(path) else os.path.exists(path)


def size(path: str) -> int:
    """The file's length in bytes."""
    return remote.size(path) if is_remote(path) else os.path.getsize(path)


def modified_ns(path: str) -> int:
    """When the file was last written, nanoseconds since 1970."""
    return remote.modified_ns(path) if is_remote(path) else os.stat(path).st_mtime_ns


def list_names(folder: str) -> list[str]:
    """The names in a folder, sorted; [] if there is no such folder."""
    if not exists(folder):
        return []
    return sorted(remote.list_names(folder) if is_remote(folder) else os.listdir(folder))


def folders_with(folder: str, name: str) -> list[str]:
    """The folders in a folder that hold a file of this name, sorted; [] if there is no such folder."""
    try:
        paths = [join(folder, found) for found in list_names(folder)]
    except NotADirectoryError:
        return []
    return [path for path in paths if exists(join(path, name))]


def make_folder(path: str) -> None:
    """Makes a folder and its parents; no error if it stands already."""
    if is_remote(path):
        remote.make_folder(path)
    else:
        os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file, or a folder with all in it."""
    if is_remote(path):
        remote.remove(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """A file that gets its name only once all of it is on the disk; if the block raises, nothing is left behind.

    Two writers of the same name can't mix: each has a temporary name of its own and the last rename wins.
    """
    if remote.is_s3(path):
        with remote.object_writer(path) as file:
            yield file
        return
    with (
        atomic_path(path) as temporary,
        remote.open_write(temporary) if is_remote(path) else open(temporary, 'wb') as file,
    ):
        yield file


def begin_sync(file: BinaryIO) -> None:
    """Has the disk begin with what is written so far, without waiting: the sync at the end is short then."""
    if isinstance(file, io.BufferedWriter) and _sync_file_range:
        file.flush()
        _sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), 2)  # 2: SYNC_FILE_RANGE_WRITE


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary path for a library that writes the file (or folder) itself; renamed to `path` when the block ends.

    The temporary name ends as `path` does, because some writers choose the format by the ending.
    """
    folder, name = path.rsplit('/', 1) if '/' in path else ('.', path)
    temporary = join(folder, f'.tmp-{uuid.uuid4().hex}-{name}')
    try:
        yield temporary
        if is_remote(path):
            remote.rename(temporary, path)
            return
        for folder_inside, _, names in os.walk(temporary):  # if it is a folder
            for name in ('', *names):
                _sync(os.path.join(folder_inside, name))
        _sync(temporary)
        os.replace(temporary, path)
        _sync(folder)
    except BaseException as error:
        if exists(temporary):
            remove(temporary)
        # A full disk is told without the file, and nobody knows the temporary name.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, path) from None
        raise


@contextlib.contextmanager
def scratch(folder: str, name: str) -> Iterator[str]:
    """The path of a folder for temporary files, which goes at the end; what killed programs left a day ago goes too."""
    for other in list_names(folder):
        path = join(folder, other)
        if is_temporary(other) and other.endswith(f'-{name}') and not is_remote(path):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                if time.time_ns() - modified_ns(path) > LEFT_OVER_NS:
                    remove(path)
    made = join(folder, f'.tmp-{uuid.uuid4().hex}-{name}')
    try:
        yield made
    finally:
        if exists(made):
            remove(made)


def is_temporary(name: str) -> bool:
    """Whether a file name is one that atomic_path() gives: of a file that was never finished, if nobody writes."""
    return re.fullmatch(r'\.tmp-[0-9a-f]+-.+', name) is not None


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
