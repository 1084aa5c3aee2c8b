"""The tf.train.Example of one product, both ways, and the TFRecord framing around it.

Writing needs no TensorFlow: conversion starts in a fraction of the time, and the same product always gives the same
bytes (a serialised map has no fixed order, here the features stand in order of name). tests/pipeline/test_records.py
holds both directions to what TensorFlow itself reads and writes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import google_crc32c

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
    images: Sequence[bytes | memoryview]


def encode(product: Product) -> bytes:
    """The serialised tf.train.Example: Features{map<name, Feature{one of BytesList, Int64List}>} in protobuf's form."""
    md5, length = b'', 0
    images: list[bytes | memoryview] = []
    for image in product.images:
        head = _head(1, len(image))
        images += (head, image)
        length += len(head) + len(image)
        md5 += MD5_HEAD + hashlib.md5(image, usedforsecurity=False).digest()
    category, label, split = _category_entries(product.category_id, product.label, product.split)
    before = category + _bytes_entry_head(b'image_md5', len(md5)) + md5 + _bytes_entry_head(b'images', length)
    after = label + _int64_entry(b'product_id', product.product_id) + split
    return b''.join((_head(1, len(before) + length + len(after)), before, *images, after))


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
