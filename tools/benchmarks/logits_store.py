"""Makes a store of logits as a trained network gives them: `python -m tools.benchmarks.logits_store FOLDER 100000`

Writes FOLDER/logits/val, with the pictures that Kaggle's products have, at 200 MB a second or more; with a third word
`arrays` also FOLDER/arrays, the same rows as plain numpy files, for what knows no store.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ensemble import logits
from ensemble.logits import Rows
from pipeline.categories import Categories
from tools import kaggle, synthetic_draws

CATEGORIES = 5_270
FILES = 8
BATCH_PRODUCTS = 1_000  # made at a time: 18 MB
SEED = 0

# Logits of one picture. Most categories are noise of a few nats. The sum of their exponentials is as that of one
# category at 10.6, which the truth exceeds in most pictures, and those that look like it in some. By the product rule
# 0.71 of all products are right, as with the paper's networks.
NOISE = 2.0
TRUTH, TRUTH_SPREAD = 12.0, 3.0
ALIKE, ALIKE_LOGIT, ALIKE_SPREAD = 10, 8.0, 2.0
# A picture's noise begins at some place of so many numbers: drawing all of it anew would take longer than writing it.
NOISE_VALUES = 2**22


def main(folder: str, images: str, *words: str) -> None:
    """Makes the store."""
    arrays = Path(folder, 'arrays') if words == ('arrays',) else None
    make(Path(folder, 'logits', 'val'), images=int(images), categories=CATEGORIES, arrays=arrays)


def make(store: Path, *, images: int, categories: int, arrays: Path | None = None) -> None:
    """Makes a finished store of val logits.

    Args:
        store: its folder.
        images: pictures; up to three more are made, so that the last product is whole.
        categories: C.
        arrays: folder for NUMBER-logits.npy, float16 [n, C], and NUMBER-product_id.npy, int64 [n], of whole products.
    """
    if arrays:
        arrays.mkdir(parents=True)
    counts = _draw_pictures(images)
    parts = np.array_split(np.arange(len(counts)), FILES)
    files = []
    for number, products in enumerate(parts):
        rows = _batches(products, counts, categories=categories)
        if arrays:
            rows = _saved(rows, arrays, prefix=f'{number:02d}')
        files.append(logits.write_shard(str(store), f'val-{number:05d}-of-{FILES:05d}.tfrecord', rows, split='val'))
    ids = synthetic_draws.draw_category_ids(categories, seed=SEED)
    logits.finish(
        str(store), files, split='val', tta=1, weights_digest='none', dataset_digest='none', seed=0,
        dataset_products=len(counts), order_seed=SEED,
        categories=Categories(ids, tuple(synthetic_draws.draw_names(categories, seed=SEED))),
    )  # fmt: skip


def _draw_pictures(images: int) -> np.ndarray:
    """How many pictures each product has, all together as many as asked or up to three more: int64 [products]."""
    share = np.array(kaggle.PICTURE_COUNTS) / sum(kaggle.PICTURE_COUNTS)
    counts = kaggle.generator(SEED, 'pictures').choice(len(share), size=images, p=share) + 1
    ends = np.cumsum(counts)
    return counts[: np.searchsorted(ends, images) + 1]


def _batches(products: np.ndarray, counts: np.ndarray, *, categories: int) -> Iterator[Rows]:
    """The rows of some products, a batch of whole products at a time."""
    noise = kaggle.generator(SEED, 'noise').standard_normal(NOISE_VALUES, np.float32)
    noise = (NOISE * noise).astype(np.float16)
    for start in range(0, len(products), BATCH_PRODUCTS):
        part = products[start : start + BATCH_PRODUCTS]
        yield _draw_rows(part, counts[part], noise, categories=categories)


def _draw_rows(products: np.ndarray, counts: np.ndarray, noise: np.ndarray, *, categories: int) -> Rows:
    draw = kaggle.generator(SEED, f'logits {products[0]}')
    product = np.repeat(products, counts)
    n = len(product)
    image_index = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    label = np.repeat(draw.integers(categories, size=len(products)), counts)
    values = np.empty((n, categories), np.float16)
    for row, place in enumerate(draw.integers(NOISE_VALUES - categories, size=n).tolist()):
        values[row] = noise[place : place + categories]
    alike = (label[:, None] + 1 + np.arange(ALIKE)) % categories
    values[np.arange(n)[:, None], alike] = ALIKE_LOGIT + ALIKE_SPREAD * draw.standard_normal(alike.shape)
    values[np.arange(n), label] = TRUTH + TRUTH_SPREAD * draw.standard_normal(n)
    return Rows(product, image_index, np.zeros(n, np.int64), label, values)


def _saved(batches: Iterator[Rows], folder: Path, *, prefix: str) -> Iterator[Rows]:
    """Hands the batches on when they are saved as numpy files."""
    for number, rows in enumerate(batches):
        for name in ('logits', 'product_id'):
            np.save(folder / f'{prefix}-{number:04d}-{name}.npy', getattr(rows, name))
        yield rows


if __name__ == '__main__':
    main(*sys.argv[1:])
