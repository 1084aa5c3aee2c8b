"""The served model against its network alone, in one process, and in turn; prints the rate of each.

    python -m tools.benchmarks.serve_contenders small FOLDER

FOLDER has products in shards/. `small` is the demo's network (64x64 pixels, 83 categories), `xception` the full one
(180x180, 5,270 categories), both with random weights. Rates are medians, in products a second: of what tools.export
writes, from JPEG files to names, asked for the same 32 products at once, by 8 and one by one, and of the network's
logits alone, of the pictures of all 32, already decoded.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model import answers, backbone, classifier, inference, serving
from model.accumulate import AccumulatingModel
from pipeline import dataset
from pipeline.categories import Categories
from tools import serving_checks

NETWORKS = {  # backbone, width, image size, categories
    'small': ('xception_small', 0.25, 64, 83),
    'xception': ('xception', 1, 180, 5270),
}
SIZES = (32, 8, 1)
ROUNDS, SECONDS = 3, 10.0  # at least so many and so long


def main(network: str, folder: str) -> None:
    """Measures one network."""
    products = serving_checks.products_of(dataset.open_shards(str(Path(folder) / 'shards')), count=SIZES[0])
    model = _model(network)
    forward, served = inference.step(model, plain=True), _served(model)
    pixels = tf.constant(np.concatenate([product.pixels for product in products]))
    calls = {
        f'products/s, {size} at a time': functools.partial(
            _ask,
            served,
            [serving_checks.tensor(products[start : start + size]) for start in range(0, len(products), size)],
        )
        for size in SIZES
    }
    calls['products/s, network alone'] = functools.partial(forward, pixels, None)
    medians = _in_turn(list(calls.values()))
    print(json.dumps({name: round(len(products) / seconds, 1) for name, seconds in zip(calls, medians, strict=True)}))


def _ask(served: Callable[..., Any], batches: Sequence[tf.Tensor]) -> None:
    for pictures in batches:
        served(pictures=pictures)


def _in_turn(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """The median of each call's seconds."""
    for call in calls:
        call()  # compiles
    rounds: list[list[float]] = []
    started = time.perf_counter()
    while len(rounds) < ROUNDS or time.perf_counter() - started < SECONDS:
        rounds.append([])
        for call in calls:
            before = time.perf_counter()
            call()
            rounds[-1].append(time.perf_counter() - before)
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _served(model: AccumulatingModel) -> Callable[..., Any]:
    """What is exported of a model, loaded again."""
    classes = model.classifier.output_shape[-1]
    label_map = Categories(np.arange(classes), (('level one', 'level two', 'level three'),) * classes)
    with tempfile.TemporaryDirectory() as folder:
        serving.write(folder, model, label_map, answers.Options())
        return tf.saved_model.load(folder).signatures['serving_default']


def _model(network: str) -> AccumulatingModel:
    name, width, size, classes = NETWORKS[network]
    made = backbone.build(name, image_size=size, width=width)
    return AccumulatingModel(classifier.build(made, classes=classes), micro_batch=answers.AT_ONCE)


if __name__ == '__main__':
    main(*sys.argv[1:])
