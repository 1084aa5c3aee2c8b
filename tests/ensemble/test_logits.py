"""The logits store: what is written is what is read, products stay whole, and damage is always seen."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ensemble import logits
from ensemble.logits import BLOCK_ROWS, Rows
from pipeline import records
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import FileInfo

NAME = 'val-00000-of-00001.tfrecord'


def rows_of(counts: list[int], classes: int = 2, *, first_id: int = 100) -> Rows:
    """Products with these numbers of rows; every value tells where it belongs."""
    total = sum(counts)
    product = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(0), *(np.arange(count) for count in counts)])
    values = np.arange(total * classes).reshape(total, classes) % 2039 / 8
    return Rows(product + first_id, index % 4, index // 4, product % classes, values.astype(np.float16))


def same(left: Rows, right: Rows) -> bool:
    columns = [
        {name: value.tobytes() for name, value in vars(one).items() if value is not None} for one in (left, right)
    ]
    return columns[0] == columns[1]


def read(folder: Path, info: FileInfo) -> list[Rows]:
    return list(logits.read_shard(str(folder), info))


def test_what_is_written_is_read_byte_for_byte(tmp_path: Path) -> None:
    rows = rows_of([1, 3, 4, 2], classes=5)
    info = logits.write_shard(str(tmp_path), NAME, rows, split='val')
    (block,) = read(tmp_path, info)
    assert same(block, rows)
    assert (info.name, info.split, info.products, info.images) == (NAME, 'val', 4, 10)
    assert info.bytes == (tmp_path / NAME).stat().st_size


def test_extreme_values_survive(tmp_path: Path) -> None:
    values = np.array([[65504, -65504, 6e-8, -0.0]], np.float16)
    product, picture, view, label = np.array([[2**62], [3], [19], [-1]])
    rows = Rows(product, picture, view, label, values)
    (block,) = read(tmp_path, logits.write_shard(str(tmp_path), NAME, rows, split='test'))
    assert same(block, rows)


def test_rows_of_products_keep_how_many_pictures_each_has(tmp_path: Path) -> None:
    rows = dataclasses.replace(rows_of([1, 1, 1]), pictures=np.array([2, 1, 4]))
    for name, parts in (('whole', [rows]), ('parts', [rows[:1], rows[1:]])):
        (block,) = read(tmp_path, logits.write_shard(str(tmp_path), name, parts, split='val'))
        assert same(block, rows)
    assert same(rows.take(np.array([2, 0])), Rows.concatenate([rows[2:], rows[:1]]))
    for mixed in ([rows_of([1]), rows], [rows, rows_of([1])]):
        with pytest.raises(ValueError, match='dimension'):
            Rows.concatenate(mixed)


def test_a_store_of_products_must_be_told_of_which_dataset(tmp_path: Path, label_map: Categories) -> None:
    for products, seed in ((None, 0), (3, None)):
        with pytest.raises(ValueError, match='must be told dataset_products and order_seed'):
            logits.finish(
                str(tmp_path), [], split='val', tta=1, weights_digest='w', dataset_digest='d', seed=0,
                categories=label_map, pictures=2, dataset_products=products, order_seed=seed,
            )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('batch', [1, 3, 100, 5000])
def test_the_bytes_do_not_depend_on_the_batches(tmp_path: Path, batch: int) -> None:
    rows = rows_of([1, 2, 3, 4] * 250)
    parts = (rows[start : start + batch] for start in range(0, len(rows), batch))
    info = logits.write_shard(str(tmp_path), 'parts', parts, split='val')
    whole = logits.write_shard(str(tmp_path), 'whole', rows, split='val')
    assert (tmp_path / 'parts').read_bytes() == (tmp_path / 'whole').read_bytes()
    assert dataclasses.replace(info, name='whole') == whole


@pytest.mark.parametrize(
    ('counts', 'blocks'),
    [
        ([1] * (BLOCK_ROWS - 1), [BLOCK_ROWS - 1]),
        ([1] * BLOCK_ROWS, [BLOCK_ROWS]),
        ([1] * (BLOCK_ROWS + 1), [BLOCK_ROWS, 1]),
        ([BLOCK_ROWS - 1, 2], [BLOCK_ROWS - 1, 2]),
        ([BLOCK_ROWS - 1, 1, 1], [BLOCK_ROWS, 1]),
        ([BLOCK_ROWS + 1, 1], [BLOCK_ROWS + 1, 1]),  # a product is never cut, however large
        ([1, BLOCK_ROWS + 1], [1, BLOCK_ROWS + 1]),
        ([4] * 150, [256, 256, 88]),
        ([3] * 180, [255, 255, 30]),
        ([], []),
    ],
)
def test_a_block_holds_whole_products_up_to_its_limit(tmp_path: Path, counts: list[int], blocks: list[int]) -> None:
    rows = rows_of(counts)
    for name, batches in (
        ('whole', [rows]),
        ('parts', [rows[start : start + 100] for start in range(0, len(rows), 100)]),
    ):
        info = logits.write_shard(str(tmp_path), name, batches, split='val')
        found = read(tmp_path, info)
        assert [len(block) for block in found] == blocks
        assert (info.products, info.images) == (len(counts), sum(counts))
        products = [set(block.product_id.tolist()) for block in found]
        assert sum(len(block) for block in products) == len(set().union(*products))


def test_tensorflow_reads_the_records_too(tmp_path: Path) -> None:
    rows = rows_of([2, 1, 4], classes=3)
    logits.write_shard(str(tmp_path), NAME, rows, split='val')
    (record,) = tf.data.TFRecordDataset(str(tmp_path / NAME))
    text = tf.io.FixedLenFeature([], tf.string)
    features = {'rows': tf.io.FixedLenFeature([], tf.int64), 'logits': text, 'product_id': text}
    example = tf.io.parse_single_example(record, features)
    assert int(example['rows']) == 7
    assert tf.io.decode_raw(example['product_id'], tf.int64).numpy().tolist() == rows.product_id.tolist()
    values = tf.io.decode_raw(example['logits'], tf.float16).numpy().reshape(7, 3)
    np.testing.assert_array_equal(values, rows.logits)


def test_a_product_that_comes_back_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    batches = [rows_of([1, 2, 1]), rows_of([1], first_id=101)]
    with pytest.raises(ValueError, match='product 101 comes back'):
        logits.write_shard(str(tmp_path), NAME, batches, split='val')
    far = [rows_of([1] * 2000), rows_of([1], first_id=100)]
    with pytest.raises(ValueError, match='product 100 comes back'):
        logits.write_shard(str(tmp_path), NAME, far, split='val')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('value', [np.inf, -np.inf, np.nan])
def test_logits_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    rows = rows_of([1, 2])
    rows.logits[2, 1] = value
    with pytest.raises(InputError, match='those of product 101 are not'):
        logits.write_shard(str(tmp_path), NAME, rows, split='val')
    assert list(tmp_path.iterdir()) == []


def test_when_the_batches_fail_nothing_is_left(tmp_path: Path) -> None:
    def batches() -> Iterator[Rows]:
        yield rows_of([1] * 2000)
        raise RuntimeError('the GPU fell off')

    with pytest.raises(RuntimeError, match='fell off'):
        logits.write_shard(str(tmp_path), NAME, batches(), split='val')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'view': np.zeros(2, np.int64)}, r'view must be int64 \[3\], is int64 \[2\]'),
        ({'label': np.zeros(3, np.int32)}, r'label must be int64 \[3\], is int32 \[3\]'),
        ({'product_id': np.zeros((3, 1), np.int64)}, r'product_id must be int64 \[3\], is int64 \[3, 1\]'),
        ({'pictures': np.zeros(2, np.int64)}, r'pictures must be int64 \[3\], is int64 \[2\]'),
        ({'logits': np.zeros((3, 2), np.float32)}, r'logits must be float16 \[n, C\], are float32 \[3, 2\]'),
        ({'logits': np.zeros(3, np.float16)}, r'logits must be float16 \[n, C\], are float16 \[3\]'),
    ],
)
def test_rows_of_unequal_length_or_another_type_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(rows_of([3]), **change)


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    info = logits.write_shard(str(tmp_path), NAME, rows_of([2, 1]), split='val')
    intact = (tmp_path / NAME).read_bytes()
    for place in range(len(intact)):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << place % 8
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(InputError, match=rf'{NAME}: record 0 is damaged \(a wrong (length|checksum)\)'):
            read(tmp_path, info)


def test_a_file_cut_short_is_seen_wherever_it_ends(tmp_path: Path) -> None:
    info = logits.write_shard(str(tmp_path), NAME, rows_of([2, 1]), split='val')
    intact = (tmp_path / NAME).read_bytes()
    for length in range(len(intact)):
        (tmp_path / NAME).write_bytes(intact[:length])
        with pytest.raises(InputError, match=f'{NAME}: (record 0 is damaged|its 0 rows or their checksum)'):
            read(tmp_path, info)


def test_the_damaged_record_is_named_and_those_before_it_are_read(tmp_path: Path) -> None:
    info = logits.write_shard(str(tmp_path), NAME, rows_of([1] * (2 * BLOCK_ROWS + 100)), split='val')
    intact = bytearray((tmp_path / NAME).read_bytes())
    intact[-100] ^= 1
    (tmp_path / NAME).write_bytes(intact)
    blocks = logits.read_shard(str(tmp_path), info)
    assert [len(next(blocks)), len(next(blocks))] == [BLOCK_ROWS, BLOCK_ROWS]
    with pytest.raises(InputError, match='record 2 is damaged .a wrong checksum.; make the logits again'):
        next(blocks)


@pytest.mark.parametrize(
    'data', [b'', b'\x0a', b'\x0a\xff\xff', b'\x0a\x00', b'not an Example', b'\x0a\x04\x0a\x02\x0a\x00']
)
def test_a_record_that_holds_something_else_is_damage(tmp_path: Path, data: bytes) -> None:
    info = logits.write_shard(str(tmp_path), NAME, rows_of([1]), split='val')
    (tmp_path / NAME).write_bytes(records.frame([data]))
    with pytest.raises(InputError, match='record 0 is damaged'):
        read(tmp_path, info)


def test_a_sound_file_of_another_run_is_refused(tmp_path: Path) -> None:
    info = logits.write_shard(str(tmp_path), NAME, rows_of([2, 1]), split='val')
    logits.write_shard(str(tmp_path), NAME, rows_of([2, 1], first_id=500), split='val')
    with pytest.raises(InputError, match=r'not what the manifest lists \(3 rows\); make the logits again'):
        read(tmp_path, info)


def test_a_finished_store_tells_what_it_holds(tmp_path: Path, label_map: Categories) -> None:
    folder = str(tmp_path)
    names = ['val-00001-of-00002.tfrecord', 'val-00000-of-00002.tfrecord']
    files = [
        logits.write_shard(folder, name, rows_of([1], first_id=place), split='val') for place, name in enumerate(names)
    ]
    written = logits.finish(
        folder, files, split='val', tta=5, weights_digest='w', dataset_digest='d', seed=0, categories=label_map
    )
    manifest = logits.read_manifest(folder)
    assert manifest == written
    assert manifest.about == {
        'split': 'val',
        'tta': 5,
        'weights_digest': 'w',
        'label_map_digest': label_map.digest(),
        'dataset_digest': 'd',
        'seed': 0,
        'top_k': 0,
        'categories': 3,
        'pictures': 0,
        'fewer_pictures': False,
        'dataset_products': None,
        'order_seed': None,
    }
    assert [file.name for file in manifest.files] == sorted(names)


@pytest.mark.parametrize(
    ('folder', 'command'),
    [
        ('runs/noaug/logits/val', 'python -m model.predict --run_dir=runs/noaug --split=val'),
        ('runs/latest/logits/test/', 'python -m model.predict --run_dir=runs/latest --split=test'),
        ('/a/b/logits/test-tta5', 'python -m model.predict --run_dir=/a/b --split=test --tta=5'),
        ('runs/a/logits/val-best', 'python -m model.predict --run_dir=runs/a --split=val --best'),
        ('runs/a/logits/val-top9', 'python -m model.predict --run_dir=runs/a --split=val --top_k=9'),
        (
            'runs/a/logits/val-tta5-best-top100',
            'python -m model.predict --run_dir=runs/a --split=val --tta=5 --top_k=100 --best',
        ),
        ('elsewhere', 'python -m model.predict --run_dir=runs/latest --split=test'),
    ],
)
def test_without_a_finished_store_the_error_names_the_command_that_makes_it(
    folder: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(command) + '$'):
        logits.read_manifest(folder)


# Only the highest logits.


def stored(tmp_path: Path, values: list[list[float]] | np.ndarray, top_k: int) -> np.ndarray:
    """What is read of logits of which only the highest were stored, one row a product."""
    array = np.array(values, np.float16)
    index = np.arange(len(array))
    rows = Rows(index, index * 0, index * 0, index * 0, array)
    (block,) = read(tmp_path, logits.write_shard(str(tmp_path), NAME, rows, split='val', top_k=top_k))
    assert same(dataclasses.replace(block, logits=array), rows)
    return block.logits


def test_the_classes_left_out_share_what_is_left(tmp_path: Path) -> None:
    found = stored(tmp_path, [[3, 1, 1, 0], [-2, 5, 7, 5]], top_k=1)
    first, second = math.log((2 * math.e + 1) / 3), math.log((2 * math.exp(5) + math.exp(-2)) / 3)
    np.testing.assert_allclose(found, [[3, first, first, first], [second, second, 7, second]], rtol=1e-3)
    found = stored(tmp_path, [[3, 1, 2, 0, 0]], top_k=3)
    np.testing.assert_array_equal(found, [[3, 1, 2, 0, 0]])  # nothing is lost where those left out are equal


@pytest.mark.parametrize('top_k', [1, 2, 50, 299])
def test_those_kept_are_as_they_were_with_the_same_probability(tmp_path: Path, top_k: int) -> None:
    values = np.random.default_rng(top_k).normal(scale=4, size=(40, 300)).astype(np.float16)
    found = stored(tmp_path, values, top_k)
    highest = np.argsort(-values, axis=1, kind='stable')[:, :top_k]
    np.testing.assert_array_equal(np.take_along_axis(found, highest, 1), np.take_along_axis(values, highest, 1))
    np.testing.assert_array_equal(found.argmax(axis=1), values.argmax(axis=1))
    for got, expected in zip(found.astype(float), values.astype(float), strict=True):
        assert np.logaddexp.reduce(got) == pytest.approx(np.logaddexp.reduce(expected), abs=2e-3)


def test_among_equals_the_lowest_label_is_kept(tmp_path: Path) -> None:
    stored(tmp_path, [[1, 5, 5, 0, 5]], top_k=2)
    (record,) = tf.data.TFRecordDataset(str(tmp_path / NAME))
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ('labels', 'logits', 'rest', 'classes')}
    example = {name: value.numpy() for name, value in tf.io.parse_single_example(record, features).items()}
    assert np.frombuffer(example['labels'], '<u2').tolist() == [1, 2]
    assert np.frombuffer(example['logits'], '<f2').tolist() == [5, 5]
    assert np.frombuffer(example['rest'], '<f4') == pytest.approx(math.log(math.e + 1 + math.exp(5)))
    assert np.frombuffer(example['classes'], '<i8').tolist() == [5]
    for value in (2.5, 6e-8, -6e-8):  # the last two are lost in float32 beside log(61)
        assert (stored(tmp_path, np.full((3, 61), value), top_k=7).argmax(axis=1) == 0).all()


@pytest.mark.parametrize('value', [65504, -65504, 0])
def test_the_share_of_the_rest_is_finite_in_half_precision(tmp_path: Path, value: float) -> None:
    np.testing.assert_array_equal(stored(tmp_path, [[value] * 9], top_k=4), np.full((1, 9), value, np.float16))
    found = stored(tmp_path, [[65504, -65504, -65504]], top_k=1)
    np.testing.assert_array_equal(found, [[65504, -65504, -65504]])


@pytest.mark.parametrize(('classes', 'label_bytes'), [(65_535, 2), (65_536, 2), (65_537, 4)])
def test_labels_take_two_bytes_as_long_as_they_fit(tmp_path: Path, classes: int, label_bytes: int) -> None:
    values = np.zeros((1, classes))
    values[0, -3:] = 1, 2, 3
    sizes = []
    for top_k in (3, 103):
        np.testing.assert_array_equal(stored(tmp_path, values, top_k), values.astype(np.float16))
        sizes.append((tmp_path / NAME).stat().st_size)
    assert sizes[1] - sizes[0] == pytest.approx(100 * (2 + label_bytes), abs=8)  # protobuf's lengths grow too


def test_the_bytes_of_the_highest_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    rows = rows_of([1, 2, 3, 4] * 150, classes=20)
    parts = (rows[start : start + 7] for start in range(0, len(rows), 7))
    logits.write_shard(str(tmp_path), 'parts', parts, split='val', top_k=5)
    logits.write_shard(str(tmp_path), 'whole', rows, split='val', top_k=5)
    assert (tmp_path / 'parts').read_bytes() == (tmp_path / 'whole').read_bytes()


@pytest.mark.parametrize('top_k', [2, 3])
def test_all_classes_or_more_are_not_the_highest(tmp_path: Path, top_k: int) -> None:
    with pytest.raises(ValueError, match=f'top_k must be less than the 2 classes, is {top_k}'):
        logits.write_shard(str(tmp_path), NAME, rows_of([1, 2]), split='val', top_k=top_k)
    assert list(tmp_path.iterdir()) == []
