"""Training and prediction through their programs, on a small catalogue."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from ensemble import logits
from model import inference, predict, runs, train
from pipeline import augment, convert, dataset, worklog
from pipeline.errors import InputError
from tests import catalogue
from tests.model import tiny

SMALL = (
    '--backbone=tiny', '--weights=none', '--image_size=32', '--micro_batch=8', '--accumulate=2', '--epoch_images=64',
    '--val_images=20', '--dropout=0.2', '--flip_probability=0.5',
)  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.known():
        yield


@pytest.fixture(scope='module')
def shards_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    catalogue.write_catalogue(folder, products=60, categories=3)
    convert.main(['convert', f'--input_dir={folder}', f'--output_dir={folder}/shards', '--runner=FnApiRunner'])
    return str(folder / 'shards')


def arguments(shards_dir: str, run_dir: object, *flags: str) -> list[str]:
    return ['train', f'--shards_dir={shards_dir}', f'--run_dir={run_dir}', *SMALL, *flags]


@pytest.fixture(scope='module')
def run(shards_dir, tmp_path_factory):
    """A finished run of two stages."""
    run_dir = tmp_path_factory.mktemp('runs') / 'one'
    train.main(arguments(shards_dir, run_dir, '--epochs=2', '--decay_at=0.7,1', '--unfreeze=head@0,all@1'))
    return run_dir


def history(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / 'history.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files(run, shards_dir):
    assert {'run.json', 'history.csv', 'model.keras', 'checkpoints', 'tensorboard', 'logits'} <= set(os.listdir(run))
    assert os.readlink(run.parent / 'latest') == 'one'
    settings = json.loads((run / 'run.json').read_text())
    assert (settings['image_size'], settings['unfreeze']) == (32, 'head@0,all@1')
    assert settings['dataset_digest'] == dataset.open_shards(shards_dir).manifest.digest()


def test_the_worklog_has_a_line_for_training_and_for_each_prediction(run, shards_dir):
    trained, *predicted = worklog.read(str(run))[:3]
    made = dataset.open_shards(shards_dir).manifest
    updates = round(made.images('train') / 8)
    assert (trained.name, trained.replicas) == ('train', 1)
    assert trained.counts == {'images': 16 * updates, 'updates': updates}
    assert trained.seconds > 0
    found = [(entry.name, entry.counts['products'], entry.counts['images']) for entry in predicted]
    assert found == [(f'predict {name}', made.products(name), made.images(name)) for name in ('val', 'test')]


def test_history_has_a_row_for_every_artificial_epoch(run, shards_dir):
    images = dataset.open_shards(shards_dir).manifest.images('train')
    steps = round(images / 16)
    rows = history(run)
    assert [int(row['epoch']) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row['step']) for row in rows] == sorted(
        {*range(4, steps, 4), steps, *range(steps + 4, 2 * steps, 4), round(images / 8)}
    )
    assert [row['stage'] for row in rows] == ['0' if int(row['step']) <= steps else '1' for row in rows]
    assert sorted({float(row['learning_rate']) for row in rows}) == pytest.approx([4.5e-4, 1.5e-3, 5e-3])
    assert all(float(row['loss']) > 0 and 0 <= float(row['val_accuracy']) <= 1 for row in rows)


def test_logits_are_those_of_the_finished_model_in_the_order_of_the_shards(run, shards_dir):
    shards = dataset.open_shards(shards_dir)
    store = logits.read_manifest(str(run / 'logits' / 'val'))
    rows = logits.Rows.concatenate(
        [part for file in store.files for part in logits.read_shard(str(run / 'logits' / 'val'), file)]
    )
    (file,) = shards.manifest.of_split('val')
    batch = next(iter(dataset.views(shards, file, batch_size=len(rows), tta=1, seed=0)))
    for got, expected in zip((rows.product_id, rows.image_index, rows.view, rows.label), batch[2:], strict=True):
        np.testing.assert_array_equal(got, expected)
    model = runs.load_model(str(run))
    values = model(augment.resize(batch[0], size=32)).numpy()
    np.testing.assert_allclose(rows.logits, values - values.max(axis=1, keepdims=True), rtol=2e-3, atol=2e-3)
    assert store.about['dataset_digest'] == shards.manifest.digest()
    assert store.about['tta'] == 1


def test_a_finished_run_is_left_as_it_is(run, shards_dir, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob('*') if path.is_file()}
    train.main(arguments(shards_dir, run, '--epochs=2', '--decay_at=0.7,1', '--unfreeze=head@0,all@1'))
    assert {path: path.stat().st_mtime_ns for path in run.rglob('*') if path.is_file()} == before
    said = capsys.readouterr().out.splitlines()
    assert any('training is finished already; give another --run_dir to train again' in line for line in said)
    assert said[-2] == f'{run.parent}/latest is now {run}'
    train.main(
        arguments(shards_dir, run.parent / 'latest', '--epochs=2', '--decay_at=0.7,1', '--unfreeze=head@0,all@1')
    )
    assert ' is now ' not in capsys.readouterr().out, 'by the link itself there is nothing to tell'


def test_a_run_has_the_categories_of_its_shards_and_gets_them_again_when_it_lacks_them(run, shards_dir):
    path = run / 'categories.csv'
    expected = (Path(shards_dir) / 'categories.csv').read_bytes()
    assert path.read_bytes() == expected
    path.unlink()
    flags = ('--epochs=2', '--decay_at=0.7,1', '--unfreeze=head@0,all@1')
    train.main(arguments(shards_dir, run, *flags))
    assert path.read_bytes() == expected


def test_other_flags_for_the_same_folder_are_refused_by_name(run, shards_dir):
    with pytest.raises(InputError, match='began with epochs=2.0, now it is 3.0'):
        train.main(arguments(shards_dir, run, '--epochs=3', '--decay_at=0.7,1', '--unfreeze=head@0,all@1'))


def test_views_of_prediction_are_the_plain_picture_and_others(run, shards_dir, capsys):
    predict.main(
        ['predict', f'--run_dir={run}', f'--shards_dir={shards_dir}', '--split=test', '--tta=3', '--micro_batch=7']
    )
    folder = str(run / 'logits' / 'test-tta3')
    assert capsys.readouterr().out.endswith(
        f'wrote {folder}: the logits of test; next: python -m ensemble.combine --rule product --logits={folder}\n'
    )
    (file,) = logits.read_manifest(folder).files
    (views,) = logits.read_shard(folder, file)
    (file,) = logits.read_manifest(str(run / 'logits' / 'test')).files
    (plain,) = logits.read_shard(str(run / 'logits' / 'test'), file)
    np.testing.assert_array_equal(views.view, np.tile([0, 1, 2], len(plain)))
    np.testing.assert_array_equal(views.label, np.full(3 * len(plain), -1))
    np.testing.assert_allclose(views.logits[::3], plain.logits, rtol=2e-3, atol=2e-3)
    assert (views.logits[1::3] != views.logits[2::3]).any(axis=1).mean() > 0.9


def test_the_best_weights_predict_into_a_folder_of_their_own(run, shards_dir):
    predict.main(['predict', f'--run_dir={run}', f'--shards_dir={shards_dir}', '--split=val', '--best'])
    store = logits.read_manifest(str(run / 'logits' / 'val-best'))
    (rows,) = (part for file in store.files for part in logits.read_shard(str(run / 'logits' / 'val-best'), file))
    best = keras.models.load_model(run / 'best.keras', compile=False)
    accuracies = [float(row['val_accuracy']) for row in history(run) if row['val_accuracy']]
    assert (rows.logits.argmax(axis=1) == rows.label).mean() == pytest.approx(max(accuracies), abs=1e-3)
    assert store.about['weights_digest'] == inference.weights_digest(best)


def test_two_replicas_predict_what_one_does(run, shards_dir, tmp_path):
    same_run = tmp_path / 'copy'
    same_run.mkdir()
    for name in ('run.json', 'model.keras'):
        (same_run / name).write_bytes((run / name).read_bytes())
    predict.main(
        [
            'predict',
            f'--run_dir={same_run}',
            f'--shards_dir={shards_dir}',
            '--split=val',
            '--strategy=mirrored',
            '--micro_batch=5',
        ]
    )
    (file,) = logits.read_manifest(str(same_run / 'logits' / 'val')).files
    (got,) = logits.read_shard(str(same_run / 'logits' / 'val'), file)
    (expected,) = logits.read_shard(str(run / 'logits' / 'val'), file)
    np.testing.assert_array_equal(got.product_id, expected.product_id)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('damage', [lambda data: data[:-1], lambda data: data[:100] + b'x' + data[101:]])
def test_a_damaged_store_of_logits_is_made_again(run, shards_dir, damage):
    (file,) = logits.read_manifest(str(run / 'logits' / 'val')).files
    path = run / 'logits' / 'val' / file.name
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    predict.main(['predict', f'--run_dir={run}', f'--shards_dir={shards_dir}', '--split=val', '--micro_batch=8'])
    assert path.read_bytes() == sound


def test_a_run_does_not_go_on_with_another_number_of_replicas(run, shards_dir):
    """The effective batch, and so every point of the schedule, would be another."""
    settings = json.loads((run / 'run.json').read_text())
    assert settings['replicas'] == 1
    with pytest.raises(InputError, match='began with replicas=2, now it is 1'):
        other = run.parent / 'other'
        runs.write_settings(str(other), {**settings, 'replicas': 2})
        train.main(arguments(shards_dir, other, '--epochs=2', '--decay_at=0.7,1', '--unfreeze=head@0,all@1'))


@pytest.mark.parametrize(
    ('backbone', 'width'), [('tiny', 1), pytest.param('xception_small', 0.01, marks=pytest.mark.slow)]
)
def test_two_replicas_train(shards_dir, tmp_path, backbone, width):
    flags = (f'--backbone={backbone}', f'--width={width}', '--epochs=1', '--strategy=mirrored', '--predict=val')
    train.main(arguments(shards_dir, tmp_path / 'two', *flags))
    assert [int(row['step']) for row in history(tmp_path / 'two')][-1] == round(
        dataset.open_shards(shards_dir).manifest.images('train') / 32
    )
    trained, predicted = worklog.read(str(tmp_path / 'two'))
    assert trained.replicas == predicted.replicas == 2
    assert trained.counts['images'] == 32 * trained.counts['updates']


@pytest.mark.parametrize(
    ('flag', 'error', 'message'),
    [
        ('--shards_dir=nowhere', InputError, r'nowhere/manifest.json: no such file, .* python -m pipeline.convert'),
        ('--backbone=vgg', InputError, 'no such backbone; known are densenet161, .*, xception, xception_small'),
        ('--unfreeze=block99@0', InputError, "no block 'block99'"),
        ('--decay_at=x', InputError, "--decay_at: 'x' must be a number of passes"),
        ('--weights=nowhere.keras', InputError, 'no such file'),
        ('--predict=all', InputError, 'the splits are train, val, test'),
    ],
)
def test_bad_input_is_refused_before_a_run_is_made(shards_dir, tmp_path, flag, error, message):
    with pytest.raises(error, match=message):
        train.main(arguments(shards_dir, tmp_path / 'bad', flag))
    assert not (tmp_path / 'bad' / 'run.json').exists()
