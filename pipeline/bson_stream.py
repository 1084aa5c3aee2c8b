"""Documents of a .bson file: where each stands, its product, its category, its pictures.

A catalogue file is documents one after the other with no header. One is `{_id: int, imgs: [{picture: binary}, ...],
category_id: int}`; test files have no category_id. Every kind of damage raises a CatalogueError with the byte offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeGuard

import bson
from bson.errors import InvalidBSON

from pipeline import storage
from pipeline.errors import CatalogueError

PICTURE_SIZE = 180  # pixels; every picture of the challenge is 180x180
NO_CATEGORY = -1
# MongoDB's limit on a document is 16 MiB; a length beyond it is damage, and would cost memory before it is noticed.
MAX_DOCUMENT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Document:
    """One product of a catalogue.

    Attributes:
        offset: where it starts in the file, bytes.
        length: bytes.
        product_id: `_id`.
        category_id: or NO_CATEGORY in a test file.
        images: the encoded JPEG pictures, one or more.
    """

    offset: int
    length: int
    product_id: int
    category_id: int
    images: tuple[bytes, ...]


def documents(path: str, *, with_category: bool) -> Iterator[Document]:
    """All documents of a file, in order.

    Args:
        path: the .bson file.
        with_category: whether documents must have a category_id (train) or must not (test).

    Raises:
        CatalogueError: the first document that can't be used, with its byte offset.
    """
    offset = 0
    with storage.open_read(path) as file:
        total = storage.size(path)
        while offset < total:
            document = read_document(file, offset, path=path, with_category=with_category)
            yield document
            offset += document.length


def read_document(file: BinaryIO, offset: int, *, path: str, with_category: bool) -> Document:
    """The document that starts at `offset`; `path` is for errors.

    Raises:
        CatalogueError: it can't be used.
    """

    def bad(rule: str, remedy: str = 'get the file again, or mend this document') -> CatalogueError:
        return CatalogueError(f'{path}: byte {offset}: {rule}; {remedy}')

    if file.tell() != offset:
        file.seek(offset)
    head = file.read(4)
    length = int.from_bytes(head, 'little', signed=True)
    if len(head) < 4 or not 5 <= length <= MAX_DOCUMENT_BYTES:
        raise bad(f'not a BSON document (its length reads {length})')
    data = head + file.read(length - 4)
    if len(data) < length:
        raise bad(f'the file is cut off: this document has {length} bytes, {len(data)} are there', 'get the file again')
    try:
        fields: dict[str, Any] = bson.decode(data)
    except InvalidBSON as error:
        raise bad(f'not a BSON document ({error})') from None
    product_id, category_id = fields.get('_id'), fields.get('category_id')
    if not _is_whole(product_id) or product_id < 0:
        raise bad(f'_id must be a whole number of 0 or more, is {product_id!r}')
    if with_category and not _is_whole(category_id):
        raise bad(f'product {product_id}: category_id must be a whole number, is {category_id!r}')
    if not with_category and category_id is not None:
        raise bad(f'product {product_id} has a category_id, which a test file must not have', 'is this the train file?')
    images = _images(fields.get('imgs'))
    if not images:
        raise bad(f'product {product_id} has no pictures; imgs must be [{{picture: binary}}, ...]')
    for number, image in enumerate(images):
        problem = _picture_problem(image)
        if problem:
            raise bad(f'product {product_id}: picture {number} {problem}')
    return Document(offset, length, int(product_id), NO_CATEGORY if category_id is None else int(category_id), images)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _images(entries: object) -> tuple[bytes, ...]:
    if not isinstance(entries, list):
        return ()
    images = [entry.get('picture') if isinstance(entry, dict) else None for entry in entries]
    good = [image for image in images if isinstance(image, bytes)]
    return tuple(good) if len(good) == len(images) else ()


def _picture_problem(image: bytes) -> str:
    """What keeps the bytes from being a usable picture, '' if nothing; reads the header and looks for the end."""
    size = jpeg_size(image)
    if size is None:
        return f'is no JPEG (starts with {image[:4].hex(" ") or "nothing"})'
    if image.rfind(b'\xff\xd9') < 0:  # the end marker; inside a JPEG's data, FF is followed by 00
        return 'is cut off: it has no end'
    if size != (PICTURE_SIZE, PICTURE_SIZE):
        return f'is {size[0]}x{size[1]} pixels, must be {PICTURE_SIZE}x{PICTURE_SIZE}'
    return ''


def jpeg_size(image: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header of a JPEG says; None if it has no such header.

    A JPEG is marker segments: FF, a code, then a 2-byte length that counts itself (ITU T.81, annex B). The frame
    header, codes C0 to CF but for C4, C8 and CC, holds precision, height and width.
    """
    if image[:3] != b'\xff\xd8\xff':
        return None
    place = 2
    while place + 9 <= len(image) and image[place] == 0xFF:
        code = image[place + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = image[place + 5 : place + 7], image[place + 7 : place + 9]
            return int.from_bytes(width, 'big'), int.from_bytes(height, 'big')
        place += 2 + int.from_bytes(image[place + 2 : place + 4], 'big')
    return None
