"""Pictures of the products that predictions are of, out of the shards."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble import known_images
from ensemble.predictions import Predictions
from ensemble.reduction import Stores
from pipeline import columns, dataset, progress, shard_chunks, storage
from pipeline.dataset import Shards
from pipeline.errors import InputError
from pipeline.manifest import FileInfo
from tools import sample_products


@dataclass(frozen=True)
class Gallery:
    """The dataset that logits were made from, or nothing in its place.

    Attributes:
        shards: the dataset; None if it can't be had.
        split: val or test: what is predicted.
        part: K, if the model is for products with exactly K pictures; 0: for all.
        problem: why the dataset can't be had; '' if it can.
    """

    shards: Shards | None
    split: str
    part: int = 0
    problem: str = ''

    def pictures(self, found: Predictions, places: np.ndarray) -> list[tuple[bytes, ...]]:
        """All pictures of some of the products that are predicted; [] without shards.

        Args:
            found: the predictions, of all the split's products or of a part.
            places: of the products among them, int64 [n].

        Raises:
            InputError: one can't be read, or the shards hold other products.
        """
        if not self.shards:
            return []
        numbers = self._numbers(found.product_id[places]) if self.part else places
        return self.pictures_at(sample_products.find(self.shards.manifest.of_split(self.split), numbers))

    def _numbers(self, product_id: np.ndarray) -> np.ndarray:
        """The places of products in the whole split."""
        order = np.argsort(self._product_id)
        places = order[np.searchsorted(self._product_id[order[:-1]], product_id)]  # the last one, if it is past all
        if not np.array_equal(self._product_id[places], product_id):
            raise InputError('the logits hold other products than the shards; make the logits again')
        return places

    @functools.cached_property
    def _product_id(self) -> np.ndarray:
        """The ids of all products of the split, int64 [P]: 14 MB for Kaggle's test set."""
        found = [np.empty(0, np.int64)]
        if self.shards:
            total = self.shards.manifest.products(self.split)
            with progress.Progress(total=total, label='look for products', unit='products') as bar:
                for file in self.shards.manifest.of_split(self.split):
                    path = storage.join(self.shards.folder, file.name)
                    for some in shard_chunks.parse_shard(path, file, columns.read):
                        found.append(some.product_id)
                        bar.update(len(some.product_id))
        return np.concatenate(found)

    def pictures_at(self, places: Sequence[tuple[FileInfo, int]]) -> list[tuple[bytes, ...]]:
        """All pictures of products of any split, by file and record; [] without shards.

        Raises:
            InputError: one can't be read.
        """
        if not self.shards:
            return []
        return [product.images for product in sample_products.read(self.shards.folder, places)]


def open_gallery(folder: str, stores: Stores) -> Gallery:
    """The shards in a folder, if they are those that the logits were made from."""
    first, *others = stores.groups[0].stores
    part = 0 if others else first.part
    try:
        known_images.check(folder, digest=stores.dataset_digest)
        return Gallery(dataset.open_shards(folder), stores.split, part)
    except InputError as error:
        return Gallery(None, stores.split, part, str(error))


def first_pictures(images: Sequence[tuple[bytes, ...]]) -> list[bytes]:
    """The first picture of each product."""
    return [picture for some in images for picture in some[:1]]
