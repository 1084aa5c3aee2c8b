"""The machinery under pipeline.dataset: chunks of shards -> rows in order -> decoded batches, in threads of its own.

Bytes are read and checked by a few threads, parsed a group at a time, and never copied again: a row knows where its
pictures stand. Threads that decode fill one buffer a batch, which TensorFlow then takes as it is.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import mmap
import operator
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline import columns, manifest, order, pictures, shard_chunks, storage
from pipeline.bson_stream import MAX_PICTURES
from pipeline.shard_chunks import Chunk

READERS = 2  # chunks read at once; more of them only hold up the threads that decode
REMOTE_READERS = 16  # where an answer takes its time
DECODERS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
PIECE = 64  # pictures a thread decodes in one go: 6 ms
AHEAD = 16  # chunks read ahead where nothing is shuffled: 18 MB
Damages = list[tuple[int, str]]  # the place of each damaged picture in its batch, and what is wrong
TOLD = 10  # damaged pictures of which each is told; of more only the number, now and then


@dataclass(frozen=True)
class Products:
    """What a row is where rows are products.

    Attributes:
        pictures: a row's pictures, 1 to 4: a product's first ones.
        fewer: False: only products with exactly so many are rows. True: all products are.
    """

    pictures: int
    fewer: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.pictures <= MAX_PICTURES:
            raise ValueError(f'pictures must be 1 to {MAX_PICTURES}, not {self.pictures}')


def kind_of_rows(products: Products | None) -> str:
    """What the rows are, for a message; None: pictures."""
    if products is None or products.fewer:
        return 'products' if products else 'pictures'
    return f'products with exactly {products.pictures} picture{"s" * (products.pictures > 1)}'


def rows_made(images: np.ndarray, products: Products | None) -> np.ndarray:
    """How many rows each product makes that has so many pictures: int64 [n] -> int64 [n]."""
    if products is None:
        return images
    return np.ones_like(images) if products.fewer else (images == products.pictures).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """What a stream is made of: a row is a picture, or a product with its pictures.

    There are no Python objects for each row: its collector of garbage would look through them all, again and again.

    Attributes:
        memory: encoded pictures, among other bytes.
        table: row_type() [n]; `memory` says in which of the memories a row's pictures are, `start` and `end` where: 0
            and 0 where a product has no such picture. image_index is 0 where a row is a product.
    """

    memory: tuple[memoryview, ...]
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, chosen: slice | np.ndarray) -> Rows:
        return Rows(self.memory, self.table[chosen])

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        table = np.concatenate([part.table for part in parts])
        memories = [len(part.memory) for part in parts]
        table['memory'] += np.repeat(np.cumsum([0, *memories])[:-1], [len(part) for part in parts])
        return Rows(tuple(itertools.chain.from_iterable(part.memory for part in parts)), table)

    def images(self) -> Iterator[memoryview | None]:
        """The encoded pictures in order; those of a row that comes several times are the same objects."""
        each = self.table['start'].shape[1]
        places = [self.table[name].ravel().tolist() for name in ('start', 'end')]
        numbers = np.repeat(self.table['memory'], each).tolist()
        before: list[tuple[int, int] | None] = [None] * each
        images: list[memoryview | None] = [None] * each
        for column, number, start, end in zip(itertools.cycle(range(each)), numbers, *places, strict=False):
            if before[column] != (number, start):
                before[column] = number, start
                images[column] = self.memory[number][start:end] if end else None
            yield images[column]


def row_type(pictures_each: int) -> np.dtype:
    """Of a table of rows with so many pictures each."""
    numbers = [(name, 'i8') for name in ('product_id', 'image_index', 'label', 'memory')]
    return np.dtype([*numbers, *((name, 'i8', (pictures_each,)) for name in ('start', 'end'))])


@dataclass(frozen=True)
class Batch:
    """Decoded rows.

    Attributes:
        rows: which.
        pixels: uint8 [batch, pictures, 180, 180, 3]; 0 after the last row, and where a row has fewer pictures.
    """

    rows: Rows
    pixels: np.ndarray


def chunks_of(folder: str, files: Iterable[manifest.FileInfo], *, products: Products | None = None) -> list[Chunk]:
    """The chunks of some shards that have rows, in order; `products` says what a row is, None: a picture."""
    made, rows_each = [], rows_made(np.arange(1, MAX_PICTURES + 1), products).tolist()
    for file in files:
        path, offset = storage.join(folder, file.name), 0
        for size, *counts in file.chunks:
            if rows := sum(map(operator.mul, rows_each, counts)):
                made.append(Chunk(path, offset, size, rows))
            offset += size
    return made


def shuffled(
    chunks: Sequence[Chunk],
    *,
    seed: int,
    start_row: int,
    shuffle_rows: int,
    products: Products | None = None,
    readers: int | None = None,
) -> Iterator[Rows]:
    """The endless stream of rows in the order of pipeline.order, in pieces of no fixed size, from any row on.

    Args:
        chunks: all there are.
        seed: of the order.
        start_row: rows left out at the start; of their chunks only those are read that later rows are in, too.
        shuffle_rows: rows in memory at a time.
        products: what a row is; None: a picture.
        readers: chunks read at once; the order doesn't hang on it. None: READERS, or REMOTE_READERS.
    """
    chunk_rows = np.array([chunk.rows for chunk in chunks])
    lanes = order.LANES if products is None else 1
    first_pass, offset = divmod(start_row, int(chunk_rows.sum()))
    with _Loader(chunks, products, readers) as loader:
        for number in itertools.count(first_pass):
            one = order.one_pass(chunk_rows, seed=seed, number=number, shuffle_rows=shuffle_rows, lanes=lanes)
            groups = [[chunks[chunk] for chunk in group] for group in one.groups]
            ends = np.cumsum(one.window_rows())
            first = int(np.searchsorted(ends, offset, side='right'))
            skipped = offset - int(ends[first - 1]) if first else offset
            for window in range(first, len(groups)):
                loader.keep(one.held(window))
                needed, rows = one.window(window)
                parts = loader.get({group: groups[group] for group in needed})
                if window + 1 < len(groups):
                    loader.begin(window + 1, groups[window + 1])
                yield Rows.joined(parts)[rows[skipped:]]
                skipped = 0
            loader.keep([])
            offset = 0


def in_order(chunks: Sequence[Chunk], *, products: Products | None = None, limit: int | None = None) -> Iterator[Rows]:
    """All rows once, or the first `limit`, as they stand in the shards; `products` as in shuffled()."""
    ends = np.cumsum([0, *(chunk.rows for chunk in chunks)])
    left = int(ends[-1]) if limit is None else limit
    needed = chunks[: int(np.searchsorted(ends, left))]
    groups = [needed[first : first + AHEAD] for first in range(0, len(needed), AHEAD)]
    with _Loader(chunks, products) as loader:
        for number, group in enumerate(groups):
            loader.keep([number])
            (rows,) = loader.get({number: group})
            if number + 1 < len(groups):
                loader.begin(number + 1, groups[number + 1])
            yield rows[:left]
            left -= len(rows)


class _Loader:
    """Reads groups of chunks in the background and keeps those that are still needed."""

    def __init__(self, chunks: Sequence[Chunk], products: Products | None, readers: int | None = None) -> None:
        if readers is None:
            readers = REMOTE_READERS if chunks and storage.is_remote(chunks[0].path) else READERS
        self.products = products
        self.memory = _Memory()
        self.readers = ThreadPoolExecutor(readers, 'read')
        self.parser = ThreadPoolExecutor(1, 'parse')
        self.groups: dict[int, Future[Rows]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.parser, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)
        self.keep([])  # one that fails now, for want of readers, would hold itself in memory

    def keep(self, numbers: Sequence[int]) -> None:
        self.groups = {number: rows for number, rows in self.groups.items() if number in numbers}

    def begin(self, number: int, chunks: Sequence[Chunk]) -> None:
        if number not in self.groups:
            self.groups[number] = self.parser.submit(self._read, chunks)

    def get(self, needed: dict[int, Sequence[Chunk]]) -> list[Rows]:
        for number, chunks in needed.items():
            self.begin(number, chunks)
        return [self.groups[number].result() for number in needed]

    def _read(self, chunks: Sequence[Chunk]) -> Rows:
        """Reads and parses a group."""
        firsts = np.cumsum([0, *(chunk.bytes for chunk in chunks)]).tolist()
        data = self.memory.take(firsts[-1])
        _prefetch(chunks)
        pieces = [data.data[first : first + chunk.bytes] for first, chunk in zip(firsts, chunks, strict=False)]
        places = list(self.readers.map(shard_chunks.read, chunks, pieces))
        starts, ends = np.concatenate([one + first for one, first in zip(places, firsts, strict=False)], axis=1)
        try:
            found = columns.read(data, starts, ends)
        except ValueError:
            for chunk, piece, one in zip(chunks, pieces, places, strict=True):
                shard_chunks.check_records(chunk, piece, one)
            raise
        made = rows_made(found.images, self.products)
        of_chunks = np.split(made, np.cumsum([one.shape[1] for one in places])[:-1])
        shard_chunks.check_rows(chunks, [one.sum() for one in of_chunks], kind_of_rows(self.products))
        return Rows((data.data,), _table(found, self.products))


def _prefetch(chunks: Sequence[Chunk]) -> None:
    """Has the disk begin with all chunks of a group, which stand all over it."""
    if storage.is_remote(chunks[0].path):  # it can't, and each opening is a request
        return
    for path, some in itertools.groupby(sorted(chunks, key=operator.attrgetter('path')), operator.attrgetter('path')):
        offsets, lengths = np.array([(chunk.offset, chunk.bytes) for chunk in some]).T
        with storage.open_ranges(path) as file:
            file.prefetch(offsets, lengths)


def _table(found: columns.Columns, products: Products | None) -> np.ndarray:
    """The rows that some products make."""
    product = np.repeat(np.arange(len(found.images)), found.images)
    picture = np.arange(len(product)) - np.repeat(np.cumsum(found.images) - found.images, found.images)
    if products is None:
        table = np.zeros(len(product), row_type(1))
        table['start'][:, 0], table['end'][:, 0], table['image_index'] = found.starts, found.ends, picture
        table['product_id'], table['label'] = found.product_id[product], found.label[product]
    else:
        made = rows_made(found.images, products).astype(bool)
        table = np.zeros(np.count_nonzero(made), row_type(products.pictures))
        taken = made[product] & (picture < products.pictures)
        row, column = np.cumsum(made)[product[taken]] - 1, picture[taken]
        table['start'][row, column], table['end'][row, column] = found.starts[taken], found.ends[taken]
        table['product_id'], table['label'] = found.product_id[made], found.label[made]
    return table


def decoded(pieces: Iterable[Rows], *, batch_size: int, threads: int = DECODERS) -> Iterator[Batch]:
    """Decoded batches, made ahead of the one that is taken.

    Args:
        pieces: the stream of rows, cut anyhow.
        batch_size: rows a batch; the last may have fewer.
        threads: that decode.
    """
    pending: collections.deque[tuple[Batch, list[Future[Damages]]]] = collections.deque()
    memory = _Memory()
    damaged = 0
    pool = ThreadPoolExecutor(threads, 'decode')
    try:
        for rows in itertools.chain(_batches(pieces, batch_size), itertools.repeat(None)):
            if rows:
                pending.append(_begin(rows, batch_size, memory, pool))
            if not pending:
                return
            # Two pieces for each thread wait, so that none is idle while a batch is handed on.
            if not rows or sum(len(work) for _, work in pending) > len(pending[0][1]) + 2 * threads:
                batch, work = pending.popleft()
                for place, problem in itertools.chain.from_iterable(part.result() for part in work):
                    damaged += 1
                    _tell_damage(batch, place, problem, damaged)
                yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(pieces: Iterable[Rows], batch_size: int) -> Iterator[Rows]:
    """The same rows, `batch_size` at a time."""
    kept: list[Rows] = []
    count = 0
    for rows in pieces:
        while count + len(rows) >= batch_size:
            part = rows[: batch_size - count]
            yield Rows.joined([*kept, part])
            rows = rows[len(part) :]
            kept, count = [], 0
        kept.append(rows)
        count += len(rows)
    if count:
        yield Rows.joined(kept)


def _begin(
    rows: Rows, batch_size: int, memory: _Memory, pool: ThreadPoolExecutor
) -> tuple[Batch, list[Future[Damages]]]:
    """Has threads decode a batch."""
    _, each = rows.table['start'].shape
    shape = (batch_size, each, *pictures.SHAPE)
    pixels = memory.take(int(np.prod(shape))).reshape(shape)
    pixels[len(rows) :] = 0
    rows_a_piece = max(1, PIECE // each)

    def decode(first: int) -> Damages:
        piece = slice(first, first + rows_a_piece)
        damages = pictures.decode_into(pixels[piece].reshape(-1, *pictures.SHAPE), rows[piece].images(), each=each)
        return [(first * each + place, problem) for place, problem in damages]

    return Batch(rows, pixels), [pool.submit(decode, first) for first in range(0, len(rows), rows_a_piece)]


class _Memory:
    """Buffers that are used again once nothing looks at them: new memory would cost as much as decoding does."""

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []

    def take(self, size: int) -> np.ndarray:
        """So many bytes, uint8, with anything in them.

        They begin at a page's start: TensorFlow copies what doesn't begin at a multiple of 64 bytes.
        """
        memory = self.free.pop() if self.free else None
        if memory is None or len(memory) < size:
            memory = mmap.mmap(-1, size + size // 16)  # groups differ by a little
        exporter = (ctypes.c_ubyte * size).from_buffer(memory)  # every view of the array holds it
        weakref.finalize(exporter, self.free.append, memory)
        return np.frombuffer(memoryview(exporter), np.uint8)


def _tell_damage(batch: Batch, place: int, problem: str, count: int) -> None:
    """Warns of the picture at this place of a batch, the first few times."""
    if count <= TOLD:
        row, picture = divmod(place, batch.pixels.shape[1])
        about = batch.rows.table[row]
        said = f'product {about["product_id"]}, picture {about["image_index"] + picture}: {problem}'
        print(f'warning: {said}', file=sys.stderr)
    elif count in (100, 1_000, 10_000, 100_000):
        print(f'warning: {count:,} damaged pictures so far', file=sys.stderr)
