"""Shards -> batches: order, decoding, artificial epochs, exact resume.

Synopsis:

    shards = dataset.open_shards('data/shards')
    for images, draws, labels in dataset.train(shards, seed=0, batch_size=128).take(10):
        ...  # images: uint8 [128, 180, 180, 3]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import augment, categories, commands, feed, hashing, manifest
from pipeline.errors import InputError
from pipeline.pictures import SHAPE

# Encoded pictures in memory: 300 MB of 5 kB each. Shards hold their products in order of hash and are read in pieces of
# 1 MB from everywhere, so a window of some thousands has only to part the pictures of one product and of one piece.
SHUFFLE_IMAGES = 60_000
FILLER = -1  # product_id of rows that only fill up a batch; no product has it
PICTURES = 4  # the most that a product has


@dataclass(frozen=True)
class Shards:
    """A dataset on disk.

    Attributes:
        folder: where the shards lie.
        manifest: what they hold.
        label_map: the categories.
    """

    folder: str
    manifest: manifest.Manifest
    label_map: categories.Categories


def open_shards(folder: str) -> Shards:
    """Opens a dataset.

    Raises:
        InputError: the folder holds no finished shards.
    """
    made = manifest.read(folder, kind='shards', remedy=commands.convert(folder))
    return Shards(folder, made, categories.read(folder))


def train(shards: Shards, *, batch_size: int, pictures: int | None = None, **options: Any) -> tf.data.Dataset:
    """The endless stream of training batches as Keras wants it: training_batches() with the same arguments."""
    each = pictures or 1
    shape = (batch_size, each) if pictures else (batch_size,)
    mask = [(shape, tf.bool)] if pictures else []
    columns = [((*shape, *SHAPE), tf.uint8), *mask, ((*shape, augment.DRAWS), tf.float32), ((batch_size,), tf.int64)]
    begin = functools.partial(training_batches, shards, batch_size=batch_size, pictures=pictures, **options)
    begin()  # to refuse bad arguments now; nothing is read before the first batch is taken
    return _as_dataset(begin, columns, tf.data.INFINITE_CARDINALITY)


def training_batches(
    shards: Shards,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    shuffle_images: int = SHUFFLE_IMAGES,
    pictures: int | None = None,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[tuple[np.ndarray, ...]]:
    """The endless stream of training batches, from any step on.

    Each pass over the training data has each picture once, in an order fixed by (seed, number of the pass), and a batch
    may span the end of a pass; pipeline.order says how. The stream from `start_step` on is exactly that of an
    uninterrupted run, and begins within a second or two: what comes before is not read.

    Args:
        shards: the dataset.
        seed: of the order and of the draws for augmentation.
        batch_size: pictures a batch; products, with `pictures`.
        start_step: batches to leave out at the start.
        shuffle_images: encoded pictures in memory; at least some pieces of shards, whatever this is.
        pictures: for models that look at a whole product: the first so many of its pictures are one row, and a pass has
            each product once.
        worker: number of this machine among `workers`.
        workers: machines that train together: each has shards of its own, and its passes are over them.

    Returns:
        images uint8 [batch, 180, 180, 3], draws float32 [batch, augment.DRAWS], labels int64 [batch].
        With `pictures`: images uint8 [batch, pictures, 180, 180, 3], 0 where a product has fewer; mask bool
        [batch, pictures], true where it has one; draws float32 [batch, pictures, augment.DRAWS]; labels int64 [batch].

    Raises:
        InputError: there are fewer shards than workers, or one can't be read.
    """
    files = shards.manifest.of_split('train')
    if len(files) < workers:
        raise InputError(
            f'{shards.folder}: {len(files)} training shards are too few for {workers} workers; '
            'convert again with a smaller --shard_mb'
        )
    rows = feed.shuffled(
        feed.chunks_of(shards.folder, files[worker::workers], products=pictures is not None),
        seed=seed,
        start_row=start_step * batch_size,
        shuffle_rows=shuffle_images // PICTURES if pictures else shuffle_images,
        pictures_each=pictures,
    )

    def generate() -> Iterator[tuple[np.ndarray, ...]]:
        each = pictures or 1
        for step, batch in enumerate(feed.decoded(rows, batch_size=batch_size), start=start_step):
            # Each picture of the stream has a number and so its draws, however the stream is cut into batches.
            numbers = np.arange(step * batch_size * each, (step + 1) * batch_size * each).reshape(-1, each, 1)
            draws = hashing.uniform(seed, worker, numbers, np.arange(augment.DRAWS))
            labels = batch.rows.table['label']
            if pictures:
                yield batch.pixels, _mask(batch.rows), draws, labels
            else:
                yield batch.pixels[:, 0], draws[:, 0], labels

    return generate()


def evaluation(shards: Shards, split: str, *, batch_size: int, limit: int) -> tf.data.Dataset:
    """The first `limit` pictures of a split: a random choice, because shards hold products in order of hash.

    Returns:
        images uint8 [batch, 180, 180, 3], labels int64 [batch], weights float32 [batch]; the last batch is filled up
        with pictures of weight 0, so that every batch has the same shape and no picture is lost.
    """
    total = min(limit, shards.manifest.images(split))
    chunks = feed.chunks_of(shards.folder, shards.manifest.of_split(split), products=False)

    def generate() -> Iterator[Any]:
        for batch in feed.decoded(feed.in_order(chunks, limit=total), batch_size=batch_size):
            yield (
                batch.pixels[:, 0],
                *_filled(batch_size, batch.rows.table['label'], np.ones(len(batch.rows), np.float32)),
            )

    signature = [((batch_size, *SHAPE), tf.uint8), ((batch_size,), tf.int64), ((batch_size,), tf.float32)]
    return _as_dataset(generate, signature, -(-total // batch_size))


def views(shards: Shards, file: manifest.FileInfo, *, batch_size: int, tta: int, seed: int) -> tf.data.Dataset:
    """Every view of every picture of a shard, in the shard's order: by product, picture, view.

    Args:
        shards: the dataset.
        file: the shard, of any split.
        batch_size: views a batch.
        tta: views a picture; view 0 is the plain picture, the others differ by (seed, product, picture, view).
        seed: of the views.

    Returns:
        images uint8 [batch, 180, 180, 3], draws float32 [batch, augment.DRAWS], and int64 [batch] each: product_id,
        image_index, view, label. The last batch is filled up with rows of product_id FILLER.
    """
    chunks = feed.chunks_of(shards.folder, [file], products=False)

    def generate() -> Iterator[Any]:
        pictures = feed.in_order(chunks)
        rows = (some[np.repeat(np.arange(len(some)), tta)] for some in pictures)
        for step, batch in enumerate(feed.decoded(rows, batch_size=batch_size)):
            product_id, image_index, label = (
                batch.rows.table['product_id'],
                batch.rows.table['image_index'],
                batch.rows.table['label'],
            )
            view = (step * batch_size + np.arange(len(label))) % tta
            draws = view_draws(seed, product_id, image_index, view)
            (product_id,) = _filled(batch_size, product_id, filler=FILLER)
            yield (
                batch.pixels[:, 0],
                *_filled(batch_size, draws),
                product_id,
                *_filled(batch_size, image_index, view, label),
            )

    images, draws = ((batch_size, *SHAPE), tf.uint8), ((batch_size, augment.DRAWS), tf.float32)
    total = file.images * tta
    return _as_dataset(generate, [images, draws, *[((batch_size,), tf.int64)] * 4], -(-total // batch_size))


def view_draws(seed: int, product_id: np.ndarray, image_index: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The numbers that vary views of pictures: int64 [n] each -> float32 [n, augment.DRAWS]; view 0 is as it is."""
    keys = (key[:, None] for key in (product_id, image_index, view))
    draws = hashing.uniform(seed, *keys, np.arange(augment.DRAWS))
    draws[view == 0] = augment.PLAIN
    return draws


def products(
    shards: Shards, files: Sequence[manifest.FileInfo], *, batch_size: int, pictures: int = PICTURES
) -> tf.data.Dataset:
    """The products of some shards in their order, each with its first pictures, for models that look at all of them.

    Returns:
        images uint8 [batch, pictures, 180, 180, 3] and mask bool [batch, pictures], as train() makes them; product_id
        and label int64 [batch]. The last batch is filled up with rows of product_id FILLER and no picture.
    """
    chunks = feed.chunks_of(shards.folder, files, products=True)

    def generate() -> Iterator[Any]:
        rows = feed.in_order(chunks, pictures_each=pictures)
        for batch in feed.decoded(rows, batch_size=batch_size):
            (product_id,) = _filled(batch_size, batch.rows.table['product_id'], filler=FILLER)
            yield (
                batch.pixels,
                *_filled(batch_size, _mask(batch.rows)),
                product_id,
                *_filled(batch_size, batch.rows.table['label']),
            )

    images, mask = ((batch_size, pictures, *SHAPE), tf.uint8), ((batch_size, pictures), tf.bool)
    total = sum(file.products for file in files)
    return _as_dataset(generate, [images, mask, *[((batch_size,), tf.int64)] * 2], -(-total // batch_size))


def _mask(rows: feed.Rows) -> np.ndarray:
    """Where a product has a picture, bool [n, pictures]."""
    return rows.table['end'] > 0


def _filled(batch_size: int, *columns: np.ndarray, filler: int = 0) -> list[np.ndarray]:
    """Fills a last batch up, so that all have one shape.

    Two replicas need it: one of them would get an empty batch, which layers refuse.
    """
    return [
        np.concatenate([column, np.full((batch_size - len(column), *column.shape[1:]), filler, column.dtype)])
        for column in columns
    ]


def _as_dataset(
    begin: Callable[[], Iterator[Any]], columns: Sequence[tuple[tuple[int, ...], Any]], cardinality: int
) -> tf.data.Dataset:
    """What a generator yields, one batch ahead."""
    signature = tuple(tf.TensorSpec(shape, dtype) for shape, dtype in columns)
    stream = tf.data.Dataset.from_generator(begin, output_signature=signature)
    stream = stream.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(1)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune, and looking for it takes part of a core
    return stream.with_options(options)
