"""Logits stored in half precision decide as those in single precision do, by every rule."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ensemble import rules
from ensemble.logits import Rows
from model import backbone, classifier, inference
from model.accumulate import AccumulatingModel
from tests import catalogue
from tests.ensemble import reference
from tests.model import tiny

CLASSES = 5270  # Kaggle's
PRODUCTS = 1000
PIECE = 50  # products at a time


def random_network(generator: np.random.Generator, rows: int, *, scale: float, offset: float) -> np.ndarray:
    """A dense layer of random weights on random features: the best of 5,270 classes are as close as they can be."""
    features = np.maximum(generator.normal(size=(rows, 256)), 0)
    values = features @ generator.normal(size=(256, CLASSES))
    return (scale * values / values.std() + offset).astype(np.float32)


def small_network(generator: np.random.Generator, rows: int) -> np.ndarray:
    """The tests' backbone with its first weights, on pictures."""
    with tiny.known():
        network = classifier.build(backbone.build('tiny', image_size=32, width=1), classes=CLASSES)
    network.layers[-1].kernel.assign(generator.normal(size=network.layers[-1].kernel.shape))
    pictures = np.stack([decoded(int(seed)) for seed in generator.integers(0, 10_000, rows)])
    model = AccumulatingModel(network, micro_batch=rows)
    parts = [model.logits(pictures[start : start + 500]).numpy() for start in range(0, rows, 500)]
    return np.concatenate(parts)


def decoded(seed: int) -> np.ndarray:
    with Image.open(io.BytesIO(catalogue.jpeg(seed, seed % 7))) as image:
        return np.asarray(image)


NETWORKS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    'small': small_network,
    'unsure': lambda generator, rows: random_network(generator, rows, scale=1, offset=0),
    'sure': lambda generator, rows: random_network(generator, rows, scale=4, offset=0),
    'far from 0': lambda generator, rows: random_network(generator, rows, scale=4, offset=20),
}


@pytest.mark.slow
@pytest.mark.parametrize('network', NETWORKS)
def test_every_rule_decides_as_from_single_precision_on_999_of_1000_products(network: str) -> None:
    """Of each product 1, 2, 3 or 4 pictures, in turn."""
    counts = 1 + np.arange(PRODUCTS) % 4
    product = np.repeat(np.arange(PRODUCTS), counts)
    picture = np.arange(len(product)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = NETWORKS[network](np.random.default_rng(1), len(product))
    assert values.dtype == np.float32
    rows = Rows(product, picture, product * 0, product * 0, inference.halved(values).numpy())
    differ = dict.fromkeys(rules.names(), 0)
    for first in range(0, PRODUCTS, PIECE):
        start, end = np.searchsorted(product, [first, first + PIECE])
        products = rules.Products(rows[start:end])
        found = {name: rules.likeliest(rules.combine(products, rules.find(name)), count=1)[0][:, 0] for name in differ}
        for place in range(PIECE):
            log_q = reference.log_softmax(values[product == first + place])
            for name, prediction in found.items():
                expected = reference.log_scores(log_q, name, rules.POWER).argmax()
                differ[name] += int(prediction[place] != expected)
    assert max(differ.values()) <= PRODUCTS / 1000, differ
