"""The tf.train.Example of one product, both ways, and the TFRecord framing around it.

Nothing here needs TensorFlow: conversion and inspection start in a fraction of the time. Training reads thousands of
products at once (pipeline.columns). The same product always gives the same bytes (a serialised map has no fixed order,
here the features stand in order of name). tests/pipeline/test_records.py holds both directions to what TensorFlow
itself reads and writes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np

MD5_HEAD = b'\n\x10'  # before each MD5 in a list of byte strings: field 1, 16 bytes


class Product(NamedTuple):
    """One product as the shards hold it (a tuple, because there are millions).

    Attributes:
        product_id: Kaggle's _id.
        category_id: Kaggle's category, -1 in test.
        label: the category's number 0..C-1, -1 in test.
        split: train, val or test.
        images: the encoded JPEG pictures, untouched.
    """

    product_id: int
    category_id: int
    label: int
    split: str
    images: tuple[bytes, ...]


def encode(product: Product) -> bytes:
    """The serialised tf.train.Example: Features{map<name, Feature{one of BytesList, Int64List}>} in protobuf's form."""
    md5, length = b'', 0
    images: list[bytes] = []
    for image in product.images:
        head = _head(1, len(image))
        images += (head, image)
        length += len(head) + len(image)
        md5 += MD5_HEAD + hashlib.md5(image, usedforsecurity=False).digest()
    category, label, split = _category_entries(product.category_id, product.label, product.split)
    before = category + _bytes_entry_head(b'image_md5', len(md5)) + md5 + _bytes_entry_head(b'images', length)
    after = label + _int64_entry(b'product_id', product.product_id) + split
    return b''.join((_head(1, len(before) + length + len(after)), before, *images, after))


def decode(record: bytes) -> Product:
    """The product of a serialised tf.train.Example: features in any order, others beside ours, numbers packed.

    Raises:
        ValueError: says which rule of the format is broken.
    """
    return decode_with_md5(record)[0]


def decode_with_md5(record: bytes) -> tuple[Product, tuple[bytes, ...]]:
    """As decode(), and what image_md5 says, unchecked."""
    features = {}
    for _, *message in _parts(record, 0, len(record)):
        for _, *entry in _parts(record, *message):
            parts = {number: (start, end) for number, start, end in _parts(record, *entry, last=2)}
            start, end = parts.get(1, (0, 0))
            features[record[start:end].decode()] = parts.get(2, (0, 0))
    split = _bytes_values(record, features, 'split')
    if len(split) != 1:
        raise ValueError(f'has {len(split)} values of split, must have 1')
    product = Product(
        _int64_value(record, features, 'product_id'),
        _int64_value(record, features, 'category_id'),
        _int64_value(record, features, 'label'),
        split[0].decode(),
        _bytes_values(record, features, 'images'),
    )
    return product, _bytes_values(record, features, 'image_md5')


def frame(encoded: Iterable[bytes]) -> bytes:
    """Records as they stand in a TFRecord file: each its uint64 length, the masked CRC32C of that, the data, theirs."""
    pieces: list[bytes] = []
    for record in encoded:
        pieces += (_frame_head(len(record)), record, masked_crc(record))
    return b''.join(pieces)


@functools.lru_cache(2**16)
def _frame_head(length: int) -> bytes:
    data = length.to_bytes(8, 'little')
    return data + masked_crc(data)


class Frame(NamedTuple):
    """A frame of a TFRecord file.

    Attributes:
        data: all its bytes; what is left of the file if its end can't be found.
        record: the record in it.
        problem: the rule it breaks, '' if none; then the record isn't what was written.
    """

    data: bytes
    record: bytes
    problem: str


def frames(file: BinaryIO) -> Iterator[Frame]:
    """All frames from the file's place on; after one whose end can't be found there are no more."""
    while head := file.read(12):
        if masked_crc(head[:8]) != head[8:]:
            problem = "its length doesn't fit the checksum of the length" if len(head) == 12 else 'the file is cut off'
            yield Frame(head + file.read(), b'', problem)
            return
        body = file.read(int.from_bytes(head[:8], 'little') + 4)
        record, checksum = body[:-4], body[-4:]
        problem = '' if masked_crc(record) == checksum else "its data don't fit their checksum"
        if len(record) != int.from_bytes(head[:8], 'little'):
            record, problem = b'', 'the file is cut off'
        yield Frame(head + body, record, problem)


def skip_frames(file: BinaryIO, count: int) -> None:
    """Moves on by so many frames, reading only their lengths."""
    for _ in range(count):
        length = int.from_bytes(file.read(12)[:8], 'little')
        file.seek(length + 4, 1)


def masked_crc(data: bytes | np.ndarray) -> bytes:
    """CRC32C as TFRecord files store it: rotated by 15 bits and moved by a constant; 4 bytes."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32).to_bytes(4, 'little')


@functools.lru_cache(2**14)
def _category_entries(category_id: int, label: int, split: str) -> tuple[bytes, bytes, bytes]:
    """The entries that the products of a category share."""
    name = split.encode()
    split_entry = _bytes_entry_head(b'split', len(name) + 2) + _field(1, name)
    return _int64_entry(b'category_id', category_id), _int64_entry(b'label', label), split_entry


@functools.lru_cache(2**16)
def _bytes_entry_head(name: bytes, length: int) -> bytes:
    """What stands before a list of byte strings that has so many bytes."""
    feature = _head(1, length)
    inside = _field(1, name) + _head(2, len(feature) + length) + feature
    return _head(1, len(inside) + length) + inside


def _int64_entry(name: bytes, number: int) -> bytes:
    """A feature of one number under its name."""
    varint = _varint(number % 2**64)
    return _int64_entry_head(name, len(varint)) + varint


@functools.lru_cache(2**8)
def _int64_entry_head(name: bytes, length: int) -> bytes:
    """What stands before a number that takes so many bytes."""
    feature = _head(1, length)
    feature = _head(3, len(feature) + length) + feature
    inside = _field(1, name) + _head(2, len(feature) + length) + feature
    return _head(1, len(inside) + length) + inside


def _field(number: int, data: bytes) -> bytes:
    return _head(number, len(data)) + data


@functools.lru_cache(2**16)
def _head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    return bytes([number << 3 | 2]) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _parts(data: bytes, place: int, end: int, *, last: int = 1) -> list[tuple[int, int, int]]:
    """The fields of the message data[place:end], which are numbered 1 to `last`: number, start and end of each.

    All fields of an Example are messages, bytes or packed numbers, which stand alike: key, length, bytes.

    Raises:
        ValueError: not such a message.
    """
    parts = []
    while place + 1 < end:
        key, length = data[place], data[place + 1]
        place += 2
        if length > 0x7F:
            length, place = _read_varint(data, place - 1, end)
        if key & 7 != 2 or not 1 <= key >> 3 <= last:
            raise ValueError('is no tf.train.Example')
        parts.append((key >> 3, place, place + length))
        place += length
    if place != end:
        raise ValueError('is no tf.train.Example')
    return parts


def _read_varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """The value of the varint at `place`, and where it ends."""
    value = shift = 0
    while place < end and shift < 70:  # 64 bits are ten times seven
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError('is no tf.train.Example')


def _bytes_values(data: bytes, features: dict[str, tuple[int, int]], name: str) -> tuple[bytes, ...]:
    return tuple([data[start:end] for _, start, end in _list(data, features, name, kind=1)])


def _int64_value(data: bytes, features: dict[str, tuple[int, int]], name: str) -> int:
    values = []
    for _, place, end in _list(data, features, name, kind=3):
        while place < end:
            value, place = _read_varint(data, place, end)
            values.append(value)
    if len(values) != 1:
        raise ValueError(f'has {len(values)} values of {name}, must have 1')
    return (values[0] + 2**63) % 2**64 - 2**63  # negative numbers are stored as their two's complement


def _list(data: bytes, features: dict[str, tuple[int, int]], name: str, *, kind: int) -> list[tuple[int, int, int]]:
    """The parts of a feature's list, which must be of this kind: 1 bytes, 3 int64."""
    if name not in features:
        raise ValueError(f'has no {name}')
    lists = _parts(data, *features[name], last=3)
    if [number for number, _, _ in lists] != [kind]:
        raise ValueError(f'has {name} of another type')
    return _parts(data, *lists[0][1:])
