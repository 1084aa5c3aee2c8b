"""Which products show pictures that stand, byte for byte, in other splits, and which category those pictures tell.

Synopsis:

    from ensemble import known_images
    from pipeline import beam_job

    engine = beam_job.engine(['--runner=FnApiRunner'])
    known = known_images.find(engine, 'data/shards', 'val', output_dir='runs')
    print(f'{(known.seen > 0).mean():.1%} of the products have seen pictures, {(known.label >= 0).mean():.1%} a label')

A Beam job in two steps. Pictures are not copied, and nothing but ranges is shuffled.
  read  each shard: its MD5s go to a file of their own, divided into buckets by the MD5s' first bytes
  join  each bucket, out of its range of every such file: which MD5s of the split are in the sources, with which labels

Of Kaggle's training pictures 37.2 % repeat another one, and 1.5 % of the different ones stand under several categories;
42.4 % of the test products share a picture with training, and 35.7 % share none but such as tell one category.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from pipeline import beam_job, columns, commands, manifest, progress, shard_chunks, storage
from pipeline.errors import InputError
from pipeline.manifest import FileInfo

SOURCES = ('train', 'val')  # the splits whose labels are known
# On average, of sources and split together. To join so many a process takes 0.3 GB. Smaller buckets are shorter ranges:
# at a hundred times Kaggle's size each of the files has 740, of 0.7 kB.
BUCKET_PICTURES = 2**21
# A picture as the first step notes it. Of a source's `number` is its label; of the split's its product's place there.
PICTURE = np.dtype([('md5', 'u1', columns.MD5_BYTES), ('number', '<i8')])


@dataclass(frozen=True, eq=False)
class Known:
    """What the sources tell of a split's products.

    Attributes:
        product_id: int64 [P], all products of the split, in order of the manifest's files and of the products there.
        pictures: int64 [P], 1..4: how many each has.
        seen: int64 [P]: how many of them are, byte for byte, in the sources.
        label: int64 [P]: the one label that all its seen pictures carry wherever they are in the sources; -1 if none
            is seen, or if they carry several.
    """

    product_id: np.ndarray
    pictures: np.ndarray
    seen: np.ndarray
    label: np.ndarray

    def with_pictures(self, count: int) -> Known:
        """What is known of the products with so many pictures."""
        return Known(*(getattr(self, field.name)[self.pictures == count] for field in dataclasses.fields(self)))


def check(shards_folder: str, *, digest: str) -> None:
    """Checks that these are the shards of this digest, from which logits were made.

    Raises:
        InputError: they aren't, or there are none.
    """
    made = manifest.read(shards_folder, kind='shards', remedy=commands.convert(shards_folder))
    if made.digest() != digest:
        raise InputError(f'{shards_folder}: not the shards that the logits were made from; name those as --shards_dir')


def sources_for(split: str) -> tuple[str, ...]:
    """The splits whose categories may be told to a split: to test all that are labelled, to val those trained on.

    Raises:
        InputError: there is none for this split.
    """
    if split == 'train':
        raise InputError('known images of train would be its own; give logits of val or test')
    return SOURCES if split == 'test' else ('train',)


def find(
    engine: beam_job.Engine, shards_folder: str, split: str, *, sources: tuple[str, ...] = ('train',), output_dir: str
) -> Known:
    """Looks for the pictures of a split's products in other splits.

    Args:
        engine: what runs the job; the result is the same on every one.
        shards_folder: the dataset.
        split: whose products.
        sources: where their pictures are looked for: train, val or both, but not the split itself.
        output_dir: a folder that all workers reach. They keep 24 bytes a picture in a folder in it, which goes at the
            end.

    Raises:
        ValueError: of sources that are none, or aren't allowed.
        InputError: there is no finished dataset, it has no product of the split, or a shard is damaged (names the file
            and the byte).
    """
    if not sources or not set(sources) <= set(SOURCES) - {split}:
        raise ValueError(f'sources must be some of {SOURCES}, and not the split {split!r} itself, are {sources}')
    made = manifest.read(shards_folder, kind='shards', remedy=commands.convert(shards_folder))
    asked = [file for file in made.of_split(split) if file.products]
    if not asked:
        raise InputError(f'{shards_folder}: holds no product of the split {split}; convert a catalogue that has some')
    files = [*asked, *(file for source in sources for file in made.of_split(source) if file.products)]
    firsts = np.cumsum([0, *(file.products for file in asked)]).tolist()
    with storage.scratch(output_dir, 'known') as parts:
        job = Job(
            folder=shards_folder,
            firsts={file.name: first for file, first in zip(asked, firsts, strict=False)},
            buckets=-(-sum(file.images for file in files) // BUCKET_PICTURES),
            parts=parts,
        )
        storage.make_folder(parts)
        with progress.watched(lambda: _progress(len(files), job)):
            engine.run(lambda pipeline: _build(pipeline, files, job))
        return _gather(job)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        folder: the dataset.
        firsts: of each of the split's files by name, the place of its first product in the split; in order.
        buckets: ranges that the MD5s are divided into.
        parts: folder for what the steps find.
    """

    folder: str
    firsts: dict[str, int]
    buckets: int
    parts: str

    def products(self, name: str) -> str:
        """Path of the ids and numbers of pictures of the products in one of the split's files."""
        return storage.join(self.parts, f'{name}.npz')

    def pictures(self, name: str) -> str:
        """Path of the pictures of one file: PICTURE [n], bucket by bucket."""
        return storage.join(self.parts, f'{name}.pictures')

    def seen(self, bucket: int) -> str:
        """Path of the split's pictures of one bucket that are in the sources."""
        return storage.join(self.parts, f'seen-{bucket}.npz')


class Range(NamedTuple):
    """The pictures of one file that are in one bucket.

    Attributes:
        name: of the file.
        start: the first of them in Job.pictures(name).
        stop: where the next bucket's begin.
    """

    name: str
    start: int
    stop: int


def _build(pipeline: beam.Pipeline, files: list[FileInfo], job: Job) -> None:
    (
        pipeline
        | 'Shards' >> beam.Create(files)
        | 'Read' >> beam.FlatMap(read_shard, job)
        | 'Buckets' >> beam.GroupByKey()
        | 'Join' >> beam.Map(join_bucket, job)
    )


def _progress(files: int, job: Job) -> progress.Standing:
    """How many files are read; then how many buckets are joined."""
    names = [name for name in storage.list_names(job.parts) if not storage.is_temporary(name)]
    joined = sum(name.startswith('seen-') for name in names)
    if joined:
        return progress.Standing('join known pictures', joined, job.buckets, 'parts')
    return progress.Standing('read pictures', sum(name.endswith('.pictures') for name in names), files, 'files')


def read_shard(file: FileInfo, job: Job) -> Iterator[tuple[int, Range]]:
    """Writes the pictures of a shard, and its products if it is of the split; yields buckets and their ranges.

    Raises:
        InputError: the shard is damaged; names the byte.
    """
    groups = list(shard_chunks.parse_shard(storage.join(job.folder, file.name), file, columns.read_md5))
    product_id, number, images = (
        np.concatenate([getattr(found, name) for found, _ in groups]) for name in ('product_id', 'label', 'images')
    )
    if file.name in job.firsts:
        number = job.firsts[file.name] + np.arange(len(product_id))
        with storage.atomic_writer(job.products(file.name)) as part:
            np.savez(part, product_id=product_id, pictures=images)
    pictures = np.empty(images.sum(), PICTURE)
    pictures['md5'] = np.concatenate([md5 for _, md5 in groups])
    pictures['number'] = np.repeat(number, images)
    bucket = _buckets(pictures['md5'], job.buckets)
    with storage.atomic_writer(job.pictures(file.name)) as part:
        part.write(pictures[np.argsort(bucket, kind='stable')].tobytes())
    ends = np.cumsum(np.bincount(bucket, minlength=job.buckets)).tolist()
    for key, (start, stop) in enumerate(itertools.pairwise([0, *ends])):
        yield key, Range(file.name, start, stop)


def _buckets(md5: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each MD5, uint8 [n, 16], by its first four bytes, which are uniform: int64 [n]."""
    first = np.ascontiguousarray(md5[:, :4]).view('>u4')[:, 0].astype(np.int64)
    return first * buckets >> 32


def join_bucket(bucket: tuple[int, Iterable[Range]], job: Job) -> None:
    """Writes which of the split's pictures in a bucket are in the sources: places of products, agreed labels."""
    key, ranges = bucket
    pieces: dict[bool, list[np.ndarray]] = {True: [np.empty(0, PICTURE)], False: [np.empty(0, PICTURE)]}
    for one in ranges:
        pieces[one.name in job.firsts].append(_read_range(one, job))
    asked, sources = np.concatenate(pieces[True]), np.concatenate(pieces[False])
    product, label = join(asked, sources)
    with storage.atomic_writer(job.seen(key)) as part:
        np.savez(part, product=product, label=label)


def _read_range(one: Range, job: Job) -> np.ndarray:
    """The pictures of a range, PICTURE [n]."""
    path, size = job.pictures(one.name), PICTURE.itemsize
    with storage.open_ranges(path) as file:
        return np.frombuffer(file.window(one.start * size, (one.stop - one.start) * size).tobytes(), PICTURE)


def join(asked: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of the split that are in the sources.

    Args:
        asked: PICTURE [a], of the split.
        sources: PICTURE [s].

    Returns:
        their products' places, and the labels that the sources agree on, -1 where they don't; int64 [n], n <= a.
    """
    group = numbered(np.concatenate([sources['md5'], asked['md5']]))
    groups = int(group.max(initial=-1)) + 1
    of_sources, of_asked = np.split(group, [len(sources)])
    seen = (np.bincount(of_sources, minlength=groups) > 0)[of_asked]
    return asked['number'][seen], agreed(sources['number'], of_sources, groups)[of_asked[seen]]


def numbered(md5: np.ndarray) -> np.ndarray:
    """Numbers the different MD5s, uint8 [n, 16], from 0 on: int64 [n]."""
    halves = np.ascontiguousarray(md5).view(np.uint64).T
    order = np.lexsort(halves)
    is_new = (np.diff(halves[:, order]) != 0).any(axis=0)
    number = np.zeros(len(md5), np.int64)
    number[order[1:]] = np.cumsum(is_new)
    return number


def agreed(label: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """The label that all members of a group have.

    Args:
        label: of each member, int64 [n]; with -1 none agrees.
        group: which group it belongs to, int64 [n].
        groups: how many there are.

    Returns:
        int64 [groups]; -1 where they differ, and where a group is empty.
    """
    least, most = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
    np.minimum.at(least, group, label)
    np.maximum.at(most, group, label)
    return np.where(least == most, most, -1)


def _gather(job: Job) -> Known:
    """What all steps found, in the split's order."""
    products = [_read_part(job.products(name)) for name in job.firsts]
    product_id, pictures = (np.concatenate([part[name] for part in products]) for name in ('product_id', 'pictures'))
    seen = [_read_part(job.seen(bucket)) for bucket in range(job.buckets)]
    product, label = (np.concatenate([part[name] for part in seen]) for name in ('product', 'label'))
    return Known(
        product_id,
        pictures,
        seen=np.bincount(product, minlength=len(product_id)),
        label=agreed(label, product, len(product_id)),
    )


def _read_part(path: str) -> dict[str, np.ndarray]:
    with storage.open_read(path) as file, np.load(file) as arrays:
        return dict(arrays)
