"""Writes shards: reads their products by position, writes them in the order of their hashes, under a temporary name.

What is written is noted in a journal beside the shards, so that a conversion that was interrupted goes on: a shard of
the same products, from the same sources with the same settings, is checked and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

from pipeline import bson_stream, categories, journal, manifest, plan, records, split, storage
from pipeline.errors import InputError

PLAN = 'plan'  # in the journal's folder, which is gone once all is done
READ = 'read'  # beside it, with the number of a source: how many bytes of it are read
PLACES = '.places'  # the journal's files of places, one a split: PLACE [n], in the order in which they are written
PRODUCTS = 4 * manifest.CHUNK_PRODUCTS  # read at a time: 4 MB
REJECTED = 'rejected.jsonl'  # beside the shards: a line for each document that was left out


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be written.

    Attributes:
        totals: of train, val and test, but for splits without products.
        rejected: documents left out.
        cut_off: paths of the sources that end in the middle of a document.
    """

    totals: tuple[plan.Total, ...]
    rejected: int
    cut_off: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """How many files."""
        return sum(total.shards for total in self.totals)


def note_places(made: plan.Split, job: plan.Job) -> None:
    """Notes where the products of a split stand: too much to be handed from process to process."""
    storage.make_folder(storage.join(job.output_dir, journal.FOLDER))
    with storage.atomic_writer(_places_path(made.total.split, job)) as file:
        for shard in made.shards:
            file.write(made.places[shard.start : shard.stop].tobytes())


def _places(shard: plan.Shard, job: plan.Job) -> np.ndarray:
    """The products of a shard, PLACE [n], as noted."""
    size, path = plan.PLACE.itemsize, _places_path(shard.split, job)
    with storage.open_ranges(path) as file:
        noted = np.frombuffer(file.window(shard.start * size, (shard.stop - shard.start) * size).tobytes(), plan.PLACE)
    if len(noted) != shard.stop - shard.start:
        raise InputError(f'{path}: changed meanwhile; is another conversion writing into {job.output_dir}?')
    return noted


def _places_path(split_name: str, job: plan.Job) -> str:
    """Another conversion into the same folder, one that was given up but still runs on a cluster, has other names."""
    return _in_journal(f'{split_name}-{hashlib.sha256(_settings(job)).hexdigest()[:16]}{PLACES}', job)


def _settings(job: plan.Job) -> bytes:
    """What decides the bytes of all shards, but for the code."""
    settings = [manifest.FORMAT_VERSION, job.sources, job.seed, job.val_fraction, job.shard_bytes]
    return json.dumps([*settings, job.label_map.digest()], sort_keys=True).encode()


def begin(job: plan.Job, totals: list[plan.Total], rejected: list[plan.Rejected]) -> Plan:
    """Notes the plan, and removes an earlier manifest just before its shards begin to be replaced.

    Args:
        job: the conversion.
        totals: of all splits, in any order. Because they are waited for, all of the catalogue was good.
        rejected: all documents that are left out.

    Raises:
        InputError: too many documents were rejected, or none is left to train on.
    """
    cut_off = {one.source for one in rejected if one.damage.is_cut_off(job.sources[one.source]['bytes'])}
    made = Plan(
        tuple(sorted(totals, key=lambda total: split.SPLITS.index(total.split))),
        len(rejected),
        tuple(job.source(source) for source in sorted(cut_off)),
    )
    documents = sum(total.products for total in totals) + len(rejected)
    path = storage.join(job.output_dir, REJECTED)
    if rejected:
        _list_rejected(rejected, path)
    size = sum(source['bytes'] for source in job.sources)
    lost = sum(one.damage.length for one in rejected)  # where the structure is damaged, one may be many documents
    for number, total, unit in ((len(rejected), documents, 'documents'), (lost, size, 'bytes')):
        if number > job.max_rejected * total:
            raise InputError(
                f'{number:,} of {total:,} {unit} can not be used, more than --max_rejected={job.max_rejected}: '
                f'{path} lists them; mend the catalogue or allow more'
            )
    if not any(total.split == 'train' for total in totals):
        raise InputError(f'{job.source(0)}: holds no product that can be used; get the file again')
    storage.make_folder(storage.join(job.output_dir, journal.FOLDER))
    with storage.atomic_writer(_in_journal(PLAN, job)) as file:
        file.write(json.dumps(dataclasses.asdict(made)).encode())
    if not job.plan_only:
        stale = [manifest.NAME] if rejected else [manifest.NAME, REJECTED]
        for name in stale:
            if storage.exists(storage.join(job.output_dir, name)):
                storage.remove(storage.join(job.output_dir, name))
    return made


def _list_rejected(rejected: list[plan.Rejected], path: str) -> None:
    with storage.atomic_writer(path) as file:
        for one in sorted(rejected, key=lambda one: (one.source, one.damage.offset)):
            row = {'file': plan.SOURCES[one.source], **dataclasses.asdict(one.damage)}
            file.write((json.dumps(row) + '\n').encode())


def note_read(source: int, size: int, job: plan.Job) -> None:
    """Notes how many bytes of a source file are read, for whoever watches."""
    storage.make_folder(storage.join(job.output_dir, journal.FOLDER))
    with storage.atomic_writer(_in_journal(f'{READ}-{source}', job)) as file:
        file.write(str(size).encode())


def bytes_read(job: plan.Job) -> int:
    """How many bytes of all source files are noted as read."""
    size = 0
    for source in range(len(plan.SOURCES)):
        path = _in_journal(f'{READ}-{source}', job)
        if storage.exists(path):
            with storage.open_read(path) as file:
                size += int(file.read())
    return size


def is_planned(job: plan.Job) -> bool:
    """Whether the conversion that is under way has got past its plan."""
    return storage.exists(_in_journal(PLAN, job))


def read_plan(job: plan.Job) -> Plan:
    """The plan of the conversion that is under way."""
    with storage.open_read(_in_journal(PLAN, job)) as file:
        noted = json.loads(file.read())
    totals = tuple(plan.Total(**total) for total in noted['totals'])
    return Plan(totals, noted['rejected'], tuple(noted['cut_off']))


def forget_plan(job: plan.Job) -> None:
    """Removes the plan from the journal; the notes on finished shards stay, for the next run."""
    folder = storage.join(job.output_dir, journal.FOLDER)
    names = storage.list_names(folder)
    for name in names:
        if not journal.is_note(name):
            storage.remove(storage.join(folder, name))
    if names and not finished(job):
        storage.remove(folder)


def end(job: plan.Job) -> None:
    """Removes the journal; after a plan alone, an interrupted run's notes stay."""
    if job.plan_only:
        forget_plan(job)
    else:
        journal.end(job.output_dir)


def finished(job: plan.Job) -> int:
    """How many shards of the conversion that is under way are done."""
    return sum(map(journal.is_note, storage.list_names(storage.join(job.output_dir, journal.FOLDER))))


def write_shard(shard: plan.Shard, job: plan.Job) -> tuple[manifest.FileInfo, bool]:
    """Writes one shard, or finds that it is there already.

    Returns:
        the file, and whether it was written by an earlier, interrupted run.

    Raises:
        InputError: a source file changed after it was indexed.
    """
    places = _places(shard, job)
    identity = _identity(places, job)
    kept = journal.noted(job.output_dir, shard.name, identity=identity)
    if kept:
        return kept, True
    made = _write(shard, places, job)
    journal.note(job.output_dir, made, identity=identity)
    return made, False


def _write(shard: plan.Shard, places: np.ndarray, job: plan.Job) -> manifest.FileInfo:
    lengths, checksum = [], google_crc32c.Checksum()
    with storage.atomic_writer(storage.join(job.output_dir, shard.name)) as file:
        for framed in _framed_chunks(shard, places, job):
            file.write(framed)
            storage.begin_sync(file)
            checksum.update(framed)
            lengths.append(len(framed))
    firsts = range(0, len(places), manifest.CHUNK_PRODUCTS)
    with_each = places['images'][:, None] == np.arange(1, bson_stream.MAX_PICTURES + 1)
    counts = np.add.reduceat(with_each, firsts, axis=0, dtype=np.int64).tolist()
    chunks = tuple((length, *products) for length, products in zip(lengths, counts, strict=True))
    images, crc = int(places['images'].sum(dtype=np.int64)), checksum.hexdigest().decode()
    return manifest.FileInfo(shard.name, shard.split, len(places), images, sum(lengths), crc, chunks)


def _framed_chunks(shard: plan.Shard, places: np.ndarray, job: plan.Job) -> Iterator[bytes]:
    """The TFRecord frames of each chunk's products; so a process never holds a shard."""
    path, with_category = job.source(shard.source), job.with_category(shard.source)
    with storage.open_ranges(path) as file:
        parts = np.split(places, range(PRODUCTS, len(places), PRODUCTS))
        for some, following in zip(parts, [*parts[1:], parts[0][:0]], strict=True):
            file.prefetch(following['offset'], following['length'])
            documents = bson_stream.read(file, some['offset'], some['length'], with_category=with_category)
            same = (documents.product_id == some['product_id']) & (documents.images == some['images'])
            same &= job.label_map.labels(documents.category_id) == some['label']
            if not same.all():
                raise InputError(f'{path}: changed while it was read; run the conversion again')
            encoded = map(records.encode, _products(documents, some['label'], shard.split))
            while framed := records.frame(itertools.islice(encoded, manifest.CHUNK_PRODUCTS)):
                yield framed


def _products(documents: bson_stream.Documents, labels: np.ndarray, split_name: str) -> Iterator[records.Product]:
    data: Any = documents.data.data  # slices of it are views that pass for bytes
    ends = documents.starts + documents.lengths
    pictures = [
        tuple(data[start:end] for start, end in zip(*row, strict=True) if end)
        for row in zip(documents.starts.tolist(), ends.tolist(), strict=True)
    ]
    columns = documents.product_id.tolist(), documents.category_id.tolist(), labels.tolist()
    return itertools.starmap(records.Product, zip(*columns, itertools.repeat(split_name), pictures))


def _identity(places: np.ndarray, job: plan.Job) -> str:
    """What decides the bytes of a shard: SHA-256, in hexadecimal."""
    return hashlib.sha256(_settings(job) + places.tobytes()).hexdigest()


def _in_journal(name: str, job: plan.Job) -> str:
    return storage.join(job.output_dir, journal.FOLDER, name)


def finish(planned: Plan, infos: list[manifest.FileInfo], job: plan.Job) -> None:
    """Writes categories.csv and, last, manifest.json: from now on the shards can be read."""
    categories.write(categories.read_source(job.input_dir), job.output_dir)
    about = {
        'source': {
            name: {key: value for key, value in source.items() if key != 'modified_ns'}
            for name, source in zip(plan.SOURCES, job.sources, strict=True)
        },
        'seed': job.seed,
        'val_fraction': job.val_fraction,
        'shard_bytes': job.shard_bytes,
        'rejected': planned.rejected,
        'categories': len(job.label_map),
        'label_map_digest': job.label_map.digest(),
        'splits': {total.split: _counts(total) for total in planned.totals},
    }
    files = tuple(sorted(infos, key=lambda info: info.name))
    for total in planned.totals:
        written = sum(info.products for info in files if info.split == total.split)
        if written != total.products:
            raise RuntimeError(f'{written} products of {total.products} were written to the shards of {total.split}')
    manifest.write(manifest.Manifest('shards', about, files), job.output_dir)


def _counts(total: plan.Total) -> dict[str, int]:
    return {name: getattr(total, name) for name in ('products', 'images', 'categories', 'source_bytes')}
