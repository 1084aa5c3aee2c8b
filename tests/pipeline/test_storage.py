"""Files appear whole or not at all, here and on a remote file system."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import InputError

with_tensorflow_io = pytest.mark.skipif(
    importlib.util.find_spec('tensorflow_io') is None, reason='tensorflow-io is built for tensorflow 2.17.1 only'
)


@pytest.fixture(params=['local', pytest.param('remote', marks=with_tensorflow_io)])
def folder(request, tmp_path: Path) -> str:
    """A folder as users name it: as a path, and as an address that goes through tensorflow-io."""
    return str(tmp_path) if request.param == 'local' else f'file://{tmp_path}'


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_once_all_of_it_is_written(folder, tmp_path):
    path = storage.join(folder, 'data')
    with storage.atomic_writer(path) as file:
        file.write(b'first')
        assert not storage.exists(path)
        file.write(b' and second')
    assert names(tmp_path) == ['data']
    assert (tmp_path / 'data').read_bytes() == b'first and second'


def test_a_file_is_replaced_whole(folder, tmp_path):
    (tmp_path / 'data').write_bytes(b'a long earlier text')
    with storage.atomic_writer(storage.join(folder, 'data')) as file:
        file.write(b'new')
        assert (tmp_path / 'data').read_bytes() == b'a long earlier text'
    assert (tmp_path / 'data').read_bytes() == b'new'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize('earlier', [{}, {'data': b'earlier'}], ids=['new', 'replaced'])
def test_nothing_is_left_behind_when_the_block_raises(folder, tmp_path, earlier, error):
    for name, content in earlier.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error), storage.atomic_writer(storage.join(folder, 'data')) as file:
        file.write(b'half')
        raise error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


@pytest.mark.parametrize('place', ['no/folder/file', 'file/file', 'folder'])
def test_a_place_that_can_not_be_written_is_told_by_its_own_name(tmp_path, place):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    path = str(tmp_path / place)
    with pytest.raises(OSError, match=rf"^\[Errno \d+\] [\w ]+: '{path}'$"), storage.atomic_writer(path) as file:
        file.write(b'x')


def test_two_writers_of_one_name_do_not_mix_and_the_last_wins(folder, tmp_path):
    path = storage.join(folder, 'data')
    with storage.atomic_writer(path) as first:
        first.write(b'1')
        with storage.atomic_writer(path) as second:
            second.write(b'2')
        first.write(b'1')
    assert names(tmp_path) == ['data']
    assert (tmp_path / 'data').read_bytes() == b'11'


def test_a_temporary_path_ends_as_the_file_does(tmp_path):
    with storage.atomic_path(str(tmp_path / 'model.weights.h5')) as temporary:
        assert temporary.endswith('model.weights.h5')
        Path(temporary).write_bytes(b'weights')
    assert names(tmp_path) == ['model.weights.h5']


def test_a_folder_gets_its_name_once_all_of_it_is_there(tmp_path):
    with storage.atomic_path(str(tmp_path / '1')) as temporary:
        (Path(temporary) / 'deep').mkdir(parents=True)
        (Path(temporary) / 'deep' / 'data').write_bytes(b'text')
        assert not (tmp_path / '1').exists()
    assert names(tmp_path) == ['1']
    assert (tmp_path / '1' / 'deep' / 'data').read_bytes() == b'text'
    with pytest.raises(KeyboardInterrupt), storage.atomic_path(str(tmp_path / '2')) as temporary:
        Path(temporary).mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == ['1']


def test_a_bare_name_is_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with storage.atomic_writer('data') as file:
        file.write(b'here')
    assert names(tmp_path) == ['data']


def test_a_folder_tells_what_is_in_it(folder, tmp_path):
    deep = storage.join(folder, 'deep', 'er')
    assert not storage.exists(deep)
    assert storage.list_names(deep) == []
    storage.make_folder(deep)
    storage.make_folder(deep)
    for name, content in (('b', b'22'), ('a', b'1'), ('c', b'')):
        with storage.atomic_writer(storage.join(deep, name)) as file:
            file.write(content)
    assert storage.list_names(deep) == ['a', 'b', 'c']
    assert [storage.size(storage.join(deep, name)) for name in 'abc'] == [1, 2, 0]
    storage.remove(storage.join(deep, 'b'))
    assert names(tmp_path / 'deep' / 'er') == ['a', 'c']
    storage.remove(storage.join(folder, 'deep'))
    assert names(tmp_path) == []


def test_an_open_file_can_be_read_from_any_place(folder, tmp_path):
    (tmp_path / 'data').write_bytes(bytes(range(100)))
    with storage.open_read(storage.join(folder, 'data')) as file:
        assert file.read(2) == b'\0\1'
        file.seek(98)
        assert file.tell() == 98
        assert file.read(10) == b'bc'


def test_a_missing_file_is_one_line(folder):
    path = storage.join(folder, 'none')
    with pytest.raises(InputError, match=f'^{re.escape(path)}: no such file$'):
        storage.open_read(path)


@pytest.mark.parametrize(
    ('path', 'remote'),
    [('data', False), ('/data/x', False), ('C:/data', False), ('s3://b/k', True), ('az://a/c', True)]
    + [('http://h/x', True), ('https://h/x', True), ('hdfs://n:9000/x', True)],
)
def test_a_path_with_a_scheme_is_remote(path, remote):
    assert storage.is_remote(path) is remote


@pytest.mark.parametrize(
    ('folder', 'parts', 'path'),
    [('data', ['x'], 'data/x'), ('data/', ['x'], 'data/x'), ('s3://b/k', ['x'], 's3://b/k/x')]
    + [('s3://b/k/', ['x'], 's3://b/k/x'), ('s3://b', ['x', 'y'], 's3://b/x/y')],
)
def test_names_are_joined_with_one_stroke(folder, parts, path):
    assert storage.join(folder, *parts) == path


def without(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where this package isn't installed: Python raises ModuleNotFoundError for None."""
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize('do', [storage.open_read, storage.exists, storage.size, storage.list_names, storage.remove])
def test_a_remote_path_without_tensorflow_io_says_what_to_install(monkeypatch, do):
    without('tensorflow_io', monkeypatch)
    rule = 'a remote path needs tensorflow-io, which loads with tensorflow 2.17.1 only: install the versions in '
    remedy = r'constraints.txt, or use a local path \(ModuleNotFoundError\)'
    with pytest.raises(InputError, match=f'^{rule}{remedy}$'):
        do('s3://bucket/key')


def test_a_remote_file_that_cannot_be_written_says_so_too(monkeypatch):
    without('tensorflow_io', monkeypatch)
    with pytest.raises(InputError, match='^a remote path needs tensorflow-io'), storage.atomic_writer('s3://b/k'):
        pytest.fail('opened')


def test_pieces_of_a_file_are_read_from_any_place(tmp_path):
    (tmp_path / 'file').write_bytes(bytes(range(100)))
    with storage.open_ranges(str(tmp_path / 'file')) as file:
        assert file.size == 100
        assert file.window(10, 5).tolist() == [10, 11, 12, 13, 14]
        assert file.window(95, 50).tolist() == [95, 96, 97, 98, 99]
        file.prefetch(np.array([5, 95]), np.array([3, 50]))
        gathered = file.gather(np.array([90, 5, 98]), np.array([2, 3, 4]))
        assert gathered.tolist() == [90, 91, 5, 6, 7, 98, 99, 0, 0]


def test_an_empty_file_has_no_pieces(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    with storage.open_ranges(str(tmp_path / 'file')) as file:
        assert (file.size, len(file.window(0, 10))) == (0, 0)


def test_what_is_written_may_be_on_its_way_to_the_disk_already(tmp_path):
    with storage.atomic_writer(str(tmp_path / 'file')) as file:
        for _ in range(3):
            file.write(b'abc')
            storage.begin_sync(file)
    assert (tmp_path / 'file').read_bytes() == b'abc' * 3


def test_a_scratch_folder_goes_at_the_end_with_what_is_in_it(tmp_path):
    with storage.scratch(str(tmp_path), 'known') as path:
        assert not os.path.exists(path)
        os.makedirs(path)
        (Path(path) / 'part').write_bytes(b'1')
        assert storage.is_temporary(os.path.basename(path))
    with pytest.raises(KeyError), storage.scratch(str(tmp_path), 'known') as path:
        os.makedirs(path)
        raise KeyError
    with storage.scratch(str(tmp_path), 'known'):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_programs_left_goes_after_a_day(tmp_path):
    day = 24 * 3600
    ages = {'.tmp-a-known': day + 60, '.tmp-b-known': day - 60, '.tmp-c-table': day + 60, 'known': 2 * day}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    with storage.scratch(str(tmp_path), 'known'):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.tmp-b-known', '.tmp-c-table', 'known']
