"""The Beam job that reduces stores of logits to predictions: one element a file, only predictions leave a worker.

Synopsis:

    from ensemble import predictions, reduction
    from ensemble.mixture import Mixture
    from ensemble.reduction import Job
    from pipeline import beam_job

    engine = beam_job.engine(['--runner=FnApiRunner'])
    stores = reduction.open_stores(['runs/a/logits/val', 'runs/b/logits/val'])
    mixtures = [Mixture('product', weights=(1, 2)), Mixture('mean', weights=(1, 1))]
    reduction.run(engine, stores.parts(), Job(stores, mixtures, outputs=['product', 'mean']))
    print(predictions.read('product').category_id, predictions.read('mean').category_id)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import tensorflow as tf

from ensemble import predictions, routing, submission
from ensemble.logits import Rows
from ensemble.mixture import Mixture, Models
from ensemble.predictions import Predictions
from ensemble.routing import Group, GroupFile, Store
from ensemble.rules import Products
from pipeline import categories, progress, storage
from pipeline import manifest as manifest_lib
from pipeline.beam_job import Engine
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import FileInfo


@dataclass(frozen=True, eq=False)
class Part:
    """What a worker takes at a time.

    Attributes:
        files: of the same products, one a model.
        known: product ids int64 [P], and category ids int64 [P] of those that are known by their pictures, UNKNOWN
            where they aren't; None if such knowledge isn't used.
    """

    files: tuple[GroupFile, ...]
    known: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Stores:
    """Stores of logits of the same products.

    Attributes:
        groups: of each model its stores.
        label_map: the categories of all of them.
    """

    groups: tuple[Group, ...]
    label_map: Categories

    @property
    def names(self) -> tuple[str, ...]:
        """Of each model the folders, with + between if there are several."""
        return tuple(group.name for group in self.groups)

    @property
    def each(self) -> tuple[Store, ...]:
        """The stores of all models."""
        return tuple(store for group in self.groups for store in group.stores)

    @property
    def split(self) -> str:
        """train, val or test."""
        return self.each[0].manifest.about['split']

    @property
    def dataset_digest(self) -> str:
        """Identity of the shards that the logits were made from."""
        return self.each[0].manifest.about['dataset_digest']

    @property
    def products(self) -> int:
        """How many products."""
        return self.groups[0].products

    @property
    def part(self) -> int:
        """K, if they are of the products with K pictures only; 0: of all that the dataset has in the split."""
        return self.groups[0].part

    def parts(self) -> list[Part]:
        """The files of the same products; those without any are left out."""
        rows = zip(*(group.files() for group in self.groups), strict=True)
        return [Part(files) for files in rows if files[0].products]


@dataclass(frozen=True)
class Job:
    """A reduction.

    Attributes:
        stores: the logits.
        mixtures: R ways to combine them.
        outputs: R folders for the predictions.
        known_images: whether the parts know categories by pictures.
    """

    stores: Stores
    mixtures: Sequence[Mixture]
    outputs: Sequence[str]
    known_images: bool = False

    def about(self, mixture: Mixture) -> dict:
        """What a store of predictions says of how it was made."""
        first = self.stores.each[0].manifest.about
        made_from = ('weights_digest', 'tta', 'seed', 'top_k', 'pictures', 'fewer_pictures')
        return {
            **{name: first[name] for name in ('split', 'label_map_digest', 'dataset_digest')},
            'dataset_products': self.stores.groups[0].dataset_products,
            'logits': [
                {'model': model, **{name: store.manifest.about.get(name, 0) for name in made_from}}
                for model, group in enumerate(self.stores.groups)
                for store in group.stores
            ],
            'mixture': dataclasses.asdict(mixture),
            'known_images': self.known_images,
        }


def open_stores(names: Sequence[str]) -> Stores:
    """Opens stores of logits that can be combined.

    Args:
        names: of the models: each the folder of a store, or several with + between (routing.py).

    Raises:
        InputError: one isn't finished or holds nothing, or two aren't of the same split, dataset and categories.
    """
    groups = routing.open_groups(names)
    return Stores(groups, categories.read(groups[0].stores[0].folder))


def run(engine: Engine, parts: Sequence[Part], job: Job) -> None:
    """Reduces the stores; predictions in the folders of the outputs go, and each store is finished or isn't there.

    Args:
        engine: what runs the job.
        parts: the stores' files.
        job: what to do with them.

    Raises:
        InputError: a file is damaged, files of the same name hold other products, or a product stands twice.
    """
    for folder in job.outputs:
        _remove(folder)
    try:
        with progress.watched(lambda: progress.Standing('combine', _finished(job), len(parts), 'files')):
            engine.run(lambda pipeline: _build(pipeline, parts, job))
        found = predictions.read(job.outputs[0], ['product_id'])
        submission.check_products(found.product_id, expected=job.stores.products)
    except BaseException:
        for folder in job.outputs:
            _remove(folder)
        raise


def _finished(job: Job) -> int:
    names = storage.list_names(job.outputs[-1])
    return sum(name.endswith(predictions.SUFFIX) and not storage.is_temporary(name) for name in names)


def _remove(folder: str) -> None:
    """Removes a store of predictions; the manifest first, so that a part of it is never taken for whole."""
    names = storage.list_names(folder)
    for name in sorted(names, key=lambda name: name != manifest_lib.NAME):
        if name == manifest_lib.NAME or name.endswith(predictions.SUFFIX) or storage.is_temporary(name):
            storage.remove(storage.join(folder, name))


def _build(pipeline: beam.Pipeline, parts: Sequence[Part], job: Job) -> None:
    infos = (
        pipeline | 'Parts' >> beam.Create(parts) | 'Spread' >> beam.Reshuffle() | 'Reduce' >> beam.Map(reduce_part, job)
    )
    pipeline | 'Once' >> beam.Create([job]) | 'Finish' >> beam.Map(_finish, beam.pvalue.AsList(infos))


def reduce_part(part: Part, job: Job) -> list[FileInfo]:
    """Reduces the files of the same products, and writes a file of predictions for each mixture.

    Raises:
        InputError: a file is damaged, or they don't hold the same products.
    """
    _take_one_core()
    blocks: list[list[Predictions]] = [[] for _ in job.mixtures]
    for rows in aligned(job.stores.groups, part.files):
        models = Models([Products(one) for one in rows])
        for done, mixture in zip(blocks, job.mixtures, strict=True):
            done.append(predictions.predict(models, mixture, category_ids=job.stores.label_map.ids))
    infos = []
    for folder, done in zip(job.outputs, blocks, strict=True):
        found = Predictions.concatenate(done)
        if part.known is not None:
            found = predictions.with_known(found, *part.known)
        name = part.files[0].name.removesuffix('.tfrecord') + predictions.SUFFIX
        infos.append(predictions.write_file(folder, name, found, split=job.stores.split))
    return infos


def _take_one_core() -> None:
    """Of the workers there is one a core, and each would take all of the GPU's memory.

    TensorFlow refuses if it has run in this process before; then it keeps what it has.
    """
    leave_gpus()
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def leave_gpus() -> None:
    """Leaves the GPUs to others, if TensorFlow hasn't run in this process before: rules are as quick without."""
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], 'GPU')


def aligned(groups: Sequence[Group], files: Sequence[GroupFile]) -> Iterator[list[Rows]]:
    """Reads files of the same products together: the same products of each model, block by block.

    Raises:
        InputError: a file is damaged, or they don't hold the same products in the same order.
    """
    readers = [group.read(file) for group, file in zip(groups, files, strict=True)]
    waiting: list[Rows | None] = [None] * len(readers)
    while True:
        for place, reader in enumerate(readers):
            waiting[place] = waiting[place] or next(reader, None)
        ready = [rows for rows in waiting if rows is not None]
        if not ready:
            return
        if len(ready) < len(readers):
            raise _other_products(groups, files)
        starts = [np.append(rows.starts(), len(rows)) for rows in ready]
        count = min(len(one) for one in starts) - 1
        block = [rows[: ends[count]] for rows, ends in zip(ready, starts, strict=True)]
        first = block[0].product_id[starts[0][:count]]
        for rows, ends in zip(block, starts, strict=True):
            if not np.array_equal(rows.product_id[ends[:count]], first):
                raise _other_products(groups, files)
        yield block
        waiting = [rows[ends[count] :] or None for rows, ends in zip(ready, starts, strict=True)]


def _other_products(groups: Sequence[Group], files: Sequence[GroupFile]) -> InputError:
    paths = ' and '.join(group.paths(file) for group, file in zip(groups, files, strict=True))
    return InputError(f'{paths}: do not hold the same products in the same order; make the logits again')


def _finish(job: Job, infos: list[list[FileInfo]]) -> None:
    for number, (folder, mixture) in enumerate(zip(job.outputs, job.mixtures, strict=True)):
        predictions.finish(folder, [files[number] for files in infos], job.about(mixture))
