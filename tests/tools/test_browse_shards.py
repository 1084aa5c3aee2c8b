"""The page of a dataset: its numbers are those counted by hand, and it is whole whatever the dataset holds."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from pipeline import categories, convert, manifest, progress, split
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.records import Product
from tests import catalogue, shards
from tests.commands import following
from tests.tools import browser
from tools import browse_shards, shard_checks
from tools.browse import scan, shard_sections

A, B, C, D, E, F, G, H, BLANK = (catalogue.jpeg(number) for number in range(9))
WIDE = catalogue.jpeg(9, size=(300, 20))
BROKEN = b'no JPEG'
SCRIPT = '<script>alert("É")</script>'
NAMES = (('ÉLECTROMÉNAGER', 'Œuvre', 'PIÈCES'), ('A', SCRIPT, 'C'), *[('A', 'B', f'C{number}') for number in range(5)])


def product(number: int, label: int, name: str, *images: bytes) -> Product:
    return Product(number, -1 if label < 0 else 1000 + label, label, name, images)


PRODUCTS = {
    'train': [
        [
            product(1, 0, 'train', A, B),
            product(2, 0, 'train', BLANK, BLANK),
            product(3, 1, 'train', BLANK, C),
        ],
        [product(4, 2, 'train', D, H, H, B), product(5, 3, 'train', BROKEN, WIDE)],
    ],
    'val': [[product(6, 0, 'val', A), product(7, 1, 'val', E)]],
    'test': [[product(8, -1, 'test', BLANK, F), product(9, -1, 'test', D)], [product(10, -1, 'test', G, E)]],
}


@pytest.fixture(scope='module')
def made_folder(tmp_path_factory) -> Path:
    """A dataset of ten products with 19 pictures, 11 of them different, in categories 0 to 3 of 7; and its page."""
    folder = tmp_path_factory.mktemp('dataset')
    shards.write_products(folder, PRODUCTS, label_map=Categories(np.arange(7) + 1000, NAMES))
    browse(folder)
    return folder


@pytest.fixture(scope='module')
def text(made_folder) -> str:
    """The page."""
    return (made_folder / 'browse.html').read_text()


@pytest.fixture
def folder(made_folder, tmp_path) -> Path:
    """A copy of the dataset without its page, to change."""
    shutil.copytree(made_folder, tmp_path / 'copy', ignore=shutil.ignore_patterns('*.html'))
    return tmp_path / 'copy'


def browse(folder: Path, *words: str) -> str:
    """Writes the page of a dataset and gives its text."""
    browse_shards.main(['browse_shards', f'--shards_dir={folder}', *words])
    return (folder / 'browse.html').read_text()


def rows(text: str, *titles: str) -> list[list[str]]:
    """The rows of the first table whose columns begin with these."""
    for table in re.findall('<table>.*?</table>', text, re.DOTALL):
        lines = [re.findall(r'<t[hd].*?>(.*?)</t[hd]>', row, re.DOTALL) for row in re.split('<tr>', table)[1:]]
        cells = [[html.unescape(re.sub('<.*?>', '', cell)) for cell in line] for line in lines]
        if cells[0][: len(titles)] == list(titles):
            return cells[1:]
    raise AssertionError(f'no table of {titles}')


def pictures(text: str, alt: str) -> list[np.ndarray]:
    """The pictures of this name that the page holds."""
    found = re.findall(rf'<img src="data:image/jpeg;base64,([^"]+)" alt="{alt}"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_the_page_says_how_much_there_is(text, made_folder):
    assert [row[:5] for row in rows(text, 'split', 'products')] == [
        ['train', '5', '12', '4', '2'],
        ['val', '2', '2', '2', '1'],
        ['test', '3', '5', 'unknown', '2'],
    ]
    made = manifest.read(str(made_folder), kind='shards', remedy='')
    assert ['SHA-256 of the manifest', made.digest()] in rows(text, 'what', 'value')


def test_every_category_is_listed_and_one_without_products_has_none(text):
    listed = rows(text, 'id', 'level 1')
    assert listed[:2] == [
        ['1000', 'ÉLECTROMÉNAGER', 'Œuvre', 'PIÈCES', '2', '1', '4', '1', '42.86 %'],
        ['1001', 'A', SCRIPT, 'C', '1', '1', '2', '1', '28.57 %'],
    ]
    assert [row[4:] for row in listed[4:]] == [['0', '0', '0', '0', '0.00 %']] * 3
    assert '7 categories, 3 of which have no product.' in text
    assert 'have 2 first levels, 3 second and 7 third' in text
    assert rows(text, 'level 1', 'categories') == [
        ['A', '6', '4', '57.14 %'],
        ['ÉLECTROMÉNAGER', '1', '3', '42.86 %'],
    ]
    assert SCRIPT not in text


def test_repeats_are_those_counted_by_hand(text):
    assert rows(text, 'pictures that', 'different') == [
        ['there are', '11', '100.00 %', '19', '100.00 %'],
        ['stand once', '5', '45.45 %', '5', '26.32 %'],
        ['stand several times', '6', '54.55 %', '14', '73.68 %'],
        ['stand in several products', '5', '45.45 %', '12', '63.16 %'],
        ['stand in several splits', '4', '36.36 %', '10', '52.63 %'],
        ['stand under several categories', '2', '18.18 %', '6', '31.58 %'],
        ['repeat an earlier one', '', '', '8', '42.11 %'],
        ['repeat one of the same product', '', '', '2', '10.53 %'],
    ]
    assert rows(text, 'split', 'are also in') == [
        ['val', 'train', '1', '50.00 %', '1', '50.00 %', '1', '50.00 %'],
        ['test', 'train', '2', '40.00 %', '2', '66.67 %', '1', '33.33 %'],
        ['test', 'train or val', '3', '60.00 %', '3', '100.00 %', '2', '66.67 %'],
    ]
    most = rows(text, 'picture', 'times')
    assert most[0] == ['', '4', '3', '2', 'train, test', f'{" > ".join(NAMES[0])} (2); {" > ".join(NAMES[1])} (1)']
    assert [row[1] for row in most] == ['4', '2', '2', '2', '2', '2']
    assert '2 pictures do' in text
    assert text.count('One picture in 3 products of 2 categories') == 1  # BLANK
    assert text.count('One picture in 2 products of 2 categories') == 1  # B


def test_the_picture_that_stands_most_often_is_shown(text):
    (shown,) = pictures(text, 'stands 4 times')
    expected = Image.open(io.BytesIO(BLANK)).resize((96, 96), Image.Resampling.LANCZOS)
    assert np.abs(shown.astype(int) - np.asarray(expected)).mean() < 2


def test_a_shared_picture_stands_before_the_others_of_its_product(folder):
    text = browse(folder, '--categories=0', '--per_category=0')
    by_product = pictures(text, 'product 4')
    assert len(by_product) == 4
    expected = Image.open(io.BytesIO(B)).resize((96, 96), Image.Resampling.LANCZOS)
    assert np.abs(by_product[0].astype(int) - np.asarray(expected)).mean() < 2
    assert 'No category is shown' in text
    assert 'product 8 ·' not in text, 'whose category is unknown'


def test_distributions_are_those_counted_by_hand(text):
    assert rows(text, 'pictures', 'train: products') == [
        ['1', '0', '0.00 %', '2', '100.00 %', '1', '33.33 %'],
        ['2', '4', '80.00 %', '0', '0.00 %', '2', '66.67 %'],
        ['4', '1', '20.00 %', '0', '0.00 %', '0', '0.00 %'],
    ]
    lengths = [len(A), len(E)]
    val = rows(text, 'split', 'mean')[1]
    assert val[:3] == ['val', f'{round(sum(lengths) / 2):,}', f'{min(lengths):,}']
    assert val[-1] == f'{max(lengths):,}'
    assert rows(text, 'pixels', 'pictures') == [
        ['180x180', '17', '89.47 %'],
        ['no header of a JPEG', '1', '5.26 %'],
        ['300x20', '1', '5.26 %'],
    ]
    assert 'By the headers of all 19 pictures: 2 are of another size than 180x180 pixels.' in text


def test_of_many_pictures_a_sample_is_looked_at_for_its_size(folder, monkeypatch):
    monkeypatch.setattr(scan, 'SIZES_SAMPLED', 10)
    # Every second one of each shard: 3 of 6, 3 of 6, 1 of 2, 2 of 3 and 1 of 2.
    assert 'a random sample of 10 pictures, one of 2: 1 are' in browse(folder)


def test_samples_show_a_products_split_and_pictures(text):
    assert f'{" &gt; ".join(NAMES[0])} (1000): 2 in train, 1 in val' in text
    assert 'All categories, from the largest to the smallest' in text
    assert text.count('<details open>') == 1, 'of the first category'
    for number in range(1, 11):
        name = next(name for name, some in PRODUCTS.items() for one in some for p in one if p.product_id == number)
        assert f'product {number} · {name}' in text


def test_a_damaged_picture_is_grey(text):
    broken, wide = pictures(text, 'product 5')
    assert (broken == 128).all()
    assert wide.std() > 10


def test_the_categories_asked_for_are_shown(folder):
    text = browse(folder, '--category_id=1003', '--category_id=1006', '--per_category=1')
    assert re.findall('<summary>(.*?): (.*?)</summary>', text)[:2] == [
        ('A &gt; B &gt; C1 (1003)', '1 in train, 0 in val'),
        ('A &gt; B &gt; C4 (1006)', '0 in train, 0 in val'),
    ]
    assert len(pictures(text, 'product 5')) == 2
    assert 'No product is shown.' in text
    with pytest.raises(InputError, match=r'--category_id=7: .*categories.csv has no such category'):
        browse(folder, '--category_id=1003', '--category_id=7')


@pytest.mark.parametrize(
    ('categories', 'largest', 'smallest', 'random'), [(0, 0, 0, 0), (1, 1, 0, 0), (3, 1, 1, 1), (8, 3, 2, 3)]
)
def test_a_third_of_the_categories_are_the_largest_and_a_third_the_smallest(categories, largest, smallest, random):
    total = np.array([5, 0, 90, 7, 80, 70, 1, 2, 60, 3, 0])  # in order: 2 4 5 8 3 0 9 7 6
    chosen = list(shard_sections.choose_categories(total, categories=categories, seed=1).values())
    assert chosen[0] == [2, 4, 5][:largest]
    assert chosen[1] == [6, 7][:smallest]
    assert len(set(chosen[2])) == random
    assert set(chosen[2]) <= {2, 4, 5, 8, 3, 0, 9, 7, 6} - set(chosen[0]) - set(chosen[1])


@pytest.mark.parametrize('categories', [9, 10, 100])
def test_few_categories_are_all_shown(categories):
    total = np.array([5, 0, 90, 7, 80, 70, 1, 2, 60, 3, 0])
    (labels,) = shard_sections.choose_categories(total, categories=categories, seed=1).values()
    assert labels == [2, 4, 5, 8, 3, 0, 9, 7, 6]


def test_a_section_without_content_says_so(tmp_path):
    shards.write(tmp_path, train=10)
    text = browse(tmp_path)
    for sentence in (
        'No product of test is shown: none was asked for, or there is none.',
        'None: all 20 pictures differ.',
        'None: every document of the catalogue is in the shards.',
        '7 categories, none without a product.',
    ):
        assert sentence in text
    assert rows(text, 'split', 'products')[1:] == [
        ['val', '0', '0', '0', '0', '0.0'],
        ['test', '0', '0', 'unknown', '0', '0.0'],
    ]


def test_a_split_without_products_has_no_known_pictures(tmp_path):
    shards.write_products(tmp_path, {'train': [[product(1, 0, 'train', A, A)]], 'val': [[]]})
    assert 'There is no product of val or test.' in browse(tmp_path)


def test_rejected_documents_are_counted_by_reason(tmp_path):
    catalogue.write_catalogue(tmp_path, products=60)
    known, unknown = catalogue.FIRST_CATEGORY, 55
    more = [catalogue.document(1, [A], known), catalogue.document(4, [B], known)]
    more += [catalogue.document(1000 + number, [C], unknown) for number in range(3)]
    with open(tmp_path / 'train.bson', 'ab') as file:
        file.write(b''.join(more))
    folder = tmp_path / 'shards'
    words = [f'--input_dir={tmp_path}', f'--output_dir={folder}', '--on_error=skip', '--max_rejected=0.5']
    convert.main(['convert', *words, '--runner=FnApiRunner'])
    text = browse(folder)
    found = rows(text, 'reason', 'documents')
    assert [row[1] for row in found] == ['3', '2']
    assert found[0][0].startswith('product N is of category N, which is not in ')
    assert found[1] == ['product N stands at byte N already', '2']
    listed = rows(text, 'file', 'byte')
    assert len(listed) == 5
    assert {row[0] for row in listed} == {'train.bson'}
    made = manifest.read(str(folder), kind='shards', remedy='')
    report = shard_checks.check(str(folder), made, categories.read(str(folder)))
    assert report.problems.first == [], 'a page beside the shards is none of them'


def note_rejected(folder: Path, *, in_manifest: int, listed: int) -> None:
    """A dataset whose manifest says that some documents were left out, beside a list of some."""
    made = manifest.read(str(folder), kind='shards', remedy='')
    manifest.write(dataclasses.replace(made, about={'rejected': in_manifest}), str(folder))
    row = {'file': 'train.bson', 'offset': 5, 'length': 7, 'reason': 'some reason'}
    (folder / 'rejected.jsonl').write_text(listed * f'{json.dumps(row)}\n')


def test_a_list_of_another_run_is_not_believed(folder):
    left_out = 'documents were left out'
    note_rejected(folder, in_manifest=0, listed=3)
    text = browse(folder)
    assert 'None: every document of the catalogue is in the shards. The list rejected.jsonl beside them is of' in text
    assert left_out not in text
    note_rejected(folder, in_manifest=5, listed=3)
    text = browse(folder)
    assert f'5 {left_out} of the shards' in text
    assert 'The list rejected.jsonl beside them has 3: it is of another run, and not shown.' in text
    assert 'some reason' not in text
    note_rejected(folder, in_manifest=3, listed=3)
    text = browse(folder)
    assert f'3 {left_out} of the shards' in text
    assert 'another run' not in text
    assert rows(text, 'reason', 'documents') == [['some reason', '3']]


def test_a_list_that_is_missing_is_told(folder):
    note_rejected(folder, in_manifest=5, listed=0)
    (folder / 'rejected.jsonl').unlink()
    text = browse(folder)
    assert '5 documents were left out of the shards, because they can not be used. Their list rejected.jsonl is' in text
    assert 'None: every document' not in text


def test_a_refused_conversion_into_the_folder_of_a_dataset_does_not_change_its_page(tmp_path):
    catalogue.write_catalogue(tmp_path, products=60)
    folder = tmp_path / 'shards'
    words = ['convert', f'--input_dir={tmp_path}', f'--output_dir={folder}', '--runner=FnApiRunner']
    convert.main(words)
    with open(tmp_path / 'train.bson', 'ab') as file:
        file.write(catalogue.document(1000, [A], 55))
    with pytest.raises(InputError, match='more than --max_rejected=0'):
        convert.main([*words, '--on_error=skip', '--max_rejected=0'])
    text = browse(folder)
    assert 'The list rejected.jsonl beside them is of another run.' in text
    assert 'were left out' not in text


@pytest.mark.parametrize('line', ['{', '[]', '{"file": "train.bson"}'])
def test_a_list_of_rejected_documents_that_is_none_is_refused(folder, line):
    note_rejected(folder, in_manifest=1, listed=0)
    (folder / 'rejected.jsonl').write_text(line + '\n')
    with pytest.raises(InputError, match=r'rejected.jsonl: not a list of rejected documents \(.*\); remove it'):
        browse(folder)


def test_a_damaged_shard_is_told_and_leaves_no_page(folder):
    path = folder / split.shard_name('train', 1, 2)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path.name}: the record at byte 0 doesn't fit its checksum"):
        browse(folder)
    assert not (folder / 'browse.html').exists()


def test_a_dataset_without_pictures_is_refused(tmp_path):
    shards.write_products(tmp_path, {'train': [[]]})
    with pytest.raises(InputError, match='holds no picture; convert a catalogue'):
        browse(tmp_path)


def test_the_same_seed_gives_the_same_page_and_another_seed_other_samples(tmp_path, capsys):
    shards.write(tmp_path, train=28, val=7)
    first, second, other = (browse(tmp_path, '--per_category=1', f'--seed={seed}') for seed in (0, 0, 1))
    assert first == second != other
    path = tmp_path / 'browse.html'
    size = f'{path.stat().st_size / 1e6:.1f} MB'
    said = '35 products, 70 pictures, 7 categories, a page to open in a browser'
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(f'wrote {path} ({size}): {said}; next: ')
    assert following(out) == f'python -m model.train --flagfile=demo.flags --shards_dir={tmp_path}'


def test_the_progress_of_comparing_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, 'WATCHED_AFTER', 0)
    shards.write(tmp_path, train=7)
    browse(tmp_path)
    assert re.search(r'^compare pictures: \d+ s so far$', capsys.readouterr().err, re.MULTILINE)


def test_a_page_goes_where_it_is_asked_to_but_is_always_one(folder, tmp_path):
    path = tmp_path / 'new' / 'folder' / 'page.html'
    browse_shards.main(['browse_shards', f'--shards_dir={folder}', f'--output={path}'])
    assert path.read_text().startswith('<!DOCTYPE html>')
    assert not (folder / 'browse.html').exists()
    with pytest.raises(flags.Error, match='must end in .html'):
        browse(folder, f'--output={folder}/manifest.json')


@browser.needed
@pytest.mark.parametrize('width', [browser.PHONE, browser.DESK])
@pytest.mark.parametrize('dark', [False, True])
def test_the_page_is_whole_at_every_width_and_in_the_dark(made_folder, tmp_path, width, dark):
    with browser.started() as chromium:
        path = made_folder / 'browse.html'
        seen = browser.look(chromium, path, width=width, dark=dark, shot=tmp_path / 'shot.png')
        assert seen.problems == []
        headings = ['Summary', 'Categories', 'Samples', 'Distributions', 'Repeats', 'Rejected documents']
        assert seen.page.locator('h2').all_inner_texts() == headings
        assert SCRIPT in seen.page.inner_text('main')
        assert seen.page.locator('figure svg').count() == 4
        seen.page.get_by_role('button', name='level 3').click()
        table = seen.page.locator('table', has_text='level 3')
        assert table.locator('tbody tr').first.inner_text().split('\t')[3] == 'C'
