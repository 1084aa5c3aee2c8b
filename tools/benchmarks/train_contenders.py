"""The train step and what it is held against: each runs in a process of its own and prints its steady rate.

    python -m tools.benchmarks.train_contenders step FOLDER

FOLDER has training pictures in shards/. All train the demo's network (demo.flags: the quickest step the project has, so
the one that everything around it holds up most) in micro batches of 32. On a CPU Keras' fit would use XLA by itself,
which makes this network eight times as slow (65 pictures a second); the reference is the fit without it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model import backbone, classifier
from model.accumulate import AccumulatingModel
from pipeline import augment, dataset
from pipeline.augment import Augmentation

SIZE = 64
MICRO_BATCH, ACCUMULATE = 32, 12
EFFECTIVE_BATCH = MICRO_BATCH * ACCUMULATE
WARM_UP, UPDATES = 2, 10  # updates of an effective batch; what compiles does so in the first


def main(name: str, folder: str) -> None:
    """Measures one contender."""
    shards = dataset.open_shards(str(Path(folder) / 'shards'))
    rate = UPDATES * EFFECTIVE_BATCH / CONTENDERS[name](shards)
    print(json.dumps({'img/s': round(rate, 1)}))


def step(shards: dataset.Shards) -> float:
    """Updates of the project's train step, all of one batch: seconds."""
    images, draws, labels = next(dataset.training_batches(shards, seed=0, batch_size=EFFECTIVE_BATCH))
    batch = (_small(images), tf.constant(draws), tf.constant(labels))
    return _updates(AccumulatingModel(_network(shards), micro_batch=MICRO_BATCH), itertools.repeat(batch))


def training(shards: dataset.Shards, *, fed: bool) -> float:
    """Updates as model.train makes them, augmentation included, from the feed or all of one batch: seconds."""
    stream = dataset.train(shards, seed=0, batch_size=EFFECTIVE_BATCH)
    if not fed:
        stream = stream.take(1).cache().repeat()
    model = AccumulatingModel(_network(shards), micro_batch=MICRO_BATCH, augmentation=Augmentation())
    return _updates(model, iter(stream))


def _updates(model: AccumulatingModel, batches: Iterator[Any]) -> float:
    model.compile(keras.optimizers.Adam())
    update = tf.function(model.train_step, autograph=False)
    for number in range(WARM_UP + UPDATES):
        if number == WARM_UP:
            started = time.perf_counter()
        float(update(next(batches))['loss'])
    return time.perf_counter() - started


def fit(shards: dataset.Shards, *, accumulate: int | None = None) -> float:
    """Keras' own fit, all of one micro batch; an update for each, or for every `accumulate` of them: seconds."""
    images, _, labels = next(dataset.training_batches(shards, seed=0, batch_size=MICRO_BATCH))
    micro_batches = tf.data.Dataset.from_tensors((_small(images), labels)).cache().repeat()
    model = _network(shards)
    model.compile(
        keras.optimizers.Adam(gradient_accumulation_steps=accumulate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=['accuracy'],
        jit_compile=False,
    )
    clock = _Clock()
    steps = (WARM_UP + UPDATES) * ACCUMULATE
    model.fit(micro_batches, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[clock])
    return clock.ended - clock.started


class _Clock(keras.callbacks.Callback):
    """Times a fit from the end of the warming up on."""

    async_safe = True  # else Keras would wait for the results of every step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        if batch + 1 == WARM_UP * ACCUMULATE:
            self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops it; by then Keras has fetched the last results."""
        self.ended = time.perf_counter()


def _network(shards: dataset.Shards) -> keras.Model:
    network = backbone.build('xception_small', image_size=SIZE, width=0.25)
    return classifier.build(network, classes=len(shards.label_map), options=classifier.Options(dropout=0.2))


def _small(images: Any) -> tf.Tensor:
    """The pictures in the network's size, so that no step has to resize them: uint8 [n, SIZE, SIZE, 3]."""
    return tf.cast(augment.resize(tf.constant(images), size=SIZE), tf.uint8)


CONTENDERS: dict[str, Callable[[dataset.Shards], float]] = {
    'step': step,
    'fit': fit,
    "fit, Keras' accumulation": lambda shards: fit(shards, accumulate=ACCUMULATE),
    'training, fed': lambda shards: training(shards, fed=True),
    'training, cached': lambda shards: training(shards, fed=False),
}

if __name__ == '__main__':
    main(*sys.argv[1:])
