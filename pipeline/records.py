"""The tf.train.Example of one product, both ways, and the TFRecord framing around it.

Writing needs no TensorFlow: conversion starts in a fraction of the time, and the same product always gives the same
bytes (a serialised map has no fixed order, here the features stand in order of name). tests/pipeline/test_records.py
holds both directions to what TensorFlow itself reads and writes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c


@dataclass(frozen=True)
class Product:
    """One product as the shards hold it.

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
    images: tuple[bytes | memoryview, ...]


def encode(product: Product) -> bytes:
    """The serialised tf.train.Example: Features{map<name, Feature{one of BytesList, Int64List}>} in protobuf's form."""
    category, label, split = _category_entries(product.category_id, product.label, product.split)
    md5 = [hashlib.md5(image, usedforsecurity=False).digest() for image in product.images]
    entries = [
        category,
        *_bytes_entry(b'image_md5', md5),
        *_bytes_entry(b'images', product.images),
        label,
        _int64_entry(b'product_id', product.product_id),
        split,
    ]
    return b''.join((_head(1, sum(map(len, entries))), *entries))


def frame(record: bytes) -> bytes:
    """A record as it stands in a TFRecord file: uint64 length, its masked CRC32C, the data, its masked CRC32C."""
    length = len(record).to_bytes(8, 'little')
    return b''.join((length, masked_crc(length), record, masked_crc(record)))


def masked_crc(data: bytes) -> bytes:
    """CRC32C as TFRecord files store it: rotated by 15 bits and moved by a constant; 4 bytes."""
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32).to_bytes(4, 'little')


def parse(serialized: Any) -> dict[str, Any]:
    """Reads serialised products inside tf.data.

    Args:
        serialized: string tensor [n].

    Returns:
        product_id, category_id, label: int64 [n]; images: ragged string [n, pictures].
    """
    import tensorflow as tf

    number = tf.io.FixedLenFeature([], tf.int64)
    features = {
        'product_id': number,
        'category_id': number,
        'label': number,
        'images': tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64),
    }
    return tf.io.parse_example(serialized, features)


@functools.lru_cache(2**14)
def _category_entries(category_id: int, label: int, split: str) -> tuple[bytes, bytes, bytes]:
    """The entries that the products of a category share."""
    split_entry = b''.join(_bytes_entry(b'split', [split.encode()]))
    return _int64_entry(b'category_id', category_id), _int64_entry(b'label', label), split_entry


def _bytes_entry(name: bytes, values: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A feature of byte strings under its name, in pieces: the pictures are copied once, when all is joined."""
    pieces = [piece for value in values for piece in (_head(1, len(value)), value)]
    length = sum(map(len, pieces))
    feature = _head(1, length)
    value = _head(2, len(feature) + length)
    name = _head(1, len(name)) + name
    return [_head(1, len(name) + len(value) + len(feature) + length), name, value, feature, *pieces]


def _int64_entry(name: bytes, number: int) -> bytes:
    """A feature of one number under its name."""
    varint = _varint(number % 2**64)
    feature = _field(3, _field(1, varint))
    return _field(1, _field(1, name) + _field(2, feature))


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
