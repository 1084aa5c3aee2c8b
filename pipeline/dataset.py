"""Shards -> batches: order, decoding, artificial epochs, exact resume.

Synopsis:

    shards = dataset.open_shards('data/shards')
    for images, draws, labels in dataset.train(shards, seed=0, batch_size=128).take(10):
        ...  # images: uint8 [128, 180, 180, 3]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import augment, bson_stream, categories, commands, feed, hashing, manifest
from pipeline.errors import InputError
from pipeline.feed import Products
from pipeline.pictures import SHAPE
from pipeline.shard_chunks import Chunk

# Encoded pictures in memory: 300 MB of 5 kB each. Shards hold their products in order of hash and are read in pieces of
# 1 MB from everywhere, so a window of some thousands has only to part the pictures of one product and of one piece.
SHUFFLE_IMAGES = 60_000
FILLER = -1  # product_id of rows that only fill up a batch; no product has it
PICTURES = bson_stream.MAX_PICTURES  # the most that a product has


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


def rows(shards: Shards, split: str, products: Products | None = None) -> int:
    """How many rows a split has: pictures, or products of that kind."""
    return _count(_chunks(shards, shards.manifest.of_split(split), products))


def train(shards: Shards, *, batch_size: int, products: Products | None = None, **options: Any) -> tf.data.Dataset:
    """The endless stream of training batches as Keras wants it: training_batches() with the same arguments."""
    begin = functools.partial(training_batches, shards, batch_size=batch_size, products=products, **options)
    begin()  # to refuse bad arguments now; nothing is read before the first batch is taken
    columns = [*_specs(batch_size, products, draws=True), ((batch_size,), tf.int64)]
    return as_dataset(begin, columns, tf.data.INFINITE_CARDINALITY)


def training_batches(
    shards: Shards,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    shuffle_images: int = SHUFFLE_IMAGES,
    products: Products | None = None,
    worker: int = 0,
    workers: int = 1,
) -> Iterator[tuple[np.ndarray, ...]]:
    """The endless stream of training batches, from any step on.

    Each pass over the training data has each row once, in an order fixed by (seed, number of the pass), and a batch
    may span the end of a pass; pipeline.order says how. The stream from `start_step` on is exactly that of an
    uninterrupted run, and begins within a second or two: what comes before is not read.

    Args:
        shards: the dataset.
        seed: of the order and of the draws for augmentation.
        batch_size: rows a batch.
        start_step: batches to leave out at the start.
        shuffle_images: encoded pictures in memory; at least some pieces of shards, whatever this is.
        products: what a row is, for models that look at several pictures of a product; None: a picture.
        worker: number of this machine among `workers`.
        workers: machines that train together: each has shards of its own, and its passes are over them.

    Returns:
        images uint8 [batch, 180, 180, 3], draws float32 [batch, augment.DRAWS], labels int64 [batch].
        With `products`, of K pictures: images uint8 [batch, K, 180, 180, 3], 0 where a product has fewer; mask bool
        [batch, K], true where it has one; draws float32 [batch, K, augment.DRAWS]; labels int64 [batch].

    Raises:
        InputError: there are fewer shards than workers, or no such row among those of one of them; or, later, a shard
            can't be read.
    """
    files = shards.manifest.of_split('train')
    if len(files) < workers:
        raise InputError(
            f'{shards.folder}: {len(files)} training shards are too few for {workers} workers; '
            'convert again with a smaller --shard_mb'
        )
    of_workers = [_chunks(shards, files[one::workers], products) for one in range(workers)]
    chunks = of_workers[worker]
    if not all(of_workers):  # told by all of them, for those that have some would wait for the others
        whose = f' of worker {of_workers.index([]) + 1} of {workers}' if workers > 1 else ''
        raise InputError(
            f'{shards.folder}: the training shards{whose} hold no {feed.kind_of_rows(products)}; '
            'train with another --pictures, or on all products with --fewer_pictures'
        )
    # What is in memory are whole chunks, with the pictures that no row has, too.
    pictures_there = sum(file.images for file in files[worker::workers])
    pieces = feed.shuffled(
        chunks,
        seed=seed,
        start_row=start_step * batch_size,
        shuffle_rows=shuffle_images * _count(chunks) // pictures_there,
        products=products,
    )
    row = _row_shape(products)
    each = math.prod(row)

    def generate() -> Iterator[tuple[np.ndarray, ...]]:
        for step, batch in enumerate(feed.decoded(pieces, batch_size=batch_size), start=start_step):
            # Each picture of the stream has a number and so its draws, however the stream is cut into batches.
            numbers = np.arange(step * batch_size * each, (step + 1) * batch_size * each)
            draws = hashing.uniform(seed, worker, numbers[:, None], np.arange(augment.DRAWS))
            draws = draws.reshape(batch_size, *row, augment.DRAWS)
            yield *_pictures(batch, products), draws, batch.rows.table['label']

    return generate()


def evaluation(
    shards: Shards, split: str, *, batch_size: int, limit: int, products: Products | None = None
) -> tf.data.Dataset:
    """The first `limit` rows of a split: a random choice, because shards hold products in order of hash.

    Returns:
        images, with `products` their mask, as training_batches() has them; labels int64 [batch], weights float32
        [batch]. The last batch is filled up with rows of weight 0, so that every batch has the same shape and no row
        is lost.
    """
    chunks = _chunks(shards, shards.manifest.of_split(split), products)
    total = min(limit, _count(chunks))

    def generate() -> Iterator[Any]:
        pieces = feed.in_order(chunks, products=products, limit=total)
        for batch in feed.decoded(pieces, batch_size=batch_size):
            images, *mask = _pictures(batch, products)
            yield images, *_filled(batch_size, *mask, batch.rows.table['label'], np.ones(len(batch.rows), np.float32))

    columns = [*_specs(batch_size, products, draws=False), ((batch_size,), tf.int64), ((batch_size,), tf.float32)]
    return as_dataset(generate, columns, -(-total // batch_size))


def views(
    shards: Shards,
    file: manifest.FileInfo,
    *,
    batch_size: int,
    tta: int,
    seed: int,
    products: Products | None = None,
) -> tf.data.Dataset:
    """Every view of every row of a shard, in the shard's order: by product, picture, view.

    Args:
        shards: the dataset.
        file: the shard, of any split.
        batch_size: views a batch.
        tta: views a row; view 0 is the plain one, in the others pictures differ by (seed, product, picture, view).
        seed: of the views.
        products: what a row is, as in training_batches().

    Returns:
        images, with `products` their mask, and draws, as training_batches() has them; and int64 [batch] each:
        product_id, image_index (0 where a row is a product), view, label. The last batch is filled up with rows of
        product_id FILLER.
    """
    chunks, row = _chunks(shards, [file], products), _row_shape(products)

    def generate() -> Iterator[Any]:
        pieces = (some[np.repeat(np.arange(len(some)), tta)] for some in feed.in_order(chunks, products=products))
        for step, batch in enumerate(feed.decoded(pieces, batch_size=batch_size)):
            images, *mask = _pictures(batch, products)
            product_id, image_index, label = (batch.rows.table[name] for name in ('product_id', 'image_index', 'label'))
            view = (step * batch_size + np.arange(len(label))) % tta
            picture = image_index[:, None] + np.arange(math.prod(row))
            draws = view_draws(seed, *np.broadcast_arrays(product_id[:, None], picture, view[:, None]))
            (filled_id,) = _filled(batch_size, product_id, filler=FILLER)
            yield (
                images,
                *_filled(batch_size, *mask, draws.reshape(-1, *row, augment.DRAWS)),
                filled_id,
                *_filled(batch_size, image_index, view, label),
            )

    total = _count(chunks) * tta
    columns = [*_specs(batch_size, products, draws=True), *[((batch_size,), tf.int64)] * 4]
    return as_dataset(generate, columns, -(-total // batch_size))


def view_draws(seed: int, product_id: np.ndarray, image_index: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The numbers that vary views of pictures; view 0 is as it is.

    Args:
        seed: of the views.
        product_id: of each picture, int64 [...].
        image_index: its number among those of the product, int64 [...].
        view: its view's number, int64 [...].

    Returns:
        float32 [..., augment.DRAWS].
    """
    keys = (key[..., None] for key in (product_id, image_index, view))
    draws = hashing.uniform(seed, *keys, np.arange(augment.DRAWS))
    draws[view == 0] = augment.PLAIN
    return draws


def _chunks(shards: Shards, files: Sequence[manifest.FileInfo], products: Products | None) -> list[Chunk]:
    return feed.chunks_of(shards.folder, files, products=products)


def _count(chunks: Sequence[Chunk]) -> int:
    """How many rows some chunks have."""
    return sum(chunk.rows for chunk in chunks)


def _row_shape(products: Products | None) -> tuple[int, ...]:
    """What stands between the batch and a picture in the shape of a column."""
    return (products.pictures,) if products else ()


def _pictures(batch: feed.Batch, products: Products | None) -> tuple[np.ndarray, ...]:
    """The images of a batch, filled up, and if rows are products, where they have one: bool [n, pictures]."""
    return (batch.pixels, batch.rows.table['end'] > 0) if products else (batch.pixels[:, 0],)


def _specs(batch_size: int, products: Products | None, *, draws: bool) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes and types of the images of batches, of their mask if rows are products, and of their draws."""
    shape = (batch_size, *_row_shape(products))
    masks = [(shape, tf.bool)] if products else []
    return [((*shape, *SHAPE), tf.uint8), *masks, *[((*shape, augment.DRAWS), tf.float32)] * draws]


def _filled(batch_size: int, *columns: np.ndarray, filler: int = 0) -> list[np.ndarray]:
    """Fills a last batch up, so that all have one shape.

    Two replicas need it: one of them would get an empty batch, which layers refuse.
    """
    return [
        np.concatenate([column, np.full((batch_size - len(column), *column.shape[1:]), filler, column.dtype)])
        for column in columns
    ]


def as_dataset(
    begin: Callable[[], Iterator[Any]], columns: Sequence[tuple[tuple[int, ...], Any]], cardinality: int
) -> tf.data.Dataset:
    """What a generator yields, one batch ahead.

    Args:
        begin: begins it.
        columns: shape and type of each of what it yields.
        cardinality: how many batches there are.
    """
    signature = tuple(tf.TensorSpec(shape, dtype) for shape, dtype in columns)
    stream = tf.data.Dataset.from_generator(begin, output_signature=signature)
    stream = stream.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(1)
    options = tf.data.Options()
    options.autotune.enabled = False  # there is nothing to tune, and looking for it takes part of a core
    return stream.with_options(options)
