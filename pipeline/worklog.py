"""worklog.jsonl: what was done in a folder, when, for how long, by which versions, on which machine.

A log only: nothing reads it to decide anything, and it is no part of the dataset, run or store beside which it lies.
Programs add a line when a piece of work is finished; a program that is killed (kill -9) leaves none for what it did.
Of two programs that add at the same moment one may lose its line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline import storage
from pipeline.errors import InputError

NAME = 'worklog.jsonl'
PACKAGES = ('tensorflow', 'keras', 'numpy', 'apache-beam', 'cdiscount-pictures')  # the last is this project
# Of a line's values.
TYPES: dict[str, Any] = {
    'name': str, 'command': str, 'started': str, 'seconds': int | float, 'counts': dict, 'versions': dict, 'cores': int,
    'gpus': list, 'replicas': int | None,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A finished piece of work.

    Attributes:
        name: what was done, such as convert, train, predict val, combine product on test.
        command: the command line as typed, with plain python for whichever interpreter it was.
        started: when, ISO 8601 in UTC, to the second.
        seconds: how long it took.
        counts: of what was worked on, such as images, products and bytes.
        versions: of python and, by its name, of each of PACKAGES that is installed.
        cores: the machine's CPU cores; of several machines those of the first, as with its GPUs.
        gpus: names of the GPUs that TensorFlow sees; () if there are none, or the work was done without TensorFlow.
        replicas: devices that shared the work; None if it isn't work of that kind.
    """

    name: str
    command: str
    started: str
    seconds: float
    counts: Mapping[str, int]
    versions: Mapping[str, str]
    cores: int
    gpus: tuple[str, ...]
    replicas: int | None


def add(folder: str, name: str, *, seconds: float, counts: Mapping[str, int], replicas: int | None = None) -> None:
    """Adds a line for work of this process that ends now; what stands there stays, damaged lines too.

    A log that can't be written is told and no error: the work is done.

    Args:
        folder: local or remote.
        name: what was done.
        seconds: how long it took.
        counts: of what was worked on.
        replicas: devices that shared the work.
    """
    entry = Entry(
        name=name,
        command=shlex.join(['python', *sys.orig_argv[1:]]),
        started=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec='seconds'),
        seconds=round(seconds, 3),
        counts=dict(counts),
        versions=_versions(),
        cores=os.cpu_count() or 1,
        gpus=_gpus(),
        replicas=replicas,
    )
    path = storage.join(folder, NAME)
    try:
        before = _read(path)
        with storage.atomic_writer(path) as file:
            file.write(before + (b'' if before.endswith(b'\n') or not before else b'\n'))
            file.write(json.dumps(dataclasses.asdict(entry)).encode() + b'\n')
    except (InputError, OSError) as error:
        print(f'note: no line was added to {path}: {error}')


def read(folder: str) -> list[Entry]:
    """The lines in their order, without those that are damaged or of another kind; [] if there is no log."""
    found = map(_parse, _read(storage.join(folder, NAME)).split(b'\n'))
    return [entry for entry in found if entry]


def _read(path: str) -> bytes:
    if not storage.exists(path):
        return b''
    with storage.open_read(path) as file:
        return file.read()


def _parse(line: bytes) -> Entry | None:
    """The entry of a line; None if it is none."""
    try:
        values = json.loads(line)
        parts = (values['counts'].values(), int), (values['versions'].values(), str), (values['gpus'], str)
        datetime.fromisoformat(values['started'])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    fits = values.keys() == TYPES.keys() and all(isinstance(values[name], kind) for name, kind in TYPES.items())
    if not fits or not all(isinstance(one, kind) for several, kind in parts for one in several):
        return None
    return Entry(**{**values, 'gpus': tuple(values['gpus'])})


def _versions() -> dict[str, str]:
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _gpus() -> tuple[str, ...]:
    """Their names; TensorFlow isn't imported for them."""
    tf: Any = sys.modules.get('tensorflow')
    devices = tf.config.list_physical_devices('GPU') if tf else []
    return tuple(tf.config.experimental.get_device_details(one).get('device_name', one.name) for one in devices)
