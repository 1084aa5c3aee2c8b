"""python -m ensemble.combine with models of several stores, joined by +, and with a store of a part of the products."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ensemble import combine, logits, predictions
from ensemble.logits import Rows
from pipeline import dataset, worklog
from pipeline.errors import InputError, UsageError
from pipeline.records import Product
from tests import shards
from tests.commands import following
from tests.ensemble import stores

CLASSES = 5
LABEL_MAP = stores.label_map(CLASSES)
PRODUCTS = 60
COUNTS = (21, 16, 14, 9)  # products with 1, 2, 3 and 4 pictures


def rows_of(split: str, *, model: int) -> Rows:
    """What a model of whole products says; of val it often knows the label."""
    pictures = stores.random_rows(PRODUCTS, CLASSES, seed=model)
    rows = stores.of_products(stores.in_order(pictures), seed=model)
    rows.logits[np.arange(len(rows)), rows.label] += 2
    counts = np.repeat([1, 2, 3, 4], COUNTS)[rows.product_id]
    return dataclasses.replace(rows, pictures=counts, label=rows.label if split == 'val' else rows.label * 0 - 1)


def p(split: str, *counts: int, run: str = 'a') -> str:
    """The stores for these numbers of pictures, as --logits takes them."""
    return '+'.join(f'{run}/p{count}/logits/{split}' for count in counts)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a/p1 to a/p4 and b/p1 to b/p4, for each number of pictures, and a/all and b/all with what they say."""
    monkeypatch.chdir(tmp_path)
    for name, model in (('a', 1), ('b', 2)):
        for split in ('val', 'test'):
            rows = rows_of(split, model=model)
            stores.write_parts(Path(name), [rows], LABEL_MAP, split=split)
            about = {'pictures': 4, 'fewer_pictures': True, 'weights_digest': name}
            stores.write(Path(name, 'all', 'logits', split), [rows], LABEL_MAP, **about)
    truth = rows_of('val', model=1)
    lines = [f'{one},{LABEL_MAP.ids[label]}\n' for one, label in zip(truth.product_id, truth.label, strict=True)]
    Path('solution.csv').write_text('_id,category_id\n' + ''.join(lines))


def run(names: str, *words: str) -> None:
    combine.main(['combine', f'--logits={names}', '--runner=FnApiRunner', *words])


def submission_of(folder: str) -> str:
    return gzip.decompress(Path(folder, 'submission.csv.gz').read_bytes()).decode()


def made_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_four_models_make_one_submission(capsys: pytest.CaptureFixture[str]) -> None:
    run(p('test', 1, 2, 3, 4))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'combining 60 rows of 60 products in {p("test", 1, 2, 3, 4)} (1 files) by product'
    assert lines[2].startswith('wrote a/ensemble/submission.csv.gz: 60 products; next: upload it')
    run('a/all/logits/test')
    assert submission_of('a/ensemble') == submission_of('a/all')
    (entry,) = worklog.read('a/ensemble')
    size = sum(file.stat().st_size for count in range(1, 5) for file in Path(p('test', count)).glob('*.tfrecord'))
    assert (entry.name, entry.counts) == ('combine product on test', {'products': 60, 'rows': 60, 'bytes': size})


def test_slashes_at_the_end_of_folders_do_not_count() -> None:
    run('+'.join(f'{folder}/' for folder in p('test', 1, 2, 3, 4).split('+')))
    assert (Path('a/ensemble/predictions/test/manifest.json')).exists()


@pytest.mark.parametrize('names', ['a/all/logits/test+', '+a/all/logits/test', 'a/all/logits/test,,b', '++'])
def test_a_folder_without_a_name_is_bad_usage(names: str) -> None:
    with pytest.raises(UsageError, match=r'must name a folder, or several with one comma or \+ between two'):
        run(names)


def test_all_rules_say_the_same_of_one_row_a_product(capsys: pytest.CaptureFixture[str]) -> None:
    run(p('val', 1, 2, 3, 4), '--rule=all')
    said = capsys.readouterr().out
    lines = said.splitlines()[2:9]
    assert len({tuple(line.split()[1:]) for line in lines}) == 1
    assert [line.split()[-3] for line in lines] == ['60'] * 7
    assert lines[0].split()[-1] == str(PRODUCTS - COUNTS[0]), 'products with two pictures or more'
    assert following(said) == f'python -m ensemble.combine --rule product --logits={p("test", 1, 2, 3, 4)}'


def test_the_next_command_makes_a_store_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    Path('a/p3/logits/test/manifest.json').unlink()
    run(p('val', 1, 2, 3, 4))
    assert following(capsys.readouterr().out) == 'python -m model.predict --run_dir=a/p3 --split=test'


def test_weights_are_fitted_for_groups_and_hold_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    val, test = (f'{p(split, 1, 2, 3, 4)},{p(split, 4, 3, 2, 1, run="b")}' for split in ('val', 'test'))
    run(test, '--fit=val')
    said = capsys.readouterr().out
    assert said.startswith(f'fitting product on 60 products in {val.replace(",", ", ")}\n')
    assert 'wrote a/ensemble/mixture.json: what was fitted; next: python -m ensemble.combine ' in said
    fitted = json.loads(Path('a/ensemble/mixture.json').read_text())
    told = [[(store['logits'], store['weights_digest']) for store in model] for model in fitted['models']]
    expected = [
        [(f'{run}/p{n}/logits/val', f'w{n}') for n in order]
        for run, order in (('a', (1, 2, 3, 4)), ('b', (4, 3, 2, 1)))
    ]
    assert told == expected
    at_once = submission_of('a/ensemble')
    run(test, '--weights=a/ensemble/mixture.json')
    assert submission_of('a/ensemble') == at_once
    run('a/all/logits/test,b/all/logits/test', '--fit=val', '--output_dir=whole')
    assert submission_of('whole') == at_once
    whole = json.loads(Path('whole/mixture.json').read_text())['mixture']
    np.testing.assert_allclose(fitted['mixture']['weights'], whole['weights'], atol=1e-6)


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (f'{p("test", 1, 2, 4, 3)},b/all/logits/test', 'its weights_digest is w4, not w3'),
        ('b/all/logits/test,a/all/logits/test', r'b/all/logits/test: .* \(it has 1 stores with \+ between, not 4\)'),
        (p('test', 1, 2, 3, 4), r'for 2 models, --logits has 1; give .*: a/p1/logits/val\+a/p2/\S+,b/all/logits/val$'),
    ],
)
def test_a_mixture_is_for_the_same_stores_in_their_order(names: str, message: str) -> None:
    run(f'{p("val", 1, 2, 3, 4)},b/all/logits/val', '--fit=val')
    with pytest.raises(InputError, match=message) as caught:
        run(names, '--weights=a/ensemble/mixture.json')
    assert '\n' not in str(caught.value)


def test_val_logits_by_other_weights_of_one_of_the_models_are_refused() -> None:
    rows = rows_of('val', model=3)
    stores.write_parts(Path('other'), [rows], LABEL_MAP, split='val', weights_digest='other')
    Path('a/p3/logits/val').rename('a/p3/older')
    Path('other/p3/logits/val').rename('a/p3/logits/val')
    with pytest.raises(InputError, match='a/p3/logits/val and a/p3/logits/test are not by the same model .*w3.*a/p3'):
        run(f'{p("test", 1, 2, 3, 4)},b/all/logits/test', '--fit=val')


# One store of a part.


@pytest.mark.parametrize('count', [1, 3])
def test_val_logits_of_a_part_are_scored_on_its_products(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    run(p('val', count), '--rule=mean')
    said = capsys.readouterr().out
    note, _, accuracy, last = said.splitlines()
    those = f'those with {count} picture{"s" if count > 1 else ""}'
    products = COUNTS[count - 1]
    assert note == f'note: a/p{count}/logits/val: only {products} of 60 products ({those})'
    assert accuracy.endswith(f'{products} products)')
    assert last.startswith(
        f'wrote a/p{count}/predictions/val: the predictions for {products} of 60 products ({those}); next: python'
    )
    assert following(said) == f'python -m ensemble.combine --rule mean --logits=a/p{count}/logits/test'
    found, whole = predictions.read(f'a/p{count}/predictions/val'), rows_of('val', model=1)
    assert found.product_id.tolist() == whole.product_id[whole.pictures == count].tolist()
    assert set(found.pictures.tolist()) == {count}


def test_test_logits_of_a_part_make_no_submission_and_leave_an_older_one(capsys: pytest.CaptureFixture[str]) -> None:
    older = Path('a/p2/submission.csv.gz')
    older.write_bytes(b'of all products')
    run(p('test', 2), '--solution=solution.csv')
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith('product: accuracy ')
    assert lines[2].endswith('16 products)')
    assert lines[3] == (
        'wrote a/p2/predictions/test: the predictions for 16 of 60 products (those with 2 pictures); no '
        'submission.csv.gz, which needs all products; next: name the stores of the others too, joined by +: '
        '--logits=a/p2/logits/test+...'
    )
    assert len(lines) == 4
    assert older.read_bytes() == b'of all products'
    assert len(predictions.read('a/p2/predictions/test')) == 16


def test_a_solution_must_have_the_products_of_a_part_and_be_of_the_whole_test_set() -> None:
    lines = Path('solution.csv').read_text().splitlines()
    Path('short.csv').write_text('\n'.join(lines[:-1]) + '\n')
    with pytest.raises(InputError, match='short.csv: has 59 products, the logits 60; give the solution of this test'):
        run(p('test', 2), '--solution=short.csv')
    changed = [line.replace('30,', '99,', 1) if line.startswith('30,') else line for line in lines]
    Path('other.csv').write_text('\n'.join(changed) + '\n')
    with pytest.raises(
        InputError, match=r'other.csv: must hold the 16 products predicted, lacks 1 \(the first is 30\);'
    ):
        run(p('test', 2), '--solution=other.csv')
    run(p('test', 1), '--solution=other.csv')


def test_the_rules_are_compared_on_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    run(p('val', 2), '--rule=all')
    assert capsys.readouterr().out.startswith('note: a/p2/logits/val: only 16 of 60 products (those with 2 pictures)\n')
    table = [line.split(',') for line in Path('a/p2/rules-val.csv').read_text().splitlines()]
    assert {row[4] for row in table[1:]} == {'16'}
    run(p('val', 1), '--rule=all')
    assert 'nan over first' not in capsys.readouterr().out, 'nothing is told of products that there are not'
    run(p('test', 2), '--rule=all', '--solution=solution.csv')
    assert Path('a/p2/rules-test.csv').read_text() == Path('a/p2/rules-val.csv').read_text()


def test_weights_are_fitted_on_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    run(f'{p("val", 2)},{p("val", 2, run="b")}', '--fit=val')
    assert 'fitted on 16 products' in capsys.readouterr().out
    assert made_in('a/ensemble') == ['mixture.json', worklog.NAME]


def test_a_group_that_lacks_products_changes_nothing() -> None:
    Path('a/ensemble').mkdir()
    Path('a/ensemble/submission.csv.gz').write_bytes(b'older')
    with pytest.raises(
        InputError, match='9 of 60 products are missing, those with 4 pictures; name a store of them too'
    ):
        run(p('test', 1, 2, 3))
    assert made_in('a/ensemble') == ['submission.csv.gz']


# Pictures that are known.


def known_shards(folder: Path) -> None:
    """Of test, products with even ids show a picture of category 1004's in train."""
    rows = rows_of('test', model=1)
    assert rows.pictures is not None
    products = [
        Product(one, -1, -1, 'test', tuple([b'known' if one % 2 == 0 else b'%d' % one, b'a', b'b', b'c'][:count]))
        for one, count in zip(rows.product_id.tolist(), rows.pictures.tolist(), strict=True)
    ]
    train = [Product(1000, 1040, 4, 'train', (b'known',))]
    shards.write_products(folder, {'train': [train], 'test': [products]}, label_map=LABEL_MAP)


@pytest.mark.parametrize('counts', [(1, 2, 3, 4), (2,)])
def test_known_pictures_are_those_of_the_products_at_hand(
    counts: Sequence[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known_shards(tmp_path / 'shards')
    digest = dataset.open_shards('shards').manifest.digest()
    stores.write_parts(Path('k'), [rows_of('test', model=1)], LABEL_MAP, split='test', dataset_digest=digest)
    run(p('test', *counts, run='k'), '--known_images', '--shards_dir=shards')
    folder = 'k/ensemble' if len(counts) > 1 else 'k/p2'
    found = predictions.read(f'{folder}/predictions/test')
    assert len(found) == sum(COUNTS[count - 1] for count in counts)
    assert found.known.tolist() == (found.product_id % 2 == 0).tolist()
    assert set(found.category_id[found.known].tolist()) == {1040}
    number = int(found.known.sum())
    assert f'of {len(found)} products {number} ' in capsys.readouterr().out


def test_a_store_of_pictures_may_hold_what_has_no_model_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """As a shop would: a model for products with two pictures, and that of single pictures for all others."""
    rows = rows_of('val', model=1)
    assert rows.pictures is not None
    places = np.repeat(np.arange(len(rows)), rows.pictures)
    index = np.concatenate([np.arange(count) for count in rows.pictures])
    pictures = dataclasses.replace(rows.take(places), image_index=index, pictures=None)
    stores.write(Path('one/logits/val'), [pictures], LABEL_MAP)
    run(f'one/logits/val+{p("val", 2)}', '--output_dir=out')
    found = predictions.read('out/predictions/val')
    assert found.product_id.tolist() == rows.product_id.tolist()
    assert found.pictures.tolist() == rows.pictures.tolist()
    assert logits.read_manifest('one/logits/val').about['pictures'] == 0
