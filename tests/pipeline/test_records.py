"""Our hand-made Example and TFRecord frames against what TensorFlow writes and reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import records
from pipeline.records import Product
from tests import catalogue

PLAIN = Product(12, 1_000_010_653, 3, 'train', (catalogue.jpeg(0), catalogue.jpeg(1)))
PRODUCTS = {
    'two pictures': PLAIN,
    'no label': PLAIN._replace(category_id=-1, label=-1, split='test'),
    'all zero': Product(0, 0, 0, 'val', (b'',)),
    'largest numbers': Product(2**63 - 1, 2**63 - 1, 2**31, 'val', (b'x',) * 4),
    'smallest numbers': Product(-(2**63), -(2**63), -(2**63), 'val', (b'x',)),
    # Where the length of a varint grows: of the picture itself, and a few bytes earlier of what is around it.
    **{
        f'{length} bytes': PLAIN._replace(images=(b'\xff' * length,))
        for edge in (128, 16384, 2**21)
        for length in range(edge - 12, edge + 2)
    },
}
each_product = pytest.mark.parametrize('product', PRODUCTS.values(), ids=PRODUCTS.keys())


@each_product
def test_the_bytes_are_tensorflows_own(product):
    assert records.encode(product) == example(product).SerializeToString(deterministic=True)


@each_product
def test_tensorflow_reads_every_field_back(product):
    assert tf.train.Example.FromString(records.encode(product)) == example(product)


def test_the_checksum_of_a_picture_is_its_md5():
    product = PLAIN._replace(images=(b'abc', b''))
    feature = tf.train.Example.FromString(records.encode(product)).features.feature['image_md5']
    assert [md5.hex() for md5 in feature.bytes_list.value] == [
        '900150983cd24fb0d6963f7d28e17f72',
        'd41d8cd98f00b204e9800998ecf8427e',
    ]


def test_parse_gives_what_was_encoded_byte_for_byte():
    products = [PLAIN, PRODUCTS['no label'], PRODUCTS['largest numbers']]
    columns = records.parse(tf.constant([records.encode(product) for product in products]))
    for name in ('product_id', 'category_id', 'label'):
        assert columns[name].dtype == tf.int64
        assert columns[name].numpy().tolist() == [getattr(product, name) for product in products]
    assert columns['images'].to_list() == [list(product.images) for product in products]


def test_frames_are_those_of_tensorflows_own_writer(tmp_path: Path):
    data = [b'', b'x', *(records.encode(product) for product in PRODUCTS.values())]
    with tf.io.TFRecordWriter(str(tmp_path / 'theirs')) as writer:
        for record in data:
            writer.write(record)
    ours = records.frame(data)
    assert ours == (tmp_path / 'theirs').read_bytes()
    (tmp_path / 'ours').write_bytes(ours)
    assert list(tf.data.TFRecordDataset(str(tmp_path / 'ours')).as_numpy_iterator()) == data


@pytest.mark.parametrize('place', [0, 8, 12, -5, -1], ids=['length', 'its checksum', 'first', 'last', 'checksum'])
def test_a_frame_shows_any_damage(tmp_path: Path, place):
    damaged = bytearray(records.frame([records.encode(PLAIN)]))
    damaged[place] ^= 1
    (tmp_path / 'damaged').write_bytes(damaged)
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(tmp_path / 'damaged')))


def example(product: Product) -> tf.train.Example:
    """The Example as the format says it, made by TensorFlow."""
    numbers = {name: [getattr(product, name)] for name in ('product_id', 'category_id', 'label')}
    texts = {
        'split': [product.split.encode()],
        'images': product.images,
        'image_md5': [hashlib.md5(image).digest() for image in product.images],
    }
    feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=value)) for name, value in numbers.items()}
    feature |= {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in texts.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature))
