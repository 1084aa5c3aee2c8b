"""Notes on the finished files of a dataset under way, so that whoever makes it goes on after an interruption.

The notes lie in a folder beside the files; it is removed once the manifest is written.
"""

from __future__ import annotations

import hashlib
import json

from pipeline import manifest, split, storage
from pipeline.manifest import FileInfo

FOLDER = '.journal'
SUFFIX = '.json'  # after a file's name: the note that it is finished


def note(folder: str, file: FileInfo, *, identity: str) -> None:
    """Notes that a file is finished.

    Args:
        folder: where the file lies.
        file: what the manifest will say of it.
        identity: whatever decides the file's bytes, as text.
    """
    storage.make_folder(storage.join(folder, FOLDER))
    entry = vars(file)
    with storage.atomic_writer(_path(folder, file.name)) as writer:
        writer.write(json.dumps({'file': entry, 'seal': _seal(entry, identity)}).encode())


def noted(folder: str, name: str, *, identity: str) -> FileInfo | None:
    """The file of this name if it was noted under this identity and still has the bytes of then.

    A note that is damaged itself counts as none.
    """
    if not storage.exists(_path(folder, name)):
        return None
    with storage.open_read(_path(folder, name)) as reader:
        text = reader.read()
    try:
        values = json.loads(text)
        if values['seal'] != _seal(values['file'], identity):
            return None
        file = manifest.file_info(values['file'])
    except (ValueError, KeyError, TypeError):
        return None
    return file if is_sound(folder, file) else None


def is_sound(folder: str, file: FileInfo) -> bool:
    """Whether a file is there with the bytes that it was finished with; reads all of it."""
    path = storage.join(folder, file.name)
    return storage.exists(path) and manifest.checksum(path) == (file.bytes, file.crc32c)


def is_note(name: str) -> bool:
    """Whether a file of the journal's folder is a note."""
    return name.endswith(SUFFIX) and not storage.is_temporary(name)


def end(folder: str) -> None:
    """Removes the notes, once the manifest is written."""
    if storage.exists(storage.join(folder, FOLDER)):
        storage.remove(storage.join(folder, FOLDER))


def remove_stale(folder: str, made: manifest.Manifest) -> None:
    """Removes what earlier runs left beside the files of a manifest, and nothing else."""
    listed = {file.name for file in made.files}
    for name in storage.list_names(folder):
        shard = split.parse_shard_name(name)
        if storage.is_temporary(name) or (name not in listed and shard and shard[0] in split.SPLITS):
            storage.remove(storage.join(folder, name))


def _path(folder: str, name: str) -> str:
    return storage.join(folder, FOLDER, name + SUFFIX)


def _seal(entry: object, identity: str) -> str:
    """SHA-256 of a note, in hexadecimal: it fits no other identity, and no note with a changed byte."""
    return hashlib.sha256(f'{identity}\n{json.dumps(entry, sort_keys=True)}'.encode()).hexdigest()
