"""How many products each category has to train on, and where a few of them stand."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pipeline import columns, progress, shard_chunks, storage
from pipeline.dataset import Shards
from pipeline.manifest import FileInfo

SPLIT = 'train'


@dataclass(frozen=True, eq=False)
class TrainingProducts:
    """What was counted.

    Attributes:
        counts: int64 [C], products of each category.
        places: of the first products of some categories by label: file and record.
    """

    counts: np.ndarray
    places: dict[int, list[tuple[FileInfo, int]]]


def count(shards: Shards, *, examples_of: Collection[int], examples: int, pictures: int = 0) -> TrainingProducts:
    """Goes through all training products once; 18 MB of them are in memory at a time.

    Args:
        shards: the dataset. Its products stand in random order, so the first ones are as good as any.
        examples_of: labels of the categories that examples are noted of.
        examples: of each, at most.
        pictures: only the products with so many pictures, which are all that a model of these learns from; 0: all.

    Raises:
        InputError: a shard is damaged (names the file and the byte).
    """
    counts = np.zeros(len(shards.label_map), np.int64)
    places: dict[int, list[tuple[FileInfo, int]]] = {label: [] for label in examples_of}
    total = shards.manifest.products(SPLIT)
    with progress.Progress(total=total, label='count categories', unit='products') as bar:
        for file in shards.manifest.of_split(SPLIT):
            first = 0
            for found in shard_chunks.parse_shard(storage.join(shards.folder, file.name), file, columns.read):
                learned = found.images == pictures if pictures else np.ones(len(found.label), bool)
                counts += np.bincount(found.label[learned], minlength=len(counts))
                for label, noted in places.items():
                    if len(noted) < examples:
                        chosen = learned & (found.label == label)
                        records = first + np.flatnonzero(chosen)[: examples - len(noted)]
                        noted += [(file, record) for record in records.tolist()]
                first += len(found.label)
                bar.update(len(found.label))
    return TrainingProducts(counts, places)
