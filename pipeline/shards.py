"""Writes shards: reads their products by position, writes them in the order of their hashes, under a temporary name.

What is written is noted in a journal beside the shards, so that a conversion that was interrupted goes on: a shard of
the same products, from the same sources with the same settings, is checked and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np

from pipeline import bson_stream, categories, manifest, plan, records, split, storage
from pipeline.errors import InputError

JOURNAL = '.journal'  # folder beside the shards: the plan and a note for each finished shard; gone once all is done
PLAN = 'plan.json'
REJECTED = 'rejected.jsonl'  # beside the shards: a line for each document that was left out


def begin(totals: dict[str, tuple[int, ...]], rejected: list[plan.Rejected], job: plan.Job) -> plan.Plan:
    """Makes and notes the plan, and removes an earlier manifest just before its shards begin to be replaced.

    Args:
        totals: what plan.count() says of each split.
        rejected: all documents that are left out. Because they are waited for, all of the catalogue was good so far.
        job: the conversion.

    Raises:
        InputError: too many documents were rejected, or none is left to train on.
    """
    documents = sum(counts[0] for counts in totals.values()) + len(rejected)
    path = storage.join(job.output_dir, REJECTED)
    if rejected:
        _list_rejected(rejected, path, job)
    if len(rejected) > job.max_rejected * documents:
        raise InputError(
            f'{len(rejected):,} of {documents:,} documents can not be used, more than '
            f'--max_rejected={job.max_rejected}: {path} lists them; mend the catalogue or allow more'
        )
    if 'train' not in totals:
        raise InputError(f'{job.source(0)}: holds no product that can be used; get the file again')
    made = plan.make(totals, rejected=len(rejected), job=job)
    storage.make_folder(storage.join(job.output_dir, JOURNAL))
    with storage.atomic_writer(storage.join(job.output_dir, JOURNAL, PLAN)) as file:
        file.write(json.dumps(dataclasses.asdict(made)).encode())
    if not job.plan_only:
        stale = [manifest.NAME] if rejected else [manifest.NAME, REJECTED]
        for name in stale:
            if storage.exists(storage.join(job.output_dir, name)):
                storage.remove(storage.join(job.output_dir, name))
    return made


def _list_rejected(rejected: list[plan.Rejected], path: str, job: plan.Job) -> None:
    with storage.atomic_writer(path) as file:
        for one in sorted(rejected, key=lambda one: (one.source, one.damage.offset)):
            row = {'file': plan.SOURCES[one.source], **dataclasses.asdict(one.damage)}
            file.write((json.dumps(row) + '\n').encode())


def forget_plan(job: plan.Job) -> None:
    """Removes the plan of an earlier run; its notes on finished shards stay."""
    path = storage.join(job.output_dir, JOURNAL, PLAN)
    if storage.exists(path):
        storage.remove(path)


def end(job: plan.Job) -> None:
    """Removes the journal; after a plan alone, an interrupted run's notes on finished shards stay."""
    folder = storage.join(job.output_dir, JOURNAL)
    if job.plan_only and any(name.endswith('.tfrecord.json') for name in storage.list_names(folder)):
        forget_plan(job)
    else:
        storage.remove(folder)


def is_planned(job: plan.Job) -> bool:
    """Whether the conversion that is under way has got past its plan."""
    return storage.exists(storage.join(job.output_dir, JOURNAL, PLAN))


def read_plan(job: plan.Job) -> plan.Plan:
    """The plan of the conversion that is under way."""
    with storage.open_read(storage.join(job.output_dir, JOURNAL, PLAN)) as file:
        return plan.Plan(**json.loads(file.read()))


def finished(job: plan.Job) -> int:
    """How many shards of the conversion that is under way are done."""
    return max(0, len(storage.list_names(storage.join(job.output_dir, JOURNAL))) - 1)


def write_shard(
    shard: tuple[tuple[str, int, int], Iterable[np.ndarray]], job: plan.Job
) -> tuple[manifest.FileInfo, bool]:
    """Writes one shard, or finds that it is there already.

    Args:
        shard: ((split, shard, number of shards), PLACE [n] of its products in any order and division).
        job: the conversion.

    Returns:
        the file, and whether it was written by an earlier, interrupted run.

    Raises:
        InputError: a source file changed after it was indexed.
    """
    key, blocks = shard
    name, places = split.shard_name(*key), np.concatenate(list(blocks))
    places.sort(order=['source', 'offset'])
    identity = _identity(places, job)
    images = int(places['images'].sum())
    kept = _noted(name, identity, job)
    if kept:
        return manifest.FileInfo(name, key[0], len(places), images, *kept), True
    length, checksum = 0, google_crc32c.Checksum()
    with storage.atomic_writer(storage.join(job.output_dir, name)) as file:
        for framed in _framed_products(places, key[0], job):
            file.write(framed)
            checksum.update(framed)
            length += len(framed)
    made = manifest.FileInfo(name, key[0], len(places), images, length, checksum.hexdigest().decode())
    note = {'identity': identity, 'bytes': made.bytes, 'crc32c': made.crc32c}
    with storage.atomic_writer(_note_path(name, job)) as file:
        file.write(json.dumps(note).encode())
    return made, False


def _framed_products(places: np.ndarray, split_name: str, job: plan.Job) -> Iterator[bytes]:
    """The products as TFRecord frames, in the order of their hashes; all of one shard is of one source."""
    source = int(places['source'][0])
    path, with_category = job.source(source), job.with_category(source)
    with storage.open_ranges(path) as file:
        documents = bson_stream.read(file, places['offset'], places['length'], with_category=with_category)
    same = (documents.product_id == places['product_id']) & (documents.images == places['images'])
    same &= job.label_map.labels(documents.category_id) == places['label']
    if not same.all():
        raise InputError(f'{path}: changed while it was read; run the conversion again')
    data = documents.data.data
    order = np.lexsort((places['product_id'], split.order_hashes(places['product_id'], seed=job.seed)))
    rows = zip(
        places['product_id'][order].tolist(),
        documents.category_id[order].tolist(),
        places['label'][order].tolist(),
        places['images'][order].tolist(),
        documents.starts[order].tolist(),
        (documents.starts + documents.lengths)[order].tolist(),
        strict=True,
    )
    for product_id, category_id, label, images, starts, ends in rows:
        pictures = tuple(data[starts[k] : ends[k]] for k in range(images))
        yield records.frame(records.encode(records.Product(product_id, category_id, label, split_name, pictures)))


def _identity(places: np.ndarray, job: plan.Job) -> str:
    """What decides the bytes of a shard: SHA-256, in hexadecimal."""
    settings = [manifest.FORMAT_VERSION, job.sources, job.seed, job.val_fraction, job.shard_bytes]
    known = json.dumps([*settings, job.label_map.digest()], sort_keys=True).encode()
    return hashlib.sha256(known + places.tobytes()).hexdigest()


def _note_path(name: str, job: plan.Job) -> str:
    return storage.join(job.output_dir, JOURNAL, f'{name}.json')


def _noted(name: str, identity: str, job: plan.Job) -> tuple[int, str] | None:
    """Length and checksum of the shard as noted, if it is of this identity and its bytes are still those.

    A note that is damaged itself counts as none.
    """
    path = storage.join(job.output_dir, name)
    if not (storage.exists(_note_path(name, job)) and storage.exists(path)):
        return None
    with storage.open_read(_note_path(name, job)) as file:
        text = file.read()
    try:
        note = json.loads(text)
        known, made = note['identity'], (note['bytes'], note['crc32c'])
    except (ValueError, KeyError, TypeError):
        return None
    return made if known == identity and manifest.checksum(path) == made else None


def finish(infos: list[manifest.FileInfo], planned: plan.Plan, job: plan.Job) -> None:
    """Writes categories.csv and, last, manifest.json: from now on the shards can be read."""
    categories.write(job.label_map, job.output_dir)
    names = ('products', 'images', 'categories', 'source_bytes')
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
        'splits': {name: dict(zip(names, counts, strict=True)) for name, counts in planned.totals.items()},
    }
    files = tuple(sorted(infos, key=lambda info: info.name))
    for name, counts in planned.totals.items():
        written = sum(info.products for info in files if info.split == name)
        if written != counts[0]:
            raise RuntimeError(f'{written} products of {counts[0]} were written to the shards of {name}')
    manifest.write(manifest.Manifest('shards', about, files), job.output_dir)
