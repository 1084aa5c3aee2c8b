"""Pictures of the products that predictions are of, out of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble import known_images
from pipeline import dataset
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
        problem: why it can't be had; '' if it can.
    """

    shards: Shards | None
    split: str
    problem: str = ''

    def pictures(self, products: np.ndarray) -> list[tuple[bytes, ...]]:
        """All pictures of products of the split, by their places in it, int64 [n]; [] without shards.

        Raises:
            InputError: one can't be read.
        """
        if not self.shards:
            return []
        return self.pictures_at(sample_products.find(self.shards.manifest.of_split(self.split), products))

    def pictures_at(self, places: Sequence[tuple[FileInfo, int]]) -> list[tuple[bytes, ...]]:
        """All pictures of products of any split, by file and record; [] without shards.

        Raises:
            InputError: one can't be read.
        """
        if not self.shards:
            return []
        return [product.images for product in sample_products.read(self.shards.folder, places)]


def open_gallery(folder: str, *, split: str, digest: str) -> Gallery:
    """The shards in a folder, if they are those of this digest."""
    try:
        known_images.check(folder, digest=digest)
        return Gallery(dataset.open_shards(folder), split)
    except InputError as error:
        return Gallery(None, split, str(error))


def first_pictures(images: Sequence[tuple[bytes, ...]]) -> list[bytes]:
    """The first picture of each product."""
    return [picture for some in images for picture in some[:1]]
