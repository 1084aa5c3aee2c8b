"""What the conversion does with each product: whether it can be used, which split, which shard.

All products of a source file are planned at once, by the process that has indexed it: 25 bytes a product, and as much
again a few times over while they are sorted. They go into a file; what is handed to workers is a range of it, a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import bson_stream, categories, split, storage
from pipeline.errors import CatalogueError

SOURCES = ('train.bson', 'test.bson')
NO_LABEL = -1  # of the products of test.bson
# Where a product stands in its file and what it is.
PLACE = np.dtype([('offset', 'i8'), ('length', 'i4'), ('images', 'u1'), ('product_id', 'i8'), ('label', 'i4')])
MAX_LISTED = 100_000  # rejected documents of a source that are collected (a kilobyte each) though they may be too many
SMALLEST_PRODUCT = 256  # bytes; the smallest JPEG of 180x180 pixels has more


@dataclass(frozen=True)
class Job:
    """A conversion: what its steps need to know.

    Attributes:
        input_dir: folder of the catalogue.
        output_dir: folder of the shards.
        label_map: the categories and their labels; without names.
        val_fraction: share of every category held out.
        seed: of split and order.
        shard_bytes: about how large a shard is.
        skip: whether documents that can't be used are passed over; otherwise the first one ends the job.
        max_rejected: largest share of all documents that may be passed over.
        plan_only: whether to stop before anything is written.
        sources: what tells each source file from another: bytes, sha256_of_ends, modified_ns.
    """

    input_dir: str
    output_dir: str
    label_map: categories.Categories
    val_fraction: float
    seed: int
    shard_bytes: int
    skip: bool
    max_rejected: float
    plan_only: bool
    sources: tuple[dict[str, Any], ...]

    def source(self, index: int) -> str:
        """Path of a source file."""
        return storage.join(self.input_dir, SOURCES[index])

    def with_category(self, index: int) -> bool:
        """Whether the documents of a source file have a category."""
        return SOURCES[index] == 'train.bson'


@dataclass(frozen=True)
class Rejected:
    """A document that is passed over.

    Attributes:
        source: number of its file in SOURCES.
        damage: where it stands and why.
    """

    source: int
    damage: bson_stream.Damage


@dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Attributes:
        split: train, val or test.
        index: its number among those of the split.
        count: how many the split has.
        start: number of its first product among those of the split.
        stop: number after its last one.
    """

    split: str
    index: int
    count: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The file name."""
        return split.shard_name(self.split, self.index, self.count)

    @property
    def source(self) -> int:
        """Number of the source file in SOURCES that holds its products."""
        return SOURCES.index('test.bson' if self.split == 'test' else 'train.bson')


@dataclass(frozen=True)
class Total:
    """What a split holds.

    Attributes:
        split: train, val or test.
        products: how many.
        images: how many pictures.
        categories: how many different ones; 0 in test.
        source_bytes: of the documents.
        shards: how many; one may turn out to be empty if they are tiny, and isn't written.
    """

    split: str
    products: int
    images: int
    categories: int
    source_bytes: int
    shards: int


@dataclass(frozen=True)
class Split:
    """The products of a split.

    Attributes:
        total: how many.
        places: PLACE [n], in the order in which they are written.
        shards: which of them each shard holds; none is empty.
    """

    total: Total
    places: np.ndarray
    shards: tuple[Shard, ...]


def index_source(source: int, job: Job) -> Iterator[np.ndarray | Rejected]:
    """The products of a source file, PLACE [some thousands] at a time, and what can't be used.

    Raises:
        CatalogueError: a document can't be used, or its category is not in category_names.csv, and job.skip is off; or
            more than MAX_LISTED can't be used, and that is too many however many products follow.
    """
    most = sum(known['bytes'] for known in job.sources) // SMALLEST_PRODUCT
    rejected = 0
    for found in _indexed(source, job):
        if isinstance(found, Rejected):
            rejected += 1
            if rejected > max(MAX_LISTED, job.max_rejected * (rejected + most)):
                rule = f'more than {rejected - 1:,} documents can not be used, too many for --max_rejected='
                raise CatalogueError(f'{found.damage.error(job.source(source))} ({rule}{job.max_rejected})')
        yield found


def _indexed(source: int, job: Job) -> Iterator[np.ndarray | Rejected]:
    for found in bson_stream.index(job.source(source), with_category=job.with_category(source)):
        if isinstance(found, bson_stream.Damage):
            yield _rejected(source, found, job)
            continue
        labels = np.full(len(found), NO_LABEL)
        if job.with_category(source):
            labels = job.label_map.labels(found['category_id'])
            for entry in found[labels == NO_LABEL]:
                yield _rejected(source, _unknown_category(entry, job), job)
            found, labels = found[labels != NO_LABEL], labels[labels != NO_LABEL]
        places = np.empty(len(found), PLACE)
        places['label'] = labels
        for name in ('offset', 'length', 'images', 'product_id'):
            places[name] = found[name]
        yield places


def _unknown_category(entry: np.void, job: Job) -> bson_stream.Damage:
    rule = f'product {entry["product_id"]} is of category {entry["category_id"]}, which is not in '
    path = storage.join(job.input_dir, categories.SOURCE_NAME)
    return bson_stream.Damage(int(entry['offset']), int(entry['length']), f'{rule}{path}', 'add it there')


def _rejected(source: int, damage: bson_stream.Damage, job: Job) -> Rejected:
    if not job.skip:
        raise damage.error(job.source(source))
    return Rejected(source, damage)


def plan_source(source: int, places: np.ndarray, job: Job) -> Iterator[Rejected | Split]:
    """What becomes of the products of a source file.

    Args:
        source: number of the file in SOURCES.
        places: PLACE [n], all that index_source() found, in order of offset.
        job: the conversion.

    Yields:
        the products whose id stands in the file before them, then the splits that have any products.

    Raises:
        CatalogueError: an id stands twice, and job.skip is off.
    """
    repeated = _repeated(places['product_id'])
    for number, first in zip(*repeated, strict=True):
        rule = f'product {places["product_id"][number]} stands at byte {places["offset"][first]} already'
        offset, length = int(places['offset'][number]), int(places['length'][number])
        yield _rejected(source, bson_stream.Damage(offset, length, rule, 'each may stand once'), job)
    if len(repeated[0]):
        places = np.delete(places, repeated[0])
    if job.with_category(source):
        hashes = split.hashes(places['product_id'], seed=job.seed)
        held_out = split.is_val(places['label'], hashes, val_fraction=job.val_fraction)
        yield from _split('train', places[~held_out], job)
        yield from _split('val', places[held_out], job)
    else:
        yield from _split('test', places, job)


def _repeated(product_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the products whose id stood before, and of the first that has it: int64 [n] each."""
    if (np.diff(product_ids) > 0).all():  # as in Kaggle's files
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(product_ids, kind='stable')
    same = np.append(False, np.diff(product_ids[order]) == 0)
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    by_place = np.argsort(order[same])
    return order[same][by_place], order[firsts[same]][by_place]


def _split(name: str, places: np.ndarray, job: Job) -> Iterator[Split]:
    if not len(places):
        return
    size = int(places['length'].sum(dtype=np.int64))
    known = np.unique(places['label'][places['label'] != NO_LABEL])
    count = split.shard_count(size, shard_bytes=job.shard_bytes)
    hashes = split.order_hashes(places['product_id'], seed=job.seed)
    order = np.lexsort((places['product_id'], hashes))
    bounds = np.searchsorted(split.shard_index(hashes[order], count), np.arange(count + 1)).tolist()
    ranges = enumerate(zip(bounds[:-1], bounds[1:], strict=True))
    yield Split(
        Total(name, len(places), int(places['images'].sum()), len(known), size, count),
        places[order],
        tuple(Shard(name, index, count, start, stop) for index, (start, stop) in ranges if start < stop),
    )
