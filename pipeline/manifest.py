"""What a sharded dataset holds: one manifest.json a folder, written last, checked when read.

Shards of pictures (pipeline.convert), stores of logits (ensemble.logits) and of predictions (ensemble.predictions) have
the same manifest; `about` says what made them. Readers open only the files that the manifest lists, so stale files of
an earlier run are never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from pipeline import progress, storage
from pipeline.bson_stream import MAX_PICTURES
from pipeline.errors import InputError

NAME = 'manifest.json'
FORMAT_VERSION = 3
# About 1.1 MB: large enough for a disk, small enough that a random order of chunks is one of the pictures. At Kaggle's
# size 55,000 of them are train's, and those of all splits take 2 MB of manifest.
CHUNK_PRODUCTS = 128


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """One data file of a dataset.

    Attributes:
        name: file name inside the dataset's folder.
        split: train, val or test.
        products: products in the file.
        images: pictures in the file (for logits: rows, one a picture and view).
        bytes: the file's length.
        crc32c: checksum of the whole file, 8 hexadecimal digits.
        chunks: of each run of CHUNK_PRODUCTS products, the last one maybe shorter: its bytes, then how many of its
            products have 1, 2, 3 and MAX_PICTURES pictures. A reader can begin at any of them; () in a store of logits.
    """

    name: str
    split: str
    products: int
    images: int
    bytes: int
    crc32c: str
    chunks: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files of a dataset and what made them.

    Attributes:
        kind: shards, logits or predictions.
        about: what the files were made from and how: JSON values only.
        files: in order of name.
    """

    kind: str
    about: Mapping[str, Any]
    files: tuple[FileInfo, ...]

    def of_split(self, split: str) -> tuple[FileInfo, ...]:
        """The files of one split, in shard order."""
        return tuple(file for file in self.files if file.split == split)

    def products(self, split: str) -> int:
        """How many products a split has."""
        return sum(file.products for file in self.of_split(split))

    def images(self, split: str) -> int:
        """How many pictures a split has."""
        return sum(file.images for file in self.of_split(split))

    def digest(self) -> str:
        """SHA-256 of the manifest, in hexadecimal: the identity of the dataset."""
        return hashlib.sha256(_to_json(self)).hexdigest()


def write(manifest: Manifest, folder: str) -> None:
    """Writes manifest.json: the last step of making a dataset."""
    with storage.atomic_writer(storage.join(folder, NAME)) as file:
        file.write(_to_json(manifest))


def read(folder: str, *, kind: str, remedy: str, check_files: bool = True) -> Manifest:
    """Reads and checks a folder's manifest.

    Args:
        folder: the dataset's folder.
        kind: what the folder must hold: shards, logits or predictions.
        remedy: the command that makes it, for the error.
        check_files: whether all listed files must be there in their lengths.

    Raises:
        InputError: no manifest, one that can't be read or whose chunks aren't those of its files, or one of another
            kind or version; a listed file is missing or has another length.
    """
    path = storage.join(folder, NAME)
    if not storage.exists(path):
        raise InputError(f'{path}: no such file, so {folder} holds no finished {kind}; make them: {remedy}')
    with storage.open_read(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
        found, version = values['kind'], values['format_version']
        if (found, version) != (kind, FORMAT_VERSION):
            rule = f'holds {found} of format {version}, not {kind} of format {FORMAT_VERSION}'
            raise InputError(f'{path}: {rule}; make the {kind} again: {remedy}')
        manifest = Manifest(kind, values['about'], tuple(_checked(entry, kind) for entry in values['files']))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a manifest ({error!r}); make the {kind} again: {remedy}') from None
    listed = manifest.files if check_files else ()
    # On a remote file system each takes a request or two.
    for entry in progress.Progress(listed, total=len(listed), label=f'look for the {kind}', unit='files'):
        data_path = storage.join(folder, entry.name)
        if not storage.exists(data_path) or storage.size(data_path) != entry.bytes:
            raise InputError(f'{data_path}: missing or not {entry.bytes} bytes long; make the {kind} again: {remedy}')
    return manifest


def checksum(path: str) -> tuple[int, str]:
    """Length and CRC32C (8 hexadecimal digits) of a whole file, as FileInfo has them."""
    length, crc = 0, google_crc32c.Checksum()
    with storage.open_read(path) as file:
        while piece := file.read(2**24):
            length += len(piece)
            crc.update(piece)
    return length, crc.hexdigest().decode()


def file_info(entry: dict[str, Any]) -> FileInfo:
    """A file's entry as it was read from JSON.

    Raises:
        TypeError, ValueError: it isn't one.
    """
    file = FileInfo(**entry)
    chunks = tuple(tuple(chunk) for chunk in file.chunks)
    if any(len(chunk) != 1 + MAX_PICTURES for chunk in chunks):
        raise ValueError(f'{file.name}: chunks must have {1 + MAX_PICTURES} numbers each')
    if any(type(number) is not int or number < 0 for chunk in chunks for number in chunk):
        raise ValueError(f'{file.name}: chunks must be whole numbers')
    return dataclasses.replace(file, chunks=chunks)


def _checked(entry: dict[str, Any], kind: str) -> FileInfo:
    """file_info(), and a ValueError where the chunks aren't those of such a file."""
    file = file_info(entry)
    if kind != 'shards':
        return file
    products = [sum(counts) for _, *counts in file.chunks]
    images = sum(count * pictures for _, *counts in file.chunks for pictures, count in enumerate(counts, start=1))
    found = len(file.chunks), sum(size for size, *_ in file.chunks), sum(products), images
    listed = -(-file.products // CHUNK_PRODUCTS), file.bytes, file.products, file.images
    if found != listed:
        raise ValueError(f'{file.name}: chunks, their bytes, products and images are {found}, must be {listed}')
    if any(count != CHUNK_PRODUCTS for count in products[:-1]):
        raise ValueError(f'{file.name}: chunks but for the last one must have {CHUNK_PRODUCTS} products each')
    return file


def _to_json(manifest: Manifest) -> bytes:
    """One line a file: with an indent, every number of the chunks would have its own."""
    values = {'about': manifest.about, 'format_version': FORMAT_VERSION, 'kind': manifest.kind}
    head = json.dumps(values, indent=1, sort_keys=True).removesuffix('\n}')
    files = ',\n'.join(f'  {json.dumps(vars(file), sort_keys=True)}' for file in manifest.files)
    return f'{head},\n "files": [\n{files}\n ]\n}}\n'.encode()
