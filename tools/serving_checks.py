"""Holds an exported model to the chain, on products of the shards, and measures how many it takes a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from model.answers import Chain
from model.inputs import SINGLE, Inputs
from pipeline import dataset, pictures, split
from pipeline.categories import Categories
from pipeline.dataset import PICTURES, Shards
from pipeline.errors import InputError
from pipeline.progress import Progress
from tools import sample_products

RARE = 20  # so many products are looked at for each that has a number of pictures; of Kaggle's one in 13 has three
TOGETHER = 16  # products at a time: 64 pictures at most go through the network together, here as in the chain
# What another order of adding up may change of a probability: a step of float16 in one of the logits it is made of.
RELATIVE, ABSOLUTE = 0.01, 1e-6


class Product(NamedTuple):
    """A product whose pictures are sound.

    Attributes:
        images: its JPEG files.
        pixels: what the chain makes of them, uint8 [k, 180, 180, 3].
    """

    images: tuple[bytes, ...]
    pixels: np.ndarray


def products_of(shards: Shards, inputs: Inputs = SINGLE, *, count: int) -> list[Product]:
    """Random products that a model takes, of the first of val, test and train that has any.

    They are fewer than `count` if there aren't so many, or pictures are damaged.

    Raises:
        InputError: a shard is damaged, or there is no such product.
    """
    exactly = 0 if inputs.fewer else inputs.pictures
    splits = ('val', 'test', 'train')
    name = next((name for name in splits if dataset.rows(shards, name, inputs.products)), split.SPLITS[0])
    looked_at = count * RARE if exactly else count
    places = sample_products.choose(shards.manifest, splits=[name], products=looked_at, seed=0)
    found: list[Product] = []
    for product in sample_products.read(shards.folder, places):
        if len(found) == count:
            break
        if exactly and len(product.images) != exactly:
            continue
        pixels = np.empty((len(product.images), *pictures.SHAPE), np.uint8)
        if not pictures.decode_into(pixels, [memoryview(image) for image in product.images]):
            found.append(Product(product.images, pixels))
    if not found:
        kind = f'{exactly} sound pictures' if exactly else 'sound pictures'
        raise InputError(f'{shards.folder}: holds no product with {kind}')
    return found


def tensor(products: Sequence[Product]) -> tf.Tensor:
    """Their files as the exported model takes them: string [P, 4]."""
    return tf.constant([[*product.images, *[b''] * (PICTURES - len(product.images))] for product in products])


def check(served: Callable[..., Any], chain: Chain, label_map: Categories, products: Sequence[Product]) -> str:
    """Holds an exported model to the chain.

    Args:
        served: its signature.
        chain: with a count of all categories.
        label_map: the categories.
        products: the products to answer for.

    Returns:
        What was found, for the log.

    Raises:
        InputError: they don't give the same answers.
    """
    same = total = 0
    largest = 0.0
    starts = range(0, len(products), TOGETHER)
    for start in Progress(starts, total=len(starts), label='check', unit='batches'):
        some = products[start : start + TOGETHER]
        answer = served(pictures=tensor(some))
        ids, found = answer['category_id'].numpy(), answer['probability'].numpy()
        labels, probabilities = chain([product.pixels for product in some])
        best, count = probabilities[:, : ids.shape[1]], ids.size
        by_label = np.empty_like(probabilities)
        np.put_along_axis(by_label, labels, probabilities, axis=1)
        expected = np.take_along_axis(by_label, label_map.labels(ids.ravel()).reshape(ids.shape), axis=1)
        # Both: so what stands at a place is as likely as what the chain has there, and only ties may have swapped.
        for wanted in (expected, best):
            wrong = ~np.isclose(found, wanted, rtol=RELATIVE, atol=ABSOLUTE).all(axis=1)
            if wrong.any():
                place = int(wrong.argmax())
                raise InputError(
                    f'the exported model must answer as the chain does, but of product {start + place} of those tried '
                    f'it has the probabilities {found[place].tolist()}, the chain {wanted[place].tolist()}; nothing '
                    'is written'
                )
        same += int((ids == label_map.ids[labels[:, : ids.shape[1]]]).sum())
        total += count
        largest = max(largest, float(np.abs(found - expected).max()))
    return (
        f'checked on {len(products)} products: {same} of {total} categories are those of the chain, probabilities '
        f'differ by {largest:.1g} at most'
    )


def rate(call: Callable[[Any], Any], batches: Sequence[Any], *, seconds: float, at_least: int = 2) -> float:
    """How many batches a second, one after the other, after a round that isn't counted (it compiles)."""
    for batch in batches:
        call(batch)
    done, started = 0, time.perf_counter()
    while done < at_least or time.perf_counter() - started < seconds:
        call(batches[done % len(batches)])
        done += 1
    return done / (time.perf_counter() - started)
