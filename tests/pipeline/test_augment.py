"""Augmented pictures against Pillow's own resize, crop and flip."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import augment
from pipeline.augment import PLAIN, Augmentation
from tests import catalogue

SIDE = 180
ALWAYS = Augmentation(crop_probability=1, flip_probability=1)
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
PICTURES = np.stack(
    [
        *(np.asarray(Image.open(io.BytesIO(catalogue.jpeg(seed, seed)))) for seed in range(2)),
        np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (SIDE, SIDE, 3)),
    ]
)


def at(offset: int, offsets: int = 21) -> float:
    """The middle of the draws that give this offset."""
    return (offset + 0.5) / offsets


def augmented(draws: list[float], augmentation: Augmentation = ALWAYS, *, size: int = SIDE) -> np.ndarray:
    """PICTURES, all with the same draws."""
    every = tf.constant([draws] * len(PICTURES), tf.float32)
    return augment.upscale_crop_flip(tf.constant(PICTURES), every, augmentation=augmentation, size=size).numpy()


def pillow(picture: np.ndarray, *, upscale: int, row: int, column: int, flip: bool) -> np.ndarray:
    image = Image.fromarray(picture).resize((upscale, upscale), Image.Resampling.BICUBIC)
    image = image.crop((column, row, column + SIDE, row + SIDE))
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def assert_within_a_grey_level(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected.astype(np.float32)).max() <= 1
    assert (found == found.round()).all() and found.min() >= 0 and found.max() <= 255


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(('row', 'column'), [(0, 0), (0, 20), (20, 0), (20, 20), (1, 19), (10, 10), (7, 3)])
def test_a_crop_is_pillows(row, column, flip):
    found = augmented([0.0, at(row), at(column), 0.0 if flip else PLAIN])
    expected = [pillow(picture, upscale=200, row=row, column=column, flip=flip) for picture in PICTURES]
    assert_within_a_grey_level(found, np.stack(expected))


@pytest.mark.parametrize('upscale', [180, 181, 190, 256])
@pytest.mark.parametrize(('draw', 'last'), [(0.0, False), (BELOW_ONE, True)])
def test_the_first_and_the_last_draw_are_the_first_and_the_last_place(upscale, draw, last):
    offset = upscale - SIDE if last else 0
    found = augmented([0.0, draw, draw, PLAIN], Augmentation(1, upscale, 1))
    expected = [pillow(picture, upscale=upscale, row=offset, column=offset, flip=False) for picture in PICTURES]
    assert_within_a_grey_level(found, np.stack(expected))


@pytest.mark.parametrize('offset', range(21))
def test_every_place_has_an_equal_share_of_the_draws(offset):
    first, last = offset / 21 + 1e-5, (offset + 1) / 21 - 1e-5
    middle, *ends = (augmented([0.0, draw, draw, PLAIN])[2] for draw in (at(offset), first, last))
    for end in ends:
        np.testing.assert_array_equal(end, middle)


def test_plain_draws_leave_the_picture_as_it_is():
    np.testing.assert_array_equal(augmented([PLAIN] * 4), PICTURES)


@pytest.mark.parametrize('size', [64, 96, 180, 224])
def test_plain_draws_are_a_resize_at_every_size(size):
    np.testing.assert_array_equal(
        augmented([PLAIN] * 4, size=size), augment.resize(tf.constant(PICTURES), size=size).numpy()
    )


@pytest.mark.parametrize('size', [64, 96, 179, 180, 181, 224])
def test_a_resize_is_pillows(size):
    found = augment.resize(tf.constant(PICTURES), size=size)
    assert found.dtype == tf.float32
    images = [Image.fromarray(picture) for picture in PICTURES]
    expected = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    assert_within_a_grey_level(found.numpy(), np.stack(expected))


@pytest.mark.parametrize('size', [64, 224])
def test_a_crop_at_another_size_is_the_crop_resized(size):
    """The two resizes are one product, so a level is lost where Pillow rounds in between; noise shows it most."""
    found = augmented([0.0, at(3), at(11), 0.0], size=size)
    cropped = augmented([0.0, at(3), at(11), 0.0])
    expected = augment.resize(tf.constant(cropped.astype(np.uint8)), size=size).numpy()
    assert np.abs(found - expected)[:2].mean() < 0.1, 'drawings'


@pytest.mark.parametrize(
    ('probability', 'draw', 'done'),
    [(0, 0.0, False), (0, BELOW_ONE, False), (1, 0.0, True), (1, BELOW_ONE, True), (1, PLAIN, False)]
    + [(0.75, 0.0, True), (0.75, 0.7499, True), (0.75, 0.75, False), (0.75, PLAIN, False)],
)
def test_a_picture_changes_when_its_draw_is_below_the_probability(probability, draw, done):
    cropped = augmented([draw, at(5), at(5), PLAIN], Augmentation(crop_probability=probability))
    flipped = augmented([PLAIN, at(5), at(5), draw], Augmentation(flip_probability=probability))
    for index, picture in enumerate(PICTURES):
        assert (cropped[index] != picture).any() == done
        np.testing.assert_array_equal(flipped[index], picture[:, ::-1] if done else picture)


def test_none_changes_nothing_whatever_the_draws():
    np.testing.assert_array_equal(augmented([0.0, 0.0, 0.0, 0.0], augment.NONE), PICTURES)


def test_the_papers_shares_are_the_defaults():
    assert Augmentation() == Augmentation(crop_probability=0.75, crop_upscale=200, flip_probability=0.5)


def test_each_picture_of_a_batch_has_draws_of_its_own():
    draws = [[0.0, at(2), at(3), PLAIN], [PLAIN] * 4, [PLAIN, 0.0, 0.0, 0.0], [0.0, at(20), at(0), 0.0]]
    together = augment.upscale_crop_flip(tf.constant(PICTURES), tf.constant(draws), augmentation=ALWAYS, size=SIDE)
    for index, one in enumerate(draws):
        np.testing.assert_array_equal(together[index], augmented(one)[index])


@pytest.mark.parametrize(('size_in', 'size_out'), [(180, 64), (180, 179), (180, 181), (180, 200), (200, 180), (7, 500)])
def test_every_row_of_weights_sums_to_1_and_mirrors(size_in, size_out):
    matrix = augment.interpolation_matrix(size_in, size_out)
    assert (matrix.shape, matrix.dtype) == ((size_out, size_in), np.float32)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_the_same_size_is_the_identity():
    np.testing.assert_array_equal(augment.interpolation_matrix(180, 180), np.eye(180))


def test_the_weights_are_those_of_keys_kernel():
    # Twice the size: the new pixels lie a quarter beside the old ones, so at the distances 1.25, 0.25, 0.75 and 1.75.
    row = augment.interpolation_matrix(8, 16)[9]
    np.testing.assert_array_equal(row, [0, 0, 0, -0.0703125, 0.8671875, 0.2265625, -0.0234375, 0])


@pytest.mark.parametrize('size', [96, 180])
def test_no_op_is_used_that_has_no_gpu_kernel(size):
    def step(images: Any, draws: Any) -> Any:
        plain = augment.resize(images, size=size)
        return plain, augment.upscale_crop_flip(images, draws, augmentation=ALWAYS, size=size)

    graph = tf.function(step).get_concrete_function(
        tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8), tf.TensorSpec([None, augment.DRAWS], tf.float32)
    )
    names = {operation.type for operation in graph.graph.get_operations()}
    assert not {name for name in names if 'Resize' in name or 'Image' in name or 'Crop' in name}
    assert {'BatchMatMulV2', 'GatherV2'} <= names
