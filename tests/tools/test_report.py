"""python -m tools.report --table: from runs with logits to the table of rules, as Markdown and CSV."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from ensemble import logits, rules, scores
from ensemble.known_images import Known
from ensemble.logits import Rows
from model import runs
from pipeline import beam_job, dataset, program
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.records import Product
from tests import shards
from tests.commands import following
from tests.ensemble import stores
from tests.tools import browser
from tests.tools.reports.trained import SETTINGS, write_run
from tools import report, table
from tools.reports import calibration, grids

# Levels 1: A, A, B; levels 2: (A, X), (A, Y), (B, X).
LABEL_MAP = Categories(np.array([1000, 1010, 1020]), (('A', 'X', 'RUG'), ('A', 'Y', 'RUG'), ('B', 'X', 'RUG')))
A, B, C = range(3)
# A product: its id, its label, and the probabilities of its pictures in sixteenths. Of product 7 product and mean say
# B, first and max say A (see test_rules.py); of the others all say the first picture's highest.
Products = Sequence[tuple[int, int, Sequence[tuple[int, int, int]]]]
SHARDS: Sequence[Products] = [
    [(7, B, [(12, 3, 1), (4, 10, 2), (1, 9, 6)]), (3, A, [(8, 4, 4)])],
    [],
    [(5, A, [(4, 4, 8)]), (2, A, [(4, 8, 4), (4, 8, 4)])],
]
# Right are, by mean: 7 and 3; 2 as far as level 1; 5 not at all.
VIEW = (1, 1, 14)  # what a second view says; pooled with the first, C


def rows_of(products: Products, *, tta: int, test: bool) -> Rows:
    lines = [
        (product, image, view, -1 if test else label, np.log(picture if view == 0 else VIEW))
        for product, label, pictures in products
        for image, picture in enumerate(pictures)
        for view in range(tta)
    ]
    product_id, image_index, view, label = (np.array([line[column] for line in lines], np.int64) for column in range(4))
    return Rows(product_id, image_index, view, label, np.array([line[4] for line in lines], np.float16))


def write_store(
    run_dir: Path, *, split: str = 'val', tta: int = 1, dataset_digest: str = 'd', weights_digest: str = 'w'
) -> None:
    folder = str(run_dir / 'logits' / (split if tta == 1 else f'{split}-tta{tta}'))
    files = [
        logits.write_shard(
            folder,
            f'{split}-{number:05}-of-00003.tfrecord',
            rows_of(products, tta=tta, test=split == 'test') if products else [],
            split=split,
        )
        for number, products in enumerate(SHARDS)
    ]
    logits.finish(
        folder,
        files,
        split=split,
        tta=tta,
        weights_digest=weights_digest,
        dataset_digest=dataset_digest,
        seed=0,
        categories=LABEL_MAP,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs `first` (with augmentation by its settings, views too) and `noaug` (without settings)."""
    made = tmp_path / 'runs'
    write_store(made / 'first')
    write_store(made / 'first', tta=5)
    (made / 'first' / 'run.json').write_text(json.dumps({'crop_probability': 0, 'flip_probability': 0.5}))
    write_store(made / 'noaug')
    return made


def run(*words: str) -> None:
    report.main(['report', '--table', *words, '--runner=FnApiRunner'])


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def names_in(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def test_every_rule_of_every_store_has_a_line_of_numbers(folder: Path) -> None:
    run(f'{folder}/first', f'{folder}/noaug/')
    lines = lines_of(folder / 'first' / 'table-val.csv')
    found = [(line['configuration'], line['tta'], line['views'], line['rule']) for line in lines]
    assert found == [
        (name, tta, views, rule)
        for name, tta, views in [
            ('first', '1', 'pooled'),
            ('first', '5', 'pooled'),
            ('first', '5', 'nested'),
            ('noaug', '1', 'pooled'),
        ]
        for rule in rules.names()
    ]
    for line in lines:
        assert float(line['accuracy_low']) <= float(line['accuracy']) <= float(line['accuracy_high'])
        assert float(line['over_mean_low']) <= float(line['over_mean']) <= float(line['over_mean_high'])
        assert line['products'] == '4'
    assert names_in(folder / 'first') == ['logits', 'run.json', 'table-val.csv', 'table-val.md']
    assert names_in(folder / 'noaug') == ['logits']


def test_the_numbers_are_those_of_a_table_made_by_hand(folder: Path) -> None:
    run(f'{folder}/noaug')
    lines = {line['rule']: line for line in lines_of(folder / 'noaug' / 'table-val.csv')}
    mean, first = lines['mean'], lines['first']
    assert (mean['accuracy'], mean['level1'], mean['level2'], mean['level3']) == ('0.5', '0.75', '0.5', '0.5')
    assert mean['top5'] == '1', 'there are fewer than five categories'
    counts = [(mean[f'accuracy_{count}_pictures'], mean[f'products_{count}_pictures']) for count in range(1, 5)]
    assert counts == [('0.5', '2'), ('0', '1'), ('1', '1'), ('', '0')]
    # Of four products one is lost: none to three of four draws, as P(4) = 1/256.
    assert (first['accuracy'], first['over_mean'], first['over_mean_low'], first['over_mean_high']) == (
        '0.25', '-0.25', '-0.75', '0',
    )  # fmt: skip
    assert (first['p_value'], first['paper'], mean['paper']) == ('1', '0.691', '0.708')


def test_mean_differs_from_itself_by_nothing(folder: Path) -> None:
    run(f'{folder}/first')
    lines = [line for line in lines_of(folder / 'first' / 'table-val.csv') if line['rule'] == 'mean']
    assert len(lines) == 3
    for line in lines:
        cells = [line[name] for name in ('over_mean', 'over_mean_low', 'over_mean_high', 'p_value')]
        assert cells == ['0', '0', '0', '1']


def test_views_are_held_against_the_mean_of_the_same_views(folder: Path) -> None:
    """Four of five views say C of every picture, but the first picture's first view doesn't."""
    run(f'{folder}/first')
    lines = {(line['tta'], line['views'], line['rule']): line for line in lines_of(folder / 'first' / 'table-val.csv')}
    for views in rules.VIEWS:
        assert lines['5', views, 'mean']['accuracy'] == '0'
        assert (lines['5', views, 'first']['accuracy'], lines['5', views, 'first']['over_mean']) == ('0.25', '0.25')
    assert (lines['5', 'pooled', 'first']['paper'], lines['5', 'nested', 'first']['paper']) == ('0.695', '')


def test_the_markdown_begins_with_the_papers_form(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f'{folder}/noaug', f'{folder}/first')
    text = (folder / 'noaug' / 'table-val.md').read_text()
    assert text in capsys.readouterr().out
    blocks = [block.splitlines() for block in text.strip().split('\n\n')]
    assert blocks[0][0].startswith('Accuracy over the 4 products of val, ± half of its 95 % bootstrap interval; ')
    grid = [[cell.strip() for cell in line.strip('|').split('|')] for line in blocks[1]]
    paper = 'paper (Cdiscount)'
    assert grid[0] == ['rule', 'noaug', paper, 'first', paper, 'first, 5 views', paper]
    assert [line[0] for line in grid[2:]] == list(rules.names())
    assert grid[3] == ['product', '0.500 ± 0.500', '0.712', '0.500 ± 0.500', '0.710', '0.000 ± 0.000', '0.715']
    titles = [block[0] for block in blocks if block[0].startswith('#')]
    assert titles == ['### noaug', '### first', '### first, 5 views']
    for block in blocks[1:]:
        assert block[0].startswith('###') or len({len(line) for line in block}) == 1
    assert [cell.strip() for cell in blocks[5][0].split('|')[1:-1]] == [
        'rule', '1 picture (2)', '2 pictures (1)', '3 pictures (1)', '4 pictures (0)',
    ]  # fmt: skip


def test_what_pictures_and_views_bring_is_told_with_its_test(folder: Path) -> None:
    """One picture more is right than by the first alone, of four; with five views none of two."""
    run(f'{folder}/first')
    text = (folder / 'first' / 'table-val.md').read_text()
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.split('\n\n')[2].splitlines()]
    assert lines[0] == ['logits', 'product over first', 'p', 'over one view', 'p']
    assert lines[2:] == [
        ['first', '+0.250 (+0.000 to +0.750)', '1.000', '', ''],
        ['first, 5 views', '-0.250 (-0.750 to +0.000)', '1.000', '-0.500 (-1.000 to +0.000)', '0.500'],
    ]


def test_a_difference_beyond_chance_has_a_mark() -> None:
    """Ten products that only one of the rules has right: p = 2 / 1024."""
    every, none = np.ones(10, bool), np.zeros(10, bool)
    rows = [
        table.Row(
            store=table.Store('folder', 'name', 1, {}),
            views='pooled',
            rule=rule,
            accuracy=scores.accuracy(correct),
            over_mean=scores.gain(correct, over=none),
            p_value=scores.p_value(correct, none),
            top5=1.0,
            levels=(scores.accuracy(correct),) * 3,
            by_pictures=(scores.accuracy(correct),) * 4,
            correct=correct,
            by_seen=None,
            calibration=calibration.measure(np.ones(10), correct),
        )
        for rule, correct in (('mean', none), ('product', every), ('first', none))
    ]
    assert '| product | 1.000 ± 0.000 * |' in grids.markdown(rows, 'val')


def test_products_whose_pictures_are_known_are_told_apart(folder: Path) -> None:
    (store,) = table.find_stores([f'{folder}/noaug'], 'val')
    engine = beam_job.engine(['--runner=FnApiRunner'])
    # The store's order is 7, 3, 5, 2; mean has the first two right.
    known = Known(np.array([7, 3, 5, 2]), np.array([3, 1, 1, 2]), np.array([3, 1, 0, 0]), np.full(4, -1))
    rows = list(table.measure(engine, store, scratch=f'{folder}/scratch', known=known))
    assert rows[0].by_seen
    seen, unseen = rows[0].by_seen
    assert (seen.value, seen.count, unseen.value, unseen.count) == (1.0, 2, 0.0, 2)
    table.write_csv(rows, f'{folder}/table.csv')
    line = lines_of(folder / 'table.csv')[0]
    assert [line[name] for name in ('accuracy_seen', 'products_seen', 'accuracy_unseen')] == ['1', '2', '0']
    assert '| a picture seen (2) | none seen (2) |' in grids.markdown(rows, 'val')


def test_known_pictures_of_other_products_are_refused(folder: Path) -> None:
    (store,) = table.find_stores([f'{folder}/noaug'], 'val')
    known = Known(np.array([3, 7, 5, 2]), np.ones(4, np.int64), np.zeros(4, np.int64), np.full(4, -1))
    with pytest.raises(InputError, match='noaug/logits/val: holds other products than the shards'):
        list(table.measure(beam_job.engine(['--runner=FnApiRunner']), store, scratch=f'{folder}/scratch', known=known))


def test_logits_of_one_run_by_other_weights_are_refused(folder: Path) -> None:
    write_store(folder / 'mixed', weights_digest='new')
    write_store(folder / 'mixed', tta=5, weights_digest='old')
    with pytest.raises(
        InputError, match=r'val-tta5: by other weights than \S+val; make both again: python -m model\.predict'
    ):
        run(f'{folder}/mixed')


def write_shards(folder: Path) -> str:
    """The products of SHARDS as a dataset, in which products 7 and 3 show a picture of the training set; its digest."""
    train = Product(100, 1000, A, 'train', (b'7', b'3'))
    val = [
        [
            Product(product, 1000 + 10 * label, label, 'val', tuple(b'%d' % product for _ in pictures))
            for product, label, pictures in products
        ]
        for products in SHARDS
    ]
    shards.write_products(folder, {'train': [[train]], 'val': val})
    return dataset.open_shards(str(folder)).manifest.digest()


def test_pictures_that_the_training_set_has_too_are_found_in_the_shards(folder: Path) -> None:
    write_store(folder / 'other', dataset_digest=write_shards(folder / 'shards'))
    run(f'{folder}/other', f'--shards_dir={folder}/shards')
    line = lines_of(folder / 'other' / 'table-val.csv')[0]
    assert [line[name] for name in ('accuracy_seen', 'products_seen', 'products_unseen')] == ['1', '2', '2']
    assert names_in(folder / 'other') == ['logits', 'table-val.csv', 'table-val.md']


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('none', r'\S+/none/manifest.json: no such file'),
        ('shards', r'\S+/shards: not the shards that the logits were made from'),
    ],
)
def test_without_the_shards_of_the_logits_they_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    write_shards(folder / 'shards')
    run(f'{folder}/noaug', f'--shards_dir={folder}/{name}')
    assert re.search(f'left out, which pictures the training set has too: {reason}', capsys.readouterr().out)
    assert 'products_seen' not in lines_of(folder / 'noaug' / 'table-val.csv')[0]


def test_missing_logits_are_told_with_the_command_that_makes_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_store(folder / 'first', tta=2)
    run(f'{folder}/first', f'{folder}/noaug')
    told = [line for line in capsys.readouterr().out.splitlines() if 'has no logits' in line]
    assert told == [
        f'{folder}/noaug: has no logits of {tta} views; to have them in the table: '
        f'python -m model.predict --run_dir={folder}/noaug --split=val --tta={tta}'
        for tta in (2, 5)
    ]


def test_the_test_set_is_scored_by_a_solution(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(folder / 'noaug', split='test')
    (folder / 'solution.csv').write_text('_id,category_id\n7,1010\n3,1000\n5,1020\n2,1000\n')
    run(f'{folder}/noaug', '--split=test', f'--solution={folder}/solution.csv', f'--output_dir={folder}/new')
    lines = {line['rule']: line for line in lines_of(folder / 'new' / 'table-test.csv')}
    assert (lines['mean']['accuracy'], lines['first']['accuracy']) == ('0.75', '0.5')
    assert names_in(folder / 'new') == ['table-test.csv', 'table-test.md']
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'wrote {folder}/new/table-test.md and {folder}/new/table-test.csv; next: '
        f'python -m ensemble.combine --rule mean --logits={folder}/noaug/logits/test'
    )


def test_two_runs_of_the_same_name_are_told_apart_by_their_paths(folder: Path) -> None:
    write_store(folder / 'other' / 'noaug')
    stores = table.find_stores([f'{folder}/noaug', f'{folder}/other/noaug'], 'val')
    assert [store.configuration for store in stores] == [f'{folder}/noaug', f'{folder}/other/noaug']


def test_a_link_to_a_run_has_the_runs_name(folder: Path) -> None:
    (folder / 'latest').symlink_to('noaug')
    assert [store.title for store in table.find_stores([f'{folder}/latest'], 'val')] == ['noaug']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['{}/none'],
            'none/logits/val holds no finished logits; make them: .*model.predict --run_dir=.*none --split=val',
        ),
        (['{}/noaug', '--split=test'], 'needs the products.*--solution=data/solution.csv'),
        (['{}/noaug', '--solution=x.csv'], '--solution=x.csv is for the test set; give --split=test, or leave it out'),
        (['{}/noaug', '{}/other'], 'other/logits/val: its dataset is e, that of .*noaug/logits/val is d'),
    ],
)
def test_what_the_user_can_mend_is_one_line(folder: Path, words: list[str], message: str) -> None:
    write_store(folder / 'other', dataset_digest='e')
    with pytest.raises(InputError, match=message) as caught:
        run(*(word.format(folder) for word in words))
    assert '\n' not in str(caught.value)
    assert names_in(folder / 'noaug') == ['logits']


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--table', '--split=test'], "--split=test needs the products' categories: give --solution=data/solution.csv"),
        (['--solution=x.csv'], '--solution=x.csv is for the test set; give --split=test, or leave it out'),
        (['--splitt=val'], 'unknown flag --splitt, perhaps --split is meant; --help lists the flags'),
    ],
)
def test_bad_usage_has_its_exit_code(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr('sys.argv', ['report', 'no/run', *words])
    with pytest.raises(SystemExit) as ended:
        program.run(report.main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'error: {message}\n'


def test_the_table_of_a_run_in_training_does_not_send_to_model_predict(folder: Path) -> None:
    runs.write_settings(str(folder / 'training'), {})
    with pytest.raises(InputError, match=r'has no logits of val yet: its training is not finished; the same model\.tr'):
        run(f'{folder}/noaug', f'{folder}/training')


def test_the_last_line_names_a_command_that_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To combine the test logits, once there are some."""
    run(f'{folder}/noaug')
    predict = f'python -m model.predict --run_dir={folder}/noaug --split=test'
    assert following(capsys.readouterr().out) == predict
    write_store(folder / 'noaug', split='test')
    write_run(folder / 'noaug')
    report.main(['report', f'{folder}/noaug', '--rule=first', '--split=test', '--runner=FnApiRunner'])
    combine = f'python -m ensemble.combine --rule first --logits={folder}/noaug/logits/test'
    assert following(capsys.readouterr().out) == combine


def test_damaged_logits_leave_nothing_behind(folder: Path) -> None:
    path = folder / 'noaug' / 'logits' / 'val' / 'val-00002-of-00003.tfrecord'
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'val-00002\S+: record 0 is damaged'):
        run(f'{folder}/noaug')
    assert names_in(folder / 'noaug') == ['logits']


@pytest.mark.parametrize(
    ('words', 'folders'),
    [
        ([], ['runs/latest']),
        (['runs/a/', 'runs/b', 'runs/a'], ['runs/a', 'runs/b']),
        (['--run_dir=runs/a', 'runs/b'], ['runs/a', 'runs/b']),
        (['runs/b', '--run_dir=runs/a/'], ['runs/a', 'runs/b']),
        (['runs/latest', 'runs/b', 'runs/a'], ['runs/latest', 'runs/b']),
        (['--table', 'runs/b'], ['runs/b']),
    ],
)
def test_the_runs_are_those_named_or_the_latest(
    words: list[str], folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is looked into first; runs/latest is runs/a."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs' / 'a').mkdir(parents=True)
    (tmp_path / 'runs' / 'latest').symlink_to('a')
    assert report._folders(program.parse(report.FLAGS, ['report', *words], doc='', pass_through=True)) == folders
    with pytest.raises(InputError, match=folders[0]):
        report.main(['report', *words])


def test_a_flag_that_nobody_knows_is_refused(folder: Path) -> None:
    with pytest.raises(flags.Error, match='unknown flag --splitt'):
        run(f'{folder}/noaug', '--splitt=val')


@pytest.mark.parametrize('width', [browser.PHONE, browser.DESK])
@browser.needed
def test_the_page_of_a_run_is_one_whole_file(
    folder: Path, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ('first', 'noaug'):
        write_run(folder / name, crop_probability=0, flip_probability=0.5)
    words = [f'--run_dir={folder}/first', f'{folder}/noaug', f'--shards_dir={tmp_path}/none', '--runner=FnApiRunner']
    report.main(['report', *words])
    path = folder / 'first' / 'report-val.html'
    assert re.fullmatch(
        rf'wrote {path} \(\d\.\d MB\), a page to open in a browser; next: '
        rf'the same model.train command goes on with {folder}/first, whose training is not finished',
        capsys.readouterr().out.splitlines()[-1],
    )
    assert names_in(folder / 'noaug') == ['history.csv', 'logits', 'run.json']
    with browser.started() as chromium:
        seen = browser.look(chromium, path, width=width, dark=width == browser.PHONE, shot=tmp_path / 'shot.png')
        assert seen.problems == []
        assert seen.page.locator('h1').inner_text() == 'Run first'
        headings = seen.page.locator('h2').all_inner_texts()
    assert headings[:2] == ['Training', 'Rules (Table I)']
    assert headings[-2:] == ['What it was trained on', 'Time and throughput']


def test_runs_for_numbers_of_pictures_are_one_with_a_plus_between(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = stores.of_products(stores.in_order(stores.random_rows(12, 3, seed=0)), seed=1)
    for split in ('val', 'test'):
        stores.write_parts(folder, [rows], LABEL_MAP, split=split)
    runs_of = [write_run(folder / f'p{count}', pictures=count) for count in range(1, 5)]
    joint = '+'.join(runs_of)
    report.main(['report', f'--run_dir={joint}', f'--shards_dir={tmp_path}/none', '--runner=FnApiRunner'])
    page = (folder / 'p1' / 'report-val.html').read_text()
    assert 'Accuracy over the 12 products of val, ±' in page and '<h1>Run p1+p2+p3+p4</h1>' in page
    assert all(f'p{count}: {SETTINGS["backbone"]}, not finished' in page for count in range(1, 5)), (
        'each was trained by itself'
    )
    assert following(capsys.readouterr().out) == (
        'python -m ensemble.combine --rule product --logits=' + '+'.join(f'{one}/logits/test' for one in runs_of)
    )
    run(joint, f'{folder}/p4+{folder}/p3+{folder}/p2+{folder}/p1')
    lines = lines_of(folder / 'p1' / 'table-val.csv')
    assert {line['configuration'] for line in lines} == {'p1+p2+p3+p4', 'p4+p3+p2+p1'}
    assert len({line['accuracy'] for line in lines if line['rule'] == 'product'}) == 1


def test_the_page_of_the_test_set_without_its_truth_has_only_what_needs_none(folder: Path, tmp_path: Path) -> None:
    write_store(folder / 'noaug', split='test')
    write_run(folder / 'noaug')
    report.main(['report', f'{folder}/noaug', '--split=test', f'--shards_dir={tmp_path}/none', '--runner=FnApiRunner'])
    page = (folder / 'noaug' / 'report-test.html').read_text()
    assert 'Least certain' in page
    assert 'Most confident mistakes' not in page
