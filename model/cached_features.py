"""The features of single pictures that model.features has cached, read product by product, in any order.

Synopsis:

    found = cached_features.Cached('runs/one/features/train', weights_digest=digest, dataset_digest=shards.digest())
    for features, mask, labels in found.training_batches(seed=0, batch_size=1024):
        ...  # float16 [1024, 4, F], bool [1024, 4], int64 [1024]

Only the small columns are read at the start: 17 bytes a product stay in memory, of the features only a batch or two.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from ensemble import logits, logits_folder
from model import inference
from model.accumulate import AccumulatingModel
from pipeline import dataset, hashing, progress, storage
from pipeline.dataset import PICTURES, Shards
from pipeline.errors import InputError
from pipeline.manifest import Manifest

Columns = tuple[np.ndarray, ...]


def make(model: AccumulatingModel, shards: Shards, split: str, *, run_dir: str, batch_size: int) -> str:
    """Caches the features of a split's pictures, or those that are missing; checks every byte of those that are there.

    Args:
        model: of single pictures, made under the strategy in scope.
        shards: the dataset.
        split: train, val or test.
        run_dir: the folder of the model's run.
        batch_size: pictures at a time, over all replicas.

    Returns:
        The store's folder.

    Raises:
        InputError: the model knows other categories than the shards hold, or a feature isn't finite in float16.
    """
    options = inference.Options(split=split, batch_size=batch_size, kind=logits.FEATURES)
    return inference.predict_split(model, shards, options, run_dir=run_dir)


def are_there(run_dir: str, split: str) -> bool:
    """Whether a run has a finished store of a split's features."""
    folder = logits_folder.folder(run_dir, split, kind=logits.FEATURES)
    return storage.exists(storage.join(folder, 'manifest.json'))


def read_manifest(folder: str, *, weights_digest: str, dataset_digest: str) -> Manifest:
    """What a store of features holds.

    Raises:
        InputError: there is none, or it was made by other weights or of other shards.
    """
    made = logits.read_manifest(folder, kind=logits.FEATURES)
    for name, expected, what in (
        ('weights_digest', weights_digest, 'by other weights than the run has now'),
        ('dataset_digest', dataset_digest, 'of other shards'),
    ):
        if made.about[name] != expected:
            raise InputError(f'{folder}: made {what}; make them again: {logits_folder.command(folder)}')
    return made


class Cached:
    """A store of features by product; products are numbered in the order of the dataset.

    Attributes:
        features: how many a picture has.
    """

    def __init__(self, folder: str, *, weights_digest: str, dataset_digest: str) -> None:
        """Finds every product's place.

        Args:
            folder: of the store, on a local disk.
            weights_digest: of the classifier that it must have been made by.
            dataset_digest: of the shards that it must have been made of.

        Raises:
            InputError: see read_manifest(), or a file is damaged.
        """
        made = read_manifest(folder, weights_digest=weights_digest, dataset_digest=dataset_digest)
        self.features = 0
        self._paths = [storage.join(folder, file.name) for file in made.files]
        self._files = [os.open(path, os.O_RDONLY) for path in self._paths]
        weakref.finalize(self, _close, self._files)
        parts: list[Columns] = []
        bar = progress.Progress(made.files, total=len(made.files), label='index the features', unit='shards')
        for number, file in enumerate(bar):
            for block, place in logits.index_shard(folder, file, kind=logits.FEATURES):
                self.features = block.logits.shape[1]
                starts = block.starts()
                parts.append(
                    (
                        np.full(len(starts), number, np.int32),
                        place + starts * self._row_bytes,
                        np.diff(starts, append=len(block)).astype(np.int8),
                        block.label[starts].astype(np.int32),
                    )
                )
        if not parts:
            raise InputError(f'{folder}: holds no products')
        self._file, self._place, self._pictures, self._label = map(np.concatenate, zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self._label)

    @property
    def _row_bytes(self) -> int:
        return 2 * self.features

    def read(self, numbers: np.ndarray) -> Columns:
        """The products of these numbers.

        Args:
            numbers: int64 [n].

        Returns:
            features float16 [n, 4, F], 0 where a product has fewer pictures; mask bool [n, 4], true where it has one;
            labels int64 [n].

        Raises:
            InputError: a file is shorter than it was.
        """
        features = np.zeros([len(numbers), PICTURES, self.features], '<f2')
        for row, (file, place, length) in zip(features, self._ranges(numbers), strict=True):
            memory = row.reshape(-1).view(np.uint8).data[:length]
            if os.preadv(self._files[file], [memory], place) != length:
                raise InputError(f'{self._paths[file]}: was cut off meanwhile; the same command makes it again')
        mask = np.arange(PICTURES) < self._pictures[numbers, None]
        return features, mask, self._label[numbers].astype(np.int64)

    def training_batches(self, *, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Columns]:
        """The endless stream of training batches, from any step on.

        Each pass has each product once, in an order that is a function of (seed, number of the pass); a batch may span
        the end of a pass.

        Args:
            seed: of the order.
            batch_size: products a batch.
            start_step: batches to leave out at the start.

        Returns:
            What read() gives.
        """
        return self._each(_training_order(len(self), seed=seed, batch_size=batch_size, start_step=start_step))

    def train(self, *, seed: int, batch_size: int, start_step: int = 0) -> tf.data.Dataset:
        """training_batches() as a dataset of TensorFlow's."""

        def begin() -> Iterator[Columns]:
            return self.training_batches(seed=seed, batch_size=batch_size, start_step=start_step)

        return dataset.as_dataset(begin, self._columns(batch_size), tf.data.INFINITE_CARDINALITY)

    def evaluation(self, *, batch_size: int, limit: int) -> tf.data.Dataset:
        """The first `limit` products: a random choice, because shards hold products in order of hash.

        Returns:
            What read() gives, and weights float32 [batch]. The last batch is filled up with products of weight 0, which
            have no picture.
        """
        total = min(limit, len(self))

        def generate() -> Iterator[Columns]:
            numbers = (np.arange(start, min(start + batch_size, total)) for start in range(0, total, batch_size))
            for columns in self._each(numbers):
                columns = (*columns, np.ones(len(columns[0]), np.float32))
                yield tuple(
                    np.pad(column, [(0, batch_size - len(column)), *[(0, 0)] * (column.ndim - 1)]) for column in columns
                )

        columns = [*self._columns(batch_size), ((batch_size,), tf.float32)]
        return dataset.as_dataset(generate, columns, -(-total // batch_size))

    def _columns(self, batch_size: int) -> list[tuple[tuple[int, ...], tf.DType]]:
        """Shapes and types of the columns of a batch."""
        shape = (batch_size, PICTURES)
        return [((*shape, self.features), tf.float16), (shape, tf.bool), ((batch_size,), tf.int64)]

    def _each(self, numbers: Iterator[np.ndarray]) -> Iterator[Columns]:
        """Reads batch after batch; the disk is told of the next one, so that it looks for many places at a time."""
        for now, following in itertools.pairwise(itertools.chain(numbers, [np.empty(0, np.int64)])):
            for file, place, length in self._ranges(following):
                os.posix_fadvise(self._files[file], place, length, os.POSIX_FADV_WILLNEED)
            yield self.read(now)

    def _ranges(self, numbers: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """File, place and length in bytes of each product's features."""
        lengths = self._pictures[numbers].astype(np.int64) * self._row_bytes
        return zip(self._file[numbers].tolist(), self._place[numbers].tolist(), lengths.tolist(), strict=True)


def by_product(block: logits.Rows) -> tuple[np.ndarray, np.ndarray]:
    """Features of pictures, with all of each product's, as read() has them.

    Returns:
        float16 [products, 4, F] and bool [products, 4].
    """
    starts = block.starts()
    product = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(block)))
    features = np.zeros([len(starts), PICTURES, block.logits.shape[1]], np.float16)
    mask = np.zeros([len(starts), PICTURES], bool)
    features[product, block.image_index] = block.logits
    mask[product, block.image_index] = True
    return features, mask


def _training_order(count: int, *, seed: int, batch_size: int, start_step: int) -> Iterator[np.ndarray]:
    """The numbers of each batch's products, int64 [batch_size], without end."""
    number, start = divmod(start_step * batch_size, count)
    pending = hashing.permutation(count, seed, number)[start:]
    while True:
        while len(pending) < batch_size:
            number += 1
            pending = np.concatenate([pending, hashing.permutation(count, seed, number)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
