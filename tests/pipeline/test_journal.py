"""The journal: a file is kept only under its identity, with its bytes, by a note that is whole."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import pytest

from pipeline import journal, worklog
from pipeline.manifest import FileInfo, Manifest

DATA = b'what the file holds'
CHECKSUM = f'{google_crc32c.value(DATA):08x}'
FILE = FileInfo('val-00000-of-00002.tfrecord', 'val', 3, 5, len(DATA), CHECKSUM, ((len(DATA), 1, 2, 0, 0),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file that is noted as finished."""
    (tmp_path / FILE.name).write_bytes(DATA)
    journal.note(str(tmp_path), FILE, identity='one')
    return tmp_path


def noted(folder: Path, identity: str = 'one') -> FileInfo | None:
    return journal.noted(str(folder), FILE.name, identity=identity)


def test_a_file_is_known_again_under_its_identity_only(folder):
    assert noted(folder) == FILE
    assert noted(folder, 'another') is None
    journal.note(str(folder), FILE, identity='another')
    assert (noted(folder), noted(folder, 'another')) == (None, FILE)


@pytest.mark.parametrize('data', [DATA[:-1], DATA + b'x', b'W' + DATA[1:], b'', None])
def test_a_file_with_other_bytes_is_not_known(folder, data):
    if data is None:
        (folder / FILE.name).unlink()
    else:
        (folder / FILE.name).write_bytes(data)
    assert noted(folder) is None
    assert not journal.is_sound(str(folder), FILE)


def test_a_note_with_a_changed_byte_counts_as_none(folder):
    path = folder / '.journal' / f'{FILE.name}.json'
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert noted(folder) is None, place
        path.write_bytes(sound[:place])
        assert noted(folder) is None, place
    for text in ('[]', '{}', '{"file": {}, "seal": ""}', 'null'):
        path.write_text(text)
        assert noted(folder) is None


def test_the_journal_goes_and_a_second_time_does_no_harm(folder):
    journal.end(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [FILE.name]
    journal.end(str(folder))
    assert noted(folder) is None


def test_only_what_earlier_runs_left_is_removed(folder):
    stale = ['.tmp-0123-val-00000-of-00002.tfrecord', 'val-00000-of-00003.tfrecord', 'train-00000-of-00001.tfrecord']
    own = [worklog.NAME, 'notes.txt', 'mine.tfrecord', 'mine-00000-of-00001.tfrecord']
    for name in stale + own:
        (folder / name).write_bytes(b'')
    journal.remove_stale(str(folder), Manifest('logits', {}, (FILE,)))
    assert sorted(path.name for path in folder.iterdir()) == sorted(['.journal', FILE.name, *own])
