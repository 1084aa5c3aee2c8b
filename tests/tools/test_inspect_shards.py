"""Sound shards pass; every damage is told in the line that names its place and its rule; the grid shows products."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from absl import flags
from PIL import Image

from pipeline import categories, convert, manifest, records, split
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.records import Product
from tests import catalogue, chunks
from tools import inspect_shards, sample_products, shard_checks, shard_grid

REPOSITORY = Path(inspect_shards.__file__).parents[1]
FIRST = catalogue.FIRST_CATEGORY
TRAIN0, TRAIN1, TRAIN2 = (f'train-0000{index}-of-00003.tfrecord' for index in range(3))
VAL = 'val-00000-of-00001.tfrecord'
TEST = 'test-00000-of-00001.tfrecord'
BLANK = catalogue.jpeg(1000)  # a picture that several products have
OUTSIDE = 10**6  # an id that no product has


@pytest.fixture(scope='module')
def sound(tmp_path_factory) -> Path:
    """Shards of 100 train products in 4 categories and 20 test products; three shards of train."""
    folder = tmp_path_factory.mktemp('sound')
    rest = bytes(10_000)  # after the end of the JPEG, so that there are several shards of 1 MB

    def document(product: int, category_id: int | None = None) -> bytes:
        own = [catalogue.jpeg(10 * product + k, product % 4) + rest for k in range(1 + product % 4)]
        return catalogue.document(product, [*own[:-1], BLANK] if product % 10 == 3 else own, category_id)

    (folder / 'train.bson').write_bytes(b''.join(document(number, FIRST + 10 * (number % 4)) for number in range(100)))
    (folder / 'test.bson').write_bytes(b''.join(document(number) for number in range(100, 120)))
    catalogue.write_names(folder, [FIRST + 10 * category for category in range(5)])
    words = [f'--input_dir={folder}', f'--output_dir={folder}/shards', '--shard_mb=1', '--runner=FnApiRunner']
    convert.main(['convert', *words])
    return folder / 'shards'


@pytest.fixture
def shards(sound, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / 'shards')
    return tmp_path / 'shards'


def read_manifest(folder: Path) -> Manifest:
    return manifest.read(str(folder), kind='shards', remedy='', check_files=False)


def check(folder: Path, processes: int | None = None) -> shard_checks.Report:
    label_map = categories.read(str(folder))
    return shard_checks.check(str(folder), read_manifest(folder), label_map, processes=processes)


def inspect(folder: Path, *words: str) -> None:
    inspect_shards.main(['inspect_shards', f'--shards_dir={folder}', *words])


# Damage: each function damages the dataset, and gives the lines that must tell it.

Damage = Callable[[Path], list[str]]


def read(folder: Path, name: str) -> list[bytes]:
    """The records of a file."""
    with open(folder / name, 'rb') as file:
        return [frame.record for frame in records.frames(file)]


def products(folder: Path, name: str) -> list[Product]:
    return [records.decode(record) for record in read(folder, name)]


def write(folder: Path, name: str, new: Sequence[bytes]) -> None:
    """Writes a file of these records, and what the manifest says of it and in total."""
    data = records.frame(new)
    (folder / name).write_bytes(data)
    # A manifest can tell of products with 1 to 4 pictures only.
    images = [min(max(record.count(b'\xff\xd8\xff\xe0'), 1), 4) for record in new]
    entry = {'products': len(new), 'images': sum(images), 'bytes': len(data), 'chunks': chunks.table(new, images)}
    edit_file(folder, name, crc32c=f'{google_crc32c.value(data):08x}', **entry)


def edit_file(folder: Path, listed: str, **changes: Any) -> None:
    """Changes a file's entry in the manifest, and the totals with it."""
    made = read_manifest(folder)
    files = tuple(dataclasses.replace(file, **changes) if file.name == listed else file for file in made.files)
    new = dataclasses.replace(made, files=files)
    totals = {
        key: {**value, 'products': new.products(key), 'images': new.images(key)}
        for key, value in made.about['splits'].items()
    }
    manifest.write(dataclasses.replace(new, about={**made.about, 'splits': totals}), str(folder))


def edit_about(**changes: Any) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        made = read_manifest(folder)
        manifest.write(dataclasses.replace(made, about={**made.about, **changes}), str(folder))

    return do


def flip(place: int, rule: str, *, record: int = 2) -> Damage:
    """Flips a bit, counted from the start of a record's frame, or from its end."""

    def do(folder: Path) -> list[str]:
        frames = [bytearray(records.frame([data])) for data in read(folder, TRAIN1)]
        frames[record][place] ^= 1
        old, data = read_manifest(folder).files, b''.join(frames)
        (folder / TRAIN1).write_bytes(data)
        (listed,) = (file.crc32c for file in old if file.name == TRAIN1)
        checksum = f'CRC32C: {google_crc32c.value(data):08x}, the manifest says {listed}'
        return [f'{TRAIN1}: {checksum}', f'{TRAIN1}: record {record}: {rule}']

    return do


def cut(folder: Path) -> list[str]:
    data = (folder / VAL).read_bytes()
    (folder / VAL).write_bytes(data[:-1])
    last = len(read(folder, VAL)) - 1
    return [
        f'{VAL}: bytes: {len(data) - 1}, the manifest says {len(data)}',
        f'{VAL}: record {last}: the file is cut off',
    ]


def longer(folder: Path) -> list[str]:
    data = (folder / VAL).read_bytes()
    (folder / VAL).write_bytes(data + b'x')
    return [
        f'{VAL}: bytes: {len(data) + 1}, the manifest says {len(data)}',
        f'{VAL}: record {len(read(folder, VAL)) - 1}: the file is cut off',
    ]


def missing(folder: Path) -> list[str]:
    (folder / TRAIN1).unlink()
    return [f'{TRAIN1}: no such file']


def stale(folder: Path) -> list[str]:
    names = ['.tmp-0123-train-00000-of-00003.tfrecord', 'train-00000-of-00004.tfrecord']
    for name in names:
        (folder / name).write_bytes(b'of another run')
    (folder / 'notes.txt').write_bytes(b"the user's own")
    return [f'{name}: not in manifest.json, so of another run; remove it' for name in names]


def edit(rule: str, *, name: str = TRAIN0, record: int = 1, **changes: Any) -> Damage:
    """Changes fields of one product."""

    def do(folder: Path) -> list[str]:
        data = read(folder, name)
        product = records.decode(data[record])
        data[record] = records.encode(product._replace(**changes))
        write(folder, name, data)
        return [f'{name}: record {record}: product {product.product_id}: {rule}']

    return do


def wrong_number_of_pictures(count: int, *, listed: int) -> Damage:
    def do(folder: Path) -> list[str]:
        lines = edit(f'has {count} pictures, must have 1 to 4', images=(BLANK,) * count)(folder)
        made = read_manifest(folder)
        (file,) = (file for file in made.files if file.name == TRAIN0)
        more, total = count - listed, made.images('train')
        return [
            f'{TRAIN0}: images: {file.images + more}, the manifest says {file.images}',
            *lines,
            f'manifest.json: train: says {total} images, the files have {total + more}',
        ]

    return do


def wrong_label(folder: Path) -> list[str]:
    label = products(folder, TRAIN0)[1].label
    ids = f'of category {FIRST + 10 * label}'
    return edit(f'has label {label + 1} {ids}, must be {label}', label=label + 1)(folder)


def wrong_md5(folder: Path) -> list[str]:
    data = read(folder, TRAIN0)
    number, product = next((n, p) for n, p in enumerate(products(folder, TRAIN0)) if len(p.images) == 3)
    md5 = hashlib.md5(product.images[1]).digest()
    data[number] = data[number].replace(md5, bytes(16))
    write(folder, TRAIN0, data)
    place = f'{TRAIN0}: record {number}: product {product.product_id}'
    return [f'{place}: picture 1: its MD5 is {md5.hex()}, image_md5 says {bytes(16).hex()}']


def no_example(folder: Path) -> list[str]:
    data = read(folder, TRAIN0)
    data[1] = b'text'
    write(folder, TRAIN0, data)
    return [f'{TRAIN0}: record 1: is no tf.train.Example']


def moved_to_train(folder: Path) -> list[str]:
    """A product of val stands where it would if it were of train."""
    moved = products(folder, VAL)[0]._replace(split='train')
    write(folder, VAL, read(folder, VAL)[1:])
    place = int(split.shard_index(order_hashes([moved.product_id]), 3)[0])
    name = (TRAIN0, TRAIN1, TRAIN2)[place]
    record = insert(folder, name, moved)
    return [
        f'{name}: record {record}: product {moved.product_id}: belongs into val: 3 of the 25 products of category '
        f'{moved.category_id} are held out, those of lowest hash'
    ]


def order_hashes(ids: Sequence[int]) -> np.ndarray:
    return split.order_hashes(np.array(ids, np.int64), seed=0)


def insert(folder: Path, name: str, product: Product) -> int:
    """Puts a product where its hash says; gives its record."""
    hashes = order_hashes([other.product_id for other in products(folder, name)])
    record = int(np.searchsorted(hashes, order_hashes([product.product_id])[0], side='right'))
    data = read(folder, name)
    write(folder, name, [*data[:record], records.encode(product), *data[record:]])
    return record


def swapped(folder: Path) -> list[str]:
    data = read(folder, TRAIN1)
    data[3], data[4] = data[4], data[3]
    write(folder, TRAIN1, data)
    product = records.decode(data[4]).product_id
    return [f'{TRAIN1}: record 4: product {product}: belongs further up, by the hash of its id']


def other_shard(folder: Path) -> list[str]:
    first, second = read(folder, TRAIN0), read(folder, TRAIN1)
    write(folder, TRAIN0, [*first, second[0]])
    write(folder, TRAIN1, second[1:])
    product = records.decode(second[0]).product_id
    return [f'{TRAIN0}: record {len(first)}: product {product}: belongs into {TRAIN1}']


def twice(name: str) -> Damage:
    def do(folder: Path) -> list[str]:
        data = read(folder, name)
        write(folder, name, [*data[:3], data[2], *data[3:]])
        product = records.decode(data[2]).product_id
        return [f'{name}: record 3: product {product}: stands already in {name}: record 2']

    return do


def in_train_and_val(folder: Path) -> list[str]:
    product = products(folder, TRAIN1)[2]
    record = insert(folder, VAL, product._replace(split='val'))
    return [f'{VAL}: record {record}: product {product.product_id}: stands already in {TRAIN1}: record 2']


def wrong_entry(what: str, value: Any, *, products_with: tuple[int, int, int, int] = (5, 5, 5, 5)) -> Damage:
    """Changes a number in a file's entry of the manifest; chunks and totals are changed with it."""

    def do(folder: Path) -> list[str]:
        (file,) = (file for file in read_manifest(folder).files if file.name == TEST)
        old = getattr(file, what)
        edit_file(folder, TEST, **{what: value, 'chunks': ((file.bytes, *products_with),)})
        lines = [f'{TEST}: {what.replace("crc32c", "CRC32C")}: {old}, the manifest says {value}']
        totals = [f'manifest.json: test: says {value} {what}, the files have {old}']
        return lines + totals * (what in ('products', 'images'))

    return do


def wrong_chunks(folder: Path) -> list[str]:
    """Ten bytes and the only product of two pictures, of the second chunk, are listed with the first."""
    ids = np.arange(300)[np.argsort(order_hashes(range(300)))].tolist()
    images = [(BLANK,) * (1 + (place == 130)) for place in range(300)]
    encoded = [records.encode(Product(number, -1, -1, 'test', some)) for number, some in zip(ids, images, strict=True)]
    write(folder, TEST, encoded)
    (table,) = (file.chunks for file in read_manifest(folder).files if file.name == TEST)
    (first, *_), (second, *_), last = table
    edit_file(folder, TEST, chunks=((first + 10, 127, 1, 0, 0), (second - 10, 128, 0, 0, 0), last))
    one, two = (f'{counts}, 0, 0 products with 1, 2, 3 and 4 pictures' for counts in ('128, 0', '127, 1'))
    return [
        f'{TEST}: chunk 0: {first} bytes, {one}; the manifest says {first + 10} bytes, {two}',
        f'{TEST}: chunk 1: {second} bytes, {two}; the manifest says {second - 10} bytes, {one}',
    ]


def wrong_total(folder: Path) -> list[str]:
    splits = json.loads(json.dumps(read_manifest(folder).about['splits']))
    splits['val']['categories'] = 5
    edit_about(splits=splits)(folder)
    return ['manifest.json: val: says 5 categories, the files have 4']


def a_shard_is_lost(folder: Path) -> list[str]:
    made = read_manifest(folder)
    manifest.write(dataclasses.replace(made, files=tuple(f for f in made.files if f.name != TEST)), str(folder))
    (folder / TEST).unlink()
    return ['manifest.json: test: says 20 products, but lists no file of it']


def label_column(folder: Path) -> list[str]:
    path = folder / 'categories.csv'
    path.write_text(path.read_text().replace('\n2,', '\n7,'))
    return [f'categories.csv: row 4: label 7 of category {FIRST + 20} must be 2']


def other_categories(folder: Path) -> list[str]:
    path = folder / 'categories.csv'
    path.write_text(path.read_text().replace(str(FIRST + 40), str(FIRST + 41)))
    return ["categories.csv: its ids don't have the digest that the manifest says"]


def other_name(folder: Path) -> list[str]:
    (folder / VAL).rename(folder / 'val.tfrecord')
    edit_file(folder, VAL, name='val.tfrecord')
    return ['val.tfrecord: not the name of a shard of val']


def other_number(folder: Path) -> list[str]:
    new = TRAIN2.replace('of-00003', 'of-00004')
    (folder / TRAIN2).rename(folder / new)
    edit_file(folder, TRAIN2, name=new)
    rows = products(folder, new)
    shards = split.shard_index(order_hashes([product.product_id for product in rows]), 4).tolist()
    return ['manifest.json: lists shards of train of 3 and of 4'] + [
        f'{new}: record {record}: product {product.product_id}: belongs into {split.shard_name("train", shard, 4)}'
        for record, (product, shard) in enumerate(zip(rows, shards, strict=True))
        if shard != 2
    ]


DAMAGES: dict[str, Damage] = {
    'a bit of a picture': flip(2000, "its data don't fit their checksum"),
    'a bit of the first byte': flip(12, "its data don't fit their checksum", record=0),
    "a bit of the data's checksum": flip(-1, "its data don't fit their checksum"),
    'a bit of the length': flip(0, "its length doesn't fit the checksum of the length"),
    "a bit of the length's checksum": flip(11, "its length doesn't fit the checksum of the length"),
    'a file cut off': cut,
    'a file with a byte more': longer,
    'a missing file': missing,
    'stale files': stale,
    'a wrong label': wrong_label,
    'a label in test': edit('has category -1 and label 2, must be -1 in test', name=TEST, label=2),
    'a category in test': edit('has category 7 and label -1, must be -1 in test', name=TEST, category_id=7),
    'the word of another split': edit("its split is 'val' in a file of train", split='val'),
    'a wrong MD5': wrong_md5,
    'a picture of another size': edit(
        'picture 0: is 180x179 pixels, must be a JPEG of 180x180', images=(catalogue.jpeg(0, size=(180, 179)),)
    ),
    'no JPEG': edit('picture 1: is no JPEG, must be a JPEG of 180x180', images=(BLANK, b'GIF\xff\xd8\xff\xe0')),
    'no pictures': wrong_number_of_pictures(0, listed=1),
    'five pictures': wrong_number_of_pictures(5, listed=4),
    'no Example': no_example,
    'a product moved to train': moved_to_train,
    'products in another order': swapped,
    'a product in another shard': other_shard,
    'a product twice in train': twice(TRAIN2),
    'a product twice in test': twice(TEST),
    'a product in train and val': in_train_and_val,
    'a wrong number of products': wrong_entry('products', 19, products_with=(4, 4, 6, 5)),
    'a wrong number of pictures': wrong_entry('images', 53, products_with=(4, 5, 5, 6)),
    'wrong chunks': wrong_chunks,
    'a wrong checksum in the manifest': wrong_entry('crc32c', '0123abcd'),
    'a wrong total': wrong_total,
    'a lost shard': a_shard_is_lost,
    'a wrong label in categories.csv': label_column,
    'other categories': other_categories,
    'another file name': other_name,
    'another number of shards': other_number,
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damage_is_told_in_its_lines_and_no_others(shards, damage):
    expected = damage(shards)
    report = check(shards)
    assert report.problems.first == expected[: shard_checks.PROBLEMS_KEPT]
    assert report.problems.total == len(expected)


def test_sound_shards_pass(sound, capsys):
    inspect(sound)
    said = capsys.readouterr().out.splitlines()
    made = read_manifest(sound)
    assert [file.name for file in made.files] == [TEST, TRAIN0, TRAIN1, TRAIN2, VAL]
    assert said[0] == f'checking {sum(file.bytes for file in made.files) / 1e6:.1f} MB in 5 shards of {sound}'
    assert [line.split()[:5] for line in said[1:5]] == [
        ['split', 'products', 'images', 'categories', 'shards'],
        ['train', '88', f'{made.images("train")}', '4', '3'],
        ['val', '12', f'{made.images("val")}', '4', '1'],
        ['test', '20', f'{made.images("test")}', 'unknown', '1'],
    ]
    assert said[4].endswith('25.0 %   25.0 %   25.0 %   25.0 %')
    assert (
        said[-1]
        == f'checked {sound}: it is sound; next: python -m model.train --flagfile=demo.flags --shards_dir={sound}'
    )


def test_the_same_is_found_by_several_processes(shards):
    wrong_label(shards)
    swapped(shards)
    assert check(shards, processes=2) == check(shards, processes=1)
    assert check(shards).problems.total == 2


def test_pictures_that_repeat_are_counted(sound):
    blank = dict.fromkeys(split.SPLITS, 0)
    for file in read_manifest(sound).files:
        blank[file.split] += sum(BLANK in product.images for product in products(sound, file.name))
    assert sum(blank.values()) == 12 and blank['train'] and blank['test'] == 2
    counts = check(sound).counts
    assert {name: counts[name].copies for name in counts} == {name: max(blank[name] - 1, 0) for name in blank}
    assert (counts['val'].sharing, counts['test'].sharing) == (blank['val'], blank['test'])


def test_a_wrong_seed_is_told_twenty_times_and_counted(shards, capsys):
    edit_about(seed=1)(shards)
    with pytest.raises(InputError, match=r'^.*/shards: (\d+) rules are broken, named above; make the shards again: '):
        inspect(shards)
    said = capsys.readouterr().out.splitlines()
    assert sum('record' in line for line in said) == 20
    assert re.fullmatch(r'and \d\d+ more', said[-1])


def test_another_share_held_out_is_told(shards):
    edit_about(val_fraction=0.2)(shards)
    report = check(shards)
    assert report.problems.total == 8, '5 of each category instead of 3'
    assert all('belongs into val: 5 of the 25 products' in line for line in report.problems.first)


def test_no_validation_split_is_sound(shards):
    for product in products(shards, VAL):
        name = (TRAIN0, TRAIN1, TRAIN2)[int(split.shard_index(order_hashes([product.product_id]), 3)[0])]
        insert(shards, name, product._replace(split='train'))
    made = read_manifest(shards)
    splits = {name: made.about['splits'][name] for name in ('train', 'test')}
    files = tuple(file for file in made.files if file.split != 'val')
    manifest.write(Manifest('shards', {**made.about, 'val_fraction': 0, 'splits': splits}, files), str(shards))
    (shards / VAL).unlink()
    report = check(shards)
    assert (report.problems.first, list(report.counts)) == ([], ['train', 'test'])


def test_what_could_not_be_checked_is_said(shards, capsys):
    missing(shards)
    with pytest.raises(InputError, match='1 rule is broken, named above'):
        inspect(shards)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f'{TRAIN1}: no such file',
        "not checked, because records are missing: the manifest's totals of train",
        'not checked, because records are missing: which products are held out',
    ]


def test_a_manifest_that_lacks_the_seed_is_refused(shards):
    edit_about(seed=None)(shards)
    with pytest.raises(InputError, match='manifest.json: seed must be a whole number .* are None and 0.1; make'):
        inspect(shards)


def test_a_file_that_cannot_be_read_is_told(shards, monkeypatch):
    def fail(_: object) -> None:
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(records, 'frames', fail)
    assert check(shards).problems.first[0] == f"{TEST}: can't be read: [Errno 5] Input/output error"


# The grid.


def boxes(png: bytes, images: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where each picture stands in the grid, pixel for pixel: x and y."""
    grid = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
    places = []
    for image in images:
        picture = np.asarray(Image.open(io.BytesIO(image)).convert('RGB'))
        corners = np.argwhere(
            (grid[:-179, :-179] == picture[0, 0]).all(-1) & (grid[179:, 179:] == picture[-1, -1]).all(-1)
        )
        found = [(x, y) for y, x in corners if (grid[y : y + 180, x : x + 180] == picture).all()]
        assert len(found) == 1, 'each picture stands once'
        places += found
    return places


def test_the_grid_shows_every_picture_of_a_product_beside_one_another():
    label_map = categories.Categories(np.array([5, 9]), (('A', 'B', 'C'), ('D', 'E', 'F')))
    shown = [
        Product(number, 5, 0, 'train', tuple(catalogue.jpeg(10 * number + k, number) for k in range(number)))
        for number in (1, 2, 4)
    ]
    png = shard_grid.draw(shown, label_map, title='three products')
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ('PNG', (2 * 20 + 280 + 4 * 186 - 6, 48 + 3 * 193 + 20))
    for row, product in enumerate(shown):
        assert boxes(png, product.images) == [(300 + 186 * k, 55 + 193 * row) for k in range(len(product.images))]


@pytest.mark.parametrize(('count', 'columns'), [(1, 1), (5, 1), (24, 2), (60, 3)])
def test_the_grid_is_about_a_square(count, columns):
    label_map = categories.Categories(np.array([5]), (('A', 'B', 'C'),))
    png = shard_grid.draw([Product(1, 5, 0, 'val', (BLANK,) * 4)] * count, label_map, title='')
    width, height = Image.open(io.BytesIO(png)).size
    assert width == 40 + columns * (280 + 4 * 186 - 6) + (columns - 1) * 48
    assert height == 68 + -(-count // columns) * 193


def test_what_is_no_picture_leaves_its_place_free():
    label_map = categories.Categories(np.array([5]), (('A', 'B', 'C'),))
    images = (b'GIF', catalogue.jpeg(1, size=(300, 20)), catalogue.jpeg(2))
    png = shard_grid.draw([Product(1, 7, 3, 'train', images)], label_map, title='')
    assert boxes(png, images[2:]) == [(300 + 2 * 186, 55)]


def test_the_same_seed_gives_the_same_file_and_another_seed_others(sound, tmp_path, capsys):
    for name, seed in (('first', 0), ('second', 0), ('other', 1)):
        inspect(sound, f'--grid={tmp_path}/{name}.png', '--grid_products=7', f'--seed={seed}', '--noverify')
    assert capsys.readouterr().out.splitlines()[:1] == [
        f'wrote {tmp_path}/first.png: 7 products of {sound}, which was not checked; '
        f'next: python -m model.train --flagfile=demo.flags --shards_dir={sound}',
    ]
    first, second, other = ((tmp_path / f'{name}.png').read_bytes() for name in ('first', 'second', 'other'))
    assert first == second != other


def test_the_products_chosen_are_those_drawn(sound, tmp_path):
    places = sample_products.choose(read_manifest(sound), splits=split.SPLITS, products=9, seed=0)
    chosen = sample_products.read(str(sound), places)
    assert chosen == [products(sound, file.name)[record] for file, record in places]
    assert sample_products.read(str(sound), places[::-1]) == chosen[::-1], 'in the order asked for'
    inspect(sound, f'--grid={tmp_path}/grid.png', '--grid_products=9')
    images = sorted({image for product in chosen for image in product.images} - {BLANK})
    assert len(boxes((tmp_path / 'grid.png').read_bytes(), images)) == len(images)


@pytest.mark.parametrize(
    ('splits', 'wanted', 'shown'),
    [
        (split.SPLITS, 7, {'train': 3, 'val': 2, 'test': 2}),
        (split.SPLITS, 60, {'train': 28, 'val': 12, 'test': 20}),
        (split.SPLITS, 500, {'train': 88, 'val': 12, 'test': 20}),
        (('val',), 5, {'val': 5}),
    ],
)
def test_splits_are_shown_evenly_as_far_as_they_reach(sound, splits, wanted, shown):
    places = sample_products.choose(read_manifest(sound), splits=splits, products=wanted, seed=3)
    assert Counter(file.split for file, _ in places) == shown
    assert len({(file.name, record) for file, record in places}) == len(places)


def test_random_products_spread_over_shards(sound):
    places = sample_products.choose(read_manifest(sound), splits=['train'], products=24, seed=0)
    assert {file.name for file, _ in places} == {TRAIN0, TRAIN1, TRAIN2}


@pytest.mark.parametrize(
    ('text', 'lines'),
    [
        ('SHORT', ['SHORT']),
        ('TEN LETTER', ['TEN LETTER']),
        ('TEN LETTERS', ['TEN', 'LETTERS']),
        ('TWO  WORDS AND MORE', ['TWO WORDS', 'AND MORE']),
        ('TWO WORDS AND EVEN MORE', ['TWO WORDS', 'AND EVE...']),
        ('UNBREAKABLE', ['UNBREAKABL', 'E']),
        ('', []),
    ],
)
def test_long_names_are_wrapped_and_cut(text, lines):
    assert shard_grid.wrap(text, width=10, lines=2, measure=len) == lines


def test_names_stay_readable_in_a_font_without_accents(monkeypatch):
    assert shard_grid.plain('ÉTUI À RABAT – Œuvre, Straße Ж') == 'ETUI A RABAT - OEuvre, Strasse ?'
    monkeypatch.setattr(shard_grid, 'FONTS', ())
    label_map = categories.Categories(np.array([5]), (('É', 'À', 'Ç'),))
    plain_map = categories.Categories(np.array([5]), (('E', 'A', 'C'),))
    shown = [Product(1, 5, 0, 'val', (BLANK,))]
    assert shard_grid.draw(shown, label_map, title='') == shard_grid.draw(shown, plain_map, title='')


def test_damage_where_the_grid_reads_is_one_line(shards, tmp_path):
    flip(12, '')(shards)
    with pytest.raises(
        InputError, match=f"{TRAIN1}: record 2: its data don't fit their checksum; python -m tools.insp"
    ):
        inspect(shards, '--noverify', '--split=train', '--grid_products=88', f'--grid={tmp_path}/grid.png')
    assert not (tmp_path / 'grid.png').exists()


def test_a_split_without_products_is_refused(shards, tmp_path):
    a_shard_is_lost(shards)
    with pytest.raises(InputError, match='holds no product of test; give another --split'):
        inspect(shards, '--noverify', '--split=test', f'--grid={tmp_path}/grid.png')


def test_without_pillow_only_the_grid_is_refused(sound, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    inspect(sound)
    with pytest.raises(
        InputError, match="^drawing pictures needs pillow: pip install -c constraints.txt -e '.\\[demo\\]'$"
    ):
        inspect(sound, '--grid=grid.png')


# As users start it.


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'tools.inspect_shards', *words]
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_works_as_typed_and_needs_no_tensorflow(shards, tmp_path):
    (tmp_path / 'data').mkdir()
    shards.rename(tmp_path / 'data' / 'shards')
    (tmp_path / 'tensorflow.py').write_text('raise ImportError')
    done = start(tmp_path)
    assert done.returncode == 0
    assert (
        done.stdout.splitlines()[-1]
        == 'checked data/shards: it is sound; next: python -m model.train --flagfile=demo.flags'
    )
    missing(tmp_path / 'data' / 'shards')
    done = start(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'error: data/shards: 1 rule is broken, named above; make the shards again: '
        'python -m pipeline.convert --runner=DirectRunner'
    )


def test_a_folder_without_shards_is_one_line(tmp_path):
    with pytest.raises(InputError, match='manifest.json: no such file, so .* holds no finished shards; make them: '):
        inspect(tmp_path)


def test_nothing_to_do_is_bad_usage(sound):
    with pytest.raises(flags.Error, match='^--noverify leaves nothing to do without --grid=FILE.png$'):
        inspect(sound, '--noverify')


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        inspect_shards.main(['inspect_shards', '--help'])
    assert end.value.code == 0
    listed = re.findall(r'^  --(?:\[no\])?(\w+)', capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == ['flagfile', 'grid', 'grid_products', 'help', 'seed', 'shards_dir', 'split', 'verify']
