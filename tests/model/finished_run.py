"""A finished run, without a training: the tiny backbone with random weights.

Synopsis:

    finished_run.write(folder, shards.label_map, seed=1)
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from model import backbone, classifier, runs
from model.classifier import Options
from pipeline import categories
from pipeline.categories import Categories
from tests import shards as small
from tests.model import tiny


def write(
    run_dir: Path, label_map: Categories, *, seed: int, options: Options = classifier.PLAIN, image_size: int = 16
) -> None:
    """A run of this label map, as model.train leaves it."""
    write_model(run_dir, seed=seed, classes=len(label_map), options=options, image_size=image_size)
    categories.write(label_map, str(run_dir))


def write_model(
    run_dir: Path,
    *,
    seed: int,
    classes: int = small.CATEGORIES,
    name: str = runs.MODEL_NAME,
    options: Options = classifier.PLAIN,
    image_size: int = 16,
) -> None:
    """The settings and one model of a run."""
    keras.utils.set_random_seed(seed)
    with tiny.known():
        network = backbone.build('tiny', image_size=image_size, width=1)
    model = classifier.build(network, classes=classes, options=options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # else nothing gets far from its first logits
            layer.moving_variance.assign(0.01 * layer.moving_variance)
    title_layers = [layer for layer in model.layers if layer.name.startswith('title_logits')]
    for layer in title_layers:  # it begins with zeros
        layer.set_weights(
            [np.random.default_rng(seed).normal(scale=0.1, size=value.shape) for value in layer.get_weights()]
        )
    inputs = options.inputs
    settings = {'pictures': inputs.pictures, 'fewer_pictures': inputs.fewer}
    titles = {'title': inputs.title, 'title_weights': inputs.title_weights}
    runs.write_settings(str(run_dir), {**settings, **titles})
    runs.save_model(model, str(run_dir), name=name)
