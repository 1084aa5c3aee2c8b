"""Per-image logits of a split, or what the dense layers make them of, written shard by shard in the dataset's order.

Each shard of them is noted in a journal as soon as it is finished, so that a prediction that was interrupted goes on
with the missing ones: notes of the same weights, dataset and settings are checked and their shards kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ensemble import logits, logits_folder
from model import classifier as classifiers
from model import runs
from model.accumulate import AccumulatingModel
from model.inputs import Inputs
from pipeline import categories, dataset, journal, manifest, progress, storage, worklog
from pipeline.augment import Augmentation
from pipeline.categories import Categories
from pipeline.dataset import Shards
from pipeline.errors import InputError
from pipeline.manifest import FileInfo

# The views beside the plain picture vary as the paper's augmented training pictures do, whatever the model was trained
# with: the paper's Table I has five views of both its configurations.
VIEWS = Augmentation()


@dataclass(frozen=True)
class Options:
    """What is predicted, and how.

    Attributes:
        split: val or test (or train).
        batch_size: views at a time, over all replicas.
        tta: views a picture; view 0 is the plain picture.
        seed: of the other views.
        top_k: how many of each row's logits are stored; 0: all.
        best: whether the model is the run's best, not its last: its logits have a folder of their own.
        kind: logits, or features: what classifier.features_model() gives, of the plain pictures.
    """

    split: str
    batch_size: int
    tta: int = 1
    seed: int = 0
    top_k: int = 0
    best: bool = False
    kind: str = logits.KIND


def predict_split(
    model: AccumulatingModel,
    shards: Shards,
    options: Options,
    *,
    run_dir: str,
    rows_of: Callable[[FileInfo], Iterable[logits.Rows]] | None = None,
) -> str:
    """Writes the logits of every picture of a split, or those that are missing; says what it did, in the worklog too.

    The logits are written less each row's highest (see logits.Rows).

    Args:
        model: the trained model, made under the strategy in scope.
        shards: the dataset.
        options: what is predicted, and how.
        run_dir: the run's folder.
        rows_of: gives the rows of a file of the dataset, where they aren't made of its pictures.

    Returns:
        The store's folder.

    Raises:
        InputError: the model knows other categories than the shards hold, or not more than top_k.
    """
    started = time.monotonic()
    classes = model.classifier.output_shape[-1]
    if classes != len(shards.label_map):
        raise InputError(
            f'{run_dir}: its model has {classes} categories, the shards in {shards.folder} have {len(shards.label_map)}'
        )
    if options.top_k >= classes:
        raise InputError(f'--top_k={options.top_k}: there are only {classes} categories; 0 stores all their logits')
    folder = logits_folder.folder(
        run_dir, options.split, tta=options.tta, best=options.best, top_k=options.top_k, kind=options.kind
    )
    about: dict[str, Any] = {
        'split': options.split,
        'tta': options.tta,
        'seed': options.seed if options.tta > 1 else 0,  # of no consequence to plain pictures
        'top_k': options.top_k,
        'weights_digest': weights_digest(model.classifier),
        'dataset_digest': shards.manifest.digest(),
        'pictures': model.inputs_of_row.pictures,
        'fewer_pictures': model.inputs_of_row.fewer,
        'dataset_products': shards.manifest.products(options.split),
        'order_seed': shards.manifest.about['seed'],
    }
    # How a device adds up may hang on how many views it takes at a time. That is no reason to do a finished store anew.
    views = options.batch_size // tf.distribute.get_strategy().num_replicas_in_sync
    identity = json.dumps({**about, 'views_at_a_time': views, 'of_pictures': rows_of is None}, sort_keys=True)
    files = shards.manifest.of_split(options.split)
    kept = _kept(folder, files, about, shards.label_map, identity=identity, kind=options.kind)
    if storage.exists(storage.join(folder, manifest.NAME)):
        print(f'{options.kind} of {options.split} are in {folder} already ({len(kept)} shards, checked)')
    else:
        print(f'predicting {options.split} into {folder}: {len(kept)} of {len(files)} shards kept', flush=True)
        rows_of = rows_of or _rows_of_pictures(model, shards, options)
        made = _predict(model, shards, options, rows_of, folder=folder, kept=kept, identity=identity)
        logits.finish(folder, made, categories=shards.label_map, kind=options.kind, **about)
        rows, size = sum(file.images for file in made), sum(file.bytes for file in made)
        products = sum(file.products for file in made)
        print(f'wrote {folder}: {rows:,} rows of {products:,} products, {size / 1e6:,.1f} MB')
        predicted = [file for file in made if file.name not in kept]
        _log(predicted, options, folder=folder, run_dir=run_dir, seconds=time.monotonic() - started)
    journal.end(folder)
    journal.remove_stale(folder, logits.read_manifest(folder, kind=options.kind))
    return folder


def _log(predicted: Sequence[FileInfo], options: Options, *, folder: str, run_dir: str, seconds: float) -> None:
    """Adds a line to the run's worklog, if any shard was predicted."""
    if predicted:
        views = sum(file.images for file in predicted)
        counts = {
            'images': views // options.tta,
            'products': sum(file.products for file in predicted),
            'views': views,
            'bytes': sum(file.bytes for file in predicted),
        }
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        name = 'predict' if options.kind == logits.KIND else options.kind
        worklog.add(run_dir, f'{name} {os.path.basename(folder)}', seconds=seconds, counts=counts, replicas=replicas)


def _kept(
    folder: str,
    files: tuple[FileInfo, ...],
    about: dict[str, Any],
    label_map: Categories,
    *,
    identity: str,
    kind: str,
) -> dict[str, FileInfo]:
    """The sound shards by name, which needn't be predicted again; removes a manifest unless all is as it was."""
    path = storage.join(folder, manifest.NAME)
    listed = _listed(folder, about, kind=kind)
    if listed is None:
        found = (journal.noted(folder, file.name, identity=identity) for file in _checking(files))
        kept = {file.name: file for file in found if file}
    else:
        kept = {file.name: file for file in _checking(listed) if journal.is_sound(folder, file)}
        if len(kept) == len(files) and categories.is_in(label_map, folder):
            return kept
        for file in kept.values():
            journal.note(folder, file, identity=identity)
    if storage.exists(path):
        storage.remove(path)
    return kept


def _checking(files: tuple[FileInfo, ...]) -> Iterator[FileInfo]:
    """Files that are read whole, with progress."""
    yield from progress.Progress(files, total=len(files), label='check the logits there are', unit='shards')


def _listed(folder: str, about: dict[str, Any], *, kind: str) -> tuple[FileInfo, ...] | None:
    """The shards of the finished store in the folder; None if there is none of this identity."""
    if not storage.exists(storage.join(folder, manifest.NAME)):
        return None
    try:
        made = logits.read_manifest(folder, check_files=False, kind=kind)
    except InputError as error:
        print(f'{error}: done now')
        return None
    return made.files if all(made.about.get(name) == value for name, value in about.items()) else None


def _predict(
    model: AccumulatingModel,
    shards: Shards,
    options: Options,
    rows_of: Callable[[FileInfo], Iterable[logits.Rows]],
    *,
    folder: str,
    kept: dict[str, FileInfo],
    identity: str,
) -> list[FileInfo]:
    """Predicts the shards that aren't kept, and notes each as soon as it is finished."""
    started, made = time.monotonic(), []
    total = dataset.rows(shards, options.split, model.inputs_of_row.products) * options.tta
    done = sum(file.images for file in kept.values())
    unit = model.inputs_of_row.unit if options.tta == 1 else 'views'
    label = f'{"predict" if options.kind == logits.KIND else options.kind} {options.split}'
    # What is kept counts as done, but not for the rate.
    with progress.Progress(total=total, initial=done, label=label, unit=unit) as bar:
        for file in shards.manifest.of_split(options.split):
            info = kept.get(file.name)
            if not info:
                rows = _counted(rows_of(file), bar)
                info = logits.write_shard(
                    folder, file.name, rows, split=options.split, top_k=options.top_k, kind=options.kind
                )
                journal.note(folder, info, identity=identity)
            made.append(info)
    seconds = time.monotonic() - started
    print(f'{total - done:,} {unit} in {seconds:.0f} s: {(total - done) / seconds:,.0f} {unit}/s')
    return made


def _counted(rows: Iterable[logits.Rows], bar: Any) -> Iterator[logits.Rows]:
    for some in rows:
        yield some
        bar.update(len(some))


def _rows_of_pictures(
    model: AccumulatingModel, shards: Shards, options: Options
) -> Callable[[FileInfo], Iterator[logits.Rows]]:
    """What makes the rows of a shard: the network, of all views of the shard's pictures."""
    products = model.inputs_of_row.products
    forward = step(model, plain=options.tta == 1) if options.kind == logits.KIND else _features_step(model)

    def rows_of(file: FileInfo) -> Iterator[logits.Rows]:
        views = dataset.views(
            shards, file, batch_size=options.batch_size, tta=options.tta, seed=options.seed, products=products
        )
        return _rows(forward, views, products=products is not None)

    return rows_of


def halved(values: Any) -> Any:
    """Logits float32 [n, C] in float16, less each row's highest.

    No probability changes by that, and the best classes, which the rules must tell apart, lie near 0, where float16 is
    finest. Rounded as they are, random logits of 5,270 classes would change 1 in 300 predictions (docs/results.md).
    """
    return tf.cast(values - tf.reduce_max(values, axis=1, keepdims=True), tf.float16)


def weights_digest(classifier: keras.Model) -> str:
    """SHA-256 of all weights in order, in hexadecimal."""
    digest = hashlib.sha256()
    for value in classifier.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def load(run_dir: str, *, best: bool = False, micro_batch: int) -> AccumulatingModel:
    """A finished run's model, the last or the one with the best validation accuracy.

    Args:
        run_dir: the run's folder.
        best: which of the two.
        micro_batch: rows that a device takes at a time.

    Raises:
        InputError: there is no such model.
    """
    classifier = runs.load_model(run_dir, best=best)
    return AccumulatingModel(classifier, micro_batch=micro_batch, inputs=Inputs.of_run(runs.read_settings(run_dir)))


def step(model: AccumulatingModel, *, plain: bool) -> Callable[..., Any]:
    """Images, mask (of products) and draws of a batch -> logits, float16.

    One for all shards: each would trace the network anew.
    """

    @tf.function
    def forward(*columns: Any) -> Any:
        return halved(model.logits(*columns, augmentation=None if plain else VIEWS))

    return forward


def _features_step(model: AccumulatingModel) -> Callable[..., Any]:
    """Images and draws of a batch -> features, float16."""
    network = classifiers.features_model(model.classifier)

    @tf.function
    def forward(*columns: Any) -> Any:
        return tf.cast(network(model.prepare(*columns, augmentation=None), training=False), tf.float16)

    return forward


def _rows(forward: Callable[..., Any], views: tf.data.Dataset, *, products: bool) -> Iterator[logits.Rows]:
    strategy = tf.distribute.get_strategy()
    for batch in strategy.experimental_distribute_dataset(views):
        *given, product_id, image_index, view, label = batch
        values = _joined(strategy.run(forward, args=tuple(given)))
        product_id, image_index, view, label = map(_joined, (product_id, image_index, view, label))
        count = np.count_nonzero(product_id != dataset.FILLER)
        pictures = _joined(given[1]).sum(axis=1, dtype=np.int64) if products else None  # by the mask
        rows = logits.Rows(product_id, image_index, view, label, values, pictures)
        yield rows[:count]


def _joined(value: Any) -> np.ndarray:
    """The replicas' parts of a batch, in order."""
    parts = tf.distribute.get_strategy().experimental_local_results(value)
    return np.concatenate([part.numpy() for part in parts])
