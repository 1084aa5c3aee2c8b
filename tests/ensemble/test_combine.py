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

from ensemble import combine, logits, predictions
from ensemble.logits import Rows
from pipeline import dataset, worklog
from pipeline.categories import Categories
from pipeline.categories import write as write_categories
from pipeline.errors import InputError
from pipeline.records import Product
from tests import shards
from tests.ensemble import stores

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
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz', worklog.NAME]
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
    assert made_in(tmp_path / 'new' / 'folder') == [*predictions_of('test'), 'submission.csv.gz', worklog.NAME]
    assert made_in(run_dir) == []


def test_with_a_solution_the_submission_is_scored_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, f'--solution={run_dir.parents[1]}/solution.csv')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'product: accuracy 0.6667 (95 % interval 0.0000 to 1.0000, 3 products)'
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz', worklog.NAME]


def test_val_logits_are_scored_and_their_predictions_written(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir, '--rule=first', split='val/')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'first: accuracy 0.3333 (95 % interval 0.0000 to 1.0000, 3 products)'
    command = f'python -m ensemble.combine --rule first --logits={run_dir}/logits/test'
    assert lines[2] == f'wrote {run_dir}/predictions/val: the predictions for 3 products; next: {command}'
    assert made_in(run_dir) == [*predictions_of('val'), worklog.NAME]


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
        f'wrote {run_dir}/rules-{split}.csv: all rules; '
        f'next: python -m ensemble.combine --rule product --logits={run_dir}/logits/test'
    )
    assert made_in(run_dir) == [f'rules-{split}.csv', worklog.NAME]
    table = (run_dir / f'rules-{split}.csv').read_text().splitlines()
    assert table[0] == 'rule,accuracy,low,high,products,accuracy_2_pictures,products_2_pictures'
    assert table[2] == 'product,0.666667,0.000000,1.000000,3,1.000000,1'
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
    # TensorFlow 2.21 notes its own start on stderr, whatever TF_CPP_MIN_LOG_LEVEL says; and there may be progress.
    unheeded = r'WARNING: All log messages|[IE]\d{4} |combine: |$'
    notes = [line for line in re.split('[\r\n]+', done.stderr) if not re.match(unheeded, line)]
    assert (done.returncode, notes) == (0, [])
    assert done.stdout.splitlines()[-1].startswith('wrote runs/latest/submission.csv.gz: 3 products; next: ')
    assert (run_dir / 'submission.csv.gz').read_bytes() == expected
    command = 'python -m ensemble.combine --rule product --direct_num_workers=2'
    assert worklog.read(str(run_dir))[-1].command == command
    assert made_in(run_dir) == [*predictions_of('test'), 'submission.csv.gz', worklog.NAME]


@pytest.mark.parametrize(
    ('words', 'split', 'message'),
    [
        (['--rule=best'], 'test', "unknown rule 'best'; the rules are mean, product, rms, median, power, max, first"),
        (['--rule=power', '--power=0'], 'test', 'power must be from 0.001 to 1000, is 0'),
        ([], 'test-tta5', r'holds no finished logits; make them: .* --run_dir=\S+/demo --split=test --tta=5$'),
        ([], '', r'demo/logits: is no store of logits; name one of its stores: \S+/logits/test, \S+/logits/val$'),
        (['--rule=all'], 'test', '--rule all needs labels.*--solution=data/solution.csv'),
        (['--solution=x.csv'], 'val', r'--solution=x\.csv is for the test set, these logits are of val; leave it out'),
        (['--solution=none.csv'], 'test', 'none.csv: no such file'),
        (['--weights=none.json'], 'test', 'none.json: no such file'),
        (['--fit=val', '--rule=all'], 'test', '--fit finds the weights of one rule; leave out --fit or --rule=all'),
        (['--fit=val', '--weights=1'], 'test', '--fit finds the weights of one rule; leave out --fit or --weights'),
        (['--known_images', '--fit=val'], 'val', '--fit=val on logits of val only fits; leave out --known_images'),
        (['--known_images', '--rule=all'], 'val', '--rule=all compares .* alone; leave out --known_images'),
    ],
)
def test_what_the_user_can_mend_is_one_line(run_dir: Path, words: list[str], split: str, message: str) -> None:
    (run_dir / 'submission.csv.gz').write_bytes(b'of an earlier combination')
    with pytest.raises(InputError, match=message) as caught:
        run(run_dir, *words, split=split)
    assert '\n' not in str(caught.value)
    assert made_in(run_dir) == ['submission.csv.gz'], 'only what may be interrupted removes the one there is'


def test_the_worklog_has_a_line_for_each_combination(run_dir: Path) -> None:
    run(run_dir)
    run(run_dir, '--rule=all', split='val')
    run(run_dir, '--rule=mean', split='val')
    entries = worklog.read(str(run_dir))
    assert [entry.name for entry in entries] == ['combine product on test', 'combine all on val', 'combine mean on val']
    size = sum(file.stat().st_size for file in (run_dir / 'logits' / 'test').glob('*.tfrecord'))
    assert entries[0].counts == {'products': 3, 'rows': 5, 'bytes': size}
    assert all(entry.seconds > 0 for entry in entries)


def test_a_flag_that_nobody_knows_is_refused(run_dir: Path) -> None:
    with pytest.raises(flags.Error, match='unknown flag --roule'):
        run(run_dir, '--roule=mean')
    assert made_in(run_dir) == []


def test_a_solution_of_other_products_is_refused_and_no_submission_written(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / 'other.csv').write_text(SOLUTION + '9,1000\n')
    with pytest.raises(InputError, match='other.csv: has 4 products, the logits 3; give the solution of this test set'):
        run(run_dir, f'--solution={tmp_path}/other.csv')
    assert made_in(run_dir) == []
    (tmp_path / 'other.csv').write_text(SOLUTION.replace('3,1000', '9,1000'))
    with pytest.raises(
        InputError, match=r'must hold .*, lacks 1 \(the first is 3\) and has besides 1 \(the first is 9\)'
    ):
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
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'mean, product, rms, median, power, max, first, or all to compare them' in shown


def known_run(tmp_path: Path, split: str) -> tuple[Path, Path]:
    """Shards, and a run whose network says label 0 of every product of a split; files 0 and 2 have products."""
    held_out = {
        11: (b'known', b'new'),  # of label 2 in train
        12: (b'new too',),
        13: (b'of two labels',),
        14: (b'in val',),  # of label 3 in val only
    }
    products = [Product(number, -1 if split == 'test' else 1002, -1 if split == 'test' else 2, split, images)
                for number, images in held_out.items()]  # fmt: skip
    made = {
        'train': [
            [Product(1, 1002, 2, 'train', (b'known',)), Product(2, 1001, 1, 'train', (b'of two labels', b'x'))],
            [Product(3, 1002, 2, 'train', (b'of two labels',))],
        ],
        'val': [[Product(4, 1003, 3, 'val', (b'in val',))]],
    }
    if split == 'test':
        made['test'] = [products[:3], [], products[3:]]
    else:
        made['val'] = [products[:3], [], products[3:]]
    shards.write_products(tmp_path / 'shards', made)
    opened = dataset.open_shards(str(tmp_path / 'shards'))
    rows: list[Rows | None] = []
    for some in made[split]:
        number = np.array([one.product_id for one in some for _ in one.images], np.int64)
        picture = np.array([place for one in some for place in range(len(one.images))], np.int64)
        label = np.array([one.label for one in some for _ in one.images], np.int64)
        values = np.eye(1, len(opened.label_map), dtype=np.float16).repeat(len(number), axis=0)
        rows.append(Rows(number, picture, 0 * number, label, values) if some else None)
    folder = tmp_path / 'runs' / 'one' / 'logits' / split
    stores.write(folder, rows, opened.label_map, dataset_digest=opened.manifest.digest())
    return tmp_path / 'shards', folder.parents[1]


def test_test_products_take_the_category_that_their_pictures_are_known_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, made = known_run(tmp_path, 'test')
    run(made, '--known_images', f'--shards_dir={folder}')
    assert submission_of(made) == '_id,category_id\n11,1002\n12,1000\n13,1000\n14,1003\n'
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'looking for the pictures of test in train and val'
    assert lines[2] == (
        'known images: of 4 products 3 (75.0%) have known pictures, 2 (50.0%) take their category; 2 predictions change'
    )
    found = predictions.read(str(made / 'predictions' / 'test'))
    assert found.known.tolist() == [True, False, False, True]
    assert found.probability[found.known].tolist() == [1, 1]
    assert found.likeliest[:, 0].tolist() == [1000] * 4
    run(made, f'--shards_dir={folder}')
    assert submission_of(made) == '_id,category_id\n11,1000\n12,1000\n13,1000\n14,1000\n'


def test_on_val_only_training_pictures_are_known_and_accuracy_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, made = known_run(tmp_path, 'val')
    run(made, '--known_images', f'--shards_dir={folder}', split='val')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'looking for the pictures of val in train'
    assert lines[2].startswith('known images: of 4 products 2 (50.0%) have known pictures, 1 (25.0%) take their')
    assert lines[3].startswith('product: accuracy 0.2500 ')
    assert lines[4].startswith('  by the network 0.0000 ')
    assert lines[5].startswith('  known images gain 0.2500 ')
    assert re.fullmatch(r'  with known pictures: 0\.5000 \(.* 2 products\), by the network 0\.0000 .*', lines[6])
    assert re.fullmatch(r'  without: 0\.0000 \(.* 2 products\), by the network 0\.0000 .*', lines[7])


def test_known_images_of_other_shards_are_refused(run_dir: Path, tmp_path: Path) -> None:
    shards.write(tmp_path / 'shards', train=3)
    with pytest.raises(InputError, match='shards: not the shards that the logits were made from; name those as'):
        run(run_dir, '--known_images', f'--shards_dir={tmp_path}/shards')
    assert made_in(run_dir) == []


def test_train_has_no_known_images(tmp_path: Path) -> None:
    folder, made = known_run(tmp_path, 'val')
    (made / 'logits' / 'val').rename(made / 'logits' / 'train')
    path = made / 'logits' / 'train' / 'manifest.json'
    path.write_text(path.read_text().replace('"split": "val"', '"split": "train"'))
    with pytest.raises(InputError, match='known images of train would be its own; give logits of val or test'):
        run(made, '--known_images', f'--shards_dir={folder}', split='train')


def test_several_runs_are_combined_beside_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label_map = stores.label_map(5)
    folders = [
        stores.write(
            tmp_path / 'runs' / name / 'logits' / 'test',
            [stores.random_rows(40, 5, seed=seed, labels=False)],
            label_map,
        )
        for seed, name in enumerate('ab')
    ]
    combine.main(['combine', f'--logits={",".join(folders)}', '--weights=0,1', '--runner=FnApiRunner'])
    assert (tmp_path / 'runs' / 'ensemble' / 'submission.csv.gz').is_file()
    run(tmp_path / 'runs' / 'b')
    assert submission_of(tmp_path / 'runs' / 'ensemble') == submission_of(tmp_path / 'runs' / 'b')
    said = capsys.readouterr().out
    assert said.startswith(f'combining 103 and 103 rows of 40 products in {folders[0]}, {folders[1]} (1 files)')


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ('1,2', '--weights has 2 numbers for 1 stores of logits; give one for each'),
        ('heavy', "--weights must be numbers with commas between, or a mixture.json, are 'heavy'"),
        ('-1', 'weights must be 0 or more, and one of them above 0; they are -1'),
        ('0', 'weights must be 0 or more, and one of them above 0; they are 0'),
        ('nan', 'weights must be 0 or more, and one of them above 0; they are nan'),
    ],
)
def test_weights_that_say_nothing_are_refused(run_dir: Path, weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(run_dir, f'--weights={weights}')
    assert made_in(run_dir) == []


def test_views_first_may_decide_otherwise(tmp_path: Path) -> None:
    """Of the first picture there are four views that say 0, of the others one that says 1 (max of means, by power)."""
    strong, weak = [2, 0], [0, 1.5]
    values = np.array([strong] * 4 + [weak] * 3, np.float16)
    picture = np.array([0, 0, 0, 0, 1, 2, 3])
    rows = Rows(np.full(7, 5), picture, np.array([0, 1, 2, 3, 0, 0, 0]), np.full(7, -1), values)
    stores.write(tmp_path / 'run' / 'logits' / 'test', [rows], stores.label_map(2))
    for views, category in (('pooled', 1000), ('nested', 1010)):
        run(tmp_path / 'run', '--rule=mean', f'--views={views}')
        assert submission_of(tmp_path / 'run') == f'_id,category_id\n5,{category}\n'
