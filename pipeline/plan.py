"""What the conversion does with each product: which split, which shard. Only this metadata is ever shuffled.

Elements are arrays of many products, never one product: Beam's own cost for an element is some 10 us.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.recfunctions import repack_fields

from pipeline import bson_stream, categories, split, storage
from pipeline.errors import CatalogueError

SOURCES = ('train.bson', 'test.bson')
NO_LABEL = -1  # of the products of test.bson
# Where a product stands and what it is: 26 bytes a product (17 of them twice).
PLACE = np.dtype(
    {
        'names': ('source', 'offset', 'length', 'images', 'product_id', 'label'),
        'formats': ('u1', 'i8', 'i4', 'u1', 'i8', 'i4'),
    }
)
MAX_LISTED = 100_000  # rejected documents of a source that are collected (a kilobyte each) though they may be too many
SMALLEST_PRODUCT = 256  # bytes; the smallest JPEG of 180x180 pixels has more
BUCKETS = 64  # groups of whole categories: planned in parallel, about 1/64 of the metadata at a time


@dataclass(frozen=True)
class Job:
    """A conversion: what its steps need to know.

    Attributes:
        input_dir: folder of the catalogue.
        output_dir: folder of the shards.
        label_map: the categories and their labels.
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


def index_source(source: int, job: Job) -> Iterator[np.ndarray | Rejected]:
    """The products of a source file, PLACE [n] some thousands at a time, and what can't be used.

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
        places['source'], places['label'] = source, labels
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


def by_product(places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Divides what tells a product and its place among buckets of ids: a repeated id may be of another category."""
    identities = repack_fields(places[['source', 'offset', 'length', 'product_id']])
    yield from _divided(identities, places['product_id'] % BUCKETS)


def find_repeats(bucket: tuple[int, Iterable[np.ndarray]], job: Job) -> Iterator[Rejected]:
    """The products that stand in their file already; the first of several is the one that counts.

    Raises:
        CatalogueError: there is one, and job.skip is off.
    """
    places = np.concatenate(list(bucket[1]))
    ordered = places[np.lexsort((places['offset'], places['source'], places['product_id']))]
    same = (np.diff(ordered['product_id']) == 0) & (np.diff(ordered['source'].astype(int)) == 0)
    repeated = np.append(False, same)
    firsts = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(ordered))))
    for number in np.flatnonzero(repeated):
        first, other = ordered[firsts[number]], ordered[number]
        rule = f'product {other["product_id"]} stands at byte {first["offset"]} already'
        damage = bson_stream.Damage(int(other['offset']), int(other['length']), rule, 'each may stand once')
        yield _rejected(int(other['source']), damage, job)


def by_category(places: np.ndarray, repeats: list[Rejected]) -> Iterator[tuple[int, np.ndarray]]:
    """Divides places, but for the repeats, among buckets of categories; test products are spread by id."""
    for source in {rejected.source for rejected in repeats}:
        offsets = [rejected.damage.offset for rejected in repeats if rejected.source == source]
        places = places[(places['source'] != source) | ~np.isin(places['offset'], offsets)]
    keys = np.where(places['label'] == NO_LABEL, places['product_id'], places['label'])
    yield from _divided(places, keys % BUCKETS)


def split_categories(bucket: tuple[int, Iterable[np.ndarray]], job: Job) -> Iterator[tuple[str, np.ndarray]]:
    """Gives each product of some whole categories its split: (split, PLACE [n])."""
    places = np.concatenate(list(bucket[1]))
    tested = places['label'] == NO_LABEL
    if tested.any():
        yield 'test', places[tested]
    places = places[~tested]
    hashes = split.hashes(places['product_id'], seed=job.seed)
    held_out = split.is_val(places['label'], hashes, val_fraction=job.val_fraction)
    for name, chosen in (('train', ~held_out), ('val', held_out)):
        if chosen.any():
            yield name, places[chosen]


def count(planned: tuple[str, np.ndarray]) -> tuple[str, tuple[int, ...]]:
    """(split, (products, pictures, categories, source bytes)); categories never cross an element."""
    name, places = planned
    known = np.unique(places['label'][places['label'] != NO_LABEL])
    return name, (len(places), int(places['images'].sum()), len(known), int(places['length'].sum(dtype=np.int64)))


def add_counts(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The sum of what count() says."""
    return tuple(map(sum, zip(*counts, strict=True))) or (0, 0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """What will be written.

    Attributes:
        totals: by split, what count() says.
        shards: by split, how many; one may turn out to be empty if they are tiny, and isn't written.
        rejected: documents left out.
    """

    totals: dict[str, tuple[int, ...]]
    shards: dict[str, int]
    rejected: int


def make(totals: dict[str, tuple[int, ...]], *, rejected: int, job: Job) -> Plan:
    """The plan for what was found."""
    ordered = {name: totals[name] for name in split.SPLITS if name in totals}
    shards = {name: split.shard_count(ordered[name][-1], shard_bytes=job.shard_bytes) for name in ordered}
    return Plan(ordered, shards, rejected)


def by_shard(
    planned: tuple[str, np.ndarray], made: Plan, job: Job
) -> Iterator[tuple[tuple[str, int, int], np.ndarray]]:
    """Divides one split's places among its shards: ((split, shard, number of shards), PLACE [n])."""
    name, places = planned
    shards = made.shards[name]
    indices = split.shard_index(split.order_hashes(places['product_id'], seed=job.seed), shards)
    for index, chosen in _divided(places, indices):
        yield (name, index, shards), chosen


def _divided(places: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The places of each key, in their order."""
    order = np.argsort(keys, kind='stable')
    found, starts = np.unique(keys[order], return_index=True)
    for key, chosen in zip(found, np.split(order, starts)[1:], strict=True):
        yield int(key), places[chosen]
