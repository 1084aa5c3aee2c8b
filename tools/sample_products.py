"""Single products of a dataset: random ones, or those at given places, with their pictures.

Synopsis:

    places = sample_products.choose(made, splits=('train', 'val'), products=24, seed=0)
    products = sample_products.read('data/shards', places)

A place is a file and the number of a record in it. Files of logits and of predictions hold the products of the shard
of the same number, in its order, so what is found there has its place here too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pipeline import records, split, storage
from pipeline.errors import InputError
from pipeline.manifest import CHUNK_PRODUCTS, FileInfo, Manifest
from pipeline.records import Product


def choose(made: Manifest, *, splits: Sequence[str], products: int, seed: int) -> list[tuple[FileInfo, int]]:
    """Random products: file and record of each, in the manifest's order of splits, files and records.

    Args:
        made: the dataset's manifest.
        splits: of these, about as many each; where one has too few, the others give more.
        products: how many; fewer if there aren't so many.
        seed: of the choice.
    """
    counts = _deal(products, [made.products(name) for name in splits])
    places = []
    for name, count in zip(splits, counts, strict=True):
        draw = np.random.default_rng([seed, split.SPLITS.index(name)])
        chosen = draw.choice(made.products(name), count, replace=False, shuffle=False)
        places += find(made.of_split(name), np.sort(chosen))
    return places


def _deal(total: int, available: Sequence[int]) -> list[int]:
    """Divides `total` as evenly as what is available allows."""
    counts = [0] * len(available)
    for index in itertools.cycle(range(len(available))):
        if sum(counts) == min(total, sum(available)):
            return counts
        counts[index] += counts[index] < available[index]
    return counts


def find(files: Sequence[FileInfo], numbers: np.ndarray) -> list[tuple[FileInfo, int]]:
    """The places of products that are numbered through some files in their order: int64 [n], from 0 on."""
    ends = np.cumsum([file.products for file in files])
    indices = np.searchsorted(ends, numbers, side='right').tolist()
    return [
        (files[index], number - int(ends[index]) + files[index].products)
        for index, number in zip(indices, numbers.tolist(), strict=True)
    ]


def read(folder: str, places: Sequence[tuple[FileInfo, int]]) -> list[Product]:
    """Reads products by file and record: in the order asked for, which may be any.

    Of each, at most manifest.CHUNK_PRODUCTS records' lengths are read before it.

    Raises:
        InputError: one can't be read.
    """
    products: dict[int, Product] = {}
    order = sorted(range(len(places)), key=lambda asked: (places[asked][0].name, places[asked][1]))
    for name, group in itertools.groupby(order, key=lambda asked: places[asked][0].name):
        path = storage.join(folder, name)
        with storage.open_read(path) as file:
            for asked in group:
                info, record = places[asked]
                chunk, before = divmod(record, CHUNK_PRODUCTS)
                file.seek(sum(size for size, *_ in info.chunks[:chunk]))
                records.skip_frames(file, before)
                frame = next(records.frames(file), records.Frame(b'', b'', 'the file is cut off'))
                try:
                    products[asked] = _decode(frame)
                except ValueError as error:
                    remedy = 'python -m tools.inspect_shards tells all that is wrong'
                    raise InputError(f'{path}: record {record}: {error}; {remedy}') from None
    return [products[asked] for asked in range(len(places))]


def _decode(frame: records.Frame) -> Product:
    if frame.problem:
        raise ValueError(frame.problem)
    return records.decode(frame.record)
