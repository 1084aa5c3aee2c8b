"""The served model and what it is held against: each runs in a process of its own and prints its steady rate.

    python -m tools.benchmarks.serve_contenders 'small, 32 products' FOLDER

FOLDER has products in shards/. `small` is the demo's network (64x64 pixels, 83 categories), `xception` the full one
(180x180, 5,270 categories), both with random weights. `N products` is what tools.export writes, asked in this process
with N products at a time, from JPEG files to names; `network alone` is the same network's logits of the pictures of
32 products at a time, already decoded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

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
ALONE, TOGETHER = 'network alone', 32
BATCHES = 2  # different ones; the full network takes seconds for each
SECONDS = 5.0


def main(name: str, folder: str) -> None:
    """Measures one contender."""
    network, _, what = name.partition(', ')
    shards = dataset.open_shards(str(Path(folder) / 'shards'))
    size = TOGETHER if what == ALONE else int(what.split()[0])
    products = serving_checks.products_of(shards, count=TOGETHER * BATCHES)
    batches = [products[start : start + size] for start in range(0, BATCHES * size, size)]
    rate = _network_alone(network, batches) if what == ALONE else _served(network, batches)
    print(json.dumps({'products/s': round(rate * size, 1)}))


def _served(network: str, batches: list[list[serving_checks.Product]]) -> float:
    model = _model(network)
    classes = model.classifier.output_shape[-1]
    label_map = Categories(np.arange(classes), (('level one', 'level two', 'level three'),) * classes)
    with tempfile.TemporaryDirectory() as folder:
        serving.write(folder, model, label_map, answers.Options())
        served = tf.saved_model.load(folder).signatures['serving_default']
    given = [serving_checks.tensor(batch) for batch in batches]
    return serving_checks.rate(lambda pictures: served(pictures=pictures), given, seconds=SECONDS)


def _network_alone(network: str, batches: list[list[serving_checks.Product]]) -> float:
    forward = inference.step(_model(network), plain=True)
    given = [tf.constant(np.concatenate([product.pixels for product in batch])) for batch in batches]
    return serving_checks.rate(lambda pixels: forward(pixels, None), given, seconds=SECONDS)


def _model(network: str) -> AccumulatingModel:
    name, width, size, classes = NETWORKS[network]
    made = backbone.build(name, image_size=size, width=width)
    return AccumulatingModel(classifier.build(made, classes=classes, dropout=0), micro_batch=answers.AT_ONCE)


if __name__ == '__main__':
    main(*sys.argv[1:])
