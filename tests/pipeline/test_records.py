"""Our hand-made Example and TFRecord frames against what TensorFlow writes and reads."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import columns, records
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


def test_columns_give_what_was_encoded_byte_for_byte():
    products = [PLAIN, PRODUCTS['no label'], PRODUCTS['largest numbers']]
    data = records.frame([records.encode(product) for product in products])
    found = columns.read(np.frombuffer(data, np.uint8), *columns.record_places(memoryview(data)))
    assert found.product_id.tolist() == [product.product_id for product in products]
    assert found.label.tolist() == [product.label for product in products]
    assert found.images.tolist() == [len(product.images) for product in products]
    pictures = [data[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert pictures == [image for product in products for image in product.images]


@each_product
def test_decode_gives_what_was_encoded(product):
    assert records.decode(records.encode(product)) == product


@each_product
def test_decode_reads_what_tensorflow_writes_whatever_its_order_and_whatever_else_it_holds(product):
    theirs = example(product)
    theirs.features.feature['weight'].float_list.value[:] = [0.5, 2]
    theirs.features.feature['tags'].bytes_list.value[:] = [b'a', b'']
    theirs.features.feature['nothing'].SetInParent()
    serialized = theirs.SerializeToString()
    reversed_ = b''.join(
        tf.train.Example(features=tf.train.Features(feature={name: theirs.features.feature[name]})).SerializeToString()
        for name in sorted(theirs.features.feature, reverse=True)
    )
    assert tf.train.Example.FromString(reversed_) == theirs
    md5s = tuple(hashlib.md5(image).digest() for image in product.images)
    assert records.decode_with_md5(serialized) == records.decode_with_md5(reversed_) == (product, md5s)


@pytest.mark.parametrize(
    'record',
    [
        b'x',
        bytes(100),
        b'\x0a' + b'\xff' * 20,
        records.encode(PLAIN)[:-1],
        records.encode(PLAIN) + b'\x0a',
    ],
    ids=['a byte', 'zeros', 'a number without an end', 'cut off', 'a byte more'],
)
def test_decode_refuses_what_is_no_example(record):
    with pytest.raises(ValueError, match='^is no tf.train.Example$'):
        records.decode(record)


@pytest.mark.parametrize(
    ('name', 'values', 'error'),
    [
        ('label', None, 'has no label'),
        ('images', None, 'has no images'),
        ('image_md5', None, 'has no image_md5'),
        ('label', [b'3'], 'has label of another type'),
        ('images', [3], 'has images of another type'),
        ('label', [3, 4], 'has 2 values of label, must have 1'),
        ('split', [b'train', b'val'], 'has 2 values of split, must have 1'),
    ],
)
def test_decode_says_which_feature_is_wrong(name, values, error):
    record = example(PLAIN)
    del record.features.feature[name]
    if values:
        feature = record.features.feature[name]
        (feature.int64_list if isinstance(values[0], int) else feature.bytes_list).value[:] = values
    with pytest.raises(ValueError, match=f'^{error}$'):
        records.decode(record.SerializeToString())


def test_decode_reads_a_damaged_record_as_tensorflow_does_or_not_at_all():
    draw = random.Random(0)
    whole = records.encode(PLAIN._replace(images=(b'abc', b'd' * 200)))
    read = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        try:
            found, md5s = records.decode_with_md5(bytes(damaged))
        except ValueError:
            continue
        read += 1
        theirs = tf.train.Example.FromString(bytes(damaged)).features.feature
        for name in ('product_id', 'category_id', 'label'):
            assert theirs[name].int64_list.value == [getattr(found, name)]
        assert theirs['split'].bytes_list.value == [found.split.encode()]
        assert theirs['images'].bytes_list.value == list(found.images)
        assert theirs['image_md5'].bytes_list.value == list(md5s)
    assert 1000 < read < 2500


def test_frames_are_read_as_they_were_written():
    data = [b'', b'x', *(records.encode(product) for product in PRODUCTS.values())]
    file = io.BytesIO(records.frame(data))
    assert list(records.frames(file)) == [records.Frame(records.frame([record]), record, '') for record in data]
    file.seek(0)
    records.skip_frames(file, 2)
    assert next(records.frames(file)).record == data[2]


@pytest.mark.parametrize(
    ('place', 'problem', 'following'),
    [
        (0, "its length doesn't fit the checksum of the length", False),
        (8, "its length doesn't fit the checksum of the length", False),
        (12, "its data don't fit their checksum", True),
        (-5, "its data don't fit their checksum", True),
        (-1, "its data don't fit their checksum", True),
    ],
)
def test_a_damaged_frame_says_what_is_wrong_and_the_next_is_read_if_its_place_is_known(place, problem, following):
    whole = records.frame([records.encode(PLAIN)])
    damaged = bytearray(whole)
    damaged[place] ^= 1
    first, *rest = records.frames(io.BytesIO(bytes(damaged) + whole))
    assert first.problem == problem
    assert [frame.problem for frame in rest] == [''] * following
    assert b''.join(frame.data for frame in (first, *rest)) == bytes(damaged) + whole


@pytest.mark.parametrize('length', [1, 11, 12, 13, 27])
def test_a_file_that_ends_in_a_frame_is_cut_off(length):
    whole = records.frame([b'twelve bytes'])
    (frame,) = records.frames(io.BytesIO(whole[:length]))
    assert frame == records.Frame(whole[:length], b'', 'the file is cut off')


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
