"""The tf.train.Example of one product, both ways, and the TFRecord framing around it.

Writing needs no TensorFlow: conversion starts in a fraction of the time, and the same product always gives the same
bytes (a serialised map has no fixed order, here the features stand in order of name). tests/pipeline/test_records.py
holds both directions to what TensorFlow itself reads and writes.
"""

from __future__ import annotations

import hashlib
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
    images: tuple[bytes, ...]


def encode(product: Product) -> bytes:
    """The serialised tf.train.Example: Features{map<name, Feature{one of BytesList, Int64List}>} in protobuf's form."""
    features = {
        'category_id': _int64_feature(product.category_id),
        'image_md5': _bytes_feature([hashlib.md5(image, usedforsecurity=False).digest() for image in product.images]),
        'images': _bytes_feature(product.images),
        'label': _int64_feature(product.label),
        'product_id': _int64_feature(product.product_id),
        'split': _bytes_feature([product.split.encode()]),
    }
    entries = (_field(1, _field(1, name.encode()) + _field(2, value)) for name, value in features.items())
    return _field(1, b''.join(entries))


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


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_feature(values: tuple[bytes, ...] | list[bytes]) -> bytes:
    return _field(1, b''.join(_field(1, value) for value in values))


def _int64_feature(value: int) -> bytes:
    return _field(3, _field(1, _varint(value % 2**64)))
