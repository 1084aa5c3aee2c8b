"""Pieces of shards that can be read by themselves, with all that can be wrong with one told by file and byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline import columns, storage
from pipeline.errors import InputError
from pipeline.manifest import FileInfo

REMEDY = 'python -m tools.inspect_shards tells what is wrong with it; python -m pipeline.convert makes it again'
READ_CHUNKS = 16  # at a time, of a whole shard: 18 MB; fewer take longer
Found = TypeVar('Found')


@dataclass(frozen=True)
class Chunk:
    """A piece of a shard that can be read by itself: manifest.CHUNK_PRODUCTS products, or the last few.

    Attributes:
        path: the shard.
        offset: its first byte.
        bytes: its length.
        rows: how many it has of what the stream is made of: pictures, products, or those with so many pictures.
    """

    path: str
    offset: int
    bytes: int
    rows: int


def read(chunk: Chunk, memory: memoryview) -> np.ndarray:
    """Fills memory with a chunk, and says where its records begin and end, int64 [2, n].

    Raises:
        InputError: the chunk is damaged or cut off; names the file and the byte.
    """
    with storage.open_ranges(chunk.path) as file:
        count = file.read_into(memory, chunk.offset)
    if count < chunk.bytes:
        end = chunk.offset + chunk.bytes
        raise InputError(f'{chunk.path}: is cut off: ends before byte {end}, which the manifest tells of; {REMEDY}')
    try:
        return columns.record_places(memory, offset=chunk.offset)
    except ValueError as error:
        raise InputError(f'{chunk.path}: {error}; {REMEDY}') from None


def parse_shard(
    path: str, file: FileInfo, parse: Callable[[np.ndarray, np.ndarray, np.ndarray], Found]
) -> Iterator[Found]:
    """What is in all records of a shard, READ_CHUNKS chunks at a time.

    Args:
        path: the shard.
        file: what the manifest says of it.
        parse: columns.read, columns.read_md5, or what calls them: of data, and starts and ends of records. What it
            returns must not hold the data, whose memory is used again.

    Raises:
        InputError: the shard is damaged, or has other records than the manifest says; names the file and the byte.
    """
    memory, offset = memoryview(bytearray()), 0
    for first in range(0, len(file.chunks), READ_CHUNKS):
        some = file.chunks[first : first + READ_CHUNKS]
        size, products = sum(size for size, *_ in some), sum(sum(counts) for _, *counts in some)
        memory = memory if len(memory) >= size else memoryview(bytearray(size))
        yield _parse_chunk(Chunk(path, offset, size, products), memory[:size], parse)
        offset += size


def _parse_chunk(
    chunk: Chunk, memory: memoryview, parse: Callable[[np.ndarray, np.ndarray, np.ndarray], Found]
) -> Found:
    """Fills memory with a chunk, checks it and parses it."""
    places = read(chunk, memory)
    try:
        found = parse(np.frombuffer(memory, np.uint8), *places)
    except ValueError:
        check_records(chunk, memory, places, parse=parse)
        raise
    check_rows([chunk], [places.shape[1]], 'products')
    return found


def check_records(
    chunk: Chunk, memory: memoryview, places: np.ndarray, *, parse: Callable[..., object] = columns.read
) -> None:
    """Raises an InputError of the first record that `parse` refuses: columns.read, or another of that module."""
    for start, end in places.T:
        try:
            parse(np.frombuffer(memory, np.uint8), np.array([start]), np.array([end]))
        except ValueError as error:
            byte = chunk.offset + start - columns.HEAD_BYTES
            raise InputError(f'{chunk.path}: the record at byte {byte} {error}; {REMEDY}') from None


def check_rows(chunks: Sequence[Chunk], rows: Sequence[int], kind: str) -> None:
    """Raises an InputError if a chunk has another number of rows than the manifest says; `kind` says what they are."""
    for chunk, count in zip(chunks, rows, strict=True):
        if count != chunk.rows:
            said = f'from byte {chunk.offset} on are {count} {kind}, not the {chunk.rows} that the manifest tells of'
            raise InputError(f'{chunk.path}: {said}; {REMEDY}')
