"""Products read by the thousand: what records.decode() reads one by one, or an error, and never anything else."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tensorflow as tf

from pipeline import columns, records
from pipeline.records import Product

GOOD = Product(12, 1_000_010_653, 3, 'train', (b'abc', b'd' * 200))
OTHER = Product(-7, -1, -1, 'test', (b'', b'e' * 16_384))
Read = tuple[int, int, list[bytes]]


def read(encoded: Sequence[bytes], *, between: bytes = b'') -> list[Read]:
    """Product id, label and pictures of each record; `between` stands before, between and after them."""
    data = between.join([b'', *encoded, b''])
    ends = np.cumsum([len(between) + len(record) for record in encoded], dtype=np.int64)
    found = columns.read(np.frombuffer(data, np.uint8), ends - [len(record) for record in encoded], ends)
    assert all(column.dtype == np.int64 for column in found)
    pictures = [data[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert found.images.sum() == len(pictures)
    firsts = np.cumsum(found.images) - found.images
    return [
        (product_id, label, pictures[first : first + count])
        for product_id, label, first, count in zip(
            found.product_id.tolist(), found.label.tolist(), firsts, found.images, strict=True
        )
    ]


def of(product: Product) -> Read:
    return product.product_id, product.label, list(product.images)


def random_products(count: int, *, seed: int) -> list[Product]:
    draw = random.Random(seed)
    lengths = [0, 1, 2, 100, *range(110, 130), *range(16_370, 16_386), 50_000]
    numbers = [0, 1, -1, 127, 128, 2**31, 2**32, -(2**31), 2**63 - 1, -(2**63)]
    return [
        Product(
            draw.choice([*numbers, draw.randrange(-(2**63), 2**63)]),
            draw.choice([*numbers, -1]),
            draw.choice([-1, 0, 1, 127, 128, 5269]),
            draw.choice(['train', 'val', 'test']),
            tuple(draw.randbytes(draw.choice(lengths)) for _ in range(draw.choice([0, 1, 2, 3, 4, 4, 40]))),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize('between', [b'', b'\x0a', b'\xff' * 16], ids=['alone', 'keys between', 'lengths between'])
def test_random_products_are_read_as_one_by_one(between):
    products = random_products(300, seed=0)
    encoded = [records.encode(product) for product in products]
    assert [records.decode(record) for record in encoded] == products
    assert read(encoded, between=between) == [of(product) for product in products]


def test_records_stand_in_any_order():
    products = random_products(20, seed=1)
    encoded = [records.encode(product) for product in products]
    data, ends = b''.join(encoded), np.cumsum([len(record) for record in encoded])
    starts = ends - [len(record) for record in encoded]
    order = np.random.default_rng(0).permutation(20)
    found = columns.read(np.frombuffer(data, np.uint8), starts[order], ends[order])
    assert found.product_id.tolist() == [products[place].product_id for place in order]
    assert [data[start:end] for start, end in zip(found.starts, found.ends, strict=True)] == [
        image for place in order for image in products[place].images
    ]


def test_no_records_are_no_products():
    found = columns.read(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert [len(column) for column in found] == [0] * 5


# MD5s instead of pictures.


def test_md5s_are_those_of_the_pictures():
    products = random_products(300, seed=5)
    encoded = [records.encode(product) for product in products]
    ends = np.cumsum([len(record) for record in encoded], dtype=np.int64)
    data = np.frombuffer(b''.join(encoded), np.uint8)
    found, md5 = columns.read_md5(data, ends - [len(record) for record in encoded], ends)
    with_pictures = columns.read(data, ends - [len(record) for record in encoded], ends)
    for name in ('product_id', 'label', 'images'):
        assert np.array_equal(getattr(found, name), getattr(with_pictures, name))
    assert (md5.dtype, md5.shape) == (np.uint8, (found.images.sum(), 16))
    expected = [hashlib.md5(image).digest() for product in products for image in product.images]
    assert [bytes(one) for one in md5] == expected
    assert [bytes(data[start:end]) for start, end in zip(found.starts, found.ends, strict=True)] == expected


@pytest.mark.parametrize('missing', ['images', ''])
def test_md5s_are_read_whatever_else_there_is(missing):
    """Pictures are not looked at."""
    written = entries({name: fill for name, fill in (FEATURES | EXTRA).items() if name != missing})
    record = np.frombuffer(b''.join(written), np.uint8)
    found, md5 = columns.read_md5(record, np.array([0]), np.array([len(record)]))
    assert (found.product_id.tolist(), found.label.tolist(), found.images.tolist()) == ([12], [3], [3])
    assert md5.tolist() == [[0] * 16] * 3


@pytest.mark.parametrize(
    ('fill', 'error'),
    [
        (None, 'has not one image_md5'),
        (
            lambda feature: feature.bytes_list.value.extend([bytes(16), bytes(15)]),
            'has an image_md5 of other than 16 bytes',
        ),
        (lambda feature: feature.bytes_list.value.append(b'0' * 32), 'has an image_md5 of other than 16 bytes'),
        (lambda feature: feature.int64_list.value.append(3), 'is no tf.train.Example'),
    ],
)
def test_md5s_of_another_form_are_refused(fill, error):
    features = {name: one for name, one in FEATURES.items() if name != 'image_md5'}
    record = b''.join(entries(features | ({'image_md5': fill} if fill else {})))
    good = records.encode(GOOD)
    data = np.frombuffer(good + record + good, np.uint8)
    ends = np.cumsum([len(good), len(record), len(good)])
    with pytest.raises(ValueError, match=f'^{error}$'):
        columns.read_md5(data, np.append(0, ends[:-1]), ends)


# What TensorFlow writes.

Feature = Callable[[tf.train.Feature], object]
FEATURES: dict[str, Feature] = {
    'product_id': lambda feature: feature.int64_list.value.append(12),
    'label': lambda feature: feature.int64_list.value.append(3),
    'images': lambda feature: feature.bytes_list.value.extend([b'abc', b'', b'd' * 200]),
    'category_id': lambda feature: feature.int64_list.value.append(1_000_010_653),
    'split': lambda feature: feature.bytes_list.value.append(b'train'),
    'image_md5': lambda feature: feature.bytes_list.value.extend([bytes(16)] * 3),
}
EXTRA: dict[str, Feature] = {
    'weight': lambda feature: feature.float_list.value.extend([0.5, 2]),
    'tags': lambda feature: feature.bytes_list.value.extend([b'a', b'']),
    'sizes': lambda feature: feature.int64_list.value.extend([180, -1, 2**40]),
    'no values': lambda feature: feature.int64_list.SetInParent(),
    'nothing': lambda feature: feature.SetInParent(),
    '': lambda feature: feature.int64_list.value.append(5),
    'labe': lambda feature: feature.int64_list.value.append(6),
    'labels': lambda feature: feature.int64_list.value.append(7),
    'LABEL': lambda feature: feature.int64_list.value.append(8),
    'höhe': lambda feature: feature.float_list.value.append(9),
    'x' * 300: lambda feature: feature.float_list.value.append(10),
}
PLAIN: Read = (12, 3, [b'abc', b'', b'd' * 200])


def entries(features: dict[str, Feature]) -> list[bytes]:
    """An Example for each feature; one after the other they are one of all of them, in this order."""
    written = []
    for name, fill in features.items():
        example = tf.train.Example()
        fill(example.features.feature[name])
        written.append(example.SerializeToString())
    return written


def merged(written: Sequence[bytes]) -> bytes:
    """The same as one message of Features, as any writer would have it."""
    inside = b''.join(record[record.index(b'\x0a', 1) :] for record in written)
    return records._field(1, inside)


@pytest.mark.parametrize('seed', range(20))
def test_features_stand_in_any_order_beside_any_others(seed):
    draw = random.Random(seed)
    features = list((FEATURES | EXTRA).items())
    draw.shuffle(features)
    written = entries(dict(features))
    examples = [b''.join(written), merged(written)]
    examples.append(tf.train.Example.FromString(examples[0]).SerializeToString())
    assert tf.train.Example.FromString(examples[0]) == tf.train.Example.FromString(examples[1])
    for record in examples:
        assert of(records.decode(record)) == PLAIN
    between = [records.encode(product) for product in (GOOD, OTHER)]
    assert read([between[0], *examples, between[1]]) == [of(GOOD), *[PLAIN] * 3, of(OTHER)]


def test_features_that_training_does_not_need_may_be_missing():
    written = entries({name: FEATURES[name] for name in ('product_id', 'label', 'images')})
    assert read([b''.join(written), records.encode(GOOD)]) == [PLAIN, of(GOOD)]


# Errors.


@pytest.mark.parametrize('name', ['product_id', 'label', 'images'])
def test_a_feature_that_is_missing_is_named(name):
    record = b''.join(entries({other: fill for other, fill in FEATURES.items() if other != name}))
    for encoded in ([record], [records.encode(GOOD), record, records.encode(OTHER)]):
        with pytest.raises(ValueError, match=f'^has not one {name}$'):
            read(encoded)


@pytest.mark.parametrize('name', ['product_id', 'label', 'images'])
def test_a_feature_that_is_there_twice_is_named(name):
    """Of two, records.decode() and TensorFlow take the last; no writer makes them."""
    record = b''.join([*entries(FEATURES), *entries({name: FEATURES[name]})])
    for encoded in ([record], [records.encode(GOOD), record, records.encode(OTHER)]):
        with pytest.raises(ValueError, match=f'^has not one {name}$'):
            read(encoded)


def test_two_of_a_feature_do_not_make_up_for_one_that_has_none():
    label = entries({'label': FEATURES['label']})
    rest = entries({name: fill for name, fill in FEATURES.items() if name != 'label'})
    with pytest.raises(ValueError, match='^has not one label$'):
        read([b''.join([*rest, *label, *label]), b''.join(rest)])


WRONG: dict[str, tuple[str, Feature]] = {
    'a label without a value': ('label', lambda feature: feature.int64_list.SetInParent()),
    'a label of two values': ('label', lambda feature: feature.int64_list.value.extend([3, 4])),
    'a label of 300 values': ('label', lambda feature: feature.int64_list.value.extend(range(300))),
    'a label that is a float': ('label', lambda feature: feature.float_list.value.append(3)),
    'a label that is a text': ('label', lambda feature: feature.bytes_list.value.append(b'3')),
    'a label of no kind': ('label', lambda feature: feature.SetInParent()),
    'an id of two values': ('product_id', lambda feature: feature.int64_list.value.extend([3, 4])),
    'an id that is a text': ('product_id', lambda feature: feature.bytes_list.value.append(b'\x0a\x01\x03')),
    'pictures that are a number': ('images', lambda feature: feature.int64_list.value.append(3)),
    'pictures that are floats': ('images', lambda feature: feature.float_list.value.extend([3, 4])),
    'pictures of no kind': ('images', lambda feature: feature.SetInParent()),
}


@pytest.mark.parametrize(('name', 'fill'), WRONG.values(), ids=WRONG)
def test_a_feature_of_another_form_is_refused(name, fill):
    record = b''.join(entries(FEATURES | {name: fill}))
    with pytest.raises(ValueError, match='^has '):
        records.decode(record)
    for encoded in ([record], [records.encode(GOOD), record, records.encode(OTHER)]):
        with pytest.raises(ValueError, match='^(is no tf.train.Example|has not one number in a feature)$'):
            read(encoded)


def test_a_product_without_pictures_has_none():
    record = b''.join(entries(FEATURES | {'images': lambda feature: feature.bytes_list.SetInParent()}))
    assert records.decode(record).images == ()
    assert read([records.encode(GOOD), record, records.encode(OTHER)]) == [of(GOOD), (12, 3, []), of(OTHER)]


# Messages that protobuf's form allows, and no writer makes. What isn't refused is read as TensorFlow does.


def field(number: int, data: bytes) -> bytes:
    return records._field(number, data)


def with_label(feature: bytes) -> bytes:
    """A whole product whose label is this Feature."""
    entry = field(1, b'label') + field(2, feature)
    return b''.join(entries({name: fill for name, fill in FEATURES.items() if name != 'label'})) + field(
        1, field(1, entry)
    )


def test_what_with_label_makes_is_a_product():
    assert read([with_label(field(3, field(1, b'\x03')))]) == [PLAIN]


ODD = {
    'two lists, of which TensorFlow takes the last': with_label(field(3, field(1, b'\x03')) + field(1, field(1, b'x'))),
    'two lists of numbers': with_label(field(3, field(1, b'\x03')) + field(3, field(1, b'\x04'))),
    'two runs of numbers': with_label(field(3, field(1, b'\x03') + field(1, b'\x04'))),
    'a run without numbers': with_label(field(3, field(1, b'\x03') + field(1, b''))),
    'a number that is not packed': with_label(field(3, b'\x08\x03')),
    'a number of eleven bytes': with_label(field(3, field(1, b'\x83' + b'\x80' * 9 + b'\x00'))),
    'a number without an end': with_label(field(3, field(1, b'\x83'))),
    'an unknown list': with_label(field(4, field(1, b'\x03'))),
    'a length of 2^63 - 1, which points back': with_label(b'\x1a' + b'\xff' * 8 + b'\x7f'),
    'a length of 2^64 - 1': with_label(b'\x1a' + b'\xff' * 9 + b'\x01'),
    'a length of 2^64 + 3': with_label(b'\x1a\x83' + b'\x80' * 8 + b'\x02' + field(1, b'\x03')),
    'a length in ten bytes': with_label(b'\x1a\x83' + b'\x80' * 8 + b'\x00' + field(1, b'\x03')),
    'the value before the name': b''.join(entries(FEATURES))
    + field(1, field(1, field(2, field(3, field(1, b'\x04'))) + field(1, b'labels'))),
    'two values': b''.join(entries(FEATURES)) + field(1, field(1, field(1, b'x') + field(2, b'') + field(2, b''))),
    'two names': b''.join(entries(FEATURES)) + field(1, field(1, field(1, b'x') + field(1, b'y') + field(2, b''))),
    'no value': b''.join(entries(FEATURES)) + field(1, field(1, field(1, b'x'))),
    'no name': b''.join(entries(FEATURES)) + field(1, field(1, field(2, b''))),
    'an entry of nothing': b''.join(entries(FEATURES)) + field(1, field(1, b'')),
    'a field that is not known': b''.join(entries(FEATURES)) + field(2, b''),
    'nothing': b'',
}


@pytest.mark.parametrize('record', ODD.values(), ids=ODD)
def test_what_no_writer_makes_is_refused(record):
    for encoded in ([record], [records.encode(GOOD), record, records.encode(OTHER)]):
        with pytest.raises(ValueError, match='^(is no tf.train.Example|has not one [a-z_]+( in a feature)?)$'):
            read(encoded)


def test_a_number_may_have_more_bytes_than_it_needs():
    record = with_label(field(3, field(1, b'\x83' + b'\x80' * 8 + b'\x00')))
    assert of(records.decode(record)) == PLAIN
    assert read([record]) == [PLAIN]


def test_lengths_may_have_more_bytes_than_they_need_up_to_five():
    for length, accepted in (
        (b'\x83\x00', True),
        (b'\x83\x80\x80\x80\x00', True),
        (b'\x83\x80\x80\x80\x80\x00', False),
    ):
        record = with_label(b'\x1a' + length + field(1, b'\x03'))
        assert of(records.decode(record)) == PLAIN
        if accepted:
            assert read([record]) == [PLAIN]
        else:
            with pytest.raises(ValueError, match='^is no tf.train.Example$'):
                read([record])


@pytest.mark.parametrize('product', [GOOD, OTHER], ids=['short', 'long'])
def test_a_record_cut_off_anywhere_is_refused(product):
    whole = records.encode(product)
    good = records.encode(GOOD)
    for length in {*range(min(len(whole), 400)), *range(max(0, len(whole) - 200), len(whole))}:
        with pytest.raises(ValueError, match='^(is no tf.train.Example|has not one product_id)$'):
            read([whole[:length]])
        with pytest.raises(ValueError, match='^(is no tf.train.Example|has not one product_id)$'):
            read([good, whole[:length], good])


def test_random_bytes_are_refused():
    draw, good = random.Random(0), records.encode(GOOD)
    for _ in range(500):
        with pytest.raises(ValueError, match='^(is no tf.train.Example|has not one product_id)$'):
            read([good, draw.randbytes(draw.randrange(300)), good])


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """The record with a feature more, or with one or a few changes to its bytes."""
    if draw.random() < 0.1:
        return whole + draw.choice(entries(FEATURES | EXTRA))
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = draw.randrange(len(data) + 1)
        other = min(len(data), place + draw.choice([1, 1, 2, 5, 20]))
        kind = draw.randrange(8)
        if kind == 0:
            data[place:place] = draw.randbytes(draw.choice([1, 1, 2, 10]))
        elif kind == 1:
            del data[place:other]
        elif kind == 2:
            data[place:place] = data[place:other]
        elif kind == 3:
            data[place:place] = b'\xff' * draw.randrange(1, 11)
        elif kind == 4:
            data[place:other] = bytes([draw.choice([0, 0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF])]) * (other - place)
        elif place < len(data):
            data[place] ^= 1 << draw.randrange(8)
    return bytes(data)


def leniently(record: bytes) -> Read:
    """What records.decode() would find, whatever the features that training doesn't need look like."""
    features = {}
    for _, *message in records._parts(record, 0, len(record)):
        for _, *entry in records._parts(record, *message):
            parts = {number: (start, end) for number, start, end in records._parts(record, *entry, last=2)}
            features[record[slice(*parts[1])].decode('latin-1')] = parts[2]
    product_id, label = (records._int64_value(record, features, name) for name in ('product_id', 'label'))
    return product_id, label, list(records._bytes_values(record, features, 'images'))


def canonical(record: bytes) -> bool:
    """Whether TensorFlow would write it in as many bytes: nothing twice, no length longer than it needs to be."""
    try:
        return len(tf.train.Example.FromString(record).SerializeToString()) == len(record)
    except Exception:  # DecodeError, of whichever protobuf is installed
        return False


def test_a_damaged_record_is_read_as_one_by_one_or_refused_and_never_hurts_its_neighbours():
    draw = random.Random(0)
    other = Product(99, 98, 97, 'val', (b'x', b'yz'))
    products = [GOOD, *(product._replace(images=(b'abc',) * 3) for product in random_products(20, seed=2))]
    outcomes: Counter[str] = Counter()
    for _ in range(4000):
        damaged = mutated(records.encode(draw.choice(products)), draw)
        try:
            expected = of(records.decode(damaged))
        except ValueError:
            expected = None
        try:
            three = [records.encode(other), damaged, records.encode(other)]
            before, found, after = read(three, between=draw.choice([b'', b'\x0a\x01', b'\xff' * 4]))
        except ValueError:
            outcomes['refused by both' if expected is None else 'refused here'] += 1
            assert expected is None or not canonical(damaged)
            continue
        assert before == after == of(other)
        if expected:
            outcomes['read by both'] += 1
            assert found == expected
        else:
            outcomes['read here'] += 1
            assert found == leniently(damaged)
    assert min(outcomes[name] for name in ('refused by both', 'refused here', 'read by both', 'read here')) > 50


# Frames.


def test_the_places_of_records_are_those_of_the_frames():
    encoded = [b'', b'x', bytes(300), *(records.encode(product) for product in random_products(20, seed=3)), b'']
    data = records.frame(encoded)
    places = columns.record_places(memoryview(data))
    assert places.dtype == np.int64
    assert [data[start:end] for start, end in places.T] == encoded


def test_tensorflows_own_frames_are_read(tmp_path):
    encoded = [records.encode(product) for product in random_products(20, seed=4)]
    with tf.io.TFRecordWriter(str(tmp_path / 'theirs')) as writer:
        for record in encoded:
            writer.write(record)
    data = (tmp_path / 'theirs').read_bytes()
    assert [data[start:end] for start, end in columns.record_places(memoryview(data)).T] == encoded


def test_nothing_has_no_records():
    assert columns.record_places(memoryview(b'')).shape == (2, 0)


def test_frames_cut_off_anywhere_but_between_two_are_refused():
    encoded = [b'twelve bytes', b'', b'abc']
    data = records.frame(encoded)
    ends = np.cumsum([16 + len(record) for record in encoded]).tolist()
    for length in range(len(data)):
        if length in (0, *ends):
            assert columns.record_places(memoryview(data)[:length]).shape[1] == [0, *ends].index(length)
            continue
        first = max(end for end in [0, *ends] if end < length)
        with pytest.raises(ValueError, match=f'^the record at byte {first} is cut off, or its length is damaged$'):
            columns.record_places(memoryview(data)[:length])


@pytest.mark.parametrize('value', [1, 2, 4, 8, 16, 32, 64, 128, 255])
def test_frames_with_any_byte_changed_are_refused_but_for_the_checksum_of_a_length(value):
    """Which isn't looked at: a wrong length shows, because the record doesn't fit its own checksum then."""
    encoded = [b'twelve bytes', b'abc']
    whole = records.frame(encoded)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= value
        first, inside = (0, place) if place < 28 else (28, place - 28)
        if 8 <= inside < 12:
            assert columns.record_places(memoryview(data)).tolist() == [[12, 40], [24, 43]]
        else:
            with pytest.raises(
                ValueError, match=f"^the record at byte {first} (is cut off, or its|doesn't fit its checksum$)"
            ):
                columns.record_places(memoryview(data))


def test_errors_count_bytes_from_the_start_of_the_file():
    whole = records.frame([b'twelve bytes', b'abc'])
    with pytest.raises(ValueError, match='^the record at byte 1028 is cut off, or its length is damaged$'):
        columns.record_places(memoryview(whole)[:-1], offset=1000)
    with pytest.raises(ValueError, match="^the record at byte 1000 doesn't fit its checksum$"):
        columns.record_places(memoryview(whole[:20] + b'x' + whole[21:]), offset=1000)
