"""A manifest comes back as it was written, or says in one line why it can't be used."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import manifest
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest

FILES = (
    FileInfo('test-00000-of-00001.tfrecord', 'test', 1, 4, 10, '00000000', ((10, 0, 0, 0, 1),)),
    FileInfo('train-00000-of-00002.tfrecord', 'train', 129, 130, 20, 'cafe0001', ((19, 128, 0, 0, 0), (1, 0, 1, 0, 0))),
    FileInfo('train-00001-of-00002.tfrecord', 'train', 5, 7, 0, 'cafe0002', ((0, 4, 0, 1, 0),)),
)
MANIFEST = Manifest('shards', {'seed': 7, 'source': {'train.bson': {'bytes': 3}}, 'names': ['é']}, FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds the manifest and all its files."""
    for file in FILES:
        (tmp_path / file.name).write_bytes(bytes(file.bytes))
    manifest.write(MANIFEST, str(tmp_path))
    return tmp_path


def changed(file: FileInfo, name: str) -> FileInfo:
    values: dict[str, Any] = {name: 'x'}
    return dataclasses.replace(file, **values)


def read(folder: Path, kind: str = 'shards') -> Manifest:
    return manifest.read(str(folder), kind=kind, remedy='do this')


def test_a_manifest_is_read_as_written(folder):
    assert read(folder) == MANIFEST
    assert read(folder).digest() == MANIFEST.digest()


def test_the_same_manifest_gives_the_same_bytes_ending_in_a_newline(folder):
    first = (folder / 'manifest.json').read_bytes()
    manifest.write(read(folder), str(folder))
    assert (folder / 'manifest.json').read_bytes() == first
    assert first.endswith(b'}\n')


def test_each_file_has_one_line(folder):
    lines = (folder / 'manifest.json').read_text().splitlines()
    entries = [json.loads(line.rstrip(',')) for line in lines if 'tfrecord' in line]
    assert [entry['name'] for entry in entries] == [file.name for file in FILES]
    assert [entry['chunks'] for entry in entries] == [
        [[10, 0, 0, 0, 1]],
        [[19, 128, 0, 0, 0], [1, 0, 1, 0, 0]],
        [[0, 4, 0, 1, 0]],
    ]


def test_a_split_has_its_files_in_order_and_their_sums():
    assert MANIFEST.of_split('train') == FILES[1:]
    assert (MANIFEST.products('train'), MANIFEST.images('train')) == (134, 137)
    assert (MANIFEST.products('test'), MANIFEST.images('test')) == (1, 4)
    assert (MANIFEST.of_split('val'), MANIFEST.products('val'), MANIFEST.images('val')) == ((), 0, 0)


def test_every_value_counts_in_the_digest():
    others = [
        dataclasses.replace(MANIFEST, kind='logits'),
        dataclasses.replace(MANIFEST, about={**MANIFEST.about, 'seed': 8}),
        dataclasses.replace(MANIFEST, files=FILES[:2]),
        *(
            dataclasses.replace(MANIFEST, files=(changed(FILES[0], field.name), *FILES[1:]))
            for field in dataclasses.fields(FileInfo)
        ),
    ]
    assert len({one.digest() for one in (MANIFEST, *others)}) == len(others) + 1


def test_a_folder_without_a_manifest_is_not_finished(tmp_path):
    rule = f'{tmp_path}/manifest.json: no such file, so {tmp_path} holds no finished shards; make them: do this'
    with pytest.raises(InputError, match=f'^{re.escape(rule)}$'):
        read(tmp_path)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (b'', 'JSONDecodeError'),
        (b'{"kind": "sha', 'JSONDecodeError'),
        (b'\xff\xfe\xff', 'UnicodeDecodeError'),
        (b'[]', 'TypeError'),
        (b'{}', "KeyError('kind')"),
        (b'{"kind": "shards"}', "KeyError('format_version')"),
        (b'{"kind": "shards", "format_version": 3, "about": {}}', "KeyError('files')"),
        (b'{"kind": "shards", "format_version": 3, "about": {}, "files": [{"name": "x"}]}', 'TypeError'),
        (b'{"kind": "shards", "format_version": 3, "about": {}, "files": [{"colour": "x"}]}', 'TypeError'),
    ],
)
def test_a_damaged_manifest_says_why_and_what_to_do(folder, text, reason):
    refuse(folder, text, reason)


def refuse(folder: Path, text: bytes, reason: str) -> None:
    (folder / 'manifest.json').write_bytes(text)
    start = re.escape(f'{folder}/manifest.json: not a manifest ({reason}')
    with pytest.raises(InputError, match=rf'^{start}.*\); make the shards again: do this\Z'):
        read(folder)


def told(rule: str) -> str:
    return f"ValueError('{FILES[1].name}: chunks {rule}')"


def sums(*found: int) -> str:
    rule = f'chunks, their bytes, products and images are {found}, must be (2, 20, 129, 130)'
    return f"ValueError('{FILES[1].name}: {rule}')"


@pytest.mark.parametrize(
    ('chunks', 'reason'),
    [
        (3, 'TypeError'),
        ([1, 2], 'TypeError'),
        ([[19, 128, 0, 0, 0], [1]], told('must have 5 numbers each')),
        ([[19, 128, 0, 0, 0], [1, 0, 1, 0]], told('must have 5 numbers each')),
        ([[19, 128, 0, 0, 0], [1, 0, 1, 0, 0, 0]], told('must have 5 numbers each')),
        ([[19, 128], [1, 2]], told('must have 5 numbers each')),  # bytes and images, as in format 2
        ([[19, 128, 0, 0, 0], [1, 0, '1', 0, 0]], told('must be whole numbers')),
        ([[19, 128, 0, 0, 0], [1, 0, 1.0, 0, 0]], told('must be whole numbers')),
        ([[19, 128, 0, 0, 0], [True, 0, 1, 0, 0]], told('must be whole numbers')),
        ([[21, 128, 0, 0, 0], [-1, 0, 1, 0, 0]], told('must be whole numbers')),
        ([], sums(0, 0, 0, 0)),
        ([[20, 128, 1, 0, 0]], sums(1, 20, 129, 130)),
        ([[18, 128, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]], sums(3, 20, 129, 130)),
        ([[20, 128, 0, 0, 0], [1, 0, 1, 0, 0]], sums(2, 21, 129, 130)),
        ([[19, 127, 0, 0, 0], [1, 0, 0, 1, 0]], sums(2, 20, 128, 130)),
        ([[19, 128, 0, 0, 0], [1, 1, 0, 0, 0]], sums(2, 20, 129, 129)),
        ([[19, 127, 0, 0, 0], [1, 1, 1, 0, 0]], told('but for the last one must have 128 products each')),
        ([[19, 128, 1, 0, 0], [1, 0, 0, 0, 0]], told('but for the last one must have 128 products each')),
    ],
)
def test_chunks_that_cannot_be_those_of_their_file_are_refused(folder, chunks, reason):
    values = json.loads((folder / 'manifest.json').read_text())
    values['files'][1]['chunks'] = chunks
    refuse(folder, json.dumps(values).encode(), reason)


def test_a_store_of_logits_needs_no_chunks(tmp_path):
    logits = Manifest('logits', {}, (FileInfo('test-00000-of-00001.tfrecord', 'test', 500, 900, 0, '00000000'),))
    manifest.write(logits, str(tmp_path))
    assert manifest.read(str(tmp_path), kind='logits', remedy='', check_files=False) == logits


def test_a_dataset_of_another_kind_or_format_is_refused(folder):
    start = re.escape(f'{folder}/manifest.json: holds shards of format')
    with pytest.raises(InputError, match=f'^{start} 3, not logits of format 3; make the logits again: do this$'):
        read(folder, kind='logits')
    values = json.loads((folder / 'manifest.json').read_text())
    (folder / 'manifest.json').write_text(json.dumps({**values, 'format_version': 2, 'files': [{'name': 'x'}]}))
    with pytest.raises(InputError, match=f'^{start} 2, not shards of format 3; make the shards again: do this$'):
        read(folder)


@pytest.mark.parametrize('content', [None, b'', bytes(19), bytes(21)], ids=['missing', 'empty', 'shorter', 'longer'])
def test_a_listed_file_that_is_not_as_listed_is_named(folder, content):
    path = folder / FILES[1].name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    rule = f'{path}: missing or not 20 bytes long; make the shards again: do this'
    with pytest.raises(InputError, match=f'^{re.escape(rule)}$'):
        read(folder)


def test_files_that_are_not_listed_are_of_no_concern(folder):
    (folder / 'train-00002-of-00003.tfrecord').write_bytes(b'of an earlier run')
    assert read(folder) == MANIFEST
