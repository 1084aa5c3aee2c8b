"""What TensorBoard shows of a run: curves, augmented training pictures, settings and, if wished, the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams

from pipeline import augment, storage
from pipeline.augment import Augmentation

GRID = 5  # rows and columns
TRAIN, VALIDATION = 'train', 'validation'
# The folder and name of each column of history.csv.
CURVES = {
    'loss': (TRAIN, 'quality/loss'),
    'accuracy': (TRAIN, 'quality/accuracy'),
    'learning_rate': (TRAIN, 'training/learning_rate'),
    'images_per_second': (TRAIN, 'training/images_per_second'),
    'val_loss': (VALIDATION, 'quality/loss'),
    'val_accuracy': (VALIDATION, 'quality/accuracy'),
    'val_level1': (VALIDATION, 'quality/accuracy_level1'),
    'val_level2': (VALIDATION, 'quality/accuracy_level2'),
    'val_level3': (VALIDATION, 'quality/accuracy_level3'),
}
FINAL = 'final/accuracy'
# What runs are compared by.
METRICS = [
    hparams_api.Metric(FINAL, group=VALIDATION, display_name='accuracy on all validation pictures'),
    hparams_api.Metric('quality/accuracy', group=VALIDATION, display_name='validation accuracy, the last'),
    hparams_api.Metric('quality/loss', group=VALIDATION, display_name='validation loss, the last'),
    hparams_api.Metric('quality/loss', group=TRAIN, display_name='training loss, the last'),
]


class Board:
    """The event files of a run, in a folder for each kind of pictures; points are by update.

    Training and validation have the same names in folders of their own, so that TensorBoard draws both into one chart.
    """

    def __init__(self, folder: str, *, first_step: int = 0) -> None:
        """Opens it.

        Args:
            folder: of the event files.
            first_step: from which update on the run is (again); what an interrupted process has shown of it and of
                later ones is shown no more.
        """
        self._whole = tf.summary.create_file_writer(folder)
        self._parts = {name: tf.summary.create_file_writer(storage.join(folder, name)) for name in (TRAIN, VALIDATION)}
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        event = tf.compat.v1.Event(step=first_step, session_log=start).SerializeToString()
        for writer in self._parts.values():
            tf.raw_ops.ImportEvent(writer=writer._resource, event=event)  # TensorFlow 2 has no other way
            writer.flush()

    def settings(self, settings: Mapping[str, Any], command: str) -> None:
        """Shows what makes the run what it is, so that runs can be compared by it.

        Args:
            settings: by name.
            command: what the run was started with.
        """
        known = {
            name: value if isinstance(value, bool | int | float | str) else ','.join(map(str, value or ()))
            for name, value in sorted(settings.items())
        }
        infos = [api_pb2.HParamInfo(name=name, type=_type(value)) for name, value in known.items()]
        rows = [f'| {name} | {value} |' for name, value in known.items()]
        table = '\n'.join([f'`{command}`', '', '| setting | value |', '| --- | --- |', *rows])
        with self._whole.as_default(step=0):
            tf.summary.text('command and settings', table)
        self._write(hparams.experiment_pb(infos, [metric.as_proto() for metric in METRICS]), step=0)
        self._write(hparams.session_start_pb(known), step=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve.

        Args:
            step: the update.
            values: by their names in history.csv.
        """
        for name, value in values.items():
            part, tag = CURVES[name]
            with self._parts[part].as_default(step=step):
                tf.summary.scalar(tag, value)
        for writer in self._parts.values():
            writer.flush()

    def end(self, step: int, accuracy: float | None) -> None:
        """Shows that the run is finished.

        Args:
            step: its last update.
            accuracy: on all validation pictures, if there are any.
        """
        if accuracy is not None:
            with self._parts[VALIDATION].as_default(step=step):
                tf.summary.scalar(FINAL, accuracy)
            self._parts[VALIDATION].flush()
        self._write(hparams.session_end_pb(api_pb2.STATUS_SUCCESS), step=step)

    def _write(self, summary: Any, *, step: int) -> None:
        with self._whole.as_default(step=step):
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())
        self._whole.flush()

    def pictures(self, step: int, images: Any, draws: Any, *, augmentation: Augmentation, size: int) -> None:
        """Shows the first pictures of a batch as the network sees them.

        Args:
            step: the update they are of.
            images: uint8 [n, side, side, 3].
            draws: float32 [n, augment.DRAWS].
            augmentation: how they vary.
            size: pixels a side for the network.
        """
        count = GRID * GRID
        seen = augment.upscale_crop_flip(images[:count], draws[:count], augmentation=augmentation, size=size)
        with self._parts[TRAIN].as_default(step=step):
            tf.summary.image('augmented training pictures', grid(seen.numpy())[None])
        self._parts[TRAIN].flush()

    def graph(self, graph: Any) -> None:
        """Shows the graph of an update."""
        with self._parts[TRAIN].as_default(step=0):
            tf.summary.graph(graph)
        self._parts[TRAIN].flush()


def _type(value: bool | int | float | str) -> Any:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def grid(images: np.ndarray) -> np.ndarray:
    """Tiles pictures in rows of GRID, grey where there are too few: 0..255 [n, s, s, 3] -> uint8 [h, w, 3]."""
    side = images.shape[1]
    rows = -(-len(images) // GRID)
    tiles = np.full((rows * GRID, side, side, 3), 128, np.uint8)
    tiles[: len(images)] = np.rint(images)
    return tiles.reshape(rows, GRID, side, side, 3).swapaxes(1, 2).reshape(rows * side, GRID * side, 3)
