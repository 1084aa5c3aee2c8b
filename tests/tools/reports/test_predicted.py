"""From runs with logits, and shards, to the sections of a page; and the page as its readers see it."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ensemble.logits import Rows
from model import runs
from pipeline import beam_job, dataset
from pipeline.errors import InputError
from pipeline.records import Product
from pipeline.split import order_hashes
from tests import catalogue, shards
from tests.ensemble import stores
from tests.tools import browser
from tests.tools.reports.outcomes import LABEL_MAP
from tools import page
from tools.page import Section
from tools.reports import predicted

SCRIPT, SHOE, RUG, OTHER = range(4)
# Val products: id, label, and the probabilities of their pictures in sixteenths. Of product 7 the rule product says
# SHOE, but first SCRIPT (see tests/tools/test_report.py); of the others all rules say the first picture's highest.
# OTHER has no val product.
SHARDS: Sequence[Sequence[tuple[int, int, Sequence[tuple[float, ...]]]]] = [
    [(7, SHOE, [(12, 3, 1, 0.01), (4, 10, 2, 0.01), (1, 9, 6, 0.01)]), (3, SCRIPT, [(8, 4, 4, 0.01)])],
    [],
    [
        (5, SCRIPT, [(4, 3, 9, 0.01)]),
        (2, SCRIPT, [(2, 2, 12, 0.01), (2, 2, 12, 0.01)]),
        (9, RUG, [(10, 3, 3, 0.01)]),
    ],
]
TRAINING = (SCRIPT, SCRIPT, SCRIPT, SCRIPT, SHOE, SHOE, RUG, OTHER)
DAMAGED = 5  # its picture isn't one
ENGINE = ['--runner=FnApiRunner']
# A dataset's products stand in the order of their hashes; by this seed, as those above do.
ORDER_SEED = next(
    seed
    for seed in itertools.count()
    if all(
        (np.diff(order_hashes(np.array([one for one, *_ in products]), seed=seed).astype(float)) > 0).all()
        for products in SHARDS
        if products
    )
)


def rows_of(products: Sequence[tuple[int, int, Sequence[tuple[float, ...]]]], *, tta: int, test: bool) -> Rows | None:
    lines = [
        (product, image, view, -1 if test else label, np.log(shares))
        for product, label, pictures in products
        for image, shares in enumerate(pictures)
        for view in range(tta)
    ]
    if not lines:
        return None
    product_id, image_index, view, label = (np.array([line[column] for line in lines]) for column in range(4))
    return Rows(product_id, image_index, view, label, np.array([line[4] for line in lines], np.float16))


def write_logits(run: Path, *, digest: str, split: str = 'val', tta: int = 1) -> None:
    folder = run / 'logits' / (split if tta == 1 else f'{split}-tta{tta}')
    shards_rows = [rows_of(products, tta=tta, test=split == 'test') for products in SHARDS]
    stores.write(folder, shards_rows, LABEL_MAP, dataset_digest=digest, tta=tta)


def product(product_id: int, label: int, split: str, *, pictures: int = 1) -> Product:
    images = tuple(catalogue.jpeg(4 * product_id + number, label) for number in range(pictures))
    if product_id == DAMAGED:
        images = (b'no picture',) * pictures
    known = split != 'test'
    return Product(product_id, int(LABEL_MAP.ids[label]) if known else -1, label if known else -1, split, images)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `demo` (val with one view and with two, test) and `other` (val), and the shards of their products."""
    made = tmp_path_factory.mktemp('report')
    splits = {
        split: [
            [product(one, label, split, pictures=len(some)) for one, label, some in products] for products in SHARDS
        ]
        for split in ('val', 'test')
    }
    train = [[product(100 + number, label, 'train') for number, label in enumerate(TRAINING)]]
    shards.write_products(made / 'shards', {'train': train, **splits}, label_map=LABEL_MAP)
    digest = dataset.open_shards(str(made / 'shards')).manifest.digest()
    write_logits(made / 'demo', digest=digest)
    write_logits(made / 'demo', digest=digest, tta=2)
    write_logits(made / 'demo', digest=digest, split='test')
    write_logits(made / 'other', digest=digest)
    return made


def report(folder: Path, *names: str, **options: str) -> dict[str, Section]:
    said = {'split': 'val', 'rule': 'product', 'solution': '', 'shards_dir': f'{folder}/shards'} | options
    found = predicted.sections(
        beam_job.engine(ENGINE), [f'{folder}/{name}' for name in names], output_dir=str(folder / 'out'), **said
    )
    assert not list((folder / 'out').iterdir()), 'nothing is left behind'
    return {section.title: section for section in found}


@pytest.fixture(scope='module')
def full(folder: Path) -> dict[str, Section]:
    return report(folder, 'demo', 'other')


def cells(block: str) -> list[list[str]]:
    """The rows of a table."""
    rows = re.findall('<tr>(.*?)</tr>', block, re.DOTALL)
    return [re.findall('<td[^>]*>(.*?)</td>', row) for row in rows if '<td' in row]


def test_the_sections_stand_in_the_order_in_which_they_are_read(full):
    assert list(full) == [
        'Rules (Table I)', 'Pictures and levels', 'Categories', 'Confusions', 'Most confident mistakes',
        'Least certain', 'Calibration',
    ]  # fmt: skip


def test_every_rule_of_every_store_has_its_accuracy(full):
    """Of five products, product has 7 and 3 right, first only 3."""
    overview, comparison = full['Rules (Table I)'].blocks[1:3]
    assert [row[:2] for row in cells(overview)][1] == ['product', '0.400 ± 0.400']
    rows = cells(comparison)
    assert [tuple(row[:2]) for row in rows if row[1].startswith('product')] == [
        ('demo', 'product'), ('demo, 2 views', 'product'), ('demo, 2 views', 'product, nested'), ('other', 'product'),
    ]  # fmt: skip
    accuracy = {tuple(row[:2]): row[2] for row in rows}
    assert accuracy['demo', 'product'] == '0.400 (0.000 to 0.800)'
    assert accuracy['demo', 'first'].startswith('0.200 (')
    by_pictures = {tuple(row[:2]): row[2:] for row in cells(full['Rules (Table I)'].blocks[-1])}
    assert by_pictures['other', 'product'][:4] == ['0.333 ± 0.500', '0.000 ± 0.000', '1.000 ± 0.000', '']


def test_confusions_are_those_counted_by_hand_with_pictures_of_both(full):
    _, block, pictures = full['Confusions'].blocks
    assert [[re.sub('<.*?>', '', cell) for cell in row] for row in cells(block)] == [
        ['&lt;script&gt;alert(1)&lt;/script&gt;', 'Y / RUG', '2', '0.667', '1'],
        ['Y / RUG', '&lt;script&gt;alert(1)&lt;/script&gt;', '1', '1.000', '2'],
    ]
    groups = re.findall('<div class="pictures">(.*?)</div>', pictures)
    assert [group.count('<img') for group in groups] == [2, 3, 1, 1, 1, 3], 'mistaken, true, predicted'


def test_training_products_are_counted_in_the_table_of_categories(full):
    rows = cells(full['Categories'].blocks[-1])
    assert [row[2:5] for row in rows] == [['4', '3', '0.333'], ['2', '1', '1.000'], ['1', '1', '0.000'], ['1', '0', '']]


def test_cards_show_the_products_in_order_with_all_their_pictures(full):
    """By the rule product, 2 has 144/152 and 7 has 270/330; the others have what their one picture says."""
    for title, order in (('Most confident mistakes', [2, 9, 5]), ('Least certain', [3, 5, 9, 7, 2])):
        block = full[title].blocks[-1]
        assert [int(found) for found in re.findall(r'Product (\d+)', block)] == order
        pictures = {7: 3, 2: 2}
        counts = [group.count('<img') for group in re.findall('<div class="pictures">(.*?)</div>', block)]
        assert counts == [pictures.get(one, 1) for one in order]


def test_calibration_is_told_of_every_rule(full):
    """The rule first says 12/16 of 7 and 2, 9/16 of 5 and 10/16 of 9, all wrong, and 8/16 of 3, which is right."""
    rows = {tuple(row[:2]): row[2:] for row in cells(full['Calibration'].blocks[-1])}
    assert len(rows) == 7 * 5 - 7
    error, confidence, accuracy, excess = map(float, rows['demo', 'first'])
    assert accuracy == 0.2
    assert confidence == pytest.approx(51 / 16 / 5, abs=2e-3)
    assert excess == pytest.approx(confidence - 0.2, abs=1e-3)
    assert error == pytest.approx((43 / 16 + (1 - 8 / 16)) / 5, abs=2e-3)


def test_without_the_shards_pictures_and_sizes_are_left_out_and_it_is_told(folder):
    found = report(folder, 'demo', shards_dir=f'{folder}/none')
    assert not any('<img' in block for section in found.values() for block in section.blocks)
    for title in ('Categories', 'Confusions', 'Most confident mistakes', 'Least certain'):
        assert re.search(r'is left out: \S+/none/manifest.json: no such file', found[title].blocks[0])
    assert [row[2:4] for row in cells(found['Categories'].blocks[-1])][0] == ['3', '0.333']
    assert 'seen' not in found['Rules (Table I)'].blocks[-1]


def test_a_test_set_without_solution_shows_only_what_needs_no_truth(folder):
    found = report(folder, 'demo', split='test')
    assert list(found) == ['Least certain']
    block = found['Least certain'].blocks[-1]
    assert re.findall(r'Product (\d+)', block) == ['3', '5', '9', '7', '2']
    assert 'true:' not in block
    assert block.count('<img') == 8


def test_a_test_set_with_solution_shows_all(folder):
    (folder / 'solution.csv').write_text('_id,category_id\n7,1010\n3,1000\n5,1000\n2,1000\n9,1020\n')
    found = report(folder, 'demo', split='test', solution=f'{folder}/solution.csv')
    assert len(found) == 7
    assert '5 products of test' in found['Rules (Table I)'].blocks[0]
    assert re.findall(r'Product (\d+)', found['Most confident mistakes'].blocks[-1]) == ['2', '9', '5']


def test_another_rule_is_looked_at_if_it_is_asked_for(folder):
    found = report(folder, 'other', rule='first')
    mistakes = re.findall(r'Product (\d+)', found['Most confident mistakes'].blocks[-1])
    assert sorted(mistakes[:2]) == ['2', '7'], 'the rule product has 7 right'


def test_an_unknown_rule_is_one_line(folder):
    with pytest.raises(InputError, match="unknown rule 'best'; the rules are mean, "):
        report(folder, 'other', rule='best')


def test_a_run_without_logits_has_one_paragraph_that_says_how_to_make_them(folder):
    found = report(folder, 'other', 'demo', split='test')
    assert list(found) == ['Predictions']
    assert found['Predictions'].blocks == [
        f'<p>{folder}/other/logits/test/manifest.json: no such file, so {folder}/other/logits/test holds no finished '
        'logits; make them: '
        f'python -m model.predict --run_dir={folder}/other --split=test.</p>'
    ]


def test_a_run_still_in_training_is_not_sent_to_model_predict(folder):
    runs.write_settings(str(folder / 'training'), {})
    (block,) = report(folder, 'training')['Predictions'].blocks
    assert 'its training is not finished; the same model.train command goes on with it.' in block
    assert 'model.predict' not in block


def test_logits_of_an_empty_split_are_none(folder):
    stores.write(folder / 'empty' / 'logits' / 'val', [None], LABEL_MAP)
    (block,) = report(folder, 'empty', 'demo')['Predictions'].blocks
    assert 'holds no product, because the dataset has none in val; take another split.' in block


def test_others_without_logits_are_left_out_and_it_is_told(folder):
    found = report(folder, 'other', 'new', 'demo')
    assert len(found) == 7
    *_, told = found['Rules (Table I)'].blocks
    assert f'Left out: {folder}/new/logits/val/manifest.json: no such file, so {folder}/new/logits/val holds no' in told
    assert {row[0] for row in cells(found['Calibration'].blocks[-1])} == {'other', 'demo', 'demo, 2 views'}


# Models that look at whole products.


def write_products_logits(run: Path, *, digest: str, split: str = 'val', pictures: int, fewer: bool = False) -> None:
    """What a model says that looks at so many pictures: of each of its products what the first picture says."""
    chosen = [
        [(one, label, some[:1], len(some)) for one, label, some in products if fewer or len(some) == pictures]
        for products in SHARDS
    ]
    rows = [rows_of([one[:3] for one in products], tta=1, test=split == 'test') for products in chosen]
    counted = [
        some and dataclasses.replace(some, pictures=np.array([count for *_, count in products]))
        for some, products in zip(rows, chosen, strict=True)
    ]
    stores.write(
        run / 'logits' / split, counted, LABEL_MAP, dataset_digest=digest, dataset_products=5, pictures=pictures,
        fewer_pictures=fewer, order_seed=ORDER_SEED,
    )  # fmt: skip


@pytest.fixture(scope='module')
def whole(folder: Path) -> Path:
    """Runs p1 to p4 for products with so many pictures, p4f for all; training products have one picture or two."""
    made = folder / 'whole'
    splits = {
        split: [
            [product(one, label, split, pictures=len(some)) for one, label, some in products] for products in SHARDS
        ]
        for split in ('val', 'test')
    }
    train = [[product(100 + number, label, 'train', pictures=number % 2 + 1) for number, label in enumerate(TRAINING)]]
    shards.write_products(made / 'shards', {'train': train, **splits}, label_map=LABEL_MAP)
    digest = dataset.open_shards(str(made / 'shards')).manifest.digest()
    for split in ('val', 'test'):
        for count in range(1, 5):
            write_products_logits(made / f'p{count}', digest=digest, split=split, pictures=count)
        write_products_logits(made / 'p4f', digest=digest, split=split, pictures=4, fewer=True)
    return made


def shown(section: Section) -> dict[int, list[bytes]]:
    """The cards' products and the pictures that are shown of each."""
    blocks = re.split('Product ', section.blocks[-1])
    images = [
        re.findall(r'src="data:image/jpeg;base64,([^"]+)"', block.rpartition('<div class="pictures">')[2])
        for block in blocks[:-1]
    ]
    ids = [int(block.partition('<')[0]) for block in blocks[1:]]
    return {one: [base64.b64decode(image) for image in some] for one, some in zip(ids, images, strict=True)}


def test_a_run_for_some_products_is_reported_on_these(whole):
    found = report(whole, 'p1')
    assert 'Accuracy over the 3 products of val with 1 picture, of 5, ±' in found['Rules (Table I)'].blocks[0]
    assert 'paper (' not in str(found['Rules (Table I)'].blocks[1])
    by_pictures = {row[1]: row[2:6] for row in cells(found['Rules (Table I)'].blocks[-1])}
    assert by_pictures['product'] == ['0.333 ± 0.500', '', '', '']
    assert list(shown(found['Most confident mistakes'])) == [9, 5]
    # Of the training products 0, 2, 4, 6 have one picture: SCRIPT, SCRIPT, SHOE, RUG.
    rows = cells(found['Categories'].blocks[-1])
    assert [row[2:4] for row in rows] == [['2', '2'], ['1', '0'], ['1', '1'], ['0', '0']]


def test_the_pictures_shown_are_those_of_the_products(whole):
    """Product 2 stands at place 3 of the split, but at 0 of those with two pictures; product 7 at 0 of those with 3."""
    everything = shown(report(whole, 'p4f')['Least certain'])
    assert [len(everything[one]) for one in (7, 3, 5, 2, 9)] == [3, 1, 1, 2, 1]
    assert len({images[0] for images in everything.values()}) == 5
    for run, products in (('p1', [3, 5, 9]), ('p2', [2]), ('p3', [7])):
        for split in ('val', 'test'):
            found = shown(report(whole, run, split=split)['Least certain'])
            assert sorted(found) == products
            assert found == {one: everything[one] for one in found}


def test_a_run_for_some_products_is_scored_by_the_whole_solution(whole):
    (whole / 'solution.csv').write_text('_id,category_id\n7,1010\n3,1000\n5,1000\n2,1000\n9,1020\n')
    found = report(whole, 'p1', split='test', solution=f'{whole}/solution.csv')
    assert '3 products of test with 1 picture, of 5' in found['Rules (Table I)'].blocks[0]


def test_a_model_that_takes_all_products_is_reported_on_all(whole):
    found = report(whole, 'p4f')
    assert 'Accuracy over the 5 products of val, ±' in found['Rules (Table I)'].blocks[0]
    by_pictures = {row[1]: row[2:6] for row in cells(found['Rules (Table I)'].blocks[-1])}
    assert by_pictures['product'] == ['0.333 ± 0.500', '0.000 ± 0.000', '0.000 ± 0.000', '']
    assert [row[2] for row in cells(found['Categories'].blocks[-1])] == ['4', '2', '1', '1']


def test_four_runs_for_numbers_of_pictures_are_reported_on_as_one(whole):
    """Each says of its products what p4f says."""
    joint, one = report(whole, f'+{whole}/'.join(['p1', 'p2', 'p3', 'p4'])), report(whole, 'p4f')
    assert list(joint) == list(one)
    for title, section in one.items():
        expected = [str(block).replace('p4f', 'p1+p2+p3+p4') for block in section.blocks]
        assert [cells(block) for block in map(str, joint[title].blocks)] == [cells(block) for block in expected], title


def test_of_runs_for_numbers_of_pictures_none_may_lack_its_logits(whole):
    (block,) = report(whole, f'p1+{whole}/p9')['Predictions'].blocks
    assert 'p9/logits/val holds no finished logits; make them' in block
    with pytest.raises(InputError, match=r'p1/logits/val\+\S+p2/logits/val: 1 of 5 products are missing'):
        report(whole, f'p1+{whole}/p2')


def test_a_run_whose_products_the_dataset_lacks_says_so(whole):
    (block,) = report(whole, 'p4')['Predictions'].blocks
    assert 'holds no product, because the dataset has none of those with 4 pictures in val; take another' in block


def test_runs_for_other_products_are_not_compared(whole):
    with pytest.raises(InputError, match=r'p2/logits/val: holds 1 of 5 products .*p1/logits/val 3 of 5 .*compared'):
        report(whole, 'p1', 'p2')


@browser.needed
@pytest.mark.parametrize('width', [browser.PHONE, browser.DESK])
@pytest.mark.parametrize('dark', [False, True])
def test_the_page_is_whole_in_a_browser(full, tmp_path, width, dark):
    path = tmp_path / 'report.html'
    page.write(str(path), 'demo', 'all of it', list(full.values()))
    with browser.started() as chromium:
        seen = browser.look(chromium, path, width=width, dark=dark, shot=tmp_path / 'shot.png')
        assert seen.problems == []
        assert seen.page.locator('svg[role=img]').count() == 4
        assert seen.page.locator('img').count() == 11 + 4 + 8
        assert seen.page.get_by_text('<script>alert(1)</script>').count() > 0
