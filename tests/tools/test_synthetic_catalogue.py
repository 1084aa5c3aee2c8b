"""The synthetic catalogue: its bytes, and every number in which it should be like Kaggle's."""

from __future__ import annotations

import hashlib
import io
import itertools
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import bson
import numpy as np
import pytest
from absl import flags
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline import categories, convert, manifest
from pipeline.errors import InputError
from tools import kaggle, synthetic_catalogue, synthetic_draws

# The standard luminance table (ITU T.81, table K.1) at quality 75 is half of it, rounded: its first row.
QUALITY_75_FIRST_ROW = [8, 6, 5, 8, 12, 20, 26, 31]
# Large enough that shares are met within a few percent, and a category has twenty products.
PRODUCTS, CATEGORIES = 20_000, 1_000
FILES = ('train.bson', 'test.bson', 'category_names.csv', 'solution.csv')


def make(folder: Path, *words: str) -> None:
    synthetic_catalogue.main(['synthetic_catalogue', f'--output_dir={folder}', *words])


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue for all tests that only read."""
    made = tmp_path_factory.mktemp('catalogue')
    make(made, f'--products={PRODUCTS}', f'--categories={CATEGORIES}', '--blank')
    return made


@pytest.fixture(scope='module')
def train(folder: Path) -> list[dict[str, Any]]:
    return products(folder / 'train.bson')


@pytest.fixture(scope='module')
def test(folder: Path) -> list[dict[str, Any]]:
    return products(folder / 'test.bson')


def products(path: Path) -> list[dict[str, Any]]:
    """The documents, with the digests of their pictures instead of `imgs`."""
    return [
        {**document, 'imgs': [hashlib.md5(image['picture']).digest() for image in document['imgs']]}
        for document in bson.decode_all(path.read_bytes())
    ]


def pictures(path: Path) -> list[bytes]:
    return [image['picture'] for document in bson.decode_all(path.read_bytes()) for image in document['imgs']]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Documents.


@pytest.mark.parametrize('with_category', [True, False])
def test_documents_are_byte_for_byte_what_bson_makes(with_category):
    drawings = synthetic_draws.draw_pictures(8, blank=False, seed=0)
    sizes, keys = np.array([1, 4, 2, 3]), np.array([0, 9, 2**40 + 7, 8, 1, 9, 2, 3, 4, 5])
    product_ids, category_ids = np.array([0, 7, 8, 2**31 - 1]), np.array([1_000_000_237, 5, 6, 2**31 - 1])
    head = synthetic_catalogue.JPEG_HEAD + b'\xff\xfe\x00\x0a'
    bodies = iter([head + int(key).to_bytes(8, 'big') + drawings[key % 8][20:] for key in keys])
    expected = b''
    for product_id, category_id, size in zip(product_ids.tolist(), category_ids.tolist(), sizes, strict=True):
        fields = {'_id': product_id, 'imgs': [{'picture': next(bodies)} for _ in range(size)]}
        expected += bson.encode(fields | {'category_id': category_id} if with_category else fields)
    made = synthetic_catalogue.documents(
        product_ids, sizes, keys, category_ids if with_category else None,
        rests=synthetic_catalogue.picture_rests(drawings),
    )  # fmt: skip
    assert made == expected


@pytest.mark.parametrize('blank', [False, True])
def test_every_picture_is_a_jpeg_as_kaggle_has_them(tmp_path, blank):
    make(tmp_path, '--products=60', f'--blank={blank}')
    for jpeg in pictures(tmp_path / 'train.bson') + pictures(tmp_path / 'test.bson'):
        picture = JpegImageFile(io.BytesIO(jpeg))
        assert (picture.format, picture.size, picture.mode) == ('JPEG', (180, 180), 'RGB')
        assert jpeg.startswith(b'\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01'), (
            'JFIF 1.01, density 1:1'
        )
        assert jpeg.endswith(b'\xff\xd9')
        frame = jpeg[jpeg.index(b'\xff\xc0\x00\x11\x08') :]  # SOF0: baseline
        assert [frame[10 + 3 * component + 1] for component in range(frame[9])] == [0x22, 0x11, 0x11], '4:2:0'
        assert picture.quantization[0][:8] == QUALITY_75_FIRST_ROW
        assert len(picture.quantization) == 2
        picture.load()


def test_drawings_have_kaggles_sizes_and_are_things_on_white():
    drawings = synthetic_draws.draw_pictures(400, blank=False, seed=0)
    sizes = [len(drawing) for drawing in drawings]
    assert np.mean(sizes) == pytest.approx(4_700, rel=0.1)
    assert np.percentile(sizes, 10) < 3_500 and np.percentile(sizes, 90) > 6_500
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(drawing))) for drawing in drawings])
    white = (pixels.min(axis=3) > 240).mean(axis=(1, 2))
    assert white.mean() > 0.5
    assert (white < 0.95).all(), 'each shows something'


def test_blank_drawings_are_of_one_colour_and_small():
    drawings = synthetic_draws.draw_pictures(50, blank=True, seed=0)
    for drawing in drawings:
        assert np.ptp(np.asarray(Image.open(io.BytesIO(drawing))), axis=(0, 1)).max() == 0
        assert len(drawing) < 800


# Statistics.


def test_a_quarter_as_many_test_products_as_train_products(train, test):
    assert (len(train), len(test)) == (20_000, round(20_000 * 1_768_182 / 7_069_896))


@pytest.mark.parametrize('split', ['train', 'test'])
def test_products_have_one_to_four_pictures_in_kaggles_proportions(split, request):
    counts = Counter(len(product['imgs']) for product in request.getfixturevalue(split))
    shares = [counts[number] / counts.total() for number in range(1, 5)]
    assert shares == pytest.approx([0.618, 0.160, 0.077, 0.146], abs=0.02)
    assert sorted(counts) == [1, 2, 3, 4]


def test_so_many_train_pictures_repeat_an_earlier_one(train):
    digests = [digest for product in train for digest in product['imgs']]
    assert len(set(digests)) / len(digests) == pytest.approx(0.628, abs=0.01)


def test_repeats_are_mostly_of_the_same_category(train):
    seen = defaultdict(set)
    for product in train:
        for digest in product['imgs']:
            seen[digest].add(product['category_id'])
    several = np.mean([len(of) > 1 for of in seen.values()])
    assert 0.005 < several < 0.05, 'Kaggle: 1.5 %'


def test_so_many_test_products_share_a_picture_with_train(train, test):
    known = {digest for product in train for digest in product['imgs']}
    shared = [not known.isdisjoint(product['imgs']) for product in test]
    assert np.mean(shared) == pytest.approx(0.424, abs=0.02)


def test_ids_ascend_with_gaps_and_test_ids_lie_between_train_ids(train, test):
    train_ids, test_ids = ([product['_id'] for product in split] for split in (train, test))
    assert train_ids == sorted(train_ids) and test_ids == sorted(test_ids)
    together = sorted({*train_ids, *test_ids})
    assert len(together) == len(train_ids) + len(test_ids), 'no id twice'
    assert 0 <= together[0] < 20 and together[-1] / len(together) == pytest.approx(2.67, rel=0.03)
    assert set(np.diff(together).tolist()) >= {1, 2, 3, 4, 5, 6}, 'irregular'
    train_before = np.searchsorted(train_ids, test_ids) / len(train_ids)
    assert np.abs(train_before - np.linspace(0, 1, len(test_ids))).max() < 0.02, 'evenly mixed'


def test_neighbours_are_often_of_one_category_but_not_sorted_by_it(train):
    of = np.array([product['category_id'] for product in train])
    same = np.mean(of[1:] == of[:-1])
    shares = np.unique(of, return_counts=True)[1] / len(of)
    assert same > 5 * (shares**2).sum(), 'five times as often as in a shuffled order'
    assert same < 0.3
    (places,) = np.nonzero(of == Counter(of.tolist()).most_common(1)[0][0])
    assert places[0] < 0.1 * len(of) and places[-1] > 0.9 * len(of), 'a large category is met everywhere'


def test_the_solution_has_the_categories_of_the_test_products(folder, test, train):
    rows = np.loadtxt(folder / 'solution.csv', delimiter=',', skiprows=1, dtype=np.int64)
    assert (folder / 'solution.csv').read_text().startswith('_id,category_id\n')
    assert rows[:, 0].tolist() == [product['_id'] for product in test]
    assert set(rows[:, 1].tolist()) <= {product['category_id'] for product in train}
    # Repeated pictures tell the category nearly always, if the rows belong to the products.
    known = {digest: product['category_id'] for product in train for digest in product['imgs']}
    told = [
        known[digest] == row
        for product, row in zip(test, rows[:, 1].tolist(), strict=True)
        for digest in product['imgs']
        if digest in known
    ]
    assert np.mean(told) > 0.9


# Categories.


def test_sizes_are_kaggles_at_its_size():
    sizes = np.sort(synthetic_draws.draw_sizes(7_069_896 + 1_768_182, categories=5_270, seed=0)) * 0.8
    assert sizes.max() == pytest.approx(79_600, rel=0.02)
    assert np.median(sizes) * 1.75 == pytest.approx(362, rel=0.05), 'pictures'
    assert sizes.min() * 1.75 == pytest.approx(12, abs=5), 'pictures'
    assert sizes[-100:].sum() / sizes.sum() == pytest.approx(0.44, abs=0.03)
    assert np.log(sizes).std() == pytest.approx(1.67, rel=0.1), 'about log-normal'


@pytest.mark.parametrize(
    ('number', 'of'), [(1, 1), (2, 1), (5, 1), (6, 2), (299, 99), (300, 100), (301, 100), (5_000, 5), (20_000, 5_270)]
)
def test_sizes_add_up_and_none_is_too_small(number, of):
    sizes = synthetic_draws.draw_sizes(number, categories=of, seed=0)
    assert (len(sizes), sizes.sum()) == (of, number)
    assert sizes.min() >= min(3, number // of)


def test_every_category_has_two_train_products(train, folder):
    sizes = Counter(product['category_id'] for product in train)
    assert min(sizes.values()) >= 2
    assert sorted(sizes) == categories.read_source(str(folder)).ids.tolist()


@pytest.mark.parametrize('number', [1, 2, 3, 7, 50])
def test_few_products_have_few_categories(tmp_path, capsys, number):
    make(tmp_path, f'--products={number}', '--blank')
    sizes = Counter(product['category_id'] for product in products(tmp_path / 'train.bson'))
    test = products(tmp_path / 'test.bson')
    assert (sizes.total(), len(test)) == (number, max(1, round(number * 0.2501)))
    assert min(sizes.values()) >= min(2, number)
    expected = max(1, (number + len(test)) // 3)
    assert len(sizes) == expected
    assert capsys.readouterr().out.startswith(
        f'{number} products are too few for 5,270 categories: making {expected}\n'
    )


def test_names_are_as_in_kaggles_file(folder):
    of = synthetic_draws.draw_category_ids(5_270, seed=0)
    assert len(set(of.tolist())) == 5_270 and of[0] == 1_000_000_237 and of[-1] == pytest.approx(1_000_022_604, abs=1e3)
    assert len(set(np.diff(of).tolist())) > 5, 'irregular'
    names = [name for _, _, name in synthetic_draws.draw_names(5_270, seed=0)]
    assert 5_250 < len(set(names)) < 5_270, "level 3 isn't a key"
    assert sum(',' in name for name in names) in (3, 4)
    assert sum(not name.isascii() for name in names) == pytest.approx(19, abs=1)

    lines = (folder / 'category_names.csv').read_text(encoding='utf-8').splitlines()
    assert lines[0] == 'category_id,category_level1,category_level2,category_level3'
    assert len(lines) == 1 + CATEGORIES
    assert any('"' in line for line in lines) and any('"' not in line for line in lines[1:])
    ids = [int(line.split(',')[0]) for line in lines[1:]]
    assert ids != sorted(ids)


# Repeats.


@pytest.mark.parametrize('at_once', [1, 7, 1_000])
def test_a_repeat_is_an_earlier_train_picture_for_any_division_into_blocks(at_once):
    draw = np.random.default_rng(0)
    category = draw.integers(10, size=4_000)
    is_repeat, is_train = draw.random((2, 4_000)) < [[0.4], [0.8]]
    repeats = synthetic_draws.Repeats(categories=10, drawings=16, seed=0)
    keys: list[int] = []
    for start in range(0, 4_000, at_once):
        part = slice(start, start + at_once)
        keys += repeats.draw(category[part], is_repeat=is_repeat[part].copy(), is_train=is_train[part]).tolist()
    known: dict[int, int] = {}
    mine: dict[int, list[int]] = defaultdict(list)
    given, elsewhere = set(), 0
    for number, (key, of) in enumerate(zip(keys, category.tolist(), strict=True)):
        if is_repeat[number] and known:
            assert key in known, number
            elsewhere += key not in mine[of][-synthetic_draws.RECENT :]
        else:
            assert key not in given, number
            if is_train[number]:
                known[key] = of
                mine[of].append(key)
        given.add(key)
    assert 0 < elsewhere / is_repeat.sum() < 0.05


# The program.


def test_the_same_flags_give_the_same_bytes_and_other_flags_others(tmp_path):
    made = {}
    for words in ((), ('--seed=1',), ('--categories=5',), ('--blank',)):
        name = ''.join(words) or 'first'
        make(tmp_path / name, '--products=300', *words)
        made[name] = contents(tmp_path / name)
    make(tmp_path / 'again', '--products=300')
    assert contents(tmp_path / 'again') == made['first']
    for one, other in itertools.combinations(made.values(), 2):
        assert one['train.bson'] != other['train.bson'] and one['test.bson'] != other['test.bson']
    assert {name for name in made['first'] if made['first'][name] != made['--seed=1'][name]} >= set(FILES)


def test_a_finished_catalogue_is_reused_and_other_flags_replace_it(tmp_path, capsys):
    make(tmp_path, '--products=100', '--blank')
    first = contents(tmp_path)
    assert 'this catalogue, so nothing was written' not in capsys.readouterr().out
    make(tmp_path, '--products=100', '--blank')
    assert contents(tmp_path) == first and 'this catalogue, so nothing was written' in capsys.readouterr().out
    make(tmp_path, '--products=100', '--blank', '--seed=1')
    assert contents(tmp_path)['train.bson'] != first['train.bson']


@pytest.mark.parametrize('name', kaggle.FILES)
def test_a_file_that_is_not_ours_is_never_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b'real')
    with pytest.raises(InputError, match=f'{name}: not made by this program, so it stays'):
        make(tmp_path, '--products=10', '--blank')
    assert contents(tmp_path) == {name: b'real'}


def test_a_run_stopped_while_writing_leaves_no_half_file_and_the_next_mends_it(tmp_path, monkeypatch):
    draw_blocks = synthetic_catalogue.draw_blocks

    def stop(*args, **names):
        yield from itertools.islice(draw_blocks(*args, **names), 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthetic_catalogue, 'draw_blocks', stop)
        make(tmp_path, '--products=3000', '--blank')
    assert set(contents(tmp_path)) == {'category_names.csv', synthetic_catalogue.MARKER}
    make(tmp_path, '--products=3000', '--blank')
    assert len(products(tmp_path / 'train.bson')) == 3000


def test_memory_grows_by_a_few_bytes_a_product(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_catalogue, 'BLOCK', 100)
    monkeypatch.setattr(synthetic_draws, 'BATCHES_AT_ONCE', 10)
    peaks = []
    for number in (3_000, 15_000):
        tracemalloc.start()
        make(tmp_path, f'--products={number}', '--categories=9', '--blank')
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 12_000 < 30, 'bytes a product; its pictures are 1,000'


def test_the_catalogue_converts_and_the_last_line_says_how(tmp_path, capsys):
    make(tmp_path / 'made', '--products=400', '--categories=9')
    said = capsys.readouterr().out.splitlines()
    assert said[0] == 'products: 500 (400 train, 100 test)'
    made, command = said[-1].split('; next: python -m pipeline.convert ')
    assert made.startswith(f'wrote {tmp_path}/made: ') and made.endswith(' MB/s')
    assert all(f'{name} ' in made for name in FILES)
    assert command == f'--runner=DirectRunner --input_dir={tmp_path}/made --output_dir={tmp_path}/made/shards'
    convert.main(['convert', *command.replace('DirectRunner', 'FnApiRunner').split()])
    written = manifest.read(str(tmp_path / 'made' / 'shards'), kind='shards', remedy='')
    assert sum(file.products for file in written.files) == 500


@pytest.mark.parametrize(
    'word', ['--products=0', '--categories=0', '--products=500000001', '--seed=-1', '--products=x']
)
def test_flags_out_of_range_are_refused(tmp_path, word):
    with pytest.raises(flags.Error, match=word.split('=')[0].strip('-')):
        make(tmp_path / 'made', word)
    assert not (tmp_path / 'made').exists()


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit):
        synthetic_catalogue.main(['synthetic_catalogue', '--help'])
    said = capsys.readouterr().out
    names = ('products=NUMBER', 'output_dir=FOLDER', 'categories=NUMBER', '[no]blank', 'seed=NUMBER')
    assert all(f'  --{name}\n' in said for name in names)
    assert 'python -m tools.synthetic_catalogue --products=' in said
