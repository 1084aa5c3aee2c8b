"""Prediction: logits in the dataset's order, shard by shard; one that is stopped goes on, to the same bytes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble import logits
from model import predict
from pipeline import categories, dataset, journal, manifest, progress, worklog
from pipeline.errors import InputError
from tests import shards as small
from tests.model.finished_run import write_model

SHARDS = 5
NAMES = [f'val-{number:05}-of-{SHARDS:05}.tfrecord' for number in range(SHARDS)]


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> dataset.Shards:
    """22 products of 43 pictures to predict, in five shards."""
    return small.write(tmp_path_factory.mktemp('shards'), train=0, val=22, shards=SHARDS)


@pytest.fixture(scope='module')
def undisturbed(shards, tmp_path_factory) -> Path:
    """A run with a model of random weights, and its logits of two views of each picture."""
    run_dir = tmp_path_factory.mktemp('runs') / 'one'
    write_model(run_dir, seed=1)
    predict.main(arguments(shards, run_dir))
    return run_dir


@pytest.fixture(scope='module')
def interrupted(shards, undisturbed, tmp_path_factory) -> Path:
    """The same run, whose prediction was stopped in the middle of the fourth shard."""
    run_dir = copy(undisturbed, tmp_path_factory.mktemp('interrupted') / 'run')
    stop_at(3, arguments(shards, run_dir))
    return run_dir


@pytest.fixture
def run_dir(undisturbed, tmp_path) -> Path:
    """A copy of the run, without logits."""
    return copy(undisturbed, tmp_path / 'run')


@pytest.fixture
def stopped_dir(interrupted, tmp_path) -> Path:
    """A copy of the run whose prediction was stopped."""
    return shutil.copytree(interrupted, tmp_path / 'run')


def copy(run_dir: Path, to: Path) -> Path:
    return shutil.copytree(run_dir, to, ignore=shutil.ignore_patterns('logits'))


def arguments(shards: dataset.Shards, run_dir: Path, *more: str) -> list[str]:
    flags = ('--split=val', '--tta=2', '--micro_batch=6', '--seed=3')
    return ['predict', f'--shards_dir={shards.folder}', f'--run_dir={run_dir}', *flags, *more]


def store(run_dir: Path, name: str = 'val-tta2') -> Path:
    return run_dir / 'logits' / name


def read(folder: Path) -> logits.Rows:
    files = logits.read_manifest(str(folder)).files
    return logits.Rows.concatenate([rows for file in files for rows in logits.read_shard(str(folder), file)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a shard from one that was written later."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob('val-*')}


def stop_at(block: int, args: list[str]) -> None:
    """Predicts, but stops in the middle of a shard."""
    blocks: list[bytes] = []

    def encode(*args: Any, original: Callable[..., bytes] = logits._encode) -> bytes:
        if len(blocks) == block:
            raise KeyboardInterrupt
        blocks.append(original(*args))
        return blocks[-1]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logits, '_encode', encode)
        predict.main(args)


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])


def test_a_shard_of_logits_has_every_view_of_a_shard_of_the_dataset_in_its_order(shards, undisturbed):
    made = logits.read_manifest(str(store(undisturbed)))
    assert [file.name for file in made.files] == NAMES
    for file, of_dataset in zip(made.files, shards.manifest.of_split('val'), strict=True):
        (rows,) = logits.read_shard(str(store(undisturbed)), file)
        (batch,) = dataset.views(shards, of_dataset, batch_size=len(rows), tta=2, seed=3)
        for got, expected in zip((rows.product_id, rows.image_index, rows.view, rows.label), batch[2:], strict=True):
            np.testing.assert_array_equal(got, expected)
        assert (file.products, file.images) == (of_dataset.products, 2 * of_dataset.images)
    assert sorted(files(store(undisturbed))) == ['categories.csv', 'manifest.json', *NAMES]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['KILL', 'TERM'])
def test_a_prediction_that_was_killed_goes_on_to_the_same_bytes(shards, undisturbed, run_dir, capsys, name):
    """In the middle of the third shard, then of the fourth."""
    args = arguments(shards, run_dir)
    before: dict[str, tuple[int, int]] = {}
    for moment, done in (('block 2', 2), ('block 1', 3)):
        command = [sys.executable, '-m', 'tests.model.stopped_run', 'predict', name, moment, *args[1:]]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == -getattr(signal, f'SIG{name}'), ended.stderr
        assert sorted(written(store(run_dir))) == NAMES[:done]
        assert before.items() <= written(store(run_dir)).items()
        before = written(store(run_dir))
        with pytest.raises(InputError, match=f'--run_dir={run_dir} --split=val --tta=2$'):
            logits.read_manifest(str(store(run_dir)))
    assert any(path.name.startswith('.tmp-') for path in store(run_dir).iterdir())
    predict.main(args)
    assert before.items() <= written(store(run_dir)).items(), 'those kept are untouched'
    assert files(store(run_dir)) == files(store(undisturbed)), 'and nothing is left over'
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f'predicting val into {store(run_dir)}: 3 of 5 shards kept'
    assert re.fullmatch(r'\d+ views in \d+ s: [\d,]+ views/s', said[1])
    assert said[2].startswith(f'wrote {store(run_dir)}: 86 rows of 22 products, 0.0 MB')


def test_the_progress_bar_counts_what_is_kept_but_not_for_the_rate(shards, stopped_dir, monkeypatch):
    bars = []

    def noted(*args: Any, original: Callable[..., Any] = progress.Progress, **options: Any) -> Any:
        bars.append(original(*args, **options))
        return bars[-1]

    monkeypatch.setattr(progress, 'Progress', noted)
    predict.main(arguments(shards, stopped_dir))
    (bar,) = (bar for bar in bars if bar.label == 'predict val')
    kept = sum(file.images for file in logits.read_manifest(str(store(stopped_dir))).files[:3])
    assert (bar.initial, bar.n, bar.total) == (kept, 86, 86)


def test_the_worklog_counts_what_was_predicted_and_not_what_was_kept(shards, stopped_dir):
    before = worklog.read(str(stopped_dir))
    for _ in range(2):  # the second time there is nothing to do
        predict.main(arguments(shards, stopped_dir))
    made = logits.read_manifest(str(store(stopped_dir))).files[3:]
    *earlier, entry = worklog.read(str(stopped_dir))
    assert earlier == before
    assert (entry.name, entry.replicas) == ('predict val-tta2', 1)
    views = sum(file.images for file in made)
    assert entry.counts == {
        'products': sum(file.products for file in made),
        'images': views // 2,
        'views': views,
        'bytes': sum(file.bytes for file in made),
    }


OTHERS: dict[str, tuple[list[str], int, str]] = {
    # flags, seed of the weights, folder
    'the same': ([], 1, 'val-tta2'),
    'weights': ([], 2, 'val-tta2'),
    'seed': (['--seed=4'], 1, 'val-tta2'),
    'micro batch': (['--micro_batch=5'], 1, 'val-tta2'),
    'views': (['--tta=3'], 1, 'val-tta3'),
    'top k': (['--top_k=4'], 1, 'val-tta2-top4'),
}


@pytest.mark.parametrize('what', OTHERS)
def test_shards_of_other_weights_or_settings_are_not_kept(shards, stopped_dir, capsys, what):
    flags, seed, name = OTHERS[what]
    if seed != 1:
        write_model(stopped_dir, seed=seed)
    if name != 'val-tta2':  # as if someone had renamed it
        store(stopped_dir).rename(store(stopped_dir, name))
    predict.main(arguments(shards, stopped_dir, *flags))
    said = capsys.readouterr().out
    assert f'predicting val into {store(stopped_dir, name)}: {3 if what == "the same" else 0} of 5 shards kept' in said


def test_shards_of_another_dataset_are_not_kept(shards, stopped_dir, capsys, tmp_path):
    other = small.write(tmp_path / 'other', train=1, val=22, shards=SHARDS)
    predict.main(arguments(other, stopped_dir))
    assert '0 of 5 shards kept' in capsys.readouterr().out


def test_a_damaged_shard_is_not_kept(shards, undisturbed, stopped_dir, capsys):
    damage(store(stopped_dir) / NAMES[0])
    (store(stopped_dir) / NAMES[1]).unlink()
    predict.main(arguments(shards, stopped_dir))
    assert '1 of 5 shards kept' in capsys.readouterr().out
    assert files(store(stopped_dir)) == files(store(undisturbed))


def test_of_a_finished_store_only_what_is_damaged_is_made_again(shards, undisturbed, run_dir, capsys):
    shutil.copytree(store(undisturbed), store(run_dir))
    damage(store(run_dir) / NAMES[3])
    (store(run_dir) / NAMES[1]).write_bytes(b'')
    before = written(store(run_dir))
    stop_at(1, arguments(shards, run_dir))  # the second one is made; in the middle of the fourth
    assert not (store(run_dir) / manifest.NAME).exists()
    capsys.readouterr()
    predict.main(arguments(shards, run_dir))
    assert '4 of 5 shards kept' in capsys.readouterr().out
    after = written(store(run_dir))
    assert [name for name in NAMES if after[name] != before[name]] == [NAMES[1], NAMES[3]]
    assert files(store(run_dir)) == files(store(undisturbed))


def test_a_finished_store_is_left_as_it_is_whatever_is_taken_at_a_time(shards, undisturbed, run_dir, capsys):
    shutil.copytree(store(undisturbed), store(run_dir))
    # Killed after the manifest was written.
    journal.note(str(store(run_dir)), logits.read_manifest(str(store(run_dir))).files[0], identity='x')
    for name in ('.tmp-0123-manifest.json', 'val-00000-of-00009.tfrecord'):
        (store(run_dir) / name).write_bytes(b'of another run')
    before = written(store(run_dir))
    predict.main(arguments(shards, run_dir, '--micro_batch=9'))
    said = capsys.readouterr().out
    assert f'logits of val are in {store(run_dir)} already (5 shards, checked)\n' in said
    assert written(store(run_dir)).items() <= before.items()
    assert files(store(run_dir)) == files(store(undisturbed))


@pytest.mark.parametrize('damage_it', [Path.unlink, lambda path: path.write_bytes(b'label,')])
def test_the_categories_of_a_finished_store_are_made_again(shards, undisturbed, run_dir, capsys, damage_it):
    shutil.copytree(store(undisturbed), store(run_dir))
    damage_it(store(run_dir) / categories.NAME)
    predict.main(arguments(shards, run_dir))
    assert '5 of 5 shards kept' in capsys.readouterr().out
    assert files(store(run_dir)) == files(store(undisturbed))


@pytest.mark.parametrize('text', [b'', b'{"kind": "shards", "format_version": 3}'])
def test_a_manifest_that_can_not_be_used_is_replaced(shards, undisturbed, run_dir, capsys, text):
    store(run_dir).mkdir(parents=True)
    (store(run_dir) / manifest.NAME).write_bytes(text)
    predict.main(arguments(shards, run_dir))
    assert files(store(run_dir)) == files(store(undisturbed))


def test_two_replicas_say_what_one_says(shards, undisturbed, run_dir):
    predict.main(arguments(shards, run_dir, '--strategy=mirrored', '--micro_batch=5'))
    got, expected = read(store(run_dir)), read(store(undisturbed))
    np.testing.assert_array_equal(got.product_id, expected.product_id)
    np.testing.assert_array_equal(got.logits.argmax(axis=1), expected.logits.argmax(axis=1))
    np.testing.assert_allclose(got.logits, expected.logits, rtol=2e-3, atol=2e-3)


def test_the_highest_logits_are_those_of_the_whole_store(shards, undisturbed, run_dir):
    predict.main(arguments(shards, run_dir, '--top_k=3'))
    got, expected = read(store(run_dir, 'val-tta2-top3')), read(store(undisturbed))
    highest = np.argsort(-expected.logits, axis=1, kind='stable')[:, :3]
    kept, whole = (np.take_along_axis(rows.logits, highest, axis=1) for rows in (got, expected))
    np.testing.assert_array_equal(kept, whole)
    assert logits.read_manifest(str(store(run_dir, 'val-tta2-top3'))).about['top_k'] == 3


@pytest.mark.parametrize('top_k', [small.CATEGORIES, small.CATEGORIES + 1])
def test_as_many_as_all_are_refused(shards, run_dir, top_k):
    with pytest.raises(InputError, match=f'--top_k={top_k}: there are only 7 categories; 0 stores all their logits'):
        predict.main(arguments(shards, run_dir, f'--top_k={top_k}'))
    assert not (run_dir / 'logits').exists()


def test_a_model_of_other_categories_is_refused(shards, run_dir):
    write_model(run_dir, seed=1, classes=8)
    with pytest.raises(InputError, match='its model has 8 categories, the shards in .* have 7'):
        predict.main(arguments(shards, run_dir))
