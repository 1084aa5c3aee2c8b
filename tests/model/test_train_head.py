"""Training on cached features: a run like any other, of whole products, that may be stopped and gone on with."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from ensemble import logits
from model import backbone, checkpoint, classifier, predict, runs, train, train_head
from model.inputs import Inputs
from pipeline import categories, dataset, worklog
from pipeline.errors import InputError, UsageError
from pipeline.records import Product
from tests import catalogue
from tests import shards as small
from tests.model import finished_run, moments, tiny

# 24 updates; artificial epochs of 3.
FLAGS = (
    '--micro_batch=4', '--accumulate=2', '--epoch_products=24', '--val_products=9', '--history_products=16',
    '--dropout=0.2', '--head_units=5', '--head_dropout=0.1', '--epochs=4', '--decay_at=1.1', '--predict=val',
)  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.known():
        yield


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> dataset.Shards:
    """48 products to train with, 12 to validate."""
    return small.write(tmp_path_factory.mktemp('shards'), train=48, val=12, shards=2)


@pytest.fixture(scope='module')
def one(shards, tmp_path_factory) -> Path:
    """A finished run of single pictures, of random weights, that nothing has been cached of."""
    run_dir = tmp_path_factory.mktemp('runs') / 'one'
    finished_run.write(run_dir, shards.label_map, seed=1, image_size=32)
    runs.write_settings(str(run_dir), {'backbone': 'tiny', 'width': 1.0, 'image_size': 32, 'features': 0, 'epochs': 9})
    return run_dir


@pytest.fixture(scope='module')
def head(shards, one) -> Path:
    """A run that nothing stopped."""
    train_head.main(arguments(shards, one, one.parent / 'head'))
    return one.parent / 'head'


def arguments(shards: dataset.Shards, one: Path, run_dir: Path, *more: str) -> list[str]:
    return ['train_head', f'--shards_dir={shards.folder}', f'--from_run={one}', f'--run_dir={run_dir}', *FLAGS, *more]


def read(run_dir: Path, split: str = 'val') -> logits.Rows:
    folder = str(run_dir / 'logits' / split)
    files = logits.read_manifest(folder).files
    return logits.Rows.concatenate([rows for file in files for rows in logits.read_shard(folder, file)])


def history(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / 'history.csv', newline='') as file:
        return [
            {name: cell for name, cell in row.items() if name != 'images_per_second'} for row in csv.DictReader(file)
        ]


def state(run_dir: Path) -> checkpoint.State:
    found = checkpoint.read(str(run_dir / 'checkpoints'))
    assert found
    return found.state


def assert_same_end(run_dir: Path, expected: Path) -> None:
    for name in ('model.keras', 'best.keras'):
        ended, undisturbed = (keras.models.load_model(folder / name, compile=False) for folder in (run_dir, expected))
        for got, value in zip(ended.get_weights(), undisturbed.get_weights(), strict=True):
            np.testing.assert_array_equal(got, value)
    assert history(run_dir) == history(expected)
    for name in ('accuracy_by_category.csv', 'logits/val/manifest.json', 'logits/val/val-00000-of-00002.tfrecord'):
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes()


def test_the_run_is_one_of_products_like_any_other(shards, one, head):
    settings = runs.read_settings(str(head))
    assert Inputs.of_run(settings) == Inputs(4, fewer=True)
    assert {name: settings[name] for name in ('backbone', 'image_size', 'epochs')} == {
        'backbone': 'tiny', 'image_size': 32, 'epochs': 4,
    }  # fmt: skip
    assert {path.name for path in head.iterdir()} == {
        'run.json', 'checkpoints', 'history.csv', 'categories.csv', 'tensorboard', 'best.keras', 'model.keras',
        'accuracy_by_category.csv', 'worklog.jsonl', 'logits',
    }  # fmt: skip
    assert categories.is_in(shards.label_map, str(head))
    rows = history(head)
    assert [int(row['step']) for row in rows if row['val_loss']] == [3 * epoch for epoch in range(1, 9)]
    assert all(float(row['loss']) > 0 for row in rows) and float(rows[-1]['val_loss']) < 100
    assert [entry.name for entry in worklog.read(str(head))] == ['train head', 'predict val']
    assert worklog.read(str(head))[0].counts == {'products': 192, 'updates': 24}


def test_its_model_is_that_of_training_on_pictures_with_the_backbone_as_it_was(one, head):
    whole, before = (keras.models.load_model(run_dir / 'model.keras', compile=False) for run_dir in (head, one))
    network = backbone.build('tiny', image_size=32, width=1)
    options = classifier.Options(inputs=Inputs(4, fewer=True), dropout=0.2, units=5, units_dropout=0.1)
    expected = classifier.build(network, classes=7, options=options)
    shapes, wanted = (
        [(layer.name, [value.shape for value in layer.weights]) for layer in model.layers[1:]]  # the input has a number
        for model in (whole, expected)
    )
    assert shapes == wanted
    assert whole.input_shape == expected.input_shape
    for layer in before.layers[:-1]:
        for got, value in zip(whole.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(got, value)


def test_its_logits_are_those_of_the_whole_network_on_pictures(shards, head, tmp_path):
    """But for the rounding of features to float16; and model.predict takes the store for its own."""
    flags = [f'--shards_dir={shards.folder}', '--split=val', '--micro_batch=5']
    copy = tmp_path / 'copy'
    shutil.copytree(head, copy, ignore=shutil.ignore_patterns('logits'))
    predict.main(['predict', f'--run_dir={copy}', *flags])
    got, expected = read(head), read(copy)
    for name, column in expected.index().items():
        np.testing.assert_array_equal(got.index()[name], column)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=4e-3, atol=4e-3 * np.abs(expected.logits).max())
    made, whole = (logits.read_manifest(str(run_dir / 'logits' / 'val')) for run_dir in (head, copy))
    assert made.about == whole.about
    assert [(file.name, file.products, file.images) for file in made.files] == [
        (file.name, file.products, file.images) for file in whole.files
    ]
    before = (head / 'logits' / 'val' / 'manifest.json').stat().st_mtime_ns
    predict.main(['predict', f'--run_dir={head}', *flags])
    assert (head / 'logits' / 'val' / 'manifest.json').stat().st_mtime_ns == before


def test_where_features_are_not_cached_logits_are_made_of_pictures(shards, one, head, tmp_path):
    copy = tmp_path / 'one'
    shutil.copytree(one, copy, ignore=shutil.ignore_patterns('val'))
    again = tmp_path / 'head'
    shutil.copytree(head, again, ignore=shutil.ignore_patterns('logits'))
    train_head.main(arguments(shards, copy, again))
    assert not (copy / 'features' / 'val').exists(), 'a finished run needs none'
    np.testing.assert_allclose(read(again).logits, read(head).logits, rtol=4e-3, atol=0.1)


def test_it_begins_as_what_the_single_pictures_network_says_of_the_mean(shards, one, tmp_path):
    flags = ('--head_units=0', '--head_dropout=0', '--dropout=0', '--learning_rate=0', '--epochs=0.2')
    train_head.main(arguments(shards, one, tmp_path / 'head', *flags))
    model = runs.load_model(str(tmp_path / 'head'))
    before = runs.load_model(str(one))
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0]], np.float32)
    mean = classifier.features_model(before)(pictures[:3]).numpy().mean(axis=0, keepdims=True)
    np.testing.assert_allclose(model([pictures, mask]), before.layers[-1](mean), rtol=1e-3, atol=1e-3)


def test_training_on_pictures_goes_on_from_it(shards, head, tmp_path, capsys):
    flags = (
        '--backbone=tiny', '--image_size=32', '--pictures=4', '--fewer_pictures', '--head_units=5', '--micro_batch=4',
        '--accumulate=2', '--epochs=0.2', '--predict=', f'--weights={head}', '--learning_rate=0', '--dropout=0.2',
        '--head_dropout=0.1',
    )  # fmt: skip
    train.main(['train', f'--shards_dir={shards.folder}', f'--run_dir={tmp_path}/more', *flags])
    assert 'filled 7 of 7 layers, the dense layer among them' in capsys.readouterr().out
    assert (tmp_path / 'more' / 'accuracy_by_category.csv').read_bytes() == (
        head / 'accuracy_by_category.csv'
    ).read_bytes()


def colours(first: int, count: int, split: str) -> list[Product]:
    """Products of two pictures, red or blue; the label says whether they are alike."""
    generator = np.random.default_rng(first)
    products = []
    for number in range(first, first + count):
        pair = number % 4
        images = []
        for colour in (pair & 1, pair >> 1):
            pixels = np.full((180, 180, 3), (230, 40, 10) if colour else (10, 40, 230)) + generator.integers(-9, 10, 3)
            images.append(catalogue.encode(Image.fromarray(pixels.astype(np.uint8))))
        label = int(pair in (0, 3))
        products.append(Product(3 * number + 1, 1000 + label, label, split, tuple(images)))
    return products


def test_it_learns_what_no_picture_tells_alone(tmp_path, capsys):
    """Red and blue are as often in one category as in the other."""
    label_map = categories.Categories(np.array([1000, 1001]), (('A', 'B', 'C'), ('A', 'B', 'D')))
    products = {'train': [colours(0, 64, 'train')], 'val': [colours(64, 16, 'val')]}
    small.write_products(tmp_path / 'shards', products, label_map=label_map)
    finished_run.write(tmp_path / 'one', label_map, seed=1)
    flags = (
        '--head_units=64', '--micro_batch=32', '--accumulate=1', '--epochs=100', '--epoch_products=9999',
        '--decay_at=80', '--learning_rate=1e-2', '--predict=val', f'--run_dir={tmp_path}/head',
    )  # fmt: skip
    train_head.main(['train_head', f'--shards_dir={tmp_path}/shards', f'--from_run={tmp_path}/one', *flags])
    assert 'accuracy on all 16 validation products: 1.0000' in capsys.readouterr().out
    rows = read(tmp_path / 'head')
    np.testing.assert_array_equal(rows.logits.argmax(axis=1), rows.label)
    assert rows.pictures is not None and set(rows.pictures.tolist()) == {2}


@pytest.mark.parametrize('moment', ['update 1', 'update 4', 'end 0'])
def test_a_run_that_is_asked_to_end_saves_and_goes_on_to_the_same_end(shards, one, head, tmp_path, capsys, moment):
    args = arguments(shards, one, tmp_path / 'head')
    with moments.signal_at(moment, 'TERM'):
        train_head.main(args)
    step = {'update 1': 2, 'update 4': 5, 'end 0': 24}[moment]
    assert state(tmp_path / 'head').step == step
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        f'wrote {tmp_path}/head/checkpoints/step-{step:09d}.npz: ended as asked; next: python -m model.'
    )
    train_head.main(args)
    assert_same_end(tmp_path / 'head', head)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_if_nothing_had_been(shards, one, head, tmp_path):
    """While features are cached; past an artificial epoch; in the middle of saving."""
    copy = tmp_path / 'one'
    shutil.copytree(one, copy, ignore=shutil.ignore_patterns('features'))
    args = arguments(shards, copy, tmp_path / 'head')
    for moment, step in (('block 1', None), ('update 5', 3), ('save 2', 9)):
        command = [sys.executable, '-m', 'tests.model.stopped_run', args[0], 'KILL', moment, *args[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert step is None or state(tmp_path / 'head').step == step
    train_head.main(args)
    assert_same_end(tmp_path / 'head', head)


def test_two_replicas_train(shards, one, tmp_path):
    flags = ('--strategy=mirrored', '--micro_batch=2')
    train_head.main(arguments(shards, one, tmp_path / 'head', *flags))
    trained, predicted = worklog.read(str(tmp_path / 'head'))
    assert (trained.replicas, predicted.replicas) == (2, 2)
    assert trained.counts == {'products': 192, 'updates': 24}
    assert len(read(tmp_path / 'head')) == 12


def test_a_finished_run_is_left_as_it_is(shards, one, head, capsys):
    before = {path: path.stat().st_mtime_ns for path in head.rglob('*') if path.is_file()}
    train_head.main(arguments(shards, one, head))
    assert {path: path.stat().st_mtime_ns for path in head.rglob('*') if path.is_file()} == before
    said = capsys.readouterr().out
    assert 'training is finished already' in said
    assert said.splitlines()[-1].endswith(f'next: python -m ensemble.combine --rule all --logits={head}/logits/val')


@pytest.mark.parametrize(
    ('flag', 'error', 'message'),
    [
        ('--seed=1', InputError, 'began with seed=0, now it is 1'),
        ('--join=max', InputError, 'began with join=gated, now it is max'),
        ('--predict=all', UsageError, 'the splits are train, val, test'),
        ('--decay_at=x', UsageError, "--decay_at: 'x' must be a number of passes"),
    ],
)
def test_what_would_make_another_run_is_refused(shards, one, head, flag, error, message):
    with pytest.raises(error, match=message):
        train_head.main(arguments(shards, one, head, flag))


def test_other_weights_than_it_began_with_are_refused(shards, one, head, tmp_path):
    other = tmp_path / 'other'
    finished_run.write(other, shards.label_map, seed=2)
    runs.write_settings(str(other), runs.read_settings(str(one)))
    with pytest.raises(InputError, match=r'began with from_weights=\w+, now it is \w+'):
        train_head.main(arguments(shards, other, head))


def test_features_by_other_weights_are_refused_for_prediction(shards, one, head, tmp_path):
    copy, again = tmp_path / 'one', tmp_path / 'head'
    shutil.copytree(one, copy)
    shutil.copytree(head, again, ignore=shutil.ignore_patterns('logits'))
    path = copy / 'features' / 'val' / 'manifest.json'
    made = json.loads(path.read_text())
    made['about']['weights_digest'] = 'x'
    path.write_text(json.dumps(made))
    with pytest.raises(InputError, match='features/val: made by other weights than the run has now; make them again: '):
        train_head.main(arguments(shards, copy, again))


def test_a_run_of_products_has_no_features_to_train_on(shards, head, tmp_path):
    with pytest.raises(UsageError, match=f'--from_run={head}: must be a run of single pictures'):
        train_head.main(arguments(shards, head, tmp_path / 'head'))


def test_the_run_can_not_be_written_where_it_comes_from(shards, one):
    with pytest.raises(UsageError, match=f'--run_dir={one}: is --from_run; the new run needs a folder of its own'):
        train_head.main(arguments(shards, one, one))
