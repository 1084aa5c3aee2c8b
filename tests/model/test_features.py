"""Cached features: what the dense layers take of each picture, shard by shard, in the dataset's order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ensemble import logits
from model import backbone, classifier, features, inference, runs
from model.inputs import Inputs
from pipeline import augment, dataset, worklog
from pipeline.errors import InputError, UsageError
from tests import shards as small
from tests.model import tiny
from tests.model.finished_run import write_model

NAMES = [f'val-{number:05}-of-00003.tfrecord' for number in range(3)]


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> dataset.Shards:
    """10 products of 20 pictures, in three shards."""
    return small.write(tmp_path_factory.mktemp('shards'), train=0, val=10, shards=3)


@pytest.fixture(scope='module')
def undisturbed(shards, tmp_path_factory) -> Path:
    """A run with a model of random weights, and its features."""
    run_dir = tmp_path_factory.mktemp('runs') / 'one'
    write_model(run_dir, seed=1)
    features.main(arguments(shards, run_dir))
    return run_dir


@pytest.fixture
def run_dir(undisturbed, tmp_path) -> Path:
    """A copy of the run, with its features."""
    return shutil.copytree(undisturbed, tmp_path / 'run')


def arguments(shards: dataset.Shards, run_dir: Path, *more: str) -> list[str]:
    flags = ('--split=val', '--micro_batch=6')
    return ['features', f'--shards_dir={shards.folder}', f'--run_dir={run_dir}', *flags, *more]


def store(run_dir: Path) -> Path:
    return run_dir / 'features' / 'val'


def files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store(run_dir).iterdir()}


def test_a_file_has_a_row_for_each_picture_of_its_shard_in_its_order(shards, undisturbed):
    """And its values are what makes the model's logits, by its dense layer."""
    made = logits.read_manifest(str(store(undisturbed)), kind='features')
    model = runs.load_model(str(undisturbed))
    assert [file.name for file in made.files] == NAMES
    assert made.about['weights_digest'] == inference.weights_digest(model)
    assert made.about['dataset_digest'] == shards.manifest.digest()
    for file, of_dataset in zip(made.files, shards.manifest.of_split('val'), strict=True):
        (rows,) = logits.read_shard(str(store(undisturbed)), file, kind='features')
        (batch,) = dataset.views(shards, of_dataset, batch_size=len(rows), tta=1, seed=0)
        for got, expected in zip((rows.product_id, rows.image_index, rows.view, rows.label), batch[2:], strict=True):
            np.testing.assert_array_equal(got, expected)
        assert rows.logits.shape == (of_dataset.images, 8)
        expected = model(augment.resize(batch[0], size=16))
        got = model.layers[-1](rows.logits.astype(np.float32))
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize('options', [{}, {'dropout': 0.2}, {'units': 5, 'units_dropout': 0.1}, {'features': 12}])
def test_features_are_what_the_first_of_the_layers_after_the_backbone_takes(options):
    with tiny.known():
        network = backbone.build('tiny', image_size=16, width=1)
    one = classifier.build(network, classes=3, options=classifier.Options(**options))
    last = classifier.features_model(one).layers[-1].name
    assert last == ('wider_features' if 'features' in options else 'pool')


def test_caching_that_was_interrupted_goes_on_to_the_same_bytes(shards, undisturbed, run_dir, capsys):
    shutil.rmtree(store(run_dir))
    blocks: list[bytes] = []

    def encode(*args: Any, original: Any = logits._encode) -> bytes:
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(original(*args))
        return blocks[-1]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logits, '_encode', encode)
        features.main(arguments(shards, run_dir))
    capsys.readouterr()
    features.main(arguments(shards, run_dir))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f'predicting val into {store(run_dir)}: 2 of 3 shards kept'
    assert said[-1].startswith(
        f'wrote {store(run_dir)}: the features of val; next: python -m model.train_head --from_run='
    )
    assert files(run_dir) == files(undisturbed)
    assert [entry.name for entry in worklog.read(str(run_dir))] == ['features val'] * 2


def test_of_finished_features_only_what_is_damaged_is_made_again(shards, undisturbed, run_dir, capsys):
    path = store(run_dir) / NAMES[1]
    data = path.read_bytes()
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    features.main(arguments(shards, run_dir))
    assert '2 of 3 shards kept' in capsys.readouterr().out
    assert files(run_dir) == files(undisturbed)
    features.main(arguments(shards, run_dir))
    assert f'features of val are in {store(run_dir)} already (3 shards, checked)' in capsys.readouterr().out


def test_features_by_other_weights_are_made_again(shards, run_dir, capsys):
    write_model(run_dir, seed=2)
    features.main(arguments(shards, run_dir))
    assert '0 of 3 shards kept' in capsys.readouterr().out


def test_what_float16_can_not_hold_is_refused(shards, run_dir):
    path = run_dir / 'model.keras'
    model = keras.models.load_model(path, compile=False)
    model.get_layer('block2_bn').gamma.assign([1e9] * 8)
    model.save(path)
    with pytest.raises(InputError, match=r'features must be finite in float16 \(up to 65,504\), those of product \d+'):
        features.main(arguments(shards, run_dir))


@pytest.mark.parametrize('settings', [{'pictures': 2}, {'title': 'top'}])
def test_a_run_of_more_than_single_pictures_is_refused(shards, run_dir, settings):
    assert Inputs.of_run(settings) != Inputs()
    runs.write_settings(str(run_dir), settings)
    with pytest.raises(
        UsageError, match='--run_dir=.*: must be a run of single pictures, without --pictures and --tit'
    ):
        features.main(arguments(shards, run_dir))


def test_features_are_no_logits(undisturbed):
    with pytest.raises(InputError, match=f'not logits.*python -m model.features --run_dir={undisturbed} --split=val$'):
        logits.read_manifest(str(store(undisturbed)))
