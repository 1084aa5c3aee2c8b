"""How good a classifier is on labelled pictures: loss, and accuracy by level of the hierarchy and by category."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from model.accumulate import AccumulatingModel
from pipeline import progress, tables
from pipeline.categories import Categories

CATEGORY_COLUMNS = ('label', 'category_id', 'level1', 'level2', 'level3', 'images', 'accuracy')


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        loss: mean softmax cross entropy.
        levels: share of pictures whose category is right as far as level 1, 2 and 3 of its names.
        images: int64 [C], pictures of each category.
        hits: int64 [C], how many of them were right.
    """

    loss: float
    levels: tuple[float, ...]
    images: np.ndarray
    hits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of pictures whose category is right."""
        return float(self.hits.sum() / self.images.sum())

    def columns(self) -> dict[str, float]:
        """The columns of history.csv that it gives."""
        levels = {f'val_level{number}': share for number, share in enumerate(self.levels, start=1)}
        return {'val_loss': self.loss, 'val_accuracy': self.accuracy, **levels}


class Evaluator:
    """Evaluates a model, over all replicas of the strategy that it was made under."""

    def __init__(self, model: AccumulatingModel, strategy: tf.distribute.Strategy, label_map: Categories) -> None:
        self.strategy = strategy
        self.label_map = label_map
        self.classes = len(label_map)
        self.unit = model.inputs_of_row.unit
        levels = tf.constant(label_map.levels())

        def sums_of(*columns: Any) -> Any:
            """Sums over the batches of all replicas: loss, right at levels 1 to 3, rows and hits by category."""
            *given, labels, weights = columns
            logits = model.logits(*given)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            predicted = tf.argmax(logits, axis=1)
            same = tf.gather(levels, predicted, axis=1) == tf.gather(levels, labels, axis=1)
            right = weights * tf.cast(predicted == labels, tf.float32)
            sums = tf.concat(
                [
                    [tf.reduce_sum(weights * losses)],
                    tf.reduce_sum(weights * tf.cast(same, tf.float32), axis=1),
                    tf.math.unsorted_segment_sum(weights, labels, self.classes),
                    tf.math.unsorted_segment_sum(right, labels, self.classes),
                ],
                axis=0,
            )
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)

        @tf.function(autograph=False)
        def step(batch: Any) -> Any:
            return strategy.run(sums_of, args=batch)

        self._step = step

    def evaluate(
        self, batches: Any, *, images: int | None = None, go_on: Callable[[], bool] = lambda: True
    ) -> Evaluation | None:
        """Goes through distributed batches of pipeline.dataset.evaluation.

        Args:
            batches: the batches.
            images: how many rows (pictures or products) there are, for the progress bar; None: there is none.
            go_on: asked between two batches.

        Returns:
            What was found; None if `go_on` said no.
        """
        sums = np.zeros(4 + 2 * self.classes)
        with progress.Progress(
            total=images or 0, label='validate', unit=self.unit, leave=False, disable=images is None
        ) as bar:
            for batch in batches:
                if not go_on():
                    return None
                found = self.strategy.experimental_local_results(self._step(batch))[0].numpy()
                sums += found
                bar.update(round(float(found[4 : 4 + self.classes].sum())))
        seen, hits = np.rint(sums[4:]).astype(np.int64).reshape(2, self.classes)
        loss, *levels = sums[:4] / seen.sum()
        return Evaluation(float(loss), tuple(float(level) for level in levels), seen, hits)


def write_by_category(evaluation: Evaluation, label_map: Categories, path: str) -> None:
    """Writes the accuracy of every category; empty for one without pictures."""
    rows = []
    counts = zip(evaluation.images.tolist(), evaluation.hits.tolist(), strict=True)
    for label, (images, hits) in enumerate(counts):
        share = round(hits / images, 4) if images else ''
        rows.append((label, int(label_map.ids[label]), *label_map.names[label], images, share))
    tables.write(path, CATEGORY_COLUMNS, rows)
