"""Stores of logits on disk, made by hand or at random, for the tests of what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble import logits
from ensemble.logits import Rows
from pipeline import split
from pipeline.categories import Categories


def write(folder: Path, shards: Sequence[Rows | None], label_map: Categories, **about: object) -> str:
    """A finished store, with a file for each shard (None: of no product); `about` overrides what finish() is told.

    It is of a dataset that has no other products, unless it is told so.
    """
    said: dict = {
        'split': folder.name.partition('-')[0],
        'tta': 1,
        'weights_digest': 'w',
        'dataset_digest': 'd',
        'seed': 0,
        'dataset_products': sum(len(rows.starts()) for rows in shards if rows is not None),
        'order_seed': 0,
    }
    said |= about
    files = []
    for number, rows in enumerate(shards):
        name = split.shard_name(said['split'], number, len(shards))
        files.append(logits.write_shard(str(folder), name, [] if rows is None else rows, split=said['split']))
    logits.finish(str(folder), files, categories=label_map, **said)
    return str(folder)


def random_rows(
    products: int, classes: int, *, seed: int, views: int = 1, first_id: int = 0, labels: bool = True
) -> Rows:
    """Products of one to four pictures; the logits tell the label often enough to be of use."""
    generator = np.random.default_rng(seed)
    pictures = np.random.default_rng(first_id).integers(1, 5, products)
    label = np.random.default_rng(first_id + 1).integers(0, classes, products)
    rows = pictures * views
    index = np.concatenate([np.arange(count) for count in rows])
    values = generator.normal(0, 2, (rows.sum(), classes))
    values[np.arange(rows.sum()), np.repeat(label, rows)] += 3
    shown = label if labels else np.full(products, -1)
    product = np.arange(first_id, first_id + products)
    return Rows(
        np.repeat(product, rows), index // views, index % views, np.repeat(shown, rows), values.astype(np.float16)
    )


def in_order(rows: Rows, *, seed: int = 0) -> Rows:
    """The same products as a dataset of this seed has them."""
    order = split.order_hashes(rows.product_id, seed=seed)
    return rows.take(np.lexsort((rows.view, rows.image_index, rows.product_id, order)))


def of_products(rows: Rows, *, seed: int) -> Rows:
    """What a model says that looks at whole products: a row of other logits for each product and view of these rows."""
    found = rows.take(np.flatnonzero(rows.image_index == 0))
    counts = np.bincount(rows.product_id, weights=rows.view == 0).astype(np.int64)
    values = np.random.default_rng(seed).normal(0, 2, found.logits.shape).astype(np.float16)
    return dataclasses.replace(found, pictures=counts[found.product_id], logits=values)


def write_parts(folder: Path, shards: Sequence[Rows | None], label_map: Categories, **about: object) -> list[str]:
    """The rows of products as the stores of four models, each for products with so many pictures: p1/val to p4/val."""
    products = sum(len(rows.starts()) for rows in shards if rows is not None)
    said = {'dataset_products': products, **about}
    return [
        write(
            folder / f'p{count}' / 'logits' / str(said.get('split', 'val')),
            [rows and (rows.take(np.flatnonzero(rows.pictures == count)) or None) for rows in shards],
            label_map,
            **{'pictures': count, 'weights_digest': f'w{count}', **said},
        )
        for count in range(1, 5)
    ]


def label_map(classes: int) -> Categories:
    """Categories 1000, 1010, 1020..., three to a level 2 and nine to a level 1."""
    names = tuple((f'A{number // 9}', f'B{number // 3}', f'C{number}') for number in range(classes))
    return Categories(1000 + 10 * np.arange(classes), names)
