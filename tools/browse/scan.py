"""Labels, MD5s, lengths and sizes of all pictures of a dataset, in one pass over its shards that decodes nothing.

Synopsis:

    found = scan.read('data/shards', made, categories=len(label_map))
    print(f'{len(found.md5):,} pictures of {len(found.product_id):,} products')

Every checksum of a record is checked. What stays in memory is 14 bytes a product and 20 bytes a picture: 440 MB for the
15.5 million pictures of Cdiscount's 8.8 million products.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline import bson_stream, columns, shard_chunks, split, storage
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest
from tools import shard_processes

SIZES_SAMPLED = 10**6  # pictures whose headers are looked at: so many take 3 s of a core
Size = tuple[int, int] | None  # width and height in pixels; None: no header of a JPEG


@dataclass(frozen=True, eq=False)
class Scan:
    """What is in a dataset: products in order of the manifest's files and of the records there, with their pictures.

    Attributes:
        product_id: int64 [P].
        label: int32 [P], -1 in test.
        split: int8 [P], the number of the split in split.SPLITS.
        images: uint8 [P], pictures of each product.
        md5: uint8 [N, 16], of each picture.
        length: int32 [N], bytes of each picture.
        sizes: how many of the pictures that were looked at have which size.
        step: one picture of so many was looked at for its size; products stand in a random order.
    """

    product_id: np.ndarray
    label: np.ndarray
    split: np.ndarray
    images: np.ndarray
    md5: np.ndarray
    length: np.ndarray
    sizes: Counter[Size]
    step: int

    @functools.cached_property
    def product(self) -> np.ndarray:
        """The product of each picture, by its number: int32 [N]."""
        return np.repeat(np.arange(len(self.product_id), dtype=np.int32), self.images)

    def of_split(self, name: str) -> np.ndarray:
        """Which products are of a split: bool [P]."""
        return self.split == split.SPLITS.index(name)


class Shard(NamedTuple):
    """The same of one shard, or of a part of it."""

    sizes: Counter[Size]
    product_id: np.ndarray
    label: np.ndarray
    images: np.ndarray
    md5: np.ndarray
    length: np.ndarray


def read(folder: str, made: Manifest, *, categories: int, processes: int | None = None) -> Scan:
    """Reads all shards, with a progress bar.

    Args:
        folder: where they lie.
        made: their manifest.
        categories: how many labels there are.
        processes: how many read; None: one a core, but fewer for little data.

    Raises:
        InputError: a shard is damaged, or isn't what the manifest says; names the file.
    """
    products, pictures = (sum(getattr(file, name) for file in made.files) for name in ('products', 'images'))
    step = max(1, -(-pictures // SIZES_SAMPLED))
    found = Scan(
        product_id=np.empty(products, np.int64),
        label=np.empty(products, np.int32),
        split=np.repeat(
            np.array([split.SPLITS.index(file.split) for file in made.files], np.int8),
            [file.products for file in made.files],
        ),
        images=np.empty(products, np.uint8),
        md5=np.empty((pictures, columns.MD5_BYTES), np.uint8),
        length=np.empty(pictures, np.int32),
        sizes=Counter(),
        step=step,
    )
    read_one = functools.partial(read_shard, folder=folder, categories=categories, step=step)
    product = picture = 0
    for shard in shard_processes.map_shards(read_one, made.files, label='read', processes=processes):
        of_products = slice(product, product + len(shard.product_id))
        of_pictures = slice(picture, picture + len(shard.md5))
        for name in ('product_id', 'label', 'images'):
            getattr(found, name)[of_products] = getattr(shard, name)
        for name in ('md5', 'length'):
            getattr(found, name)[of_pictures] = getattr(shard, name)
        found.sizes.update(shard.sizes)
        product, picture = of_products.stop, of_pictures.stop
    return found


def read_shard(item: tuple[int, FileInfo], *, folder: str, categories: int, step: int) -> Shard:
    """Reads one shard.

    Args:
        item: the file's number in the manifest, and the file.
        folder: where it lies.
        categories: how many labels there are.
        step: of so many pictures, one is looked at for its size.

    Raises:
        InputError: as read().
    """
    _, file = item
    path = storage.join(folder, file.name)
    parts = list(shard_chunks.parse_shard(path, file, functools.partial(_parse, step=step)))
    shard = _joined(parts)
    if len(shard.md5) != file.images:
        rule = f'holds {len(shard.md5)} pictures, not the {file.images} that the manifest tells of'
        raise InputError(f'{path}: {rule}; {shard_chunks.REMEDY}')
    least = -1 if file.split == 'test' else 0
    wrong = (shard.label < least) | (shard.label >= categories)
    if wrong.any():
        rule = f'product {shard.product_id[wrong][0]} has label {shard.label[wrong][0]}'
        raise InputError(f'{path}: {rule}, must be {least} to {categories - 1}; {shard_chunks.REMEDY}')
    return shard


def _parse(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, step: int) -> Shard:
    """The records of some chunks."""
    _, md5 = columns.read_md5(data, starts, ends)
    found = columns.read(data, starts, ends)
    if len(md5) != len(found.starts):
        raise ValueError(f'has {len(found.starts)} pictures and {len(md5)} image_md5')
    places = zip(found.starts[::step].tolist(), found.ends[::step].tolist(), strict=True)
    sizes = Counter(bson_stream.jpeg_size(data[start:end].tobytes()) for start, end in places)
    return Shard(sizes, found.product_id, found.label, found.images, md5, found.ends - found.starts)


def _joined(parts: Sequence[Shard]) -> Shard:
    """The parts of a shard, one after the other."""
    none = np.zeros(0, np.int64)
    empty = Shard(Counter(), none, none, none, np.zeros((0, columns.MD5_BYTES), np.uint8), none)
    arrays = [np.concatenate(pieces) for pieces in zip(*(part[1:] for part in (empty, *parts)), strict=True)]
    return Shard(sum((part.sizes for part in parts), Counter()), *arrays)
