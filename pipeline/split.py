"""Which split and which shard a product belongs to: pure functions of (seed, product id, category).

So the answer is the same on every runner, worker count and retry, and no product is ever divided.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from pipeline import hashing
from pipeline.errors import UsageError

SPLITS = ('train', 'val', 'test')


def check(names: Sequence[str], *, flag: str) -> None:
    """Refuses what is no split.

    Raises:
        UsageError: names it.
    """
    for name in names:
        if name not in SPLITS:
            raise UsageError(f'{flag}={name}: the splits are {", ".join(SPLITS)}')


def hashes(product_ids: np.ndarray, *, seed: int) -> np.ndarray:
    """A random-looking number for each product, fixed by the seed: int64 [n] -> uint64 [n], spread evenly."""
    return hashing.hashes(seed, product_ids)


def order_hashes(product_ids: np.ndarray, *, seed: int) -> np.ndarray:
    """As hashes(), and independent of it: what is held out has low hashes, and shards must cut it evenly too."""
    return hashing.mix(hashes(product_ids, seed=seed))


def val_count(products: int, *, val_fraction: float) -> int:
    """How many of a category's products are held out: the nearest whole number, at least one and never all.

    A category with a single product keeps it for training.
    """
    if val_fraction == 0:
        return 0
    return min(max(math.floor(products * val_fraction + 0.5), 1), products - 1)


def is_val(category_ids: np.ndarray, product_hashes: np.ndarray, *, val_fraction: float) -> np.ndarray:
    """Which products are held out for validation: of each category, the first by hash.

    Args:
        category_ids: int64 [n]; every category in it must be there with all of its products.
        product_hashes: uint64 [n].
        val_fraction: share of each category's products, 0 <= val_fraction < 1.

    Returns:
        bool [n].
    """
    held_out = np.zeros(len(category_ids), bool)
    order = np.lexsort((product_hashes, category_ids))
    _, starts, sizes = np.unique(category_ids[order], return_index=True, return_counts=True)
    for start, size in zip(starts, sizes, strict=True):
        held_out[order[start : start + val_count(size, val_fraction=val_fraction)]] = True
    return held_out


def shard_count(total_bytes: int, *, shard_bytes: int) -> int:
    """How many shards a split of so many bytes gets; at least one."""
    return max(1, math.ceil(total_bytes / shard_bytes))


def shard_index(product_hashes: np.ndarray, shards: int) -> np.ndarray:
    """The shard of each product, int64 [n] in 0..shards-1: the hashes' range cut into `shards` equal parts.

    Ranges rather than a remainder, so that shards in order hold the products in order of hash.
    """
    return ((product_hashes >> np.uint64(32)) * np.uint64(shards) >> np.uint64(32)).astype(np.int64)


def shard_name(split: str, index: int, count: int) -> str:
    """The file name of a shard."""
    return f'{split}-{index:05d}-of-{count:05d}.tfrecord'


def parse_shard_name(name: str) -> tuple[str, int, int] | None:
    """Split, index and count of the shard that has this file name; None if none has."""
    found = re.fullmatch(r'([a-z]+)-([0-9]{5,9})-of-([0-9]{5,9})\.tfrecord', name)
    if not found:
        return None
    shard = found[1], int(found[2]), int(found[3])
    return shard if shard[1] < shard[2] and name == shard_name(*shard) else None
