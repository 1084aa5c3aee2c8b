"""Turns a catalogue on disk into shards for training: `python -m pipeline.convert --runner=DirectRunner`

A Beam job in three steps; only metadata is ever shuffled, the pictures go straight from the .bson file into a shard.
  index   where each product stands in its file, and its category
  plan    which split it belongs to (10 % of every category are held out), which shard, and its place there
  write   each shard: read its products by position, write under a temporary name, rename
The manifest is written last. The same input and seed give the same bytes on every runner and number of processes.
Beam's flags pass through: --runner=DirectRunner (the default: one process a core), FnApiRunner (one process),
FlinkRunner, DataflowRunner, and what belongs to each, such as --direct_num_workers=4.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import google_crc32c
import numpy as np
from absl import flags
from numpy.lib.recfunctions import repack_fields

from pipeline import beam_job, bson_stream, categories, manifest, records, split, storage
from pipeline.errors import CatalogueError, InputError

FLAGS = program.flag_values()
INPUT_DIR = flags.DEFINE_string(
    'input_dir', 'data', 'Folder of train.bson, test.bson and category_names.csv.', flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string('output_dir', 'data/shards', 'Folder for the shards.', flag_values=FLAGS)
VAL_FRACTION = flags.DEFINE_float(
    'val_fraction', 0.1, 'Share of the products of every category held out for validation (paper: 0.1).',
    lower_bound=0, upper_bound=0.5, flag_values=FLAGS,
)  # fmt: skip
SEED = flags.DEFINE_integer('seed', 0, 'Which products are held out, and the order in the shards.', flag_values=FLAGS)
SHARD_MB = flags.DEFINE_integer(
    'shard_mb', 128, 'About how large a shard is, MB; a process holds one in memory.', lower_bound=1, flag_values=FLAGS
)

SOURCES = ('train.bson', 'test.bson')
# Where a product stands and what it is: the metadata that is shuffled, 33 bytes a product (17 of them twice).
PLACE = np.dtype(
    {
        'names': ('source', 'offset', 'length', 'images', 'product_id', 'category_id'),
        'formats': ('u1', 'i8', 'i4', 'i4', 'i8', 'i8'),
    }
)
BLOCK = 8192  # places an element of the job: large enough that Beam's cost per element (some 10 us) does not show
BUCKETS = 64  # groups of whole categories: planned in parallel, about 1/64 of the metadata at a time


@dataclass(frozen=True)
class Job:
    """What the steps need to know.

    Attributes:
        input_dir: folder of the catalogue.
        output_dir: folder of the shards.
        label_map: the categories and their labels.
        val_fraction: share of every category held out.
        seed: of split and order.
        shard_bytes: about how large a shard is.
    """

    input_dir: str
    output_dir: str
    label_map: categories.Categories
    val_fraction: float
    seed: int
    shard_bytes: int

    def source(self, index: int) -> str:
        """Path of a source file."""
        return storage.join(self.input_dir, SOURCES[index])

    def with_category(self, index: int) -> bool:
        """Whether the documents of a source file have a category."""
        return SOURCES[index] == 'train.bson'


def main(argv: list[str]) -> None:
    """Converts a catalogue."""
    engine = beam_job.engine(program.parse(FLAGS, argv, doc=__doc__, pass_through=True))
    started = time.monotonic()
    _check_sources(INPUT_DIR.value)
    label_map = categories.read_source(INPUT_DIR.value)
    job = Job(INPUT_DIR.value, OUTPUT_DIR.value, label_map, VAL_FRACTION.value, SEED.value, SHARD_MB.value * 10**6)
    source_bytes = sum(storage.size(job.source(index)) for index in range(len(SOURCES)))
    print(f'converting {source_bytes / 1e6:,.1f} MB of {INPUT_DIR.value} into {OUTPUT_DIR.value}', flush=True)
    storage.make_folder(job.output_dir)
    engine.run(lambda pipeline: _build(pipeline, job))
    made = manifest.read(job.output_dir, kind='shards', remedy='run pipeline.convert again')
    _remove_stale(job.output_dir, made)
    _print_summary(made, seconds=time.monotonic() - started, source_bytes=source_bytes)


def _check_sources(input_dir: str) -> None:
    for name in (*SOURCES, categories.SOURCE_NAME):
        path = storage.join(input_dir, name)
        if not storage.exists(path):
            raise InputError(
                f'{path}: no such file; make a catalogue with python -m tools.demo_catalogue --output_dir={input_dir}, '
                'or get the real one: https://www.kaggle.com/c/cdiscount-image-classification-challenge/data'
            )
    if not storage.size(storage.join(input_dir, SOURCES[0])):
        raise CatalogueError(f'{storage.join(input_dir, SOURCES[0])}: byte 0: the file is empty; get the file again')


def _build(pipeline: beam.Pipeline, job: Job) -> None:
    places = (
        pipeline
        | 'Sources' >> beam.Create(range(len(SOURCES)))
        | 'Index' >> beam.FlatMap(index_source, job)
    )  # fmt: skip
    planned = (
        places
        | 'ByCategory' >> beam.FlatMap(by_category)
        | 'GatherCategories' >> beam.GroupByKey()
        | 'Split' >> beam.FlatMap(plan_categories, job)
    )
    unique = (
        places
        | 'ByProduct' >> beam.FlatMap(by_product)
        | 'GatherProducts' >> beam.GroupByKey()
        | 'Unique' >> beam.Map(refuse_repeats, job)
    )
    totals = (
        planned
        | 'Count' >> beam.Map(count)
        | 'Add' >> beam.CombinePerKey(add_counts)
        | 'AllCounts' >> beam.combiners.ToDict()
        | 'Begin' >> beam.Map(begin_writing, beam.pvalue.AsList(unique), job)
    )
    infos = (
        planned
        | 'ByShard' >> beam.FlatMap(by_shard, beam.pvalue.AsSingleton(totals), job)
        | 'GatherShards' >> beam.GroupByKey()
        | 'Write' >> beam.Map(write_shard, job)
        | 'AllShards' >> beam.combiners.ToList()
    )
    infos | 'Manifest' >> beam.Map(write_manifest, beam.pvalue.AsSingleton(totals), job)


def index_source(source: int, job: Job) -> Iterator[np.ndarray]:
    """The places of all products of a source file, PLACE [up to BLOCK] at a time.

    Raises:
        CatalogueError: a document can't be used, or its category is not in category_names.csv.
    """
    path = job.source(source)
    known = set(job.label_map.ids.tolist())
    with_category = job.with_category(source)
    block: list[tuple] = []
    for document in bson_stream.documents(path, with_category=with_category):
        if with_category and document.category_id not in known:
            raise CatalogueError(
                f'{path}: byte {document.offset}: product {document.product_id} is of category {document.category_id}, '
                f'which is not in {storage.join(job.input_dir, categories.SOURCE_NAME)}; add it there'
            )
        ids = document.product_id, document.category_id
        block.append((source, document.offset, document.length, len(document.images), *ids))
        if len(block) == BLOCK:
            yield np.array(block, PLACE)
            block.clear()
    if block:
        yield np.array(block, PLACE)


def by_category(places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Divides places among the buckets of categories; those without a category spread by product."""
    keys = np.where(places['category_id'] == bson_stream.NO_CATEGORY, places['product_id'], places['category_id'])
    yield from _divided(places, keys % BUCKETS)


def plan_categories(bucket: tuple[int, Iterable[np.ndarray]], job: Job) -> Iterator[tuple[str, np.ndarray]]:
    """Gives each product of some whole categories its split: (split, PLACE [n])."""
    places = np.concatenate(list(bucket[1]))
    tested = places['category_id'] == bson_stream.NO_CATEGORY
    if tested.any():
        yield 'test', places[tested]
    places = places[~tested]
    held_out = split.is_val(
        places['category_id'],
        split.hashes(places['product_id'], seed=job.seed),
        val_fraction=job.val_fraction,
    )
    for name, chosen in (('train', ~held_out), ('val', held_out)):
        if chosen.any():
            yield name, places[chosen]


def by_product(places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Divides what tells a product and its place among buckets of ids: a repeated id may be of another category."""
    identities = repack_fields(places[['source', 'offset', 'product_id']])
    yield from _divided(identities, places['product_id'] % BUCKETS)


def refuse_repeats(bucket: tuple[int, Iterable[np.ndarray]], job: Job) -> int:
    """How many products there are with these ids.

    Raises:
        CatalogueError: one stands twice in a file.
    """
    places = np.concatenate(list(bucket[1]))
    ordered = places[np.lexsort((places['offset'], places['source'], places['product_id']))]
    repeats = np.flatnonzero((np.diff(ordered['product_id']) == 0) & (np.diff(ordered['source']) == 0))
    if len(repeats):
        first, second = ordered[repeats[0]], ordered[repeats[0] + 1]
        raise CatalogueError(
            f'{job.source(first["source"])}: byte {second["offset"]}: product {first["product_id"]} stands at byte '
            f'{first["offset"]} already; each may stand once'
        )
    return len(places)


def count(planned: tuple[str, np.ndarray]) -> tuple[str, tuple[int, ...]]:
    """(split, (products, pictures, categories, source bytes)); categories never cross an element."""
    name, places = planned
    known = np.unique(places['category_id'][places['category_id'] != bson_stream.NO_CATEGORY])
    return name, (len(places), int(places['images'].sum()), len(known), int(places['length'].sum(dtype=np.int64)))


def add_counts(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The sum of what count() says."""
    return tuple(map(sum, zip(*counts, strict=True))) or (0, 0, 0, 0)


def begin_writing(totals: dict[str, tuple[int, ...]], _: list[int], job: Job) -> dict[str, tuple[int, ...]]:
    """Removes an earlier manifest, just before its shards begin to be replaced.

    Args:
        totals: what count() says of each split; handed on.
        _: of refuse_repeats(): waited for, because up to here all of the catalogue must have been good.
        job: the conversion.
    """
    path = storage.join(job.output_dir, manifest.NAME)
    if storage.exists(path):
        storage.remove(path)
    return totals


def by_shard(
    planned: tuple[str, np.ndarray], totals: dict[str, tuple[int, ...]], job: Job
) -> Iterator[tuple[tuple[str, int, int], np.ndarray]]:
    """Divides one split's places among its shards: ((split, shard, number of shards), PLACE [n])."""
    name, places = planned
    shards = split.shard_count(totals[name][-1], shard_bytes=job.shard_bytes)
    indices = split.shard_index(split.order_hashes(places['product_id'], seed=job.seed), shards)
    for index, chosen in _divided(places, indices):
        yield (name, index, shards), chosen


def _divided(places: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The places of each key, in their order."""
    for key in np.unique(keys):
        yield int(key), places[keys == key]


def write_shard(shard: tuple[tuple[str, int, int], Iterable[np.ndarray]], job: Job) -> manifest.FileInfo:
    """Writes one shard: its products read in the order of the source, written in the order of their hashes."""
    key, blocks = shard
    name, places = split.shard_name(*key), np.concatenate(list(blocks))
    places.sort(order=['source', 'offset'])
    framed = list(_framed_products(places, key[0], job))
    order = np.lexsort((places['product_id'], split.order_hashes(places['product_id'], seed=job.seed)))
    length, checksum = 0, google_crc32c.Checksum()
    with storage.atomic_writer(storage.join(job.output_dir, name)) as file:
        for index in order:
            file.write(framed[index])
            checksum.update(framed[index])
            length += len(framed[index])
    images = int(places['images'].sum())
    return manifest.FileInfo(name, key[0], len(places), images, length, checksum.hexdigest().decode())


def _framed_products(places: np.ndarray, split_name: str, job: Job) -> Iterator[bytes]:
    """The products as TFRecord frames, in the order of `places`, which must be sorted by source."""
    labels = job.label_map.labels(places['category_id'])
    for source in np.unique(places['source']):
        path = job.source(source)
        chosen = places['source'] == source
        with storage.open_read(path) as file:
            for place, label in zip(places[chosen], labels[chosen], strict=True):
                document = bson_stream.read_document(
                    file, int(place['offset']), path=path, with_category=job.with_category(source)
                )
                if document.product_id != place['product_id']:
                    raise InputError(f'{path}: changed while it was read; run the conversion again')
                ids = document.product_id, document.category_id, int(label)
                yield records.frame(records.encode(records.Product(*ids, split_name, document.images)))


def write_manifest(infos: list[manifest.FileInfo], totals: dict[str, tuple[int, ...]], job: Job) -> None:
    """Writes categories.csv and, last, manifest.json: from now on the shards can be read."""
    categories.write(job.label_map, job.output_dir)
    names = ('products', 'images', 'categories', 'source_bytes')
    about = {
        'source': {name: _identity(job.source(index)) for index, name in enumerate(SOURCES)},
        'seed': job.seed,
        'val_fraction': job.val_fraction,
        'shard_bytes': job.shard_bytes,
        'categories': len(job.label_map),
        'label_map_digest': job.label_map.digest(),
        'splits': {name: dict(zip(names, totals[name], strict=True)) for name in split.SPLITS if name in totals},
    }
    files = tuple(sorted(infos, key=lambda info: info.name))
    manifest.write(manifest.Manifest('shards', about, files), job.output_dir)


def _identity(path: str) -> dict[str, int | str]:
    """What tells one source file from another without reading all of it: its length, SHA-256 of both its ends."""
    size, end = storage.size(path), 2**20
    with storage.open_read(path) as file:
        digest = hashlib.sha256(file.read(end))
        file.seek(max(0, size - end))
        digest.update(file.read(end))
    return {'bytes': size, 'sha256_of_ends': digest.hexdigest()}


def _remove_stale(output_dir: str, made: manifest.Manifest) -> None:
    listed = {file.name for file in made.files}
    for name in storage.list_names(output_dir):
        if name.startswith('.tmp-') or (name.endswith('.tfrecord') and name not in listed):
            storage.remove(storage.join(output_dir, name))


def _print_summary(made: manifest.Manifest, *, seconds: float, source_bytes: int) -> None:
    print(f'{"split":6} {"products":>10} {"images":>11} {"categories":>11} {"shards":>7} {"MB":>10}')
    for name in (name for name in split.SPLITS if name in made.about['splits']):
        counts, files = made.about['splits'][name], made.of_split(name)
        row = f'{name:6} {counts["products"]:10,} {counts["images"]:11,} {counts["categories"] or "unknown":>11} '
        print(f'{row}{len(files):7,} {sum(file.bytes for file in files) / 1e6:10,.1f}')
    print(f'{source_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {source_bytes / 1e6 / seconds:.1f} MB/s')
    print(f'wrote {len(made.files)} shards and {manifest.NAME} to {OUTPUT_DIR.value}')
    print('next: python -m model.train --flagfile=noaug.flags')


if __name__ == '__main__':
    program.run(main)
