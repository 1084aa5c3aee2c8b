"""Shards -> batches: order, decoding, artificial epochs, exact resume.

Synopsis:

    shards = dataset.open_shards('data/shards')
    for images, draws, labels in dataset.train(shards, seed=0, batch_size=128).take(10):
        ...  # images: uint8 [128, 180, 180, 3]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import augment, categories, manifest, records, storage
from pipeline.bson_stream import PICTURE_SIZE

# Encoded pictures shuffled together: 5 kB each, so 50 MB, and up to three such blocks are in memory. Shards hold their
# products in order of hash, so a block has only to part the pictures of one product.
SHUFFLE_IMAGES = 10_000
READERS = 16  # shards read in turn
FILLER = -1  # product_id of rows that only fill up a batch; no product has it
PARSE_PRODUCTS = 64  # products parsed by one call: tf.io.parse_example costs less a product in batches


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

    def paths(self, split: str) -> list[str]:
        """The files of a split, in shard order."""
        return [storage.join(self.folder, file.name) for file in self.manifest.of_split(split)]


def open_shards(folder: str) -> Shards:
    """Opens a dataset.

    Raises:
        InputError: the folder holds no finished shards.
    """
    made = manifest.read(folder, kind='shards', remedy='python -m pipeline.convert --runner=DirectRunner')
    return Shards(folder, made, categories.read(folder))


def train(
    shards: Shards, *, seed: int, batch_size: int, start_step: int = 0, shuffle_images: int = SHUFFLE_IMAGES
) -> tf.data.Dataset:
    """The endless stream of training batches, from any step on.

    Each pass over the training data has each picture once, in an order fixed by (seed, number of the pass); a batch may
    span the end of a pass. So the stream from `start_step` on is exactly that of an uninterrupted run.

    Args:
        shards: the dataset.
        seed: of the order and of the draws for augmentation.
        batch_size: pictures a batch.
        start_step: batches to leave out at the start; their pictures are read but not decoded.
        shuffle_images: encoded pictures shuffled together.

    Returns:
        images uint8 [batch, 180, 180, 3], draws float32 [batch, augment.DRAWS], labels int64 [batch].
    """
    first_pass, offset = divmod(start_step * batch_size, shards.manifest.images('train'))
    paths = tf.constant(shards.paths('train'))

    def one_pass(number: Any) -> tf.data.Dataset:
        pictures = _pictures(tf.random.experimental.stateless_shuffle(paths, seed=[seed, number]), readers=READERS)
        pictures = pictures.map(lambda picture: (picture['image'], picture['label']))
        # Dataset.shuffle would mix in TensorFlow's global seed, so that the order would hang on who set it.
        blocks = pictures.batch(shuffle_images).enumerate()
        blocks = blocks.map(lambda block, columns: _shuffled(columns, [seed, number], block))
        return blocks.prefetch(1).unbatch()

    def add_draws(step: Any, batch: Any) -> Any:
        images, labels = batch
        return images, tf.random.stateless_uniform([batch_size, augment.DRAWS], seed=[seed, step]), labels

    stream = tf.data.Dataset.range(first_pass, np.iinfo(np.int64).max).flat_map(one_pass)
    stream = stream.skip(offset)
    stream = stream.map(lambda image, label: (_decode(image), label), num_parallel_calls=tf.data.AUTOTUNE)
    stream = stream.batch(batch_size, drop_remainder=True)
    stream = stream.enumerate(start_step).map(add_draws)
    stream = stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return stream.prefetch(tf.data.AUTOTUNE)


def evaluation(shards: Shards, split: str, *, batch_size: int, limit: int) -> tf.data.Dataset:
    """The first `limit` pictures of a split: a random choice, because shards hold products in order of hash.

    Returns:
        images uint8 [batch, 180, 180, 3], labels int64 [batch], weights float32 [batch]; the last batch is filled up
        with pictures of weight 0, so that every batch has the same shape and no picture is lost.
    """
    total = min(limit, shards.manifest.images(split))

    def row(picture: dict[str, Any]) -> Any:
        return _decode(picture['image']), picture['label'], 1.0

    rows = _pictures(tf.constant(shards.paths(split), tf.string), readers=1).take(total)
    rows = rows.map(row, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    rows = rows.map(lambda *columns: _filled(columns, batch_size))
    rows = rows.apply(tf.data.experimental.assert_cardinality(-(-total // batch_size)))
    return rows.prefetch(tf.data.AUTOTUNE)


def views(path: str, *, batch_size: int, tta: int, seed: int) -> tf.data.Dataset:
    """Every view of every picture of a shard, in the shard's order: by product, picture, view.

    Args:
        path: the shard.
        batch_size: views a batch.
        tta: views a picture; view 0 is the plain picture, the others differ by (seed, product, picture, view).
        seed: of the views.

    Returns:
        images uint8 [batch, 180, 180, 3], draws float32 [batch, augment.DRAWS], and int64 [batch] each: product_id,
        image_index, view, label. The last batch is filled up with rows of product_id FILLER.
    """

    def all_views(picture: dict[str, Any]) -> tf.data.Dataset:
        return tf.data.Dataset.range(tta).map(lambda view: {**picture, 'view': view})

    def row(picture: dict[str, Any]) -> Any:
        place = picture['product_id'], picture['image_index'], picture['view']
        key = tf.random.experimental.stateless_fold_in([seed, place[0]], place[1])
        key = tf.random.experimental.stateless_fold_in(key, place[2])
        draws = tf.random.stateless_uniform([augment.DRAWS], seed=key)
        draws = tf.where(picture['view'] == 0, augment.PLAIN, draws)
        return _decode(picture['image']), draws, *place, picture['label']

    rows = _pictures(tf.constant([path]), readers=1)
    rows = rows.flat_map(all_views)
    rows = rows.map(row, num_parallel_calls=tf.data.AUTOTUNE)
    rows = rows.batch(batch_size).map(lambda *columns: _filled(columns, batch_size, product_id=2))
    return rows.prefetch(tf.data.AUTOTUNE)


def _pictures(paths: Any, *, readers: int) -> tf.data.Dataset:
    """The encoded pictures of some shards: product_id, image_index, label int64 and image string, all scalars."""

    def by_picture(products: dict[str, Any]) -> dict[str, Any]:
        counts = products['images'].row_lengths()
        return {
            'product_id': tf.repeat(products['product_id'], counts),
            'image_index': tf.ragged.range(counts).flat_values,
            'label': tf.repeat(products['label'], counts),
            'image': products['images'].flat_values,
        }

    files = tf.data.Dataset.from_tensor_slices(paths)
    products = files.interleave(tf.data.TFRecordDataset, cycle_length=readers, block_length=PARSE_PRODUCTS)
    return products.batch(PARSE_PRODUCTS).map(lambda batch: by_picture(records.parse(batch))).unbatch()


def _filled(columns: Any, batch_size: int, *, product_id: int | None = None) -> Any:
    """Fills a last batch up with rows of zeros (FILLER in the column of that number), so that all have one shape.

    Two replicas need it: one of them would get an empty batch, which layers refuse.
    """
    missing = batch_size - tf.shape(columns[0])[0]
    filled = []
    for number, column in enumerate(columns):
        value = tf.cast(FILLER if number == product_id else 0, column.dtype)
        padded = tf.pad(column, [[0, missing], *[[0, 0]] * (column.shape.rank - 1)], constant_values=value)
        filled.append(tf.ensure_shape(padded, [batch_size, *column.shape[1:]]))
    return tuple(filled)


def _shuffled(columns: Any, seed: Any, block: Any) -> Any:
    """The rows of some columns [n], all in the same random order."""
    key = tf.random.experimental.stateless_fold_in(seed, block)
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(columns[0])[0]), seed=key)
    return tuple(tf.gather(column, order) for column in columns)


def _decode(image: Any) -> Any:
    """An encoded picture -> uint8 [180, 180, 3]."""
    return tf.ensure_shape(tf.io.decode_jpeg(image, channels=3), [PICTURE_SIZE, PICTURE_SIZE, 3])
