"""Documents of a .bson file: where each stands, its product, its category, its pictures.

A catalogue file is documents one after the other with no header. One is `{_id: int, imgs: [{picture: binary}, ...],
category_id: int}`; test files have no category_id. Documents laid out byte for byte as Kaggle's are found by their
headers and tails, thousands at a time, without touching the pictures between; any other document is decoded.

What can't be used is Damage, with its place. Where the structure itself is damaged the next document is looked for: the
first length that an _id follows, or the place where the damaged one says it ends, if a document stands there.
"""

from __future__ import annotations

import re
import reprlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bson
import numpy as np

from pipeline import storage
from pipeline.errors import CatalogueError, one_line

PICTURE_SIZE = 180  # pixels; every picture of the challenge is 180x180
MAX_PICTURES = 4  # a product
NO_CATEGORY = -1
# MongoDB's limit on a document is 16 MiB; a length beyond it is damage, and would cost memory before it is noticed.
MAX_DOCUMENT_BYTES = 16 * 2**20
WINDOW = 2 * MAX_DOCUMENT_BYTES  # bytes indexed at a time
# After damage, then twice as many each time: where a file is damaged all through, no whole window is spent on each.
FIRST_WINDOW = 2**16
ID_TYPES = b'\x01\x10\x12'  # BSON's double, int32, int64
CUT_OFF = 'the file is cut off'  # how the reason begins of a document that goes on after the file's end

MAX_SEGMENTS = 16  # of a JPEG before its frame header that are followed for many pictures at once; Kaggle's have 3
IS_FRAME_MARKER = np.zeros(2**16, bool)
IS_FRAME_MARKER[[0xFFC0 + code for code in range(16) if code not in (4, 8, 12)]] = True

# Where a product stands in its file and what it is.
ENTRY = np.dtype([('offset', 'i8'), ('length', 'i4'), ('images', 'u1'), ('product_id', 'i8'), ('category_id', 'i8')])


@dataclass(frozen=True)
class Damage:
    """Bytes of a file that hold no usable product.

    Attributes:
        offset: of the first of them.
        length: how many; the next document follows.
        reason: the rule that is broken.
        remedy: what to do about it.
    """

    offset: int
    length: int
    reason: str
    remedy: str = 'get the file again, or mend this document'

    def error(self, path: str) -> CatalogueError:
        """As the error of a file."""
        return CatalogueError(f'{path}: byte {self.offset}: {self.reason}; {self.remedy}')

    def is_cut_off(self, size: int) -> bool:
        """Whether a file of `size` bytes ends within this document; what followed it is missing."""
        # Fewer than 4 bytes don't even hold a length, so their reason is another one.
        return self.offset + self.length == size and (self.length < 4 or self.reason.startswith(CUT_OFF))


@dataclass(frozen=True)
class Documents:
    """Some documents in memory, and where their pictures are.

    Attributes:
        data: uint8 [bytes], the documents' bytes among others.
        product_id: int64 [n].
        category_id: int64 [n]; NO_CATEGORY in a test file.
        images: int64 [n], pictures of each: 1 to MAX_PICTURES, 0 if the document can't be used.
        starts: int64 [n, MAX_PICTURES], where in `data` each picture starts.
        lengths: int64 [n, MAX_PICTURES], bytes of each picture; 0 where there is none.
    """

    data: np.ndarray
    product_id: np.ndarray
    category_id: np.ndarray
    images: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class _Document:
    product_id: int
    category_id: int
    images: tuple[bytes, ...]


class _UnusableError(Exception):
    """What a document holds can't be used; where it ends is known. (reason) or (reason, remedy)."""


class _BrokenError(_UnusableError):
    """A document's structure is damaged, so where it ends isn't known either."""


def index(path: str, *, with_category: bool) -> Iterator[np.ndarray | Damage]:
    """Finds every product of a file.

    Args:
        path: the .bson file.
        with_category: whether documents must have a category_id (train) or must not (test).

    Yields:
        ENTRY [n], in order of offset, and Damage. Together they cover every byte of the file once.

    Raises:
        InputError: there is no such file.
    """
    with storage.open_ranges(path) as file:
        offset, size = 0, WINDOW
        while offset < file.size:
            window = _window(file, offset, size)
            size = min(2 * size, WINDOW)
            starts, ends = _follow_lengths(window)
            documents = _laid_out(window, starts, ends, with_category=with_category)
            entries = _entries(documents, offset + starts, ends - starts)
            entries['images'][_have_size(documents).sum(1) < documents.images] = 0
            following = offset + int(ends[-1])
            for number in np.flatnonzero(entries['images'] == 0):
                start, end = offset + int(starts[number]), offset + int(ends[number])
                try:
                    document = _decoded(window[starts[number] : ends[number]].data, with_category=with_category)
                except _BrokenError as problem:
                    size = FIRST_WINDOW
                    following = _next_document(file, start, end, with_category=with_category)
                    yield Damage(start, following - start, *problem.args)
                    entries = entries[:number]
                    break
                except _UnusableError as problem:
                    yield Damage(start, end - start, *problem.args)
                else:
                    ids = document.product_id, document.category_id
                    entries[number] = (start, end - start, len(document.images), *ids)
            entries = entries[entries['images'] > 0]
            if len(entries):
                yield entries
            offset = following


def read(file: storage.Ranges, offsets: np.ndarray, lengths: np.ndarray, *, with_category: bool) -> Documents:
    """Reads documents by their places.

    Args:
        file: the .bson file.
        offsets: int64 [n], as index() found them.
        lengths: int64 [n].
        with_category: as for index().

    Returns:
        the documents in the order of `offsets`; one that isn't there (any more) has no pictures.
    """
    data = file.gather(offsets, lengths)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    documents = _laid_out(data, starts, ends, with_category=with_category)
    for number in np.flatnonzero(documents.images == 0):
        whole = data[starts[number] : ends[number]].tobytes()
        try:
            document = _decoded(whole, with_category=with_category)
        except _UnusableError:
            continue
        documents.product_id[number], documents.category_id[number] = document.product_id, document.category_id
        documents.images[number] = len(document.images)
        for place, image in enumerate(document.images):
            documents.starts[number, place] = starts[number] + whole.index(image)
            documents.lengths[number, place] = len(image)
    return documents


def _window(file: storage.Ranges, offset: int, size: int) -> np.ndarray:
    """`size` bytes from `offset` on, or all of the document there if it is longer."""
    length = _length(file.window(offset, 4).data)
    return file.window(offset, max(size, length) if _plausible(length) else size)


def _length(data: bytes | memoryview) -> int:
    """What the document says its length is."""
    return int.from_bytes(data[:4], 'little', signed=True)


def _follow_lengths(window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the documents start and end, int64 [n] each, if every length is right.

    A length that can't be right, or a document that goes on after the window, is left to the window that starts
    there; so n is at least 1.
    """
    length_at, view = struct.Struct('<i').unpack_from, window.data
    places, place = [0], 0
    while place + 4 <= len(view):
        (length,) = length_at(view, place)
        if not _plausible(length) or place + length > len(view):
            break
        place += length
        places.append(place)
    if len(places) == 1:
        places.append(len(view))
    return np.array(places[:-1], np.int64), np.array(places[1:], np.int64)


def _plausible(length: int) -> bool:
    return 5 <= length <= MAX_DOCUMENT_BYTES


def _laid_out(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, with_category: bool) -> Documents:
    """Takes documents apart that have Kaggle's fields, types and order exactly; others get no pictures.

    The layout in bytes (bsonspec.org): int32 length; 10 "_id" 00, int32; 04 "imgs" 00, int32 length of the array; for
    each picture 03 "0" 00, int32 length of the entry, 05 "picture" 00, int32 length, 00, the picture, 00; 00 at the
    array's end; in train 10 "category_id" 00, int32; 00.
    """
    four, eight = _unaligned(data, '<i4'), _unaligned(data, '<i8')
    good = _at(four, starts) == ends - starts
    good &= (_at(eight, starts + 4) & 0xFFFFFFFFFF) == _number(b'\x10_id\0')
    good &= (_at(eight, starts + 13) & 0xFFFFFFFFFFFF) == _number(b'\x04imgs\0')
    product_id = _at(four, starts + 9)
    array_end = starts + 19 + _at(four, starts + 19)
    picture_starts, picture_lengths = np.zeros((2, len(starts), MAX_PICTURES), np.int64)
    images = np.zeros(len(starts), np.int64)
    place = starts + 23
    for number in range(MAX_PICTURES):
        more = good & (place + 1 < array_end)
        length = _at(four, place + 16)
        following = place + 22 + length
        good &= ~more | (
            ((_at(four, place) & 0xFFFFFF) == _number(b'\x03%d\0' % number))
            & (_at(eight, place + 7) == _number(b'\x05picture'))
            & (_at(data, place + 15) == 0)
            & (_at(data, place + 20) == 0)
            & (length >= 0)
            & (_at(four, place + 3) == length + 19)
            & (following < array_end)
            & (_at(data, following - 1) == 0)
        )
        more &= good
        picture_starts[:, number] = np.where(more, place + 21, 0)
        picture_lengths[:, number] = np.where(more, length, 0)
        images += more
        place = np.where(more, following, place)
    good &= (images > 0) & (place + 1 == array_end) & (array_end <= ends) & (_at(data, place) == 0) & (product_id >= 0)
    if with_category:
        good &= (_at(eight, array_end) == _number(b'\x10categor')) & (
            _at(eight, array_end + 5) == _number(b'gory_id\0')
        )
        category_id = _at(four, array_end + 13)
        array_end = array_end + 17
    else:
        category_id = np.full(len(starts), NO_CATEGORY, np.int64)
    good &= (array_end + 1 == ends) & (_at(data, array_end) == 0)
    return Documents(data, product_id, category_id, images * good, picture_starts, picture_lengths)


def _have_size(documents: Documents) -> np.ndarray:
    """Which pictures are JPEGs of PICTURE_SIZE by their headers and end with the end marker: bool [n, MAX_PICTURES].

    What jpeg_size() does with one picture, for all of them at once.
    """
    data, starts, lengths = documents.data, documents.starts, documents.lengths
    ends = starts + lengths
    two = _unaligned(data, '>u2')
    place = starts + 2
    searching = (lengths >= 4) & (_at(two, starts) == 0xFFD8) & (_at(two, ends - 2) == 0xFFD9)
    found = np.zeros(starts.shape, bool)
    for _ in range(MAX_SEGMENTS):
        marker = _at(two, place)
        searching &= (place + 9 <= ends) & (marker >> 8 == 0xFF)
        if not searching.any():
            break
        frame = searching & IS_FRAME_MARKER[marker]
        found |= frame & (_at(two, place + 5) == PICTURE_SIZE) & (_at(two, place + 7) == PICTURE_SIZE)
        searching &= ~frame
        place = np.where(searching, place + 2 + _at(two, place + 2), place)
    return found


def _unaligned(data: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that start at each byte of `data`: a view, nothing is copied."""
    count = max(0, len(data) - np.dtype(kind).itemsize + 1)
    return np.ndarray(count, kind, data, strides=(1,))


def _at(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The numbers at some places as int64; places outside give any number, and a caller must not rely on it."""
    if not len(numbers):
        return np.zeros(places.shape, np.int64)
    return numbers[np.clip(places, 0, len(numbers) - 1)].astype(np.int64)


def _number(text: bytes) -> int:
    return int.from_bytes(text, 'little')


def _entries(documents: Documents, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    entries = np.empty(len(offsets), ENTRY)
    entries['offset'], entries['length'], entries['images'] = offsets, lengths, documents.images
    entries['product_id'], entries['category_id'] = documents.product_id, documents.category_id
    return entries


def _decoded(data: bytes | memoryview, *, with_category: bool) -> _Document:
    """Takes any document apart.

    Raises:
        _BrokenError: `data` isn't a whole document.
        _UnusableError: it holds no usable product.
    """
    length = _length(data)
    if len(data) < 4 or not _plausible(length):
        raise _BrokenError(f'not a BSON document (its length reads {length})')
    if len(data) < length:
        rule = f'{CUT_OFF}: this document has {length} bytes, {len(data)} are there'
        raise _BrokenError(rule, 'get the file again')
    try:
        fields: dict[str, Any] = bson.decode(data)
    except Exception as error:  # InvalidBSON, and what the types of values raise, such as dates after the year 9999
        raise _BrokenError(f'not a BSON document ({one_line(error)})') from None
    product_id, category_id = _whole(fields.get('_id')), _whole(fields.get('category_id'))
    if product_id is None or product_id < 0:
        raise _UnusableError(f'_id must be a whole number of 0 or more, is {reprlib.repr(fields.get("_id"))}')
    if with_category and category_id is None:
        value = reprlib.repr(fields.get('category_id'))
        raise _UnusableError(f'product {product_id}: category_id must be a whole number, is {value}')
    if not with_category and fields.get('category_id') is not None:
        rule = f'product {product_id} has a category_id, which a test file must not have'
        raise _UnusableError(rule, 'is this the train file?')
    images = _images(fields.get('imgs'))
    if not images:
        raise _UnusableError(f'product {product_id} has no pictures; imgs must be [{{picture: binary}}, ...]')
    if len(images) > MAX_PICTURES:
        raise _UnusableError(f'product {product_id} has {len(images)} pictures, at most {MAX_PICTURES} are allowed')
    for number, image in enumerate(images):
        problem = _picture_problem(image)
        if problem:
            raise _UnusableError(f'product {product_id}: picture {number} {problem}')
    return _Document(product_id, NO_CATEGORY if category_id is None else category_id, images)


def _whole(value: Any) -> int | None:
    """The value as a whole number: MongoDB's shell writes numbers as doubles, which are exact up to 2 to the 53."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


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
        if IS_FRAME_MARKER[int.from_bytes(image[place : place + 2], 'big')]:
            height, width = image[place + 5 : place + 7], image[place + 7 : place + 9]
            return int.from_bytes(width, 'big'), int.from_bytes(height, 'big')
        place += 2 + int.from_bytes(image[place + 2 : place + 4], 'big')
    return None


def _next_document(file: storage.Ranges, start: int, end: int, *, with_category: bool) -> int:
    """Where to go on after a document that is broken.

    Args:
        file: the .bson file.
        start: where the broken document starts.
        end: where it says it ends.
        with_category: as for index().

    Returns:
        the first place after `start` where a length stands that an _id follows; `end` if it comes earlier and a
        document or nothing stands there; otherwise the file's end.
    """
    limit = end if end == file.size or _stands(file, end, with_category=with_category) else file.size
    place, size = start + 1, FIRST_WINDOW
    while place < limit:
        window = file.window(place, size).data
        size = min(2 * size, WINDOW)
        # The type of the _id is looked at afterwards: a fixed text is found ten times as fast as one of several.
        for match in re.finditer(rb'_id\0', window):
            head = match.start() - 5
            if head >= 0 and window[head + 4] in ID_TYPES and _plausible(_length(window[head : head + 4])):
                return min(place + head, limit)
        if place + len(window) == file.size:
            break
        place += len(window) - 8  # so that what lies across the border is seen whole
    return limit


def _stands(file: storage.Ranges, offset: int, *, with_category: bool) -> bool:
    """Whether a document, usable or not, stands at `offset`."""
    try:
        _decoded(_window(file, offset, 4).data, with_category=with_category)
    except _BrokenError:
        return False
    except _UnusableError:
        pass
    return True
