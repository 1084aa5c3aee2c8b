"""Whatever happens to a catalogue's bytes: no product that is whole is lost, none is made up, and nothing hangs.

20,000 seeded mutations of documents stand between good neighbours, and what is found is held against pymongo's decoder.
"""

from __future__ import annotations

import itertools
import random
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest

from pipeline import bson_stream, categories, plan, storage
from pipeline.bson_stream import MAX_DOCUMENT_BYTES, NO_CATEGORY, Damage
from pipeline.errors import CatalogueError
from tests import catalogue

MUTATIONS = 20_000
IN_A_FILE = 5  # each between two good neighbours
PICTURES = [catalogue.jpeg(seed) for seed in range(8)]
CATEGORY = 1000
HEAD = re.compile(rb'(?s)(?=(....)[\x01\x10\x12]_id\0)')

Draw = random.Random
Product = tuple[int, int, tuple[bytes, ...]]
Entry = tuple[int, int, int, int, int]


def document(product_id: int, pictures: int, *, tested: bool) -> bytes:
    images = [PICTURES[(product_id + k) % len(PICTURES)] for k in range(pictures)]
    return catalogue.document(product_id, images, None if tested else CATEGORY)


# How a document is damaged: each takes a document and gives what stands in its place.


def picture_spans(data: bytes) -> list[tuple[int, int]]:
    """Where pictures start and end."""
    return [match.span() for match in re.finditer(rb'(?s)\xff\xd8\xff.*?\xff\xd9', data)]


def some_place(draw: Draw, data: bytes) -> int:
    """Mostly among the fields, or at a picture's head or end: most bytes are inside pictures, where none matters."""
    if draw.random() < 0.2:
        return draw.randrange(len(data))
    edges = [0, *itertools.chain(*picture_spans(data)), len(data)]
    return min(max(draw.choice(edges) + draw.randint(-40, 30), 0), len(data) - 1)


def some_stretch(draw: Draw, data: bytes) -> slice:
    start = some_place(draw, data)
    return slice(start, min(len(data), start + draw.choice([1, 2, 3, 4, 5, 7, 8, 16, 50, 300])))


def replaced(data: bytes, stretch: slice, by: bytes) -> bytes:
    return data[: stretch.start] + by + data[stretch.stop :]


def noise(draw: Draw) -> bytes:
    """Bytes of every kind: random, zeros, and pieces of BSON."""
    length = draw.choice([1, 3, 4, 5, 8, 9, 30, 1000])
    head = struct.pack('<i', draw.choice([0, 5, 14, 100, 5000, -1])) + b'\x10_id\0'
    kinds = [draw.randbytes(length), bytes(length), b'\xff' * length, b'_id\0' * length, b'\x10_id\0', head, head * 3]
    return draw.choice([*kinds, bson.encode({}), bson.encode({'_id': 5}), bson.encode({'a': 1}), b'{"_id": 5}\n'])


def flip_bits(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        changed[some_place(draw, data)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def change_bytes(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        changed[some_place(draw, data)] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    return bytes(changed)


def delete(draw: Draw, data: bytes) -> bytes:
    return replaced(data, some_stretch(draw, data), b'')


def insert(draw: Draw, data: bytes) -> bytes:
    place = some_place(draw, data)
    return replaced(data, slice(place, place), noise(draw))


def overwrite(draw: Draw, data: bytes) -> bytes:
    stretch = some_stretch(draw, data)
    length = stretch.stop - stretch.start
    by = draw.choice([bytes(length), draw.randbytes(length), (noise(draw) * length)[:length]])
    return replaced(data, stretch, by)


def duplicate(draw: Draw, data: bytes) -> bytes:
    stretch = some_stretch(draw, data)
    return replaced(data, stretch, data[stretch] * 2)


def swap(draw: Draw, data: bytes) -> bytes:
    first, second = sorted((some_stretch(draw, data) for _ in range(2)), key=lambda stretch: stretch.start)
    second = slice(max(first.stop, second.start), max(first.stop, second.stop))
    return replaced(replaced(data, second, data[first]), first, data[second])


def cut(draw: Draw, data: bytes) -> bytes:
    place = some_place(draw, data)
    return data[place:] if draw.random() < 0.3 else data[:place]


def set_length(draw: Draw, data: bytes) -> bytes:
    """One of the document's lengths: its own, the array's, an entry's, a picture's."""
    place = draw.choice([0, 19, *(start - back for start, _ in picture_spans(data) for back in (18, 5))])
    (length,) = struct.unpack_from('<i', data, place)
    near, far = draw.choice([1, 2, 4, 13, 100]), draw.choice([1000, 10_000, 100_000])
    limits = [2**31 - 1, -(2**31), MAX_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES + 1, 123_456_789]
    value = draw.choice(
        [0, -1, 4, 5, len(data), *limits, length - near, length + near, length + far, max(0, length - far)]
    )
    return replaced(data, slice(place, place + 4), struct.pack('<i', value))


def set_all_lengths(draw: Draw, data: bytes) -> bytes:
    """Adds bytes to the last picture, the array or the document, and to the lengths that cover them, or all but one."""
    start, end = picture_spans(data)[-1]
    place, lengths = draw.choice([(end, [0, 19, start - 18, start - 5]), (end + 1, [0, 19]), (end + 2, [0])])
    added = draw.choice([draw.randbytes(draw.choice([1, 16, 300])), bytes(draw.choice([1, 2, 20])), noise(draw)])
    changed = bytearray(replaced(data, slice(place, place), added))
    forgotten = draw.choice([None, None, *lengths])
    for length in lengths:
        if length != forgotten:
            struct.pack_into('<i', changed, length, struct.unpack_from('<i', data, length)[0] + len(added))
    return bytes(changed)


def change_type(draw: Draw, data: bytes) -> bytes:
    names = (b'_id\0', b'imgs\0', b'0\0', b'picture\0', b'category_id\0')
    place = draw.choice([data.index(name) - 1 for name in names if name in data])
    kind = draw.choice([0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 15, 16, 17, 18, 19, 127, 255, draw.randrange(256)])
    return replaced(data, slice(place, place + 1), bytes([kind]))


def rename(draw: Draw, data: bytes) -> bytes:
    name = draw.choice([b'_id', b'imgs', b'0', b'picture', b'category_id'])
    other = draw.choice([b'x' * len(name), name.upper(), name[:-1] + b'\0', b'_id', name + b'2', b'\xff' * len(name)])
    return data.replace(name + b'\0', other + b'\0', 1)


def change_ids(draw: Draw, data: bytes) -> bytes:
    values = bson.decode(data)
    name = draw.choice(['_id', 'category_id'] if 'category_id' in values else ['_id'])
    numbers = [0, -1, -values[name], 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2.0**53, 2.0**54, -0.0, 1.5]
    values[name] = draw.choice([*numbers, bson.Int64(7), True, None, 'text', float('nan'), bson.Decimal128('7')])
    return bson.encode(values)


def encoded(values: dict[str, Any]) -> bytes:
    """The document with its fields in this order; by itself bson.encode() puts the _id first."""
    return bson.encode({'x': values})[7:-1]


def change_fields(draw: Draw, data: bytes) -> bytes:
    """The same in another way, or not quite: fields in another order, further ones, none, other pictures."""
    values = bson.decode(data)
    entries = values['imgs']
    other: list[Any] = [
        [], entries * 5, [entries], [*entries, {}], [{'more': 1, **entry} for entry in entries],
        {str(k): entry for k, entry in enumerate(entries)}, [{'picture': b''}], [{'picture': PICTURES[0][:-2]}],
        [{'picture': bson.Binary(PICTURES[0], draw.choice([2, 5, 128]))}], [{'picture': some} for some in PICTURES[:5]],
    ]  # fmt: skip
    kind = draw.randrange(4)
    if kind == 0:
        values['imgs'] = draw.choice(other)
    if kind == 1:
        values[draw.choice(['more', '_id2', 'date'])] = draw.choice([1, 'text', {'_id': 5}, values | {'_id': 6}, None])
    if kind == 2:
        del values[draw.choice(list(values))]
    items = list(values.items())
    if kind == 3:
        draw.shuffle(items)
    return encoded(dict(items))


def damage_picture(draw: Draw, data: bytes) -> bytes:
    start, end = draw.choice(picture_spans(data))
    frame = data.index(b'\xff\xc0', start)
    stretch = draw.choice([
        slice(start, start + 2), slice(start + 2, start + 4), slice(start + 4, start + 6), slice(end - 2, end),
        slice(frame, frame + 2), slice(frame + 5, frame + 7), slice(frame + 7, frame + 9), slice(frame + 2, frame + 4),
    ])  # fmt: skip
    return replaced(data, stretch, draw.choice([b'\0\0', b'\xff\xff', b'\xff\xd8', b'\xff\xd9', b'\0\x02', b'\0\xb4']))


def bson_in_picture(draw: Draw, data: bytes) -> bytes:
    """A document, or what looks like the beginning of one, inside a picture of a good or a broken document."""
    values = bson.decode(data)
    entry = draw.choice(values['imgs'])
    place = draw.choice([2, 20, len(entry['picture']) - 2])
    inner = draw.choice([data, noise(draw), bson.encode(values | {'_id': 77})])
    entry['picture'] = replaced(entry['picture'], slice(place, place), inner)
    outer = bson.encode(values)
    return outer if draw.random() < 0.5 else flip_bits(draw, outer)


def many_segments(draw: Draw, data: bytes) -> bytes:
    """Pictures whose frame header comes after 0 to 40 comments, or that are cut among them."""
    values = bson.decode(data)
    for entry in values['imgs']:
        comments = b'\xff\xfe\0\x04xx' * draw.choice([0, 12, 13, 14, 15, 16, 17, 40])
        entry['picture'] = replaced(entry['picture'], slice(2, 2), comments)
        if draw.random() < 0.2:
            entry['picture'] = entry['picture'][: draw.randrange(len(entry['picture']))] + b'\xff\xd9'
    return bson.encode(values)


def add_noise(draw: Draw, data: bytes) -> bytes:
    return data + noise(draw) if draw.random() < 0.5 else noise(draw) + data


def double(draw: Draw, data: bytes) -> bytes:
    return data * 2


def join(draw: Draw, data: bytes) -> bytes:
    """Two documents under one length, the second whole or only its fields."""
    both = data[: draw.choice([-1, len(data)])] + data[draw.choice([0, 4]) :]
    return struct.pack('<i', len(both)) + both[4:]


def twice(draw: Draw, data: bytes) -> bytes:
    first = draw.choice([set_all_lengths, change_fields, many_segments])
    second = draw.choice([flip_bits, change_bytes])
    return second(draw, first(draw, data))


KINDS: list[Callable[[Draw, bytes], bytes]] = [
    flip_bits, flip_bits, flip_bits, change_bytes, change_bytes, delete, insert, overwrite, duplicate, swap, cut,
    set_length, set_length, set_all_lengths, change_type, rename, change_ids, change_fields, damage_picture,
    bson_in_picture, many_segments, add_noise, double, join, twice,
]  # fmt: skip


# What must hold of whatever was made.


def decoded(data: bytes) -> Product | None:
    """The product of a document by pymongo's decoder and nothing of ours; None if its structure is damaged."""
    if len(data) < 5 or struct.unpack_from('<i', data)[0] != len(data):
        return None
    try:
        values = bson.decode(data)
    except Exception:  # whatever it may be
        return None
    entries = values.get('imgs')
    entries = entries if isinstance(entries, list) else []
    pictures = [entry.get('picture') if isinstance(entry, dict) else None for entry in entries]
    images = tuple(bytes(picture) for picture in pictures if isinstance(picture, bytes))
    number, category = values.get('_id'), values.get('category_id')
    return whole(number, otherwise=-1), whole(category, otherwise=NO_CATEGORY), images


def whole(value: object, *, otherwise: int) -> int:
    return int(value) if isinstance(value, int | float) and -(2**63) <= value < 2**63 else otherwise


def found_in(path: Path, *, tested: bool) -> tuple[list[Entry], list[Damage]]:
    entries, damages = [], []
    for one in bson_stream.index(str(path), with_category=not tested):
        if isinstance(one, Damage):
            damages.append(one)
        else:
            entries += one.tolist()
    return entries, damages


def products_of(documents: bson_stream.Documents) -> list[Product]:
    found = []
    rows = zip(documents.starts.tolist(), documents.lengths.tolist(), documents.images.tolist(), strict=True)
    for number, (starts, lengths, count) in enumerate(rows):
        images = tuple(documents.data[starts[k] : starts[k] + lengths[k]].tobytes() for k in range(count))
        found.append((int(documents.product_id[number]), int(documents.category_id[number]), images))
    return found


def check_short_way(data: bytes, starts: list[int], ends: list[int], *, tested: bool) -> None:
    """What the vectorised way accepts, the full decode accepts, too, and says the same of it."""
    block = np.frombuffer(data, np.uint8)
    documents = bson_stream._laid_out(block, np.array(starts), np.array(ends), with_category=not tested)
    sound = bson_stream._have_size(documents).sum(1) == documents.images
    for start, end, product, has_size in zip(starts, ends, products_of(documents), sound, strict=True):
        if product[2] and has_size:
            full = bson_stream._decoded(data[start:end], with_category=not tested)
            assert product == (full.product_id, full.category_id, full.images) == decoded(data[start:end])


def check_long_way(data: bytes, start: int, end: int, *, tested: bool) -> bool:
    """Whether the full decode accepts a document, which must then be a product by pymongo."""
    try:
        full = bson_stream._decoded(data[start:end], with_category=not tested)
    except bson_stream._UnusableError as problem:
        reason, *remedy = problem.args
        assert reason
        assert len(remedy) <= 1
        return False
    assert (full.product_id, full.category_id, tuple(map(bytes, full.images))) == decoded(data[start:end])
    return True


class File:
    """Mutations among good neighbours, and where each begins."""

    def __init__(self, draw: Draw) -> None:
        self.tested = draw.random() < 0.2
        self.pieces: list[bytes] = []
        self.kinds: list[str] = []  # '' for a neighbour
        for place in range(IN_A_FILE):
            for _ in range(draw.choice([0, 1, 2] if place == 0 else [1, 1, 2])):
                self._add(self._some_document(draw), '')
            kind = draw.choice(KINDS)
            self._add(kind(draw, self._some_document(draw)), kind.__name__)
        for _ in range(draw.choice([0, 1, 2])):
            self._add(self._some_document(draw), '')
        self.data = b''.join(self.pieces)
        self.starts = [0, *itertools.accumulate(map(len, self.pieces))]

    def _some_document(self, draw: Draw) -> bytes:
        return document(draw.randrange(10**6), draw.choice([1, 1, 1, 2, 4]), tested=self.tested)

    def _add(self, piece: bytes, kind: str) -> None:
        self.pieces.append(piece)
        self.kinds.append(kind)

    def is_covered(self, place: int, found: list[tuple[int, int]]) -> bool:
        """Whether a whole BSON document that begins earlier goes on over `place`.

        This alone makes a product ambiguous: by its length, and by pymongo, it is part of that document's bytes.
        """
        return any(
            start < place < start + length and decoded(self.data[start : start + length]) is not None
            for start, length in found
        )

    def seems_to_go_on(self, number: int) -> bool:
        """Whether another document seems to begin inside a mutation, after its start, so that it may count twice.

        At a length that an _id follows, or where the mutation says that it ends.
        """
        start, stop = self.starts[number], self.starts[number + 1]
        heads = [match.start() for match in HEAD.finditer(self.data, start + 1, stop)]
        end = start + self._length(start)
        return any(5 <= self._length(head) <= MAX_DOCUMENT_BYTES for head in heads) or start + 5 <= end < stop

    def _length(self, place: int) -> int:
        return int.from_bytes(self.data[place : place + 4], 'little', signed=True)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_a_mutated_document_costs_none_of_its_neighbours(tmp_path, monkeypatch, seed):
    path = tmp_path / plan.SOURCES[0]
    covered = 0
    for number in range(MUTATIONS // IN_A_FILE // 4):
        draw = random.Random(f'{seed} {number}')
        file = File(draw)
        path.unlink(missing_ok=True)  # some file systems wait for the disk where a file is written over
        path.write_bytes(file.data)
        began = time.process_time()
        entries, damages = found_in(path, tested=file.tested)
        assert time.process_time() - began < 5, 'bounded time'
        found = check_tiles(entries, damages, len(file.data))
        products = check_found(file, path, entries, damages)
        covered += check_pieces(file, found, dict(zip((entry[0] for entry in entries), products, strict=True)))
        check_both_ways(file)
        if number % 2:
            with monkeypatch.context() as patch:
                patch.setattr(bson_stream, 'WINDOW', draw.choice([100, 1000, 5000, 20_000]))
                patch.setattr(bson_stream, 'FIRST_WINDOW', draw.choice([50, 500]))
                assert found_in(path, tested=file.tested) == (entries, damages), 'the windows do not matter'
        if number % 5 == 0:
            check_stop(path, tested=file.tested)
    assert covered < MUTATIONS // 1000, 'few are ambiguous'


def check_tiles(entries: list[Entry], damages: list[Damage], size: int) -> list[tuple[int, int]]:
    """Every byte of the file is in one entry or damage; gives their starts and lengths in order."""
    spans = [(start, length) for start, length, *_ in entries], [(one.offset, one.length) for one in damages]
    assert [sorted(part) for part in spans] == list(spans)
    found = sorted(itertools.chain(*spans))
    ends = [start + length for start, length in found]
    assert [start for start, _ in found] == [0, *ends[:-1]]
    assert ends[-1] == size
    return found


def check_found(file: File, path: Path, entries: list[Entry], damages: list[Damage]) -> list[Product]:
    """What is taken is a product by pymongo, and is read as such; what is left out is none, and is told in one line."""
    rows = np.array(entries, bson_stream.ENTRY)
    with storage.open_ranges(str(path)) as ranges:
        read = bson_stream.read(ranges, rows['offset'], rows['length'], with_category=not file.tested)
    products = products_of(read)
    for (start, length, count, *ids), product in zip(entries, products, strict=True):
        assert product == decoded(file.data[start : start + length])
        assert [count, *ids] == [len(product[2]), product[0], product[1]]
    for one in damages:
        assert one.reason
        assert '\n' not in str(one.error('train.bson'))
        assert not check_long_way(file.data, one.offset, one.offset + one.length, tested=file.tested)
    return products


def check_pieces(file: File, found: list[tuple[int, int]], taken: dict[int, Product]) -> int:
    """Every neighbour is there, and what became of a mutation lies between them: products in = products out + rejected.

    Gives how many are covered by a whole document that begins earlier.
    """
    covered = [file.is_covered(start, found) for start in file.starts]
    for number, kind in enumerate(file.kinds):
        start, stop = file.starts[number : number + 2]
        if not kind and not covered[number]:
            assert taken[start] == decoded(file.pieces[number])
        # What is left of a document that is covered in part is damage, and goes on to the next beginning.
        if kind and start < stop and not any(covered[max(0, number - 1) : number + 2]):
            inside = sum(start <= place < stop for place, _ in found)
            assert inside == 1 or file.seems_to_go_on(number), kind
    return sum(covered)


def check_both_ways(file: File) -> None:
    """Both ways of taking documents apart agree: on what was mutated, and on all that the lengths lead to."""
    followed = bson_stream._follow_lengths(np.frombuffer(file.data, np.uint8))
    check_short_way(file.data, file.starts[:-1], file.starts[1:], tested=file.tested)
    check_short_way(file.data, *(places.tolist() for places in followed), tested=file.tested)
    for start, end in itertools.pairwise(file.starts):
        check_long_way(file.data, start, end, tested=file.tested)


def check_stop(path: Path, *, tested: bool) -> None:
    """Where documents aren't skipped, the first that is rejected is the error, told with its place."""
    source = plan.SOURCES.index('test.bson' if tested else 'train.bson')
    path = path.rename(path.with_name(plan.SOURCES[source]))
    skipping = job(path.parent, skip=True)
    rejected = [one for one in plan.index_source(source, skipping) if isinstance(one, plan.Rejected)]
    stopping = plan.index_source(source, job(path.parent, skip=False))
    if rejected:
        with pytest.raises(CatalogueError) as raised:
            list(stopping)
        assert str(raised.value) == str(rejected[0].damage.error(str(path)))
        assert f'{path}: byte {rejected[0].damage.offset}: ' in str(raised.value)
    else:
        list(stopping)


def job(folder: Path, *, skip: bool) -> plan.Job:
    label_map = categories.Categories(np.array([CATEGORY]), (('A', 'A', 'A'),))
    return plan.Job(
        input_dir=str(folder),
        output_dir='',
        label_map=label_map,
        val_fraction=0.1,
        seed=0,
        shard_bytes=10**6,
        skip=skip,
        max_rejected=1,
        plan_only=False,
        sources=({'bytes': 0}, {'bytes': 0}),
    )


# What takes long, if anything does.

GOOD = document(1, 1, tested=False)


@pytest.mark.parametrize(
    ('between', 'seconds', 'damages'),
    [
        (bytes(200_000_000), 4, 1),
        (random.Random(0).randbytes(2**20) * 100, 4, None),
        (b'_id\0' * 2_000_000, 8, 1),
        (b'\x10_id\0' * 2_000, 20, None),
        ((struct.pack('<i', 0) + GOOD[4:] + GOOD) * 2_000, 20, 2_000),
        ((GOOD[:-1] + b'\1' + GOOD) * 2_000, 20, 2_000),
        (bson.encode({'_id': -1}) * 20_000, 20, 20_000),
    ],
    ids=['zeros', 'noise', 'names', 'names of a type', 'broken lengths', 'broken ends', 'unusable'],
)
def test_a_file_that_is_damaged_all_through_takes_bounded_time(tmp_path, between, seconds, damages):
    """The bounds are some twenty times what two idle cores take; what grew with the square would take hours."""
    path = tmp_path / 'train.bson'
    path.write_bytes(GOOD + between + GOOD)
    began = time.process_time()
    entries, told = found_in(path, tested=False)
    assert time.process_time() - began < seconds
    assert entries[0][:2] == (0, len(GOOD))
    assert entries[-1][:2] == (len(GOOD) + len(between), len(GOOD))
    assert damages in (None, len(told))


def test_many_documents_cost_no_more_the_more_they_are(tmp_path):
    """A document that is broken costs as much in a large file as in a small one."""
    path = tmp_path / 'train.bson'

    def cost(copies: int) -> float:
        path.write_bytes((struct.pack('<i', 0) + GOOD[4:] + GOOD) * copies)
        began = time.process_time()
        found_in(path, tested=False)
        return (time.process_time() - began) / copies

    cost(10)
    assert cost(4000) < 4 * cost(250)


# A document in another order, which only its place makes known.

OTHER_ORDER = encoded(dict(reversed(bson.decode(GOOD).items())))


@pytest.mark.parametrize(
    ('broken', 'whole'),
    [
        (GOOD[:-1] + b'\1', [2]),
        (GOOD[:8] + b'\1' + GOOD[9:], [2]),
        (struct.pack('<i', 0) + GOOD[4:], []),
        (GOOD[:-9], []),
    ],
    ids=['no end mark', 'a name damaged', 'length damaged', 'cut'],
)
def test_after_damage_a_document_in_another_order_is_found_where_the_length_leads(tmp_path, broken, whole):
    path = tmp_path / 'train.bson'
    pieces = [GOOD, broken, OTHER_ORDER, GOOD]
    path.write_bytes(b''.join(pieces))
    starts = [0, *itertools.accumulate(map(len, pieces))]
    entries, damages = found_in(path, tested=False)
    assert [entry[0] for entry in entries] == [starts[0], *(starts[number] for number in whole), starts[3]]
    assert damages[0].offset == starts[1]
