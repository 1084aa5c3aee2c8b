"""The stream of batches: every picture once a pass, the same for the same seed, and exactly resumed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf

from pipeline import augment, dataset, feed, manifest, records, shard_chunks
from pipeline.dataset import Products, Shards
from pipeline.errors import InputError
from pipeline.shard_chunks import Chunk
from tests import catalogue
from tests.shards import COUNTS, write_products
from tests.shards import write as write_shards


@pytest.fixture(scope='module', autouse=True)
def _small_chunks():
    """Chunks of 3 products, so that a small dataset has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, 'CHUNK_PRODUCTS', 3)
        yield


@functools.cache
def places_in(*paths: str) -> dict[bytes, tuple[int, int, int]]:
    """What each decoded picture of some shards is: (place in the shards' order, product id, label)."""
    found: dict[bytes, tuple[int, int, int]] = {}
    for path in paths:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            product = records.decode(record)
            for image in product.images:
                picture = simplejpeg.decode_jpeg(image).tobytes()
                found[picture] = (len(found), product.product_id, product.label)
    return found


def places(shards: Shards, name: str) -> dict[bytes, tuple[int, int, int]]:
    found = places_in(*(f'{shards.folder}/{file.name}' for file in shards.manifest.of_split(name)))
    assert len(found) == shards.manifest.images(name), 'all pictures differ'
    return found


def stream(shards: Shards, pictures: int, *, batch_size: int = 1, **options: Any) -> np.ndarray:
    """The first pictures of the training stream, by place in the shards' order: int [pictures]."""
    known = places(shards, 'train')
    found: list[int] = []
    for images, _, labels in dataset.train(shards, batch_size=batch_size, **options).take(-(-pictures // batch_size)):
        for image, label in zip(images.numpy(), labels.numpy(), strict=True):
            place, _, expected = known[image.tobytes()]
            assert label == expected
            found.append(place)
    return np.array(found[:pictures])


def same(left: Any, right: Any) -> bool:
    return all((one == other).all() and one.dtype == other.dtype for one, other in zip(left, right, strict=True))


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Shards:
    """42 products in 3 shards to train with, 84 pictures; 9 in 3 shards to validate, 18 pictures."""
    made = write_shards(tmp_path_factory.mktemp('shards'), train=42, val=9, shards=3)
    assert (made.manifest.images('train'), made.manifest.images('val')) == (84, 18)
    return made


def test_the_synopsis_runs_as_it_stands(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    write_shards(tmp_path / 'data' / 'shards', train=20)
    monkeypatch.chdir(tmp_path)
    assert dataset.__doc__
    names: dict[str, Any] = {'dataset': dataset}
    exec(textwrap.dedent(dataset.__doc__.split('Synopsis:\n')[1]), names)
    assert names['images'].shape == (128, 180, 180, 3)


# Training.


@pytest.mark.parametrize('shuffle_images', [1, 7, 83, 84, 85, 200, 10_000])
def test_every_picture_comes_once_a_pass_with_its_label(shards, shuffle_images):
    passes = stream(shards, 3 * 84, seed=0, batch_size=24, shuffle_images=shuffle_images).reshape(3, 84)
    for one in passes:
        assert sorted(one) == list(range(84))


def test_each_pass_has_another_order(shards):
    passes = {tuple(one) for one in stream(shards, 5 * 84, seed=0, batch_size=84).reshape(5, 84)}
    assert len(passes) == 5


def test_the_seed_decides_the_order_and_the_draws(shards):
    first, again, other = (next(iter(dataset.train(shards, seed=seed, batch_size=84))) for seed in (0, 0, 1))
    assert same([x.numpy() for x in first], [x.numpy() for x in again])
    assert not (first[0].numpy() == other[0].numpy()).all()
    assert not (first[1].numpy() == other[1].numpy()).any()


def test_batches_have_one_shape(shards):
    stream = dataset.train(shards, seed=0, batch_size=24)
    shapes = [((24, 180, 180, 3), tf.uint8), ((24, augment.DRAWS), tf.float32), ((24,), tf.int64)]
    assert [(tuple(spec.shape), spec.dtype) for spec in stream.element_spec] == shapes
    assert stream.cardinality() == tf.data.INFINITE_CARDINALITY


def test_draws_are_even_and_new_at_every_step(shards):
    draws = np.concatenate([batch[1].numpy() for batch in dataset.train(shards, seed=0, batch_size=40).take(50)])
    assert draws.min() >= 0 and draws.max() < 1
    assert len(np.unique(draws, axis=0)) == len(draws) == 2000
    # The mean of 2,000 even draws is 0.5, with a standard deviation of 0.29 / sqrt(2,000) = 0.0065.
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=5 * 0.0065)
    # So is the correlation of two columns 0, with one of 1 / sqrt(2,000) = 0.022.
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(augment.DRAWS), atol=5 * 0.022)


@pytest.mark.parametrize(
    ('step', 'shuffle_images'), [*((step, 16) for step in (0, 1, 2, 3, 4, 6, 7, 8, 10, 11)), (3, 10_000), (7, 10_000)]
)
def test_a_resumed_stream_is_bit_for_bit_the_uninterrupted_one(shards, uninterrupted, step, shuffle_images):
    """A pass has 3 1/2 batches: batches 3 and 10 span the end of one, batch 7 begins one."""
    resumed = dataset.train(shards, seed=5, batch_size=24, start_step=step, shuffle_images=shuffle_images).take(3)
    for offset, batch in enumerate(resumed.as_numpy_iterator()):
        assert same(batch, uninterrupted[shuffle_images][step + offset])


@pytest.mark.parametrize('step', [3, 11, 10**6, 10**9 + 3])
def test_what_lies_before_a_step_is_not_read(tmp_path, monkeypatch, step):
    """600 pictures in 100 chunks, windows of about one chunk, of which a batch needs two or three."""
    shards = write_shards(tmp_path, train=300)
    read: list[Chunk] = []
    read_chunk = shard_chunks.read

    def noted(chunk: Chunk, memory: memoryview) -> np.ndarray:
        read.append(chunk)
        return read_chunk(chunk, memory)

    monkeypatch.setattr(shard_chunks, 'read', noted)
    next(dataset.training_batches(shards, seed=0, batch_size=8, start_step=step, shuffle_images=1))
    assert 4 <= len(read) < 30


@pytest.fixture(scope='module')
def uninterrupted(shards) -> dict[int, list[Any]]:
    return {
        size: list(dataset.train(shards, seed=5, batch_size=24, shuffle_images=size).take(14).as_numpy_iterator())
        for size in (16, 10_000)
    }


def test_tensorflows_global_seed_has_no_influence(shards, uninterrupted):
    try:
        for seed in (1, 2):
            tf.random.set_seed(seed)
            batches = dataset.train(shards, seed=5, batch_size=24).take(4).as_numpy_iterator()
            assert all(same(left, right) for left, right in zip(batches, uninterrupted[10_000], strict=False))
    finally:
        tf.random.set_seed(None)


@pytest.mark.parametrize('threads', [1, 3])
def test_the_stream_is_the_same_whatever_the_number_of_threads(shards, uninterrupted, monkeypatch, threads):
    monkeypatch.setitem(feed.decoded.__kwdefaults__, 'threads', threads)
    monkeypatch.setattr(feed, 'READERS', threads)
    batches = dataset.train(shards, seed=5, batch_size=24).take(4).as_numpy_iterator()
    assert all(same(left, right) for left, right in zip(batches, uninterrupted[10_000], strict=False))


def test_a_stream_in_plain_memory_is_the_one_in_tensorflow(shards, uninterrupted):
    batches = dataset.training_batches(shards, seed=5, batch_size=24)
    assert all(same(*pair) for pair in zip(batches, uninterrupted[10_000], strict=False))


@pytest.mark.parametrize('batch_size', [8, 12, 48])
def test_a_picture_has_its_draws_however_the_stream_is_cut_into_batches(shards, uninterrupted, batch_size):
    draws = np.concatenate([batch[1] for batch in uninterrupted[10_000]])
    batches = dataset.train(shards, seed=5, batch_size=batch_size).take(2).as_numpy_iterator()
    np.testing.assert_array_equal(np.concatenate([batch[1] for batch in batches]), draws[: 2 * batch_size])


def test_the_pictures_of_a_product_are_parted(tmp_path):
    """300 products, 600 pictures, in windows of 60: no batch has two of one product unless it spans three windows."""
    shards = write_shards(tmp_path, train=300, shards=4)
    products = np.repeat(np.arange(300), [COUNTS[n % 7] for n in range(300)])
    order = products[stream(shards, 600, seed=0, batch_size=60, shuffle_images=540)]
    assert (np.diff(products) == 0).sum() == 300, 'pairs of neighbours in the shards'
    together = sum(60 - len(np.unique(batch)) for batch in order.reshape(-1, 60))
    assert together < 6  # at random sum(c * (c - 1)) / 2 * 59 / 599 = 47 pairs would be


# Products.

# Those that are rows: all with their first so many pictures, or those that have exactly so many.
KINDS = {
    **{f'first {count}': Products(count, fewer=True) for count in (1, 2, 3, 4)},
    **{f'exactly {count}': Products(count) for count in (1, 2, 3, 4)},
}


def numbers_of(kind: Products, numbers: Iterable[int]) -> list[int]:
    """Those of these products that are rows, by number."""
    return [number for number in numbers if kind.fewer or COUNTS[number % 7] == kind.pictures]


def assert_a_row(known: dict[bytes, tuple[int, int, int]], kind: Products, images: Any, mask: Any, label: int) -> int:
    """Its pictures are the first of one product, in their order, and nothing stands where it has none: its number."""
    found = [known[picture.tobytes()] for picture in images[mask]]
    place, product, _ = found[0]
    assert found == [(place + n, product, label) for n in range(len(found))]
    count = min(COUNTS[product // 3 % 7], kind.pictures)
    assert mask.tolist() == [n < count for n in range(kind.pictures)]
    assert not images[~mask].any()
    return product // 3


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('shuffle_images', [1, 40, 10_000])
def test_every_product_comes_once_a_pass_with_its_pictures(shards, kind, shuffle_images):
    known, expected = places(shards, 'train'), numbers_of(kind, range(42))
    batch_size, shape = 6, (6, kind.pictures)  # there are 42 products, 18 with one picture, 12 with two, 6, 6
    stream = dataset.train(shards, seed=0, batch_size=batch_size, shuffle_images=shuffle_images, products=kind)
    batches = list(stream.take(3 * len(expected) // batch_size).as_numpy_iterator())
    seen: list[int] = []
    for images, mask, draws, labels in batches:
        assert (images.shape, mask.shape, draws.shape) == ((*shape, 180, 180, 3), shape, (*shape, augment.DRAWS))
        assert (images.dtype, mask.dtype, draws.dtype, labels.dtype) == (np.uint8, bool, np.float32, np.int64)
        seen += [assert_a_row(known, kind, *row) for row in zip(images, mask, labels, strict=True)]
    passes = np.array(seen).reshape(3, -1)
    assert np.sort(passes).tolist() == [expected] * 3
    assert len({tuple(one) for one in passes.tolist()}) == 3, 'each in another order'
    draws = np.concatenate([batch[2] for batch in batches]).reshape(-1, augment.DRAWS)
    assert len(np.unique(draws, axis=0)) == len(draws)


def test_fewer_pictures_than_a_product_has_are_its_first(shards):
    (images, mask, *_), (some, some_mask, *_) = (
        next(iter(dataset.train(shards, seed=3, batch_size=42, products=Products(pictures, fewer=True))))
        for pictures in (4, 2)
    )
    np.testing.assert_array_equal(some, images[:, :2])
    np.testing.assert_array_equal(some_mask, mask[:, :2])


@pytest.mark.parametrize('kind', [Products(3, fewer=True), Products(2), Products(4)])
@pytest.mark.parametrize('shuffle_images', [1, 30, 10_000])
def test_a_resumed_stream_of_products_is_the_uninterrupted_one(shards, kind, shuffle_images):
    """A pass has 8.4, 2.4 or 1.2 batches."""
    options: dict[str, Any] = {'seed': 1, 'batch_size': 5, 'products': kind, 'shuffle_images': shuffle_images}
    whole = list(itertools.islice(map(copied, dataset.training_batches(shards, **options)), 20))
    for step in range(18):
        resumed = dataset.training_batches(shards, start_step=step, **options)
        assert all(same(*pair) for pair in zip(itertools.islice(resumed, 2), whole[step:], strict=False))


def copied(batch: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    return [column.copy() for column in batch]


@pytest.mark.parametrize('kind', [None, Products(4, fewer=True), Products(3), Products(1)])
def test_no_more_pictures_are_in_memory_than_allowed_whatever_is_left_out(tmp_path, monkeypatch, kind):
    """One product of seven has three pictures: the rows are few, and what is read for them is not."""
    shards = write_shards(tmp_path, train=420)
    pictures_at = {
        offset: sum(count * pictures for pictures, count in enumerate(counts, start=1))
        for offset, (_, *counts) in chunks_at(shards.manifest.files[0])
    }
    read: list[Chunk] = []
    read_chunk = shard_chunks.read

    def noted(chunk: Chunk, memory: memoryview) -> np.ndarray:
        read.append(chunk)
        return read_chunk(chunk, memory)

    monkeypatch.setattr(shard_chunks, 'read', noted)
    batches = dataset.training_batches(shards, seed=0, batch_size=1, shuffle_images=360, products=kind)
    next(batches)
    pictures = sum(pictures_at[chunk.offset] for chunk in read)
    # A window and what is read ahead, of nine; a group ends with a whole chunk.
    assert 30 <= pictures <= 360 + 9 * max(pictures_at.values())


def chunks_at(file: manifest.FileInfo) -> list[tuple[int, tuple[int, ...]]]:
    """The manifest's chunks of a file by their first byte."""
    ends = itertools.accumulate((size for size, *_ in file.chunks), initial=0)
    return list(zip(ends, file.chunks, strict=False))


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_rows_are_counted_without_reading(tmp_path, kind):
    shards = write_shards(tmp_path, train=42, val=9, shards=3)
    for file in tmp_path.glob('*.tfrecord'):
        file.unlink()
    assert dataset.rows(shards, 'train', kind) == len(numbers_of(kind, range(42)))
    assert dataset.rows(shards, 'val', kind) == len(numbers_of(kind, range(42, 51)))
    assert dataset.rows(shards, 'test', kind) == 0
    assert [dataset.rows(shards, name) for name in ('train', 'val', 'test')] == [84, 18, 0]


def test_a_training_set_without_such_products_is_refused(tmp_path):
    shards = write_shards(tmp_path, train=2, val=3)  # with one picture and with three
    rule = f'{tmp_path}: the training shards hold no products with exactly 2 pictures'
    remedy = 'train with another --pictures, or on all products with --fewer_pictures'
    with pytest.raises(InputError, match=f'^{re.escape(f"{rule}; {remedy}")}$'):
        dataset.train(shards, seed=0, batch_size=1, products=Products(2))
    (images, *_) = next(iter(dataset.train(shards, seed=0, batch_size=1, products=Products(3))))
    assert images.shape == (1, 3, 180, 180, 3)


def test_damage_in_a_product_is_told_with_its_id(tmp_path, capsys):
    sound, broken = catalogue.jpeg(0), b'no picture'
    products = [records.Product(7, 1000, 0, 'train', (sound, broken)), records.Product(8, 1000, 0, 'train', (broken,))]
    write_products(tmp_path, {'train': [products]})
    shards = dataset.open_shards(str(tmp_path))
    next(dataset.training_batches(shards, seed=0, batch_size=1, products=Products(2)))
    assert capsys.readouterr().err.startswith('warning: product 7, picture 1: taken as grey: no JPEG picture')


def test_other_products_than_the_manifest_tells_of_are_told_with_file_and_byte(tmp_path):
    """The same number of products and of pictures, but two of two where the manifest tells of one and three."""
    shards = write_shards(tmp_path, train=4)
    (file,) = shards.manifest.files
    (size, *_), last = file.chunks
    other = dataclasses.replace(file, chunks=((size, 0, 3, 0, 0), last))
    shards = dataclasses.replace(shards, manifest=dataclasses.replace(shards.manifest, files=(other,)))
    said = f'{tmp_path}/{file.name}: from byte 0 on are 1 products with exactly 2 pictures, not the 3 that the manifest'
    with pytest.raises(InputError, match=f'^{re.escape(said)} tells of; {re.escape(shard_chunks.REMEDY)}$'):
        next(dataset.training_batches(shards, seed=0, batch_size=1, products=Products(2)))


# Evaluation.


@pytest.mark.parametrize('batch_size', [1, 6, 17, 18, 19, 100])
def test_every_picture_is_evaluated_once_and_the_last_batch_is_filled_up(shards, batch_size):
    batches = list(dataset.evaluation(shards, 'val', batch_size=batch_size, limit=10**9).as_numpy_iterator())
    assert len(batches) == -(-18 // batch_size)
    for images, labels, weights in batches:
        assert (images.shape, images.dtype) == ((batch_size, 180, 180, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((batch_size,), np.int64)
        assert (weights.shape, weights.dtype) == ((batch_size,), np.float32)
    images, labels, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
    assert weights.tolist() == [1] * 18 + [0] * (len(weights) - 18)
    assert not images[18:].any()
    known = places(shards, 'val')
    assert [known[image.tobytes()][::2] for image in images[:18]] == [(n, labels[n]) for n in range(18)]


@pytest.mark.parametrize(('limit', 'counted'), [(1, 1), (5, 5), (6, 6), (7, 7), (18, 18), (19, 18)])
def test_a_limit_takes_the_first_pictures(shards, limit, counted):
    evaluation = dataset.evaluation(shards, 'val', batch_size=6, limit=limit)
    batches = list(evaluation.as_numpy_iterator())
    assert len(batches) == evaluation.cardinality() == -(-counted // 6)
    assert sum(weights.sum() for _, _, weights in batches) == counted
    first = {place for _, (place, _, _) in zip(range(counted), places(shards, 'val').values(), strict=False)}
    known = places(shards, 'val')
    seen = [known[image.tobytes()][0] for images, _, weights in batches for image in images[weights > 0]]
    assert sorted(seen) == sorted(first)


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('batch_size', [1, 4, 9, 10])
def test_every_product_is_evaluated_once_and_the_last_batch_is_filled_up(shards, kind, batch_size):
    expected = numbers_of(kind, range(42, 51))
    evaluation = dataset.evaluation(shards, 'val', batch_size=batch_size, limit=10**9, products=kind)
    batches = list(evaluation.as_numpy_iterator())
    assert len(batches) == evaluation.cardinality() == -(-len(expected) // batch_size)
    for images, mask, labels, weights in batches:
        assert (images.shape, images.dtype) == ((batch_size, kind.pictures, 180, 180, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((batch_size, kind.pictures), bool)
        assert (labels.shape, labels.dtype) == ((batch_size,), np.int64)
        assert (weights.shape, weights.dtype) == ((batch_size,), np.float32)
    images, mask, labels, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
    count, known = len(expected), places(shards, 'val')
    assert weights.tolist() == [1] * count + [0] * (len(weights) - count)
    found = zip(images[:count], mask[:count], labels[:count], strict=True)
    assert [assert_a_row(known, kind, *row) for row in found] == expected
    assert not images[count:].any() and not mask[count:].any()


@pytest.mark.parametrize(('limit', 'counted'), [(1, 1), (3, 3), (4, 4), (5, 4)])
def test_a_limit_takes_the_first_products_of_that_kind(shards, limit, counted):
    evaluation = dataset.evaluation(shards, 'val', batch_size=2, limit=limit, products=Products(1))
    labels = [label for _, _, labels, weights in evaluation for label in labels[weights > 0].numpy().tolist()]
    assert labels == [number % 7 for number in numbers_of(Products(1), range(42, 51))][:counted]


@pytest.mark.parametrize('kind', [None, Products(4, fewer=True), Products(2)])
def test_a_split_without_rows_has_no_batches(tmp_path, kind):
    shards = write_shards(tmp_path, train=1, val=int(kind == Products(2)))
    assert dataset.rows(shards, 'val', kind) == 0
    assert list(dataset.evaluation(shards, 'val', batch_size=2, limit=10, products=kind)) == []


# Views.


def all_views(shards: Shards, *, batch_size: int = 16, tta: int = 3, seed: int = 0) -> list[np.ndarray]:
    """The columns of the first shard's views, without what fills up the last batch."""
    batches = list(
        dataset.views(
            shards, shards.manifest.of_split('val')[0], batch_size=batch_size, tta=tta, seed=seed
        ).as_numpy_iterator()
    )
    assert {len(column) for batch in batches for column in batch} == {batch_size}
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    return [column[columns[2] != dataset.FILLER] for column in columns]


@pytest.mark.parametrize('tta', [1, 3])
def test_views_come_by_product_picture_and_view(shards, tta):
    images, draws, product_ids, image_indices, views, labels = all_views(shards, tta=tta)
    assert (images.dtype, draws.dtype) == (np.uint8, np.float32)
    assert product_ids.dtype == image_indices.dtype == views.dtype == labels.dtype == np.int64
    expected = [
        (3 * n + 1, picture, view, n % 7)
        for n in (42, 43, 44)
        for picture in range(COUNTS[n % 7])
        for view in range(tta)
    ]
    assert list(zip(product_ids, image_indices, views, labels, strict=True)) == expected
    known = places(shards, 'val')
    assert [known[image.tobytes()][0] for image in images] == np.repeat(range(len(images) // tta), tta).tolist()


def test_view_0_is_plain_and_no_two_others_are_alike(shards):
    _, draws, _, _, views, _ = all_views(shards, tta=5)
    assert (draws[views == 0] == augment.PLAIN).all()
    others = draws[views > 0]
    assert others.min() >= 0 and others.max() < 1
    assert max(Counter(map(tuple, others)).values()) == 1


@pytest.mark.parametrize(('batch_size', 'rows'), [(17, 34), (18, 18), (19, 19)])
def test_the_last_batch_of_views_is_filled_up(shards, batch_size, rows):
    batches = list(
        dataset.views(
            shards, shards.manifest.of_split('val')[0], batch_size=batch_size, tta=3, seed=0
        ).as_numpy_iterator()
    )
    product_ids = np.concatenate([batch[2] for batch in batches])
    assert len(product_ids) == rows
    assert (product_ids[:18] > 0).all() and (product_ids[18:] == dataset.FILLER).all()


@pytest.mark.parametrize('batch_size', [1, 17, 1000])
def test_views_are_the_same_for_any_batch_size(shards, batch_size):
    assert same(all_views(shards, batch_size=batch_size), all_views(shards))


def test_another_seed_gives_other_views(shards):
    first, other = all_views(shards), all_views(shards, seed=1)
    assert same(first[2:], other[2:]) and same(first[:1], other[:1])
    assert (first[1] != other[1]).all(axis=1).tolist() == (first[4] > 0).tolist()


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(('batch_size', 'tta'), [(4, 1), (4, 3), (7, 3)])
def test_views_of_products_come_by_product_and_view(shards, kind, batch_size, tta):
    known, found = places(shards, 'val'), []
    for file in shards.manifest.of_split('val'):
        stream = dataset.views(shards, file, batch_size=batch_size, tta=tta, seed=0, products=kind)
        batches = list(stream.as_numpy_iterator())
        assert len(batches) == stream.cardinality()
        assert {len(column) for batch in batches for column in batch} <= {batch_size}
        found += batches
    images, mask, draws, product_ids, image_indices, views, labels = (
        np.concatenate(column)[np.concatenate([batch[3] for batch in found]) != dataset.FILLER]
        for column in zip(*found, strict=True)
    )
    expected = [(number, view) for number in numbers_of(kind, range(42, 51)) for view in range(tta)]
    assert list(zip(product_ids.tolist(), views.tolist(), strict=True)) == [(3 * n + 1, view) for n, view in expected]
    assert not image_indices.any()
    rows = [assert_a_row(known, kind, *row) for row in zip(images, mask, labels, strict=True)]
    assert rows == [number for number, _ in expected]
    # As the picture of this number of the product has them if it is a row by itself.
    for number in range(kind.pictures):
        own = dataset.view_draws(0, product_ids, np.full_like(product_ids, number), views)
        np.testing.assert_array_equal(draws[:, number], own)
    assert (draws[views == 0] == augment.PLAIN).all()
    others = draws[views > 0].reshape(-1, augment.DRAWS)
    assert len(np.unique(others, axis=0)) == len(others)


def test_what_fills_up_a_batch_of_products_has_no_picture(shards):
    file = shards.manifest.of_split('val')[0]
    (batch,) = dataset.views(shards, file, batch_size=8, tta=2, seed=0, products=Products(4, fewer=True))
    images, mask, _, product_ids, *_ = (column.numpy() for column in batch)
    assert product_ids.tolist() == [127, 127, 130, 130, 133, 133, dataset.FILLER, dataset.FILLER]
    assert not images[6:].any() and not mask[6:].any()


def test_a_shard_without_such_products_has_no_views(shards):
    file = shards.manifest.of_split('val')[2]  # products 48, 49 and 50: two, one and three pictures
    assert list(dataset.views(shards, file, batch_size=8, tta=2, seed=0, products=Products(4))) == []


# Opening.


@pytest.mark.parametrize('made', [False, True], ids=['no folder', 'no manifest'])
def test_a_folder_without_shards_names_the_command_to_run(tmp_path, made):
    folder = tmp_path / 'shards'
    if made:
        write_shards(folder, train=1)
        (folder / 'manifest.json').unlink()
    rule = f'{folder}/manifest.json: no such file, so {folder} holds no finished shards'
    remedy = f'make them: python -m pipeline.convert --runner=DirectRunner --output_dir={folder}'
    with pytest.raises(InputError, match=f'^{re.escape(f"{rule}; {remedy}")}$'):
        dataset.open_shards(str(folder))


def test_only_listed_files_are_read(tmp_path):
    write_shards(tmp_path, train=2)
    (tmp_path / 'train-00001-of-00002.tfrecord').write_bytes(b'of an earlier run')
    shards = dataset.open_shards(str(tmp_path))
    assert sorted(stream(shards, 4, seed=0)) == [0, 1, 2, 3]
    assert shards.label_map.ids.tolist() == list(range(1000, 1007))
