"""The part of a classifier of products that model.train_head trains: join and dense layers, on cached features.

Synopsis:

    backbone = product_head.backbone(runs.load_model('runs/one'))
    model = HeadModel(classifier.build(backbone, classes=5270, options=Options(inputs=INPUTS)), micro_batch=256)
    rows_of = product_head.rows_of(model, folder, made)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ensemble import logits
from model import cached_features, inference, runs
from model import classifier as classifiers
from model.accumulate import AccumulatingModel
from model.backbone import Backbone
from model.inputs import SINGLE, Inputs
from pipeline.augment import Augmentation
from pipeline.dataset import PICTURES
from pipeline.errors import UsageError
from pipeline.manifest import FileInfo, Manifest

INPUTS = Inputs(PICTURES, True)  # all products, with all their pictures


class HeadModel(AccumulatingModel):
    """Trains join and dense layers of a classifier of products, whose backbone stays as it is."""

    def __init__(self, whole: keras.Model, *, micro_batch: int, label_smoothing: float = 0) -> None:
        """Wraps the part of a classifier that learns.

        Args:
            whole: the classifier; its other layers are frozen.
            micro_batch: products that a replica takes at a time.
            label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        """
        for layer in whole.layers:
            layer.trainable = layer.name in (classifiers.JOIN, *classifiers.HEAD_LAYERS)
        head = classifiers.head_of(whole)
        super().__init__(head, micro_batch=micro_batch, inputs=INPUTS, label_smoothing=label_smoothing)
        self._whole = whole

    @property
    def whole(self) -> keras.Model:
        """What a run keeps as its model: backbone, join and dense layers."""
        return self._whole

    def prepare(self, images: Any, *more: Any, augmentation: Augmentation | None = None) -> Any:
        """The head's inputs, of the columns that Cached gives.

        Args:
            images: the features, float16 [n, pictures, F].
            more: mask bool [n, pictures].
            augmentation: of no consequence: features are of pictures as they are.
        """
        (mask,) = more
        return [tf.cast(tf.reshape(images, [-1, images.shape[-1]]), tf.float32), tf.cast(mask, tf.float32)]


def check_base(run_dir: str, *, flag: str) -> dict[str, Any]:
    """Refuses a run whose features can't be those of pictures.

    Returns:
        The run's settings.

    Raises:
        InputError: there is no such run, it isn't finished, or its network sees more than one picture.
    """
    runs.finished_model(run_dir)
    settings = runs.read_settings(run_dir)
    if Inputs.of_run(settings) != SINGLE:
        raise UsageError(f'{flag}={run_dir}: must be a run of single pictures, without --pictures and --title')
    return settings


def backbone(one: keras.Model) -> Backbone:
    """The backbone of a classifier of single pictures, its layers and weights shared with it."""
    return Backbone(classifiers.features_model(one), (), None)


def rows_of(model: HeadModel, folder: str, made: Manifest) -> Callable[[FileInfo], Iterator[logits.Rows]]:
    """What makes the logits of products by a store of their pictures' features, a file of the dataset at a time.

    Args:
        model: the head.
        folder: of the store.
        made: its manifest.
    """
    width = model.classifier.inputs[0].shape[-1]
    shapes = [tf.TensorSpec([None, PICTURES, width], tf.float16), tf.TensorSpec([None, PICTURES], tf.bool)]
    forward = tf.function(lambda *columns: inference.halved(model.logits(*columns)), input_signature=shapes)
    files = {file.name: file for file in made.files}

    def rows(file: FileInfo) -> Iterator[logits.Rows]:
        for block in logits.read_shard(folder, files[file.name], kind=logits.FEATURES):
            features, mask = cached_features.by_product(block)
            starts = block.starts()
            none = np.zeros(len(starts), np.int64)
            product_id, label, pictures = block.product_id[starts], block.label[starts], mask.sum(axis=1)
            yield logits.Rows(product_id, none, none, label, forward(features, mask).numpy(), pictures)

    return rows
