"""Per-image logits of a split, written shard by shard in the dataset's order."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ensemble import logits
from model.accumulate import AccumulatingModel
from pipeline import dataset, manifest, program, storage
from pipeline.augment import Augmentation
from pipeline.dataset import Shards
from pipeline.errors import InputError

# The views beside the plain picture vary as the paper's augmented training pictures do, whatever the model was trained
# with: the paper's Table I has five views of both its configurations.
VIEWS = Augmentation()


def folder_of(run_dir: str, split: str, *, tta: int, best: bool = False) -> str:
    """Where the logits of a split lie in a run; those of its best weights, not its last ones, have a folder apart."""
    return storage.join(run_dir, 'logits', split + ('' if tta == 1 else f'-tta{tta}') + ('-best' if best else ''))


def predict_split(
    model: AccumulatingModel,
    shards: Shards,
    split: str,
    *,
    run_dir: str,
    tta: int,
    seed: int,
    batch_size: int,
    best: bool = False,
) -> str:
    """Writes the logits of every picture of a split; does nothing if they are there.

    Args:
        model: the trained model, made under the strategy in scope.
        shards: the dataset.
        split: val or test (or train).
        run_dir: the run's folder.
        tta: views a picture; view 0 is the plain picture.
        seed: of the other views.
        batch_size: views at a time, over all replicas.
        best: whether the model is the run's best, not its last.

    Returns:
        The store's folder.

    Raises:
        InputError: the model knows other categories than the shards hold.
    """
    classes = model.classifier.output_shape[-1]
    if classes != len(shards.label_map):
        raise InputError(
            f'{run_dir}: its model has {classes} categories, the shards in {shards.folder} have {len(shards.label_map)}'
        )
    folder = folder_of(run_dir, split, tta=tta, best=best)
    identity: dict[str, Any] = {
        'weights_digest': weights_digest(model.classifier),
        'dataset_digest': shards.manifest.digest(),
        'seed': seed if tta > 1 else 0,  # of no consequence to plain pictures
    }
    if _is_finished(folder, identity):
        print(f'logits of {split} are in {folder} already')
        return folder
    storage.make_folder(folder)
    files = []

    @tf.function  # one for all shards: each would trace the network anew
    def step(images: Any, draws: Any) -> Any:
        return tf.cast(model.logits(images, draws, augmentation=VIEWS if tta > 1 else None), tf.float16)

    with program.progress(total=shards.manifest.images(split) * tta, label=f'predict {split}', unit=' images') as bar:
        for file in shards.manifest.of_split(split):
            views = dataset.views(shards, file, batch_size=batch_size, tta=tta, seed=seed)
            files.append(logits.write_shard(folder, file.name, _rows(step, views, bar), split=split))
    logits.finish(folder, files, split=split, tta=tta, categories=shards.label_map, **identity)
    return folder


def weights_digest(classifier: keras.Model) -> str:
    """SHA-256 of all weights in order, in hexadecimal."""
    digest = hashlib.sha256()
    for value in classifier.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _is_finished(folder: str, identity: dict[str, Any]) -> bool:
    """Whether a sound store of this identity is there; another, or a damaged one, is unmade before it is replaced."""
    path = storage.join(folder, manifest.NAME)
    if not storage.exists(path):
        return False
    try:
        made = logits.read_manifest(folder)
        if all(made.about.get(name) == value for name, value in identity.items()):
            for file in made.files:
                collections.deque(logits.read_shard(folder, file), maxlen=0)  # checks every checksum, at 3 GB/s
            return True
    except InputError as error:
        print(f'{error}: done now')
    storage.remove(path)
    return False


def _rows(step: Callable[..., Any], views: tf.data.Dataset, bar: Any) -> Iterator[logits.Rows]:
    strategy = tf.distribute.get_strategy()
    for images, draws, *columns in strategy.experimental_distribute_dataset(views):
        values = _joined(strategy.run(step, args=(images, draws)))
        product_id, image_index, view, label = (_joined(column) for column in columns)
        count = np.count_nonzero(product_id != dataset.FILLER)
        rows = logits.Rows(product_id=product_id, image_index=image_index, view=view, label=label, logits=values)
        yield rows[:count]
        bar.update(count)


def _joined(value: Any) -> np.ndarray:
    """The replicas' parts of a batch, in order."""
    parts = tf.distribute.get_strategy().experimental_local_results(value)
    return np.concatenate([part.numpy() for part in parts])
