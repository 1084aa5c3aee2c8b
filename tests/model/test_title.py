"""The title: where it is found, what reads it, and what it adds to the logits; covers that only it tells apart."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from model import backbone, classifier, stages, title, train
from pipeline import categories, convert
from pipeline.categories import Categories
from pipeline.errors import UsageError
from tests import covers, gpu_kernels

SIDE = title.SIDE
WHITE = 255
UNSEEN = 10**6  # seeds of covers from here on are for measuring only


def paper(*stroke_rows: slice, strength: int = 200) -> np.ndarray:
    """A white picture with upright strokes of 3 pixels, 9 apart, at these rows: uint8 [180, 180, 3]."""
    picture = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    for rows in stroke_rows:
        for shift in range(3):
            picture[rows, 10 + shift : 170 : 9] -= np.uint8(strength)
    return picture


def start_of_band(picture: np.ndarray) -> int:
    """Which row of the picture the text's band begins with; found by numbering the rows in blue."""
    numbered = picture.copy()
    numbered[:, 0] = np.arange(SIDE)[:, None]  # the first column is in no stroke
    band = title.crop(tf.constant(numbered[None]), mode='text').numpy()[0]
    start = int(band[0, 0, 0])
    np.testing.assert_array_equal(band, numbered[start : start + title.HEIGHT])
    return start


def decoded(seed: int, category: int) -> np.ndarray:
    with Image.open(io.BytesIO(covers.jpeg(seed, category))) as image:
        return np.asarray(image)


def test_top_is_the_upper_third():
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    band = title.crop(tf.constant(pictures), mode='top')
    assert band.dtype == tf.float32
    np.testing.assert_array_equal(band, pictures[:, :60])


@pytest.mark.parametrize(
    ('rows', 'start'),
    [
        (slice(100, 120), 80),  # in the middle of the band
        (slice(31, 51), 11),
        (slice(0, 20), 0),
        (slice(160, 180), 120),
        (slice(60, 120), 60),
        (slice(0, 180), 2),  # of equal ones the topmost; rows 0 and 1 are the middle of no stroke
        (slice(100, 105), 72),  # as few rows as a stroke must go on for; at 73 it would lie as near the middle
        (slice(100, 104), 0),  # one fewer: no stroke
    ],
)
def test_the_band_lies_around_the_text(rows, start):
    assert start_of_band(paper(rows)) == start


def test_light_text_is_found_like_dark_text():
    assert start_of_band(WHITE - paper(slice(100, 120))) == 80


def test_the_larger_text_wins():
    assert start_of_band(paper(slice(10, 18), slice(100, 120))) == 80
    assert start_of_band(paper(slice(20, 40), slice(150, 158))) == 0


def test_a_plain_picture_has_the_upper_third():
    assert start_of_band(np.full((SIDE, SIDE, 3), 90, np.uint8)) == 0


def test_strong_edges_and_grain_are_no_text():
    picture = paper(slice(130, 150))
    picture[:70, :90] = (200, 30, 30)  # a box
    picture[80:90] = 0  # a bar across
    picture[70:110, 95:175] = np.random.default_rng(0).integers(100, 256, (40, 80, 3), np.uint8)
    assert start_of_band(picture) == 110


def test_faint_strokes_are_no_text():
    assert start_of_band(paper(slice(100, 120), strength=title.CONTRAST)) == 0
    assert start_of_band(paper(slice(100, 120), strength=title.CONTRAST + 1)) == 80


def shown(mode: str, *, pictures: int) -> np.ndarray:
    """The share of each title's rows that are within the band, on covers that nothing was chosen by."""
    drawn = [covers.draw(UNSEEN + number, covers.TITLES[number % len(covers.TITLES)]) for number in range(pictures)]
    shares = []
    for cover in drawn:
        with Image.open(io.BytesIO(covers.catalogue.encode(cover.image))) as image:
            start = start_of_band(np.array(image)) if mode == 'text' else 0
        first, end = cover.rows
        shares.append(max(0, min(end, start + title.HEIGHT) - max(first, start)) / (end - first))
    return np.array(shares)


def test_titles_of_covers_are_found():
    """Of the titles' rows on 2,000 covers it has 0.985, and 0.805 by the upper third."""
    text, top = shown('text', pictures=150), shown('top', pictures=150)
    assert text.mean() > 0.94
    assert top.mean() == pytest.approx(covers.AT_TOP, abs=0.1)


def test_the_band_is_the_same_in_a_graph_under_xla_and_in_half_precision():
    pictures = tf.constant(np.stack([decoded(UNSEEN + seed, seed % 4) for seed in range(12)]))
    alone = np.concatenate([title.crop(pictures[one : one + 1], mode='text') for one in range(12)])
    for xla in (False, True):
        graph = tf.function(functools.partial(title.crop, mode='text'), jit_compile=xla)
        np.testing.assert_array_equal(graph(pictures), alone)
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        np.testing.assert_array_equal(title.crop(pictures, mode='text'), alone)
    finally:
        keras.config.set_dtype_policy('float32')


@gpu_kernels.LISTED
@pytest.mark.parametrize('mode', title.MODES)
def test_every_op_runs_on_a_gpu_and_nothing_is_copied_to_the_host(mode):
    graph = tf.function(functools.partial(title.crop, mode=mode))
    images = tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8)
    gpu_kernels.check(graph.get_concrete_function(images).graph.get_operations())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match='mode must be one of top, text, and is middle'):
        title.crop(tf.zeros([1, SIDE, SIDE, 3], tf.uint8), mode='middle')


def test_the_branch_is_small():
    model = title.branch()
    assert model.count_params() == 134_720
    assert model.output_shape == (None, 512)
    assert title.branch(width=0.25).count_params() == 10_256


USES = (False, True, False, True, True)


def with_title(
    *, size: int = 32, width: float = 0.05, title_width: float = 0.05, uses: Sequence[bool] = USES
) -> tuple[keras.Model, backbone.Backbone]:
    """A small classifier of pictures and bands: logits [n, C]."""
    network = backbone.build('xception_small', image_size=size, width=width)
    plain = classifier.build(network, classes=len(uses))
    branch = title.branch(width=title_width)
    logits = title.add(plain.output, branch.output, uses=uses)
    return keras.Model([network.model.input, branch.input], logits), network


def bands(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, title.HEIGHT, SIDE, 3)).astype(np.float32)


def set_head(model: keras.Model) -> title.Head:
    """Gives the title's head weights that aren't 0."""
    head = model.get_layer('title_logits')
    head.set_weights([np.random.default_rng(1).normal(size=head.kernel.shape), np.float32(0.5)])
    return head


def test_the_title_changes_the_logits_of_categories_that_use_it_and_no_others():
    model, network = with_title()
    set_head(model)
    pictures = np.zeros([3, 32, 32, 3], np.float32)
    one, other = model([pictures, bands(3)]).numpy(), model([pictures, bands(3, seed=1)]).numpy()
    assert ((one != other) == USES).all()
    plain = keras.Model(network.model.input, model.get_layer('logits').output)(pictures).numpy()
    np.testing.assert_allclose((one - plain)[:, [0, 2]], 0.5, rtol=1e-6)


def test_at_first_the_logits_are_those_without_a_title():
    model, network = with_title()
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    plain = keras.Model(network.model.input, model.get_layer('logits').output)
    np.testing.assert_array_equal(model([pictures, bands(2)]), plain(pictures))


def test_the_head_is_a_dense_layer_for_some_and_one_number_for_the_others():
    head = title.Head([False, True, True, False])
    features = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    head(features)
    head.set_weights([np.array([[9.0, 1, 10, 9], [9, 2, 0, 9]]), np.float32(7)])
    np.testing.assert_array_equal(head(features), [[7, 5, 10, 7], [7, 1, 30, 7]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(head(features) * [[1.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    kernel, constant = tape.gradient(loss, [variable.value for variable in head.trainable_variables])
    np.testing.assert_array_equal(kernel, [[0, 1, 5, 0], [0, 2, 3, 0]])
    assert constant == 5


def test_where_all_categories_use_the_title_there_is_no_constant():
    head = title.Head([True, True])
    assert head(np.ones([1, 3], np.float32)).shape == (1, 2)
    assert [variable.shape for variable in head.weights] == [(3, 2)]


def test_a_head_that_no_category_uses_is_refused():
    with pytest.raises(ValueError, match='uses must have a category'):
        title.Head([False, False])


def test_a_saved_model_gives_the_same_when_it_is_loaded(tmp_path):
    model, _ = with_title()
    set_head(model)
    model.save(tmp_path / 'model.keras')
    loaded = keras.models.load_model(tmp_path / 'model.keras', compile=False)
    inputs = [np.zeros([2, 32, 32, 3], np.float32), bands(2)]
    np.testing.assert_array_equal(loaded(inputs), model(inputs))


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'mixed_float16'])
def test_what_is_added_is_float32_in_half_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model, _ = with_title()
        model.save(tmp_path / 'model.keras')
    finally:
        keras.config.set_dtype_policy('float32')
    loaded = keras.models.load_model(tmp_path / 'model.keras', compile=False)
    for one in (model, loaded):
        assert one.get_layer('title_sepconv1').compute_dtype == policy.removeprefix('mixed_')
        head = set_head(one)
        assert head.compute_dtype == head.kernel.dtype == 'float32'
        assert one([np.zeros([1, 32, 32, 3]), bands(1)]).dtype == 'float32'
    tenth = head(tf.fill([1, head.kernel.shape[0]], tf.constant(0.1, tf.float32))).numpy()
    np.testing.assert_allclose(tenth[:, USES], 0.1 * head.kernel.numpy().sum(axis=0)[None, USES], rtol=1e-4)


@pytest.mark.parametrize('first_block', ['head', 'block3', 'all'])
def test_the_title_always_learns(first_block):
    model, network = with_title()
    stages.set_trainable(model, first_block, network.blocks)
    for layer in model.layers:
        if layer.name.startswith('title') or layer.name == 'logits':
            assert layer.trainable, layer.name
    assert model.get_layer('block1_conv1').trainable == (first_block == 'all')


NAMES = (
    ('LIVRES', 'ROMANS', 'A'), ('MAISON', 'DECO', 'LIVRES'), ('MUSIQUE', 'JAZZ', 'B'), ('LIVRES', 'BD', 'C'),
    ('DVD - BLU-RAY', 'FILMS', 'D'),
)  # fmt: skip
LABEL_MAP = Categories(np.arange(5), NAMES)


@pytest.mark.parametrize(
    ('levels', 'expected'),
    [
        ([], [1, 1, 1, 1, 1]),
        (['LIVRES'], [1, 0, 0, 1, 0]),
        (['LIVRES', 'DVD - BLU-RAY'], [1, 0, 0, 1, 1]),
    ],
)
def test_categories_use_the_title_by_their_name_of_level_1(levels, expected):
    found = title.uses(LABEL_MAP, levels)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ('levels', 'message'),
    [
        (['MUSIQUE', 'livre'], "--title_levels=MUSIQUE,livre: no name of level 1 is 'livre'; the nearest are LIVRES"),
        (['ROMANS '], "--title_levels=ROMANS : no name of level 1 is 'ROMANS '; known are DVD - BLU-RAY, LIVRES, "
         'MAISON, MUSIQUE'),
    ],
)  # fmt: skip
def test_an_unknown_name_is_told_with_those_near_it(levels, message):
    with pytest.raises(UsageError) as error:
        title.uses(LABEL_MAP, levels)
    assert str(error.value) == message


@pytest.mark.parametrize('seed', range(12))
def test_covers_differ_by_their_title_alone(seed):
    one, other = (covers.draw(seed, name) for name in covers.TITLES[:2])
    differs = np.flatnonzero((np.asarray(one.image) != np.asarray(other.image)).any(axis=(1, 2)))
    first, end = min(one.rows[0], other.rows[0]), max(one.rows[1], other.rows[1])
    assert first - 1 <= differs.min() and differs.max() <= end, 'but for an outline of one pixel'


def test_covers_keep_the_catalogues_layout(tmp_path):
    covers.write_catalogue(tmp_path, products=12)
    label_map = categories.read_source(str(tmp_path))
    np.testing.assert_array_equal(title.uses(label_map, [covers.BOOKS]), [True] * 4 + [False] * 2)
    assert {path.name for path in tmp_path.iterdir()} >= {'train.bson', 'test.bson'}


# About 1,800 covers, 5 times, 560 updates.
BUDGET = (
    '--backbone=xception_small', '--width=0.25', '--weights=none', '--image_size=64', '--micro_batch=16',
    '--accumulate=1', '--epochs=5', '--learning_rate=2e-3', '--decay_at=3,4', '--epoch_images=10000', '--predict=',
)  # fmt: skip


@pytest.fixture(scope='module')
def shards_of_covers(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('covers')
    covers.write_catalogue(folder, products=1000)
    convert.main(['convert', f'--input_dir={folder}', f'--output_dir={folder}/shards', '--runner=FnApiRunner'])
    return f'{folder}/shards'


def accuracy_on_books(shards_dir: str, run_dir: Path, *flags: str) -> float:
    """Of a run, on the validation pictures of which only the title tells the category: a guess is right on 0.25."""
    train.main(['train', f'--shards_dir={shards_dir}', f'--run_dir={run_dir}', *BUDGET, *flags])
    with open(run_dir / 'accuracy_by_category.csv', newline='') as file:
        books = [row for row in csv.DictReader(file) if row['level1'] == covers.BOOKS]
    images = np.array([int(row['images']) for row in books])
    return float(images @ [float(row['accuracy']) for row in books] / images.sum())


@pytest.mark.slow
def test_covers_told_apart_by_their_title_are_learned_with_the_title_and_not_without(shards_of_covers, tmp_path):
    """Measured: 0.92, and no better than a guess."""
    with_title = accuracy_on_books(shards_of_covers, tmp_path / 'text', '--title=text', '--title_levels=LIVRES')
    without = accuracy_on_books(shards_of_covers, tmp_path / 'off')
    assert with_title > 0.75
    assert without < 0.45
