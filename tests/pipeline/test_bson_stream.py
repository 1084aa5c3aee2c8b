"""Every document is found where it stands; every kind of damage is told with the file, the byte and the remedy."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest
from PIL import Image

from pipeline import bson_stream, storage
from pipeline.bson_stream import MAX_DOCUMENT_BYTES, NO_CATEGORY, Damage
from pipeline.errors import CatalogueError, InputError
from tests import catalogue

JPEG = catalogue.jpeg(0)
FIRST = catalogue.document(1, [JPEG], 1000)
MEND = 'get the file again, or mend this document'


Product = tuple[int, int, tuple[bytes, ...]]


def index(folder: Path, data: bytes, *, with_category: bool = True) -> tuple[list[tuple], list[Damage]]:
    """The entries and the damage of a file with these bytes."""
    (folder / 'train.bson').write_bytes(data)
    found = list(bson_stream.index(str(folder / 'train.bson'), with_category=with_category))
    damage = [one for one in found if isinstance(one, Damage)]
    return [row for one in found if not isinstance(one, Damage) for row in one.tolist()], damage


def documents(folder: Path, data: bytes, *, with_category: bool = True) -> list[Product]:
    """(id, category, pictures) of each document of a file with these bytes, read back by their places.

    Raises:
        CatalogueError: of the first damage.
    """
    entries, damage = index(folder, data, with_category=with_category)
    path = str(folder / 'train.bson')
    if damage:
        raise damage[0].error(path)
    rows = np.array(entries, bson_stream.ENTRY)
    with storage.open_ranges(path) as file:
        read = bson_stream.read(file, rows['offset'], rows['length'], with_category=with_category)
    assert rows['product_id'].tolist() == read.product_id.tolist()
    assert rows['category_id'].tolist() == read.category_id.tolist()
    assert rows['images'].tolist() == read.images.tolist()
    found = []
    for number, count in enumerate(read.images.tolist()):
        places = zip(read.starts[number, :count], read.lengths[number, :count], strict=True)
        images = tuple(read.data[start : start + length].tobytes() for start, length in places)
        found.append((int(read.product_id[number]), int(read.category_id[number]), images))
    return found


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a good train document but for the changes; None leaves one out."""
    values = {'_id': 2, 'imgs': [{'picture': JPEG}], 'category_id': 1000, **changes}
    return {name: value for name, value in values.items() if value is not None}


def test_documents_come_in_order_each_with_its_place(tmp_path):
    pictures = [catalogue.jpeg(seed) for seed in range(6)]
    data = [
        catalogue.document(7, pictures[:1], 1000),
        catalogue.document(3, pictures[1:5], 1010),
        catalogue.document(5, pictures[5:], 1000),
    ]
    sizes = [len(one) for one in data]
    assert index(tmp_path, b''.join(data)) == (
        [(0, sizes[0], 1, 7, 1000), (sizes[0], sizes[1], 4, 3, 1010), (sizes[0] + sizes[1], sizes[2], 1, 5, 1000)],
        [],
    )
    assert documents(tmp_path, b''.join(data)) == [
        (7, 1000, tuple(pictures[:1])),
        (3, 1010, tuple(pictures[1:5])),
        (5, 1000, tuple(pictures[5:])),
    ]


def test_a_test_document_has_no_category(tmp_path):
    assert documents(tmp_path, catalogue.document(1, [JPEG]), with_category=False) == [(1, NO_CATEGORY, (JPEG,))]


def test_an_empty_file_has_no_documents(tmp_path):
    assert documents(tmp_path, b'') == []


@pytest.mark.parametrize(
    'values',
    [
        {'category_id': 1000, 'imgs': [{'picture': JPEG}], '_id': 2},
        fields(_id=bson.Int64(2), category_id=bson.Int64(1000)),
        fields(_id=2.0, category_id=1000.0),
        fields(more='text', nothing=float('nan')),
        fields(imgs=[{'size': 1, 'picture': bson.Binary(JPEG, 0)}]),
    ],
    ids=['another order', '64-bit ids', 'doubles', 'further fields', 'further fields of a picture'],
)
def test_what_says_the_same_in_another_way_is_accepted(tmp_path, values):
    data = bson.encode(values)
    assert documents(tmp_path, data) == [(2, 1000, (JPEG,))]


def test_ids_may_have_64_bits(tmp_path):
    assert documents(tmp_path, bson.encode(fields(_id=2**63 - 1, category_id=2**62))) == [(2**63 - 1, 2**62, (JPEG,))]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (180, 180)).save(buffer, 'PNG')
    return buffer.getvalue()


NO_PICTURES = f'product 2 has no pictures; imgs must be [{{picture: binary}}, ...]; {MEND}'
WRONG_FIELDS = {
    '_id missing': (fields(_id=None), f'_id must be a whole number of 0 or more, is None; {MEND}'),
    '_id text': (fields(_id='2'), f"_id must be a whole number of 0 or more, is '2'; {MEND}"),
    '_id fraction': (fields(_id=2.5), f'_id must be a whole number of 0 or more, is 2.5; {MEND}'),
    '_id double too large to be exact': (
        fields(_id=2.0**54),
        f'_id must be a whole number of 0 or more, is 1.8014398509481984e+16; {MEND}',
    ),
    '_id not a number': (fields(_id=float('nan')), f'_id must be a whole number of 0 or more, is nan; {MEND}'),
    'five pictures': (
        fields(imgs=[{'picture': JPEG}] * 5),
        f'product 2 has 5 pictures, at most 4 are allowed; {MEND}',
    ),
    '_id true': (fields(_id=True), f'_id must be a whole number of 0 or more, is True; {MEND}'),
    '_id negative': (fields(_id=-1), f'_id must be a whole number of 0 or more, is -1; {MEND}'),
    'category missing': (fields(category_id=None), f'product 2: category_id must be a whole number, is None; {MEND}'),
    'category text': (fields(category_id='a'), f"product 2: category_id must be a whole number, is 'a'; {MEND}"),
    'category true': (fields(category_id=True), f'product 2: category_id must be a whole number, is True; {MEND}'),
    'imgs missing': (fields(imgs=None), NO_PICTURES),
    'imgs empty': (fields(imgs=[]), NO_PICTURES),
    'imgs binary': (fields(imgs=JPEG), NO_PICTURES),
    'imgs of binary': (fields(imgs=[JPEG]), NO_PICTURES),
    'picture missing': (fields(imgs=[{'picture': JPEG}, {}]), NO_PICTURES),
    'picture text': (fields(imgs=[{'picture': 'x'}]), NO_PICTURES),
    'picture empty': (
        fields(imgs=[{'picture': b''}]),
        f'product 2: picture 0 is no JPEG (starts with nothing); {MEND}',
    ),
    'picture PNG': (
        fields(imgs=[{'picture': JPEG}, {'picture': png()}]),
        f'product 2: picture 1 is no JPEG (starts with 89 50 4e 47); {MEND}',
    ),
    'picture cut in the header': (
        fields(imgs=[{'picture': JPEG[:100]}]),
        f'product 2: picture 0 is no JPEG (starts with ff d8 ff e0); {MEND}',
    ),
    'picture cut in its data': (
        fields(imgs=[{'picture': JPEG[:-2]}]),
        f'product 2: picture 0 is cut off: it has no end; {MEND}',
    ),
    'picture narrow': (
        fields(imgs=[{'picture': catalogue.jpeg(0, size=(179, 180))}]),
        f'product 2: picture 0 is 179x180 pixels, must be 180x180; {MEND}',
    ),
    'picture high': (
        fields(imgs=[{'picture': catalogue.jpeg(0, size=(180, 181))}]),
        f'product 2: picture 0 is 180x181 pixels, must be 180x180; {MEND}',
    ),
}


@pytest.mark.parametrize(('values', 'error'), WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_a_document_with_a_wrong_field_is_refused(tmp_path, values, error):
    with pytest.raises(CatalogueError, match=exactly(tmp_path, len(FIRST), error)):
        documents(tmp_path, FIRST + bson.encode(values))


def test_a_train_document_in_a_test_file_is_refused(tmp_path):
    error = 'product 1 has a category_id, which a test file must not have; is this the train file?'
    with pytest.raises(CatalogueError, match=exactly(tmp_path, 0, error)):
        documents(tmp_path, FIRST, with_category=False)


def not_bson(length: int) -> str:
    return f'not a BSON document (its length reads {length}); {MEND}'


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        (b'\x05', not_bson(5)),
        (FIRST[:3], not_bson(int.from_bytes(FIRST[:3], 'little'))),
        (bytes(64), not_bson(0)),
        (struct.pack('<i', -1) + bytes(64), not_bson(-1)),
        (struct.pack('<i', 4) + bytes(64), not_bson(4)),
        (struct.pack('<i', 5) + bytes(64), f'_id must be a whole number of 0 or more, is None; {MEND}'),
        (struct.pack('<i', MAX_DOCUMENT_BYTES + 1) + bytes(64), not_bson(MAX_DOCUMENT_BYTES + 1)),
        (
            struct.pack('<i', MAX_DOCUMENT_BYTES) + bytes(64),
            f'the file is cut off: this document has {MAX_DOCUMENT_BYTES} bytes, 68 are there; get the file again',
        ),
        (
            FIRST[:4],
            f'the file is cut off: this document has {len(FIRST)} bytes, 4 are there; get the file again',
        ),
        (
            FIRST[:-1],
            f'the file is cut off: this document has {len(FIRST)} bytes, {len(FIRST) - 1} are there; '
            'get the file again',
        ),
        (struct.pack('<i', 9) + b'\x01\x02\x03\x04\x05', f'not a BSON document (bad eoo); {MEND}'),
        (bytes(4) + FIRST[4:], not_bson(0)),
        (FIRST[:-1] + b'\x01', f'not a BSON document (bad eoo); {MEND}'),
    ],
    ids=['one byte', 'three bytes', 'zeros', 'negative', 'one too small', 'smallest', 'one too large', 'largest']
    + ['cut after the length', 'cut before the last byte', 'noise', 'good but for its length', 'no end mark'],
)
def test_a_damaged_document_is_told_by_its_byte(tmp_path, data, error):
    with pytest.raises(CatalogueError, match=exactly(tmp_path, len(FIRST), error)):
        documents(tmp_path, FIRST + data)


@pytest.mark.parametrize('bit', range(8))
def test_no_damage_gives_any_other_error(tmp_path, bit):
    """Turns one bit at a time, in all the places but the pictures' own."""
    body = len(FIRST) - len(JPEG)
    places = [place for place in range(len(FIRST)) if place < body - 30 or place > len(FIRST) - 30]
    for place in places:
        damaged = bytearray(FIRST)
        damaged[place] ^= 1 << bit
        try:
            documents(tmp_path, bytes(damaged))
        except CatalogueError as error:
            assert re.match(re.escape(f'{tmp_path}/train.bson: byte ') + r'\d+: .+; .+$', str(error))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=f'^{re.escape(f"{tmp_path}/none.bson: no such file")}$'):
        list(bson_stream.index(f'{tmp_path}/none.bson', with_category=True))


@pytest.mark.parametrize('size', [(180, 180), (1, 300), (65500, 1)])
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'comment': b'x' * 1000}, {'optimize': True}])
def test_the_size_of_a_jpeg_is_read_from_its_header(size, options):
    buffer = io.BytesIO()
    Image.new('RGB', size).save(buffer, 'JPEG', **options)
    assert bson_stream.jpeg_size(buffer.getvalue()) == size


def test_a_jpeg_cut_before_its_frame_header_has_no_size():
    needed = JPEG.index(b'\xff\xc0') + 9  # marker, length, precision, height, width
    assert [bson_stream.jpeg_size(JPEG[:length]) for length in range(needed)] == [None] * needed
    assert bson_stream.jpeg_size(JPEG[:needed]) == (180, 180)


def exactly(folder: Path, offset: int, error: str) -> str:
    return f'^{re.escape(f"{folder}/train.bson: byte {offset}: {error}")}$'
