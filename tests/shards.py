"""Small datasets on disk, written without a conversion, for the tests of what reads them.

Synopsis:

    made = shards.write(folder, train=40, shards=3)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline import categories, dataset, manifest, records, split
from pipeline.categories import Categories
from pipeline.manifest import FileInfo, Manifest
from pipeline.records import Product
from tests import catalogue, chunks

CATEGORIES = 7
COUNTS = (1, 3, 2, 4, 1, 1, 2)  # pictures of the products, in turn


def write(folder: Path, *, train: int, val: int = 0, shards: int = 1) -> dataset.Shards:
    """A dataset of so many products, each split in so many shards, each picture another one; ids are 3n + 1."""
    numbers = {'train': np.arange(train), 'val': np.arange(train, train + val)}
    products = {
        name: [[_product(number, name) for number in some.tolist()] for some in np.array_split(all_numbers, shards)]
        for name, all_numbers in numbers.items()
        if len(all_numbers)
    }
    write_products(folder, products)
    return dataset.open_shards(str(folder))


def write_products(
    folder: Path, products: Mapping[str, Sequence[Sequence[Product]]], *, label_map: Categories | None = None
) -> None:
    """A dataset of the products of each split and shard; categories 1000, 1001... if they aren't given."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, shards in products.items():
        for index, some in enumerate(shards):
            encoded, images = [records.encode(one) for one in some], [len(one.images) for one in some]
            data, path = records.frame(encoded), folder / split.shard_name(name, index, len(shards))
            path.write_bytes(data)
            table = chunks.table(encoded, images, chunk_products=manifest.CHUNK_PRODUCTS)
            files.append(FileInfo(path.name, name, len(some), sum(images), len(data), 'unchecked', table))
    label_map = label_map or Categories(np.arange(CATEGORIES) + 1000, (('A', 'B', 'C'),) * CATEGORIES)
    categories.write(label_map, str(folder))
    manifest.write(Manifest('shards', {'seed': 0}, tuple(files)), str(folder))


def _product(number: int, name: str) -> Product:
    label = number % CATEGORIES
    images = tuple(catalogue.jpeg(4 * number + picture, label) for picture in range(COUNTS[label]))
    return Product(3 * number + 1, 1000 + label, label, name, images)
