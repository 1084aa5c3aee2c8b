"""Every document is found where it stands; every kind of damage is told with the file, the byte and the remedy."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import bson
import pytest
from PIL import Image

from pipeline import bson_stream
from pipeline.bson_stream import MAX_DOCUMENT_BYTES, NO_CATEGORY, Document
from pipeline.errors import CatalogueError, InputError
from tests import catalogue

JPEG = catalogue.jpeg(0)
FIRST = catalogue.document(1, [JPEG], 1000)
MEND = 'get the file again, or mend this document'


def documents(folder: Path, data: bytes, *, with_category: bool = True) -> list[Document]:
    (folder / 'train.bson').write_bytes(data)
    return list(bson_stream.documents(str(folder / 'train.bson'), with_category=with_category))


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
    assert documents(tmp_path, b''.join(data)) == [
        Document(0, sizes[0], 7, 1000, tuple(pictures[:1])),
        Document(sizes[0], sizes[1], 3, 1010, tuple(pictures[1:5])),
        Document(sizes[0] + sizes[1], sizes[2], 5, 1000, tuple(pictures[5:])),
    ]


def test_a_document_can_be_read_alone_by_its_place():
    file = io.BytesIO(FIRST + catalogue.document(2, [JPEG], 1000))
    for offset, product_id in ((len(FIRST), 2), (0, 1), (len(FIRST), 2)):
        document = bson_stream.read_document(file, offset, path='x', with_category=True)
        assert (document.offset, document.product_id) == (offset, product_id)


def test_a_test_document_has_no_category(tmp_path):
    (document,) = documents(tmp_path, catalogue.document(1, [JPEG]), with_category=False)
    assert document.category_id == NO_CATEGORY == -1


def test_an_empty_file_has_no_documents(tmp_path):
    assert documents(tmp_path, b'') == []


@pytest.mark.parametrize(
    'values',
    [
        {'category_id': 1000, 'imgs': [{'picture': JPEG}], '_id': 2},
        fields(_id=bson.Int64(2), category_id=bson.Int64(1000)),
        fields(more='text', nothing=float('nan')),
        fields(imgs=[{'size': 1, 'picture': bson.Binary(JPEG, 0)}]),
    ],
    ids=['another order', '64-bit ids', 'further fields', 'further fields of a picture'],
)
def test_what_says_the_same_in_another_way_is_accepted(tmp_path, values):
    data = bson.encode(values)
    assert documents(tmp_path, data) == [Document(0, len(data), 2, 1000, (JPEG,))]


def test_ids_may_have_64_bits(tmp_path):
    (document,) = documents(tmp_path, bson.encode(fields(_id=2**63 - 1, category_id=2**62)))
    assert (document.product_id, document.category_id) == (2**63 - 1, 2**62)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (180, 180)).save(buffer, 'PNG')
    return buffer.getvalue()


NO_PICTURES = f'product 2 has no pictures; imgs must be [{{picture: binary}}, ...]; {MEND}'
WRONG_FIELDS = {
    '_id missing': (fields(_id=None), f'_id must be a whole number of 0 or more, is None; {MEND}'),
    '_id text': (fields(_id='2'), f"_id must be a whole number of 0 or more, is '2'; {MEND}"),
    '_id fraction': (fields(_id=2.0), f'_id must be a whole number of 0 or more, is 2.0; {MEND}'),
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
        (FIRST[:-1] + b'\x01', f'not a BSON document (bad eoo); {MEND}'),
    ],
    ids=['one byte', 'three bytes', 'zeros', 'negative', 'one too small', 'smallest', 'one too large', 'largest']
    + ['cut after the length', 'cut before the last byte', 'noise', 'no end mark'],
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
        list(bson_stream.documents(f'{tmp_path}/none.bson', with_category=True))


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
