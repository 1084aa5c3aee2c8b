"""Checks shards against their manifest and the rules by which they were made, and counts what they hold.

Synopsis:

    made = manifest.read('data/shards', kind='shards', remedy='', check_files=False)
    report = shard_checks.check('data/shards', made, categories.read('data/shards'))
    print(*report.problems.first, sep='\\n')

Each process reads one shard at a time, record by record. What stays in memory is 36 bytes a product and 8 bytes a
picture, and three times as much again while they are compared: 2 GB for Cdiscount's 8.8 million products.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from pipeline import bson_stream, categories, manifest, progress, records, split, storage, tables
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest
from pipeline.plan import NO_LABEL
from pipeline.records import Product
from tools import shard_processes

# What is kept of a product; `file` numbers the manifest's files, `record` the file's records.
ROW = np.dtype(
    [('file', 'i4'), ('record', 'i4'), ('product_id', 'i8'), ('category_id', 'i8'), ('label', 'i8'), ('images', 'i4')]
)
SIZE = (bson_stream.PICTURE_SIZE, bson_stream.PICTURE_SIZE)
PROBLEMS_KEPT = 20  # of each shard, and of all; more are only counted


@dataclass
class Problems:
    """Broken rules, a line each.

    Attributes:
        first: the first PROBLEMS_KEPT.
        total: how many there are.
    """

    first: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, lines: Iterable[str]) -> None:
        """Adds after those that are there."""
        for line in lines:
            self.total += 1
            if len(self.first) < PROBLEMS_KEPT:
                self.first.append(line)

    def merge(self, others: Problems) -> None:
        """Adds those of another list after these."""
        self.first = (self.first + others.first)[:PROBLEMS_KEPT]
        self.total += others.total


@dataclass(frozen=True)
class Shard:
    """What one file holds.

    Attributes:
        rows: ROW [products], of the records that could be read.
        md5s: uint64 [pictures], the first half of each one's MD5, in the order of the products.
        whole: whether all records could be read.
        problems: in order of record.
    """

    rows: np.ndarray
    md5s: np.ndarray
    whole: bool
    problems: Problems


@dataclass(frozen=True)
class Counts:
    """What a split holds.

    Attributes:
        products: how many.
        images: how many pictures.
        categories: how many there are products of; 0 in test.
        products_with: how many products have 1, 2, 3, and 4 or more pictures.
        copies: pictures that are, byte for byte, an earlier one of the split.
        sharing: products that have a picture which is, byte for byte, in train; 0 for train itself.
    """

    products: int
    images: int
    categories: int
    products_with: tuple[int, int, int, int]
    copies: int
    sharing: int


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        problems: each names file, record or product, and rule.
        counts: of each split that has files, as far as they could be read.
        unchecked: rules that could not be checked because records could not be read.
    """

    problems: Problems
    counts: dict[str, Counts]
    unchecked: tuple[str, ...]


def check(folder: str, made: Manifest, label_map: Categories, *, processes: int | None = None) -> Report:
    """Checks a dataset, with a progress bar.

    Args:
        folder: where it lies.
        made: its manifest.
        label_map: its categories.
        processes: how many read shards; None: one a core, but fewer for little data.

    Raises:
        InputError: the manifest doesn't say how the dataset was split.
    """
    seed, val_fraction = _settings(folder, made)
    problems = Problems()
    problems.add(_folder_problems(folder, made, label_map))
    shards = _read_shards(folder, made, label_map, seed=seed, processes=processes)
    for shard in shards:
        problems.merge(shard.problems)
    with progress.watched(lambda: progress.Standing('compare products and pictures', 0, 0, 'B')):
        return _compare(made, shards, problems, seed=seed, val_fraction=val_fraction)


def _compare(made: Manifest, shards: Sequence[Shard], problems: Problems, *, seed: int, val_fraction: float) -> Report:
    """Checks what only all shards together tell."""
    rows = {name: _of_split(made, shards, name, 'rows') for name in split.SPLITS}
    problems.add(_repeat_problems(made, np.concatenate([rows['train'], rows['val']])))
    problems.add(_repeat_problems(made, rows['test']))
    partial = {file.split for file, shard in zip(made.files, shards, strict=True) if not shard.whole}
    unchecked = [f"the manifest's totals of {name}" for name in split.SPLITS if name in partial]
    if partial & {'train', 'val'}:
        unchecked.append('which products are held out')
    else:
        problems.add(_split_problems(made, rows['train'], rows['val'], seed=seed, val_fraction=val_fraction))
    counts = _count(made, shards, rows)
    problems.add(_total_problems(made, {name: counts[name] for name in counts if name not in partial}))
    return Report(problems, counts, tuple(unchecked))


def _settings(folder: str, made: Manifest) -> tuple[int, float]:
    """Seed and val_fraction."""
    seed, val_fraction = made.about.get('seed'), made.about.get('val_fraction')
    if not isinstance(seed, int) or not isinstance(val_fraction, int | float) or not 0 <= val_fraction < 1:
        raise InputError(
            f'{storage.join(folder, manifest.NAME)}: seed must be a whole number and val_fraction 0 or more and under '
            f'1, are {seed!r} and {val_fraction!r}; make the shards again'
        )
    return seed, val_fraction


def _of_split(made: Manifest, shards: Sequence[Shard], name: str, attribute: str) -> np.ndarray:
    """The rows or md5s of all files of a split, in order."""
    empty = {'rows': np.zeros(0, ROW), 'md5s': np.zeros(0, np.uint64)}[attribute]
    own = (shard for file, shard in zip(made.files, shards, strict=True) if file.split == name)
    return np.concatenate([empty, *(getattr(shard, attribute) for shard in own)])


# The folder.


def _folder_problems(folder: str, made: Manifest, label_map: Categories) -> Iterator[str]:
    """What is wrong without a look into the shards."""
    listed = Counter(file.name for file in made.files)
    for name, times in listed.items():
        if times > 1:
            yield f'{manifest.NAME}: lists {name} {times} times'
    for name in storage.list_names(folder):
        if name not in listed and (name.endswith('.tfrecord') or name.startswith('.tmp-')):
            yield f'{name}: not in {manifest.NAME}, so of another run; remove it'
    for file in made.files:
        if shard_place(file) is None:
            yield f'{file.name}: not the name of a shard of {file.split}'
    for name in split.SPLITS:
        numbers = sorted({place[1] for file in made.of_split(name) if (place := shard_place(file))})
        if len(numbers) > 1:
            yield f'{manifest.NAME}: lists shards of {name} of {" and of ".join(map(str, numbers))}'
    if made.about.get('label_map_digest') != label_map.digest():
        yield f"{categories.NAME}: its ids don't have the digest that the manifest says"
    rows = tables.read(storage.join(folder, categories.NAME), categories.COLUMNS)
    for number, (label, category_id, *_) in enumerate(rows, start=2):
        wanted = np.searchsorted(label_map.ids, int(category_id))
        if label != str(wanted):
            yield f'{categories.NAME}: row {number}: label {label} of category {category_id} must be {wanted}'


def shard_place(file: FileInfo) -> tuple[int, int] | None:
    """Which shard of how many a file is, as its name says; None if that isn't the name of a shard of its split."""
    shard = split.parse_shard_name(file.name)
    return shard[1:] if shard and shard[0] == file.split else None


# One shard.


def _read_shards(
    folder: str, made: Manifest, label_map: Categories, *, seed: int, processes: int | None
) -> list[Shard]:
    """Reads all files in the manifest's order, in several processes if that pays."""
    read = functools.partial(read_shard, folder=folder, label_map=label_map, seed=seed)
    return list(shard_processes.map_shards(read, made.files, label='check', processes=processes))


@dataclass
class _Findings:
    """What was found in one file so far.

    Attributes:
        lines: of broken rules: the record, or -1, and the rest of the line.
        rows: as ROW.
        md5s: of each picture, 16 bytes.
        whole: whether all records could be read.
    """

    lines: list[tuple[int, str]] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    md5s: list[bytes] = field(default_factory=list)
    whole: bool = True

    def lose(self, rule: str, *, record: int = -1) -> None:
        """Notes a broken rule which keeps a record, or all, from being read."""
        self.whole = False
        self.lines.append((record, rule))

    def compare(self, what: str, found: int | str, listed: int | str) -> None:
        """Notes what isn't as the manifest says."""
        if found != listed:
            self.lines.append((-1, f'{what}: {found}, the manifest says {listed}'))


def read_shard(item: tuple[int, FileInfo], *, folder: str, label_map: Categories, seed: int) -> Shard:
    """Checks one file by itself: its bytes, its records, and that its products belong there.

    Args:
        item: the file's number in the manifest, and the file.
        folder: where it lies.
        label_map: the categories.
        seed: of the order.
    """
    number, file = item
    path = storage.join(folder, file.name)
    findings = _Findings()
    try:
        if storage.exists(path):
            _read_records(path, number, file, findings)
        else:
            findings.lose('no such file')
    except OSError as error:
        findings.lose(f"can't be read: {error}")
    rows = np.array(findings.rows, ROW)
    findings.lines += _place_problems(rows, file, seed=seed)
    findings.lines += _label_problems(rows, file.split, label_map)
    problems = Problems()
    product_of = dict(zip(rows['record'].tolist(), rows['product_id'].tolist(), strict=True))
    for record, rule in sorted(findings.lines, key=lambda line: line[0]):
        product = f'product {product_of[record]}: ' if record in product_of else ''
        problems.add([f'{file.name}: {"" if record < 0 else f"record {record}: "}{product}{rule}'])
    md5s = np.frombuffer(b''.join(md5[:8] for md5 in findings.md5s), '<u8')
    return Shard(rows, md5s, findings.whole, problems)


def _read_records(path: str, number: int, file: FileInfo, findings: _Findings) -> None:
    """Reads all records of a file, and compares it with the manifest."""
    checksum, sizes = google_crc32c.Checksum(), []
    with storage.open_read(path) as stream:
        for record, frame in enumerate(records.frames(stream)):
            checksum.update(frame.data)
            sizes.append(len(frame.data))
            if frame.problem:
                findings.lose(frame.problem, record=record)
                continue
            try:
                product, stored_md5s = records.decode_with_md5(frame.record)
            except ValueError as error:
                findings.lose(str(error), record=record)
                continue
            ids = product.product_id, product.category_id, product.label
            findings.rows.append((number, record, *ids, len(product.images)))
            md5s = [hashlib.md5(image, usedforsecurity=False).digest() for image in product.images]
            findings.md5s += md5s
            findings.lines += [(record, rule) for rule in _product_problems(product, file.split, md5s, stored_md5s)]
    findings.compare('bytes', sum(sizes), file.bytes)
    if sum(sizes) == file.bytes:
        findings.compare('CRC32C', checksum.hexdigest().decode(), file.crc32c)
    if findings.whole:
        findings.compare('products', len(sizes), file.products)
        findings.compare('images', len(findings.md5s), file.images)
        findings.lines += _chunk_problems(sizes, [row[-1] for row in findings.rows], file)


def _chunk_problems(sizes: Sequence[int], images: Sequence[int], file: FileInfo) -> Iterator[tuple[int, str]]:
    """The chunks that aren't as the manifest says; if the file's totals aren't either, those lines are enough."""
    if (len(sizes), sum(sizes), sum(images)) != (file.products, file.bytes, file.images):
        return
    for number, listed in enumerate(file.chunks):
        run = slice(number * manifest.CHUNK_PRODUCTS, (number + 1) * manifest.CHUNK_PRODUCTS)
        counts = Counter(images[run])
        found = sum(sizes[run]), *(counts[pictures] for pictures in range(1, bson_stream.MAX_PICTURES + 1))
        if found != listed:
            yield -1, f'chunk {number}: {_said(found)}; the manifest says {_said(listed)}'


def _said(chunk: Sequence[int]) -> str:
    """An entry of FileInfo.chunks in words."""
    size, *counts = chunk
    *first, last = [str(pictures) for pictures in range(1, len(counts) + 1)]
    return f'{size} bytes, {", ".join(map(str, counts))} products with {", ".join(first)} and {last} pictures'


def _product_problems(
    product: Product, split_name: str, md5s: Sequence[bytes], stored_md5s: Sequence[bytes]
) -> Iterator[str]:
    """The rules a product breaks by itself."""
    if product.split != split_name:
        yield f'its split is {product.split!r} in a file of {split_name}'
    if not 1 <= len(product.images) <= bson_stream.MAX_PICTURES:
        yield f'has {len(product.images)} pictures, must have 1 to {bson_stream.MAX_PICTURES}'
    if len(md5s) != len(stored_md5s):
        yield f'has {len(md5s)} pictures and {len(stored_md5s)} image_md5'
    for number, (md5, stored) in enumerate(zip(md5s, stored_md5s, strict=False)):
        if md5 != stored:
            yield f'picture {number}: its MD5 is {md5.hex()}, image_md5 says {stored.hex()}'
    for number, image in enumerate(product.images):
        size = bson_stream.jpeg_size(image)
        if size != SIZE:
            found = f'{size[0]}x{size[1]} pixels' if size else 'no JPEG'
            yield f'picture {number}: is {found}, must be a JPEG of {SIZE[0]}x{SIZE[1]}'


def _place_problems(rows: np.ndarray, file: FileInfo, *, seed: int) -> Iterator[tuple[int, str]]:
    """The records that another shard, or another place in this one, is for."""
    hashes = split.order_hashes(rows['product_id'], seed=seed)
    place = shard_place(file)
    if place:
        index, count = place
        shards = split.shard_index(hashes, count)
        for row in np.flatnonzero(shards != index):
            yield int(rows['record'][row]), f'belongs into {split.shard_name(file.split, int(shards[row]), count)}'
    for row in np.flatnonzero(hashes[1:] < hashes[:-1]) + 1:
        yield int(rows['record'][row]), 'belongs further up, by the hash of its id'


def _label_problems(rows: np.ndarray, split_name: str, label_map: Categories) -> Iterator[tuple[int, str]]:
    """The records whose category and label don't belong together."""
    if split_name == 'test':
        wrong = (rows['category_id'] != bson_stream.NO_CATEGORY) | (rows['label'] != NO_LABEL)
        for row in rows[wrong]:
            yield int(row['record']), f'has category {row["category_id"]} and label {row["label"]}, must be -1 in test'
        return
    labels = label_map.labels(rows['category_id'])
    for row, label in zip(rows[rows['label'] != labels], labels[rows['label'] != labels], strict=True):
        wanted = f'must be {label}' if label >= 0 else f'but {categories.NAME} has no such category'
        yield int(row['record']), f'has label {row["label"]} of category {row["category_id"]}, {wanted}'


# All shards together.


def _repeat_problems(made: Manifest, rows: np.ndarray) -> Iterator[str]:
    """The products that stand twice among these rows."""
    order = np.argsort(rows['product_id'], kind='stable')
    for repeat in np.flatnonzero(np.diff(rows['product_id'][order]) == 0):
        first, second = rows[order[repeat]], rows[order[repeat + 1]]
        yield f'{_where(made, second)}: stands already in {_where(made, first, with_product=False)}'


def _split_problems(
    made: Manifest, train: np.ndarray, val: np.ndarray, *, seed: int, val_fraction: float
) -> Iterator[str]:
    """The products that are held out but should not be, or the other way round."""
    rows = np.concatenate([train, val])
    held_out = np.arange(len(rows)) >= len(train)
    _, once, times = np.unique(rows['product_id'], return_index=True, return_counts=True)
    rows, held_out = rows[once], held_out[once]
    wanted = split.is_val(rows['category_id'], split.hashes(rows['product_id'], seed=seed), val_fraction=val_fraction)
    ids, category, sizes = np.unique(rows['category_id'], return_inverse=True, return_counts=True)
    held_out_of = np.bincount(category, weights=wanted, minlength=len(ids)).astype(int)
    for index in np.flatnonzero((wanted != held_out) & (times == 1)):  # which of two is right, nobody knows
        own = category[index]
        yield (
            f'{_where(made, rows[index])}: belongs into {"val" if wanted[index] else "train"}: {held_out_of[own]} of '
            f'the {sizes[own]} products of category {ids[own]} are held out, those of lowest hash'
        )


def _where(made: Manifest, row: np.ndarray, *, with_product: bool = True) -> str:
    place = f'{made.files[row["file"]].name}: record {row["record"]}'
    return f'{place}: product {row["product_id"]}' if with_product else place


def _count(made: Manifest, shards: Sequence[Shard], rows: dict[str, np.ndarray]) -> dict[str, Counts]:
    """What the splits that have files hold."""
    in_train = np.unique(_of_split(made, shards, 'train', 'md5s'))
    counts = {}
    for name in (name for name in split.SPLITS if made.of_split(name)):
        own, md5s = rows[name], _of_split(made, shards, name, 'md5s')
        products = np.repeat(np.arange(len(own)), own['images'])
        with_pictures = np.bincount(np.minimum(own['images'], 4), minlength=5)
        counts[name] = Counts(
            products=len(own),
            images=len(md5s),
            categories=0 if name == 'test' else len(np.unique(own['category_id'])),
            products_with=tuple(with_pictures[1:].tolist()),
            copies=len(md5s) - len(np.unique(md5s)),
            sharing=0 if name == 'train' else len(np.unique(products[np.isin(md5s, in_train)])),
        )
    return counts


def _total_problems(made: Manifest, counts: dict[str, Counts]) -> Iterator[str]:
    """Where the totals of the manifest aren't those of its files."""
    for name in split.SPLITS:
        listed = made.about.get('splits', {}).get(name, {})
        if name in counts:
            for what in ('products', 'images', 'categories'):
                found = getattr(counts[name], what)
                if listed.get(what) != found:
                    yield f'{manifest.NAME}: {name}: says {listed.get(what)} {what}, the files have {found}'
        elif listed.get('products') and not made.of_split(name):
            yield f'{manifest.NAME}: {name}: says {listed["products"]} products, but lists no file of it'
