"""The worklog: a line for each finished piece of work; a damaged one takes no other with it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import storage, worklog
from pipeline.errors import InputError
from pipeline.worklog import Entry

REPOSITORY = Path(worklog.__file__).parents[1]


def add(folder: Path, name: str = 'convert', **more: Any) -> None:
    worklog.add(str(folder), name, **{'seconds': 1.5, 'counts': {'images': 7}, **more})


def line_of(folder: Path) -> dict[str, Any]:
    (line,) = (folder / worklog.NAME).read_text().splitlines()
    return json.loads(line)


def test_a_line_tells_what_was_done_when_and_for_how_long(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    add(tmp_path, 'predict val', seconds=3600.00049, counts={'images': 7, 'bytes': 2**40}, replicas=2)
    after = datetime.now(UTC)
    (entry,) = worklog.read(str(tmp_path))
    assert (entry.name, entry.seconds, entry.replicas) == ('predict val', 3600, 2)
    assert entry.counts == {'images': 7, 'bytes': 2**40}
    started = datetime.fromisoformat(entry.started)
    assert before.replace(microsecond=0).timestamp() - 3601 <= started.timestamp() <= after.timestamp() - 3600
    assert entry.started.endswith('+00:00') and started.microsecond == 0
    assert entry.cores == os.cpu_count()


def test_a_line_tells_the_versions_of_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worklog, 'PACKAGES', ('numpy', 'apache-beam', 'no-such-package'))
    add(tmp_path)
    assert worklog.read(str(tmp_path))[0].versions == {
        'python': platform.python_version(),
        'numpy': importlib.metadata.version('numpy'),
        'apache-beam': importlib.metadata.version('apache-beam'),
    }


def test_the_command_is_as_typed_without_the_interpreters_path(tmp_path: Path) -> None:
    """A module of the standard library that runs what it is given, as a program that adds a line would."""
    source = f"from pipeline import worklog; worklog.add({str(tmp_path)!r}, 'x', seconds=0, counts={{}})"
    script = tmp_path / 'program.py'
    script.write_text(source)
    words = ['-m', 'runpy', 'program', '--flagfile=noaug.flags', '--weights=2,1', '--name=two words']
    environment = {**os.environ, 'PYTHONPATH': f'{REPOSITORY}{os.pathsep}{tmp_path}'}
    subprocess.run([sys.executable, *words], check=True, env=environment)
    (entry,) = worklog.read(str(tmp_path))
    assert entry.command == ("python -m runpy program --flagfile=noaug.flags --weights=2,1 '--name=two words'")
    assert entry.gpus == ()


def test_tensorflow_is_not_imported(tmp_path: Path) -> None:
    source = (
        'import sys; from pipeline import worklog; '
        f"worklog.add({str(tmp_path)!r}, 'x', seconds=0, counts={{}}); sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, '-c', source], check=True, cwd=REPOSITORY)
    assert 'tensorflow' in worklog.read(str(tmp_path))[0].versions


def test_the_gpus_are_those_that_tensorflow_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    details: dict[str, dict[str, str]] = {
        '/physical_device:GPU:0': {'device_name': 'Tesla T4'},
        '/physical_device:GPU:1': {},
    }
    config = SimpleNamespace(
        list_physical_devices=lambda kind: [SimpleNamespace(name=name) for name in details] if kind == 'GPU' else [],
        experimental=SimpleNamespace(get_device_details=lambda device: details[device.name]),
    )
    monkeypatch.setitem(sys.modules, 'tensorflow', SimpleNamespace(config=config))
    add(tmp_path)
    assert worklog.read(str(tmp_path))[0].gpus == ('Tesla T4', '/physical_device:GPU:1')


def test_lines_stand_in_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    assert worklog.read(str(tmp_path)) == worklog.read(str(tmp_path / 'nowhere')) == []
    for name in ('convert', 'train', 'combine product on test'):
        add(tmp_path, name)
    assert [entry.name for entry in worklog.read(str(tmp_path))] == ['convert', 'train', 'combine product on test']
    assert os.listdir(tmp_path) == [worklog.NAME]


def test_a_line_has_the_fields_of_an_entry_as_json(tmp_path: Path) -> None:
    add(tmp_path)
    (entry,) = worklog.read(str(tmp_path))
    assert line_of(tmp_path) == {**dataclasses.asdict(entry), 'gpus': list(entry.gpus)}
    assert set(worklog.TYPES) == {field.name for field in dataclasses.fields(Entry)}


WRONG: dict[str, Any] = {
    'name': 1, 'command': None, 'started': 'yesterday', 'seconds': '1', 'counts': {'images': 'many'},
    'versions': {'numpy': 1}, 'cores': 1.5, 'gpus': [1], 'replicas': 'two',
}  # fmt: skip


@pytest.mark.parametrize('field', WRONG)
def test_a_line_of_another_kind_is_left_out(tmp_path: Path, field: str) -> None:
    add(tmp_path)
    values = line_of(tmp_path)
    others = [{**values, field: WRONG[field]}, {name: value for name, value in values.items() if name != field}]
    with open(tmp_path / worklog.NAME, 'a') as file:
        file.writelines(json.dumps(other) + '\n' for other in others)
    assert len(worklog.read(str(tmp_path))) == 1


@pytest.mark.parametrize(
    'foreign',
    [b'', b'{', b'null', b'7', b'[]', b'{}', b'"name"', b'\xff\xfe', b'\0', b'[' * 100_000, b'{"name": "convert"}'],
)
def test_a_damaged_line_takes_no_other_with_it_and_stays(tmp_path: Path, foreign: bytes) -> None:
    add(tmp_path, 'before')
    with open(tmp_path / worklog.NAME, 'ab') as file:
        file.write(foreign)  # without the end of a line
    add(tmp_path, 'after')
    assert [entry.name for entry in worklog.read(str(tmp_path))] == ['before', 'after']
    assert foreign in (tmp_path / worklog.NAME).read_bytes()


def test_a_line_more_than_known_today_is_of_another_kind(tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / worklog.NAME).write_text(json.dumps({**line_of(tmp_path), 'mood': 'good'}))
    assert worklog.read(str(tmp_path)) == []


@pytest.mark.parametrize('error', [InputError('no such bucket'), OSError(28, 'No space left on device')])
def test_a_log_that_can_not_be_written_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    add(tmp_path)
    before = (tmp_path / worklog.NAME).read_bytes()

    def refuse(path: str) -> None:
        raise error

    monkeypatch.setattr(storage, 'atomic_writer', refuse)
    add(tmp_path)
    assert capsys.readouterr().out == f'note: no line was added to {tmp_path}/{worklog.NAME}: {error}\n'
    assert (tmp_path / worklog.NAME).read_bytes() == before
