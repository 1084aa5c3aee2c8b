"""Augmented pictures against Pillow's own resize, crop and flip."""

from __future__ import annotations

import io
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model import devices
from pipeline import augment
from pipeline.augment import PLAIN, Augmentation
from tests import catalogue, gpu_kernels

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
    side = len(picture)
    image = Image.fromarray(picture).resize((upscale, upscale), Image.Resampling.BICUBIC)
    image = image.crop((column, row, column + side, row + side))
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def many_pictures(side: int = SIDE) -> np.ndarray:
    """200 pictures: drawings, noise, black and white noise, waves of colour, checkers."""
    rng = np.random.default_rng(side)
    drawings = [Image.open(io.BytesIO(catalogue.jpeg(seed, seed))).resize((side, side)) for seed in range(100)]
    down, across = np.arange(side)[:, None, None], np.arange(side)[None, :, None]
    slopes = rng.uniform(0, 0.3, (2, 20, 1, 1, 3))
    return np.concatenate(
        [
            np.stack([np.asarray(image) for image in drawings]),
            rng.integers(0, 256, (40, side, side, 3), np.uint8),
            rng.choice(np.array([0, 255], np.uint8), (20, side, side, 3)),
            (127.5 + 127.5 * np.sin(slopes[0] * down + slopes[1] * across)).astype(np.uint8),
            np.stack([(down // k + across // k) % 2 * np.full(3, 255) for k in range(1, 21)]).astype(np.uint8),
        ]
    )


def random_draws(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, augment.DRAWS), np.float32)


def by_pillow(pictures: np.ndarray, draws: np.ndarray, *, upscale: int) -> np.ndarray:
    """What the paper's configuration makes of the pictures."""
    offsets = upscale - pictures.shape[1] + 1
    expected = []
    for picture, (crop, row, column, flip) in zip(pictures, draws, strict=True):
        if crop < 0.75:
            place = {'row': int(row * offsets), 'column': int(column * offsets)}
            expected.append(pillow(picture, upscale=upscale, flip=flip < 0.5, **place))
        else:
            expected.append(picture[:, ::-1] if flip < 0.5 else picture)
    return np.stack(expected)


@pytest.fixture(scope='module')
def paper() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 pictures, draws for them, and what Pillow makes of both."""
    pictures, draws = many_pictures(), random_draws(200)
    return pictures, draws, by_pillow(pictures, draws, upscale=200)


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16', 'mixed_float16'])
def test_200_pictures_are_pillows_to_the_bit(paper, policy, xla):
    @tf.function(jit_compile=xla)
    def step(images: Any, draws: Any) -> Any:
        return augment.upscale_crop_flip(images, draws, augmentation=Augmentation(), size=SIDE)

    pictures, draws, expected = paper
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        for part in (slice(start, start + 50) for start in range(0, 200, 50)):
            found = step(tf.constant(pictures[part]), tf.constant(draws[part]))
            assert found.dtype == tf.float32
            np.testing.assert_array_equal(found, expected[part])
    finally:
        keras.config.set_dtype_policy(before)


def test_two_replicas_together_make_what_one_device_makes(paper):
    pictures, draws, expected = (column[:24] for column in paper)
    strategy = devices.strategy('mirrored')
    data = tf.data.Dataset.from_tensor_slices((pictures, draws)).batch(24)

    @tf.function
    def step(images: Any, draws: Any) -> Any:
        return augment.upscale_crop_flip(images, draws, augmentation=Augmentation(), size=SIDE)

    (batch,) = strategy.experimental_distribute_dataset(data)
    found = strategy.experimental_local_results(strategy.run(step, args=batch))
    assert [len(part) for part in found] == [12, 12]
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize(('side', 'upscale'), [(96, 107), (64, 64), (97, 200), (224, 249)])
def test_other_sides_are_pillows_to_the_bit(side, upscale):
    pictures, draws = many_pictures(side)[::5], random_draws(40)
    found = augment.upscale_crop_flip(
        tf.constant(pictures), tf.constant(draws), augmentation=Augmentation(crop_upscale=upscale), size=side
    )
    np.testing.assert_array_equal(found, by_pillow(pictures, draws, upscale=upscale))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(('row', 'column'), [(0, 0), (0, 20), (20, 0), (20, 20), (1, 19), (10, 10), (7, 3)])
def test_a_crop_is_pillows(row, column, flip):
    found = augmented([0.0, at(row), at(column), 0.0 if flip else PLAIN])
    expected = [pillow(picture, upscale=200, row=row, column=column, flip=flip) for picture in PICTURES]
    np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize('upscale', [180, 181, 190, 256])
@pytest.mark.parametrize(('draw', 'last'), [(0.0, False), (BELOW_ONE, True)])
def test_the_first_and_the_last_draw_are_the_first_and_the_last_place(upscale, draw, last):
    offset = upscale - SIDE if last else 0
    found = augmented([0.0, draw, draw, PLAIN], Augmentation(1, upscale, 1))
    expected = [pillow(picture, upscale=upscale, row=offset, column=offset, flip=False) for picture in PICTURES]
    np.testing.assert_array_equal(found, np.stack(expected))


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


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize('size', [32, 64, 96, 179, 180, 181, 224])
def test_a_resize_is_pillows_to_the_bit(size, xla):
    found = tf.function(augment.resize, jit_compile=xla)(tf.constant(PICTURES), size=size)
    assert found.dtype == tf.float32
    images = [Image.fromarray(picture) for picture in PICTURES]
    expected = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    np.testing.assert_array_equal(found, np.stack(expected))


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


def operations(size: int, augmentation: Augmentation) -> list[tf.Operation]:
    """Of the graph that augments pictures."""

    def step(images: Any, draws: Any) -> Any:
        return augment.upscale_crop_flip(images, draws, augmentation=augmentation, size=size)

    images, draws = tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8), tf.TensorSpec([None, augment.DRAWS], tf.float32)
    return tf.function(step).get_concrete_function(images, draws).graph.get_operations()


def test_no_augmentation_is_no_more_than_a_cast():
    assert {one.type for one in operations(SIDE, augment.NONE)} == {'Placeholder', 'Cast', 'Identity'}


def test_none_changes_nothing_whatever_the_draws():
    np.testing.assert_array_equal(augmented([0.0, 0.0, 0.0, 0.0], augment.NONE), PICTURES)


def test_the_papers_shares_are_the_defaults():
    assert Augmentation() == Augmentation(crop_probability=0.75, crop_upscale=200, flip_probability=0.5)


@pytest.mark.parametrize('probability', [-0.1, 1.1])
@pytest.mark.parametrize('name', ['crop_probability', 'flip_probability'])
def test_a_probability_is_from_0_to_1(name, probability):
    with pytest.raises(ValueError, match=f'{name} must be from 0 to 1, and is {probability}'):
        Augmentation(**{name: probability})


def test_pictures_are_not_cropped_from_something_smaller():
    with pytest.raises(ValueError, match='crop_upscale must be at least the 180 pixels .* and is 179'):
        augmented([PLAIN] * 4, Augmentation(crop_upscale=179))


def test_each_picture_of_a_batch_has_draws_of_its_own():
    draws = [[0.0, at(2), at(3), PLAIN], [PLAIN] * 4, [PLAIN, 0.0, 0.0, 0.0], [0.0, at(20), at(0), 0.0]]
    together = augment.upscale_crop_flip(tf.constant(PICTURES), tf.constant(draws), augmentation=ALWAYS, size=SIDE)
    for index, one in enumerate(draws):
        np.testing.assert_array_equal(together[index], augmented(one)[index])


@pytest.mark.parametrize(('size_in', 'size_out'), [(180, 64), (180, 179), (180, 181), (180, 200), (200, 180), (7, 500)])
def test_every_row_of_weights_sums_to_1_and_mirrors(size_in, size_out):
    matrix = augment.interpolation_matrix(size_in, size_out)
    assert (matrix.shape, matrix.dtype) == ((size_out, size_in), np.float64)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-13)


def test_the_same_size_is_the_identity():
    np.testing.assert_array_equal(augment.interpolation_matrix(180, 180), np.eye(180))


def test_the_weights_are_those_of_keys_kernel():
    # Twice the size: the new pixels lie a quarter beside the old ones, so at the distances 1.25, 0.25, 0.75 and 1.75.
    row = augment.interpolation_matrix(8, 16)[9]
    np.testing.assert_array_equal(row, [0, 0, 0, -0.0703125, 0.8671875, 0.2265625, -0.0234375, 0])


@pytest.mark.parametrize(('size_in', 'size_out'), [(180, 64), (180, 200), (200, 180), (96, 107), (180, 224)])
def test_products_are_exact_in_tensorfloat_32(size_in, size_out):
    """No GPU here: but nothing is lost where all numbers have the 11 bits it keeps, and all sums a float32's 24."""
    table, sources = augment._table([augment.interpolation_matrix(size_in, size_out)])
    high, low = table.numpy()
    assert not (table.numpy().view(np.uint32) & 0x1FFF).any()
    assert 255 * np.abs(high).sum(axis=-1).max() * 2**augment.HIGH_BITS < 2**24
    assert 255 * np.abs(low).sum(axis=-1).max() * 2**augment.WEIGHT_BITS < 2**24
    whole = np.zeros([size_out, size_in])
    for rows, columns, weights in zip(np.split(whole, len(sources)), sources, (high + low)[0], strict=True):
        rows[:, columns] = weights
    np.testing.assert_allclose(whole, augment.interpolation_matrix(size_in, size_out), atol=2**-23)


@gpu_kernels.LISTED
@pytest.mark.parametrize('size', [96, 180])
def test_every_op_runs_on_a_gpu_and_nothing_is_copied_to_the_host(size):
    found = operations(size, Augmentation())
    assert {'BatchMatMulV2', 'GatherV2'} <= {one.type for one in found}
    gpu_kernels.check(found)


@gpu_kernels.LISTED
def test_the_kernels_listed_are_telling():
    """The ops that would have been simpler, and arithmetic of int32."""

    @tf.function
    def step(images: Any, offsets: Any) -> Any:
        return tf.image.resize(images, [200, 200], 'bicubic'), tf.gather(images, offsets + 1)

    images, offsets = tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8), tf.TensorSpec([None], tf.int32)
    by_type = {one.type: one for one in step.get_concrete_function(images, offsets).graph.get_operations()}
    assert not gpu_kernels.of(by_type['ResizeBicubic'])
    assert not gpu_kernels.of(by_type['GatherV2']), 'of bytes'
    assert all(gpu_kernels.copied_to_the_host(by_type['AddV2'], kernel) for kernel in gpu_kernels.of(by_type['AddV2']))
