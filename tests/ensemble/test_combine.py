"""python -m ensemble.combine: from a store of logits to a submission, an accuracy or a comparison of the rules."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from ensemble import combine, logits
from ensemble.logits import Rows
from pipeline.categories import Categories
from pipeline.categories import write as write_categories
from pipeline.errors import InputError

# Product 7 has three pictures, in sixteenths: product and mean say B, first and max say A (see test_rules.py). Product
# 3 says A and is A, product 5 says C but is A.
SHARDS = [
    [(7, 1, [(12, 3, 1), (4, 10, 2), (1, 9, 6)]), (3, 0, [(2, 1, 1)])],
    [],  # a shard of the dataset may have no product of this split
    [(5, 0, [(1, 1, 2)])],
]
SOLUTION = '_id,category_id\n7,1010\n3,1000\n5,1000\n'


@pytest.fixture
def run_dir(tmp_path: Path, make_rows: Callable[..., Rows], label_map: Categories) -> Path:
    """A run with val and test logits."""
    for split in ('val', 'test'):
        folder = str(tmp_path / 'runs' / 'demo' / 'logits' / split)
        files = []
        for number, products in enumerate(SHARDS):
            known = [(product, label if split == 'val' else -1, rows) for product, label, rows in products]
            name = f'{split}-{number:05}-of-00003.tfrecord'
            files.append(logits.write_shard(folder, name, [make_rows(known)] if known else [], split=split))
        logits.finish(
            folder, files, split=split, tta=1, weights_digest='w', dataset_digest='d', seed=0, categories=label_map
        )
    (tmp_path / 'solution.csv').write_text(SOLUTION)
    return tmp_path / 'runs' / 'demo'


def run(run_dir: Path, *words: str, split: str = 'test') -> None:
    combine.main(['combine', f'--logits={run_dir}/logits/{split}', '--runner=FnApiRunner', *words])


def made_in(folder: Path) -> list[str]:
    """The files that were made there beside the logits."""
    paths = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
    return sorted(str(path) for path in paths if path.parts[0] != 'logits')


def predictions_of(split: str) -> list[str]:
    """The files of the predictions: none for a file of logits without products."""
    files = [f'{split}-{number:05}-of-00003.parquet' for number in (0, 2)]
    return [f'predictions/{split}/{name}' for name in ('manifest.json', *files)]


def submission_of(folder: Path) -> str:
    return gzip.decompress((folder / 'submission.csv.gz').read_bytes()).decode()


def test_test_logits_become_a_submission_in_the_runs_folder(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir)
    assert submission_of(run_dir) == '_id,category_id\n3,1000\n5,1020\n7,1010\n'
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz']
    first, made, last = capsys.readouterr().out.splitlines()
    assert first == f'combining 5 rows of 3 products in {run_dir}/logits/test (2 files) by product'
    assert made == f'wrote {run_dir}/predictions/test: the predictions for 3 products'
    assert last.startswith(f'wrote {run_dir}/submission.csv.gz: 3 products; next: upload it to https://www.kaggle.com/')


@pytest.mark.parametrize(
    ('words', 'category'),
    [
        (['--rule', 'first'], 1000),
        (['--rule=max'], 1000),
        (['--rule=median'], 1010),
        (['--rule=power'], 1010),
        (['--rule=power', '--power=100'], 1000),
    ],
)
def test_the_rule_decides(run_dir: Path, words: list[str], category: int) -> None:
    run(run_dir, *words)
    assert submission_of(run_dir).endswith(f'\n7,{category}\n')


def test_output_dir_says_where(run_dir: Path, tmp_path: Path) -> None:
    run(run_dir, f'--output_dir={tmp_path}/new/folder')
    assert made_in(tmp_path / 'new' / 'folder') == [*predictions_of('test'), 'submission.csv.gz']
    assert made_in(run_dir) == []


def test_with_a_solution_the_submission_is_scored_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, f'--solution={run_dir.parents[1]}/solution.csv')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'product: accuracy 0.6667 (95 % interval 0.2077 to 0.9385, 3 products)'
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz']


def test_val_logits_are_scored_and_their_predictions_written(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, '--rule=first', split='val/')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'first: accuracy 0.3333 (95 % interval 0.0615 to 0.7923, 3 products)'
    assert lines[3] == f'next: python -m ensemble.combine --rule first --logits={run_dir}/logits/test'
    assert made_in(run_dir) == predictions_of('val')


@pytest.mark.parametrize('split', ['val', 'test'])
def test_all_rules_are_compared_in_one_reading(run_dir: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    words = [f'--solution={run_dir.parents[1]}/solution.csv'] if split == 'test' else []
    run(run_dir, '--rule', 'all', *words, split=split)
    lines = capsys.readouterr().out.splitlines()
    assert re.split(' {2,}', lines[1]) == ['rule', 'accuracy', '95 % interval', 'products', '2+ pictures', 'products']
    accuracies = {line.split()[0]: (line.split()[1], *line.split()[-3:]) for line in lines[2:9]}
    right, wrong = ('0.6667', '3', '1.0000', '1'), ('0.3333', '3', '0.0000', '1')
    assert accuracies == {
        'mean': right,
        'product': right,
        'rms': right,
        'median': right,
        'power': right,
        'max': wrong,
        'first': wrong,
    }
    assert lines[9].startswith('with two pictures or more, product gains ')
    assert lines[10] == (
        f'wrote {run_dir}/rules-{split}.csv; '
        f'next: python -m ensemble.combine --rule product --logits={run_dir}/logits/test'
    )
    assert made_in(run_dir) == [f'rules-{split}.csv']
    table = (run_dir / f'rules-{split}.csv').read_text().splitlines()
    assert table[0] == 'rule,accuracy,low,high,products,accuracy_2_pictures,products_2_pictures'
    assert table[2] == 'product,0.666667,0.207660,0.938508,3,1.000000,1'
    assert len(table) == 8


def test_several_processes_give_the_same_submission(run_dir: Path) -> None:
    run(run_dir)
    expected = (run_dir / 'submission.csv.gz').read_bytes()
    (run_dir / 'submission.csv.gz').unlink()
    (run_dir.parent / 'latest').symlink_to('demo')
    done = subprocess.run(
        [sys.executable, '-m', 'ensemble.combine', '--rule', 'product', '--direct_num_workers=2'],
        cwd=run_dir.parents[1],
        env={**os.environ, 'PYTHONPATH': str(Path(combine.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    # TensorFlow 2.21 notes its own start on stderr, whatever TF_CPP_MIN_LOG_LEVEL says.
    notes = [line for line in done.stderr.splitlines() if not re.match(r'WARNING: All log messages|[IE]\d{4} ', line)]
    assert (done.returncode, notes) == (0, [])
    assert done.stdout.splitlines()[-1].startswith('wrote runs/latest/submission.csv.gz: 3 products; next: ')
    assert (run_dir / 'submission.csv.gz').read_bytes() == expected
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz']


@pytest.mark.parametrize(
    ('words', 'split', 'message'),
    [
        (['--rule=best'], 'test', "unknown rule 'best'; the rules are mean, product, rms, median, power, max, first"),
        (['--rule=power', '--power=0'], 'test', 'power must be from 0.001 to 1000, is 0'),
        ([], 'test-tta5', r'holds no finished logits; make them: .* --run_dir=\S+/demo --split=test --tta=5$'),
        (['--rule=all'], 'test', '--rule all needs labels.*--solution=data/solution.csv'),
        (['--solution=x.csv'], 'val', r'--solution=x\.csv is for the test set, these logits are of val; leave it out'),
        (['--solution=none.csv'], 'test', 'none.csv: no such file'),
    ],
)
def test_what_the_user_can_mend_is_one_line(run_dir: Path, words: list[str], split: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(run_dir, *words, split=split)
    assert '\n' not in str(caught.value)
    assert made_in(run_dir) == []


def test_a_flag_that_nobody_knows_is_refused(run_dir: Path) -> None:
    with pytest.raises(flags.Error, match='unknown flag --roule'):
        run(run_dir, '--roule=mean')
    assert made_in(run_dir) == []


def test_a_solution_of_other_products_is_refused_and_no_submission_written(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / 'other.csv').write_text(SOLUTION + '9,1000\n')
    with pytest.raises(InputError, match=r'must hold the 3 products predicted, has besides 1 \(the first is 9\)'):
        run(run_dir, f'--solution={tmp_path}/other.csv')
    assert made_in(run_dir) == predictions_of('test')


def test_damage_found_by_a_worker_is_one_line_and_leaves_nothing(run_dir: Path) -> None:
    path = run_dir / 'logits' / 'test' / 'test-00002-of-00003.tfrecord'
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'test-00002\S+: record 0 is damaged \(a wrong checksum\); make .* again$'):
        run(run_dir)
    assert made_in(run_dir) == []


def test_a_file_cut_short_is_seen_before_the_job(run_dir: Path) -> None:
    path = run_dir / 'logits' / 'test' / 'test-00000-of-00003.tfrecord'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r'test-00000\S+: missing or not \d+ bytes long'):
        run(run_dir)


def test_categories_of_another_run_are_refused(run_dir: Path) -> None:
    other = Categories(np.array([1, 2, 3]), (('A', 'A', 'A'),) * 3)
    write_categories(other, str(run_dir / 'logits' / 'test'))
    with pytest.raises(InputError, match=r'categories\.csv: not the label map of these logits'):
        run(run_dir)


@pytest.mark.parametrize('files', [0, 1])
def test_a_store_without_products_is_refused(tmp_path: Path, label_map: Categories, files: int) -> None:
    folder = str(tmp_path / 'logits' / 'test')
    infos = [logits.write_shard(folder, f'test-{n:05}-of-00001.tfrecord', [], split='test') for n in range(files)]
    os.makedirs(folder, exist_ok=True)
    logits.finish(
        folder, infos, split='test', tta=1, weights_digest='w', dataset_digest='d', seed=0, categories=label_map
    )
    with pytest.raises(InputError, match='logits/test: holds no product; make the logits again'):
        run(tmp_path)
    assert made_in(tmp_path) == []


def test_a_product_in_two_shards_is_refused(
    tmp_path: Path, make_rows: Callable[..., Rows], label_map: Categories
) -> None:
    folder = str(tmp_path / 'logits' / 'test')
    rows = make_rows([(5, -1, [(1, 2, 3)])])
    infos = [logits.write_shard(folder, f'test-{n:05}-of-00002.tfrecord', rows, split='test') for n in range(2)]
    logits.finish(
        folder, infos, split='test', tta=1, weights_digest='w', dataset_digest='d', seed=0, categories=label_map
    )
    with pytest.raises(InputError, match='product 5 is predicted more than once'):
        run(tmp_path)
    assert made_in(tmp_path) == []


def test_help_shows_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        combine.main(['combine', '--help'])
    shown = capsys.readouterr().out
    assert 'mean, product, rms, median, power, max, first, or all to compare them' in shown
