"""The conversion: every product once, every picture untouched, the same bytes always, and all or nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import bson
import google_crc32c
import numpy as np
import pytest
import tensorflow as tf

from pipeline import bson_stream, categories, convert, journal, manifest, plan, shards, split, worklog
from pipeline.errors import InputError
from tests import catalogue, chunks

REPOSITORY = Path(convert.__file__).parents[1]
# One of each side of every rounding: 1 product is never held out, 15 are the first to give two.
CATEGORY_SIZES = {1: 0, 2: 1, 3: 1, 4: 1, 5: 1, 14: 1, 15: 2, 16: 2, 24: 2, 25: 3}
JPEG = catalogue.jpeg(0)


def run(source: Path, output: Path, *words: str) -> None:
    runner = [] if any(word.startswith('--runner') for word in words) else ['--runner=FnApiRunner']
    convert.main(['convert', f'--input_dir={source}', f'--output_dir={output}', *runner, *words])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name; the journal of an unfinished conversion and the worklog are none of them."""
    paths = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_bytes() for path in paths if path.is_file() and path.name != worklog.NAME}


def products_by_shard(folder: Path, name: str) -> list[list[tf.train.Example]]:
    """The products of each shard of a split."""
    files = sorted(str(path) for path in folder.glob(f'{name}-*.tfrecord'))
    return [
        [tf.train.Example.FromString(data) for data in tf.data.TFRecordDataset(file).as_numpy_iterator()]
        for file in files
    ]


def number(product: tf.train.Example, name: str) -> int:
    (value,) = product.features.feature[name].int64_list.value
    return value


def images(product: tf.train.Example) -> list[bytes]:
    return list(product.features.feature['images'].bytes_list.value)


def ids(folder: Path, name: str) -> list[int]:
    return [number(product, 'product_id') for product in itertools.chain(*products_by_shard(folder, name))]


def read_manifest(folder: Path) -> manifest.Manifest:
    return manifest.read(str(folder), kind='shards', remedy='')


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A catalogue of 60 products in 4 categories."""
    folder = tmp_path_factory.mktemp('source')
    catalogue.write_catalogue(folder, products=60)
    return folder


@pytest.fixture(scope='module')
def converted(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('converted')
    run(source, folder)
    return folder


@pytest.fixture(scope='module')
def large_source(tmp_path_factory) -> Path:
    """A catalogue of 6 MB: 100 products of four pictures that go on for 15 kB after the end of the JPEG."""
    folder = tmp_path_factory.mktemp('large')
    pictures = [JPEG + bytes([index]) * 13_000 for index in range(256)]
    train = [
        catalogue.document(product, [pictures[(product + k) % 256] for k in range(4)], 1000 + product % 3)
        for product in range(80)
    ]
    test = [catalogue.document(product, [pictures[product]] * 4) for product in range(80, 100)]
    write_source(folder, train, test, range(1000, 1003))
    return folder


def write_source(folder: Path, train: list[bytes], test: list[bytes], category_ids: range | list[int]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / 'train.bson').write_bytes(b''.join(train))
    (folder / 'test.bson').write_bytes(b''.join(test))
    catalogue.write_names(folder, category_ids)


# What the shards hold.


def test_every_product_stands_once_with_its_pictures_untouched(source, converted):
    train, test = (bson.decode_all((source / name).read_bytes()) for name in ('train.bson', 'test.bson'))
    expected = {row['_id']: [entry['picture'] for entry in row['imgs']] for row in train + test}
    found = {name: list(itertools.chain(*products_by_shard(converted, name))) for name in split.SPLITS}
    products = list(itertools.chain(*found.values()))
    assert len(products) == len(expected) == 60
    assert {number(product, 'product_id'): images(product) for product in products} == expected
    assert sorted(ids(converted, 'test')) == sorted(row['_id'] for row in test)
    assert not set(ids(converted, 'train')) & set(ids(converted, 'val'))


def test_a_product_is_described_as_in_the_catalogue(source, converted):
    category_of = {row['_id']: row['category_id'] for row in bson.decode_all((source / 'train.bson').read_bytes())}
    for name in split.SPLITS:
        for product in itertools.chain(*products_by_shard(converted, name)):
            category_id = category_of.get(number(product, 'product_id'), -1)
            assert number(product, 'category_id') == category_id
            assert number(product, 'label') == (-1 if name == 'test' else (category_id - catalogue.FIRST_CATEGORY) / 10)
            assert product.features.feature['split'].bytes_list.value == [name.encode()]


def test_the_split_is_exact_in_every_category(tmp_path):
    train: list[bytes] = []
    category_ids = [1000 + size for size in CATEGORY_SIZES]
    for size in CATEGORY_SIZES:
        train += [catalogue.document(len(train) + k, [JPEG], 1000 + size) for k in range(size)]
    write_source(tmp_path / 'data', train, [], category_ids)
    run(tmp_path / 'data', tmp_path / 'shards')
    products = {name: list(itertools.chain(*products_by_shard(tmp_path / 'shards', name))) for name in ('train', 'val')}
    counts = {name: Counter(number(product, 'category_id') - 1000 for product in products[name]) for name in products}
    assert counts['val'] == Counter(CATEGORY_SIZES)
    assert counts['train'] == Counter({size: size - held_out for size, held_out in CATEGORY_SIZES.items()})


def test_the_share_held_out_can_be_chosen(source, tmp_path):
    run(source, tmp_path, '--val_fraction=0')
    assert (len(ids(tmp_path, 'train')), len(ids(tmp_path, 'val'))) == (48, 0)
    run(source, tmp_path, '--val_fraction=0.5')
    assert (len(ids(tmp_path, 'train')), len(ids(tmp_path, 'val'))) == (24, 24)


def test_shards_in_order_hold_the_products_in_order_of_hash(large_source, tmp_path):
    run(large_source, tmp_path, '--shard_mb=1')
    for name, least in (('train', 5), ('val', 1), ('test', 2)):
        assert len(products_by_shard(tmp_path, name)) >= least
        hashes = split.order_hashes(np.array(ids(tmp_path, name)), seed=0)
        assert (np.diff(hashes.astype(object)) > 0).all()
        names = [file.name for file in read_manifest(tmp_path).of_split(name)]
        count = int(names[0][-14:-9])
        assert set(names) <= {split.shard_name(name, index, count) for index in range(count)}


# The manifest.


def test_the_manifest_lists_the_files_as_they_are(source, converted):
    made = read_manifest(converted)
    assert [file.name for file in made.files] == sorted(path.name for path in converted.glob('*.tfrecord'))
    for file in made.files:
        data = (converted / file.name).read_bytes()
        (products,) = (one for one in products_by_shard(converted, file.split))
        assert (file.products, file.images) == (len(products), sum(len(images(product)) for product in products))
        assert (file.bytes, file.crc32c) == (len(data), f'{google_crc32c.value(data):08x}')
        with_each = Counter(len(images(product)) for product in products)
        assert file.chunks == ((file.bytes, *(with_each[count] for count in (1, 2, 3, 4))),)
    assert {name: made.products(name) for name in split.SPLITS} == {'train': 44, 'val': 4, 'test': 12}
    label_map = categories.read(str(converted))
    assert made.about['label_map_digest'] == label_map.digest() == categories.read_source(str(source)).digest()
    assert (made.about['seed'], made.about['val_fraction'], made.about['categories']) == (0, 0.1, 4)
    assert made.about['source']['train.bson']['bytes'] == (source / 'train.bson').stat().st_size
    assert made.about['splits']['val']['products'] == 4
    assert sorted(contents(converted)) == ['categories.csv', 'manifest.json', *(file.name for file in made.files)]


def test_the_manifest_is_written_last(converted):
    times = {path.name: path.stat().st_mtime_ns for path in converted.iterdir() if path.name != worklog.NAME}
    assert times['manifest.json'] == max(times.values())


def test_the_worklog_has_a_line_for_each_conversion_that_wrote(source, tmp_path):
    run(source, tmp_path, '--plan_only')
    assert worklog.read(str(tmp_path)) == []
    run(source, tmp_path)
    run(source, tmp_path, '--seed=1')
    first, second = worklog.read(str(tmp_path))
    assert first.name == second.name == 'convert'
    made = read_manifest(tmp_path)
    assert first.counts == {
        'products': 60,
        'images': sum(file.images for file in made.files),
        'source_bytes': sum((source / name).stat().st_size for name in plan.SOURCES),
        'shards': 3,
        'kept_shards': 0,
    }
    assert first.seconds > 0 and first.replicas is None


def test_an_earlier_manifest_goes_before_its_shards_are_replaced(source, tmp_path):
    (tmp_path / 'manifest.json').write_text('of an earlier run')
    totals = [plan.Total('val', 2, 2, 1, 10, 1), plan.Total('train', 1, 2, 3, 4, 1)]
    assert shards.begin(job(source, tmp_path), totals, []) == shards.Plan((totals[1], totals[0]), 0)
    assert contents(tmp_path) == {}


def test_nothing_is_replaced_before_all_products_are_known_to_stand_once(source, tmp_path):
    pipeline = beam.Pipeline(runner='FnApiRunner')
    convert._build(pipeline, job(source, tmp_path))
    steps = {step.full_label: step for step in pipeline.transforms_stack[0].parts}
    assert {view.pvalue.tag for view in steps['Begin'].side_inputs} == {'totals', 'rejected'}
    assert [view.pvalue.producer.full_label for view in steps['Write'].side_inputs] == ['Begin']


def test_the_summary_counts_and_names_the_next_command(source, tmp_path, capsys):
    run(source, tmp_path)
    said = capsys.readouterr().out.splitlines()
    pictures = {name: f'{read_manifest(tmp_path).images(name)}' for name in split.SPLITS}
    assert said[0].startswith('converting 0.4 MB of ')
    assert [line.split()[:5] for line in said[1:5]] == [
        ['split', 'products', 'images', 'categories', 'shards'],
        ['train', '44', pictures['train'], '4', '1'],
        ['val', '4', pictures['val'], '4', '1'],
        ['test', '12', pictures['test'], 'unknown', '1'],
    ]
    command = 'python -m model.train --flagfile=demo.flags'
    assert re.fullmatch(rf'wrote (\S+): 3 shards and manifest.json; next: {command} --shards_dir=\1', said[-1])


# The same bytes.


def test_one_process_and_two_give_the_same_bytes(large_source, tmp_path):
    run(large_source, tmp_path / 'one', '--shard_mb=1')
    run(large_source, tmp_path / 'two', '--shard_mb=1', '--runner=DirectRunner', '--direct_num_workers=2')
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


@pytest.mark.parametrize('window', [16_000, 50_000])
def test_the_size_of_the_windows_does_not_matter(source, converted, tmp_path, monkeypatch, window):
    monkeypatch.setattr(bson_stream, 'WINDOW', window)
    assert len(list(bson_stream.index(str(source / 'train.bson'), with_category=True))) > 3
    run(source, tmp_path)
    assert contents(tmp_path) == contents(converted)


def test_a_shard_is_written_by_itself_as_by_the_job(source, converted, tmp_path):
    the_job = job(source, tmp_path)
    for made in plan.plan_source(0, train_places(the_job), the_job):
        assert isinstance(made, plan.Split)
        shards.note_places(made, the_job)
        for shard in made.shards:
            info, _ = shards.write_shard(shard, the_job)
            assert (tmp_path / info.name).read_bytes() == (converted / info.name).read_bytes()
    assert sorted(path.name for path in tmp_path.glob('*.tfrecord')) == [
        'train-00000-of-00001.tfrecord', 'val-00000-of-00001.tfrecord'
    ]  # fmt: skip


@pytest.mark.parametrize('products', [1, 127, 128, 129, 511, 512, 513, 1025])  # a chunk has 128, 512 are read at a time
def test_the_chunks_of_a_shard_are_told_whether_it_is_written_or_kept(tmp_path, products):
    train = [catalogue.document(number, [JPEG] * (1 + number % 4), 1000) for number in range(products)]
    write_source(tmp_path / 'data', train, [], [1000])
    the_job = dataclasses.replace(job(tmp_path / 'data', tmp_path), val_fraction=0)
    (made,) = plan.plan_source(0, train_places(the_job), the_job)
    assert isinstance(made, plan.Split)
    shards.note_places(made, the_job)
    info, kept = shards.write_shard(made.shards[0], the_job)
    ((stored,),) = [products_by_shard(tmp_path, 'train')]
    encoded = [product.SerializeToString() for product in stored]
    assert info.chunks == chunks.table(encoded, [len(images(product)) for product in stored])
    assert (len(info.chunks), kept) == (-(-products // 128), False)
    assert shards.write_shard(made.shards[0], the_job) == (info, True)
    note = tmp_path / journal.FOLDER / f'{info.name}{journal.SUFFIX}'
    values = json.loads(note.read_bytes())
    first, *rest = values['file']['chunks']
    for damaged in ([], [first, *rest, [0, 0]], [[first[0] + 1, *first[1:]], *rest], ['x'], None):
        note.write_text(json.dumps({**values, 'file': {**values['file'], 'chunks': damaged}}))
        assert shards.write_shard(made.shards[0], the_job) == (info, False)


def test_another_seed_gives_another_split_of_the_same_products(source, converted, tmp_path):
    run(source, tmp_path, '--seed=1')
    assert set(ids(tmp_path, 'val')) != set(ids(converted, 'val'))
    for names in (('train', 'val'), ('test',)):
        first, other = (sum((ids(folder, name) for name in names), []) for folder in (converted, tmp_path))
        assert sorted(first) == sorted(other)
        assert first != other, 'the order hangs on the seed, too'
    assert len(ids(tmp_path, 'val')) == len(ids(converted, 'val'))


def test_a_run_with_another_shard_size_leaves_no_stale_file(large_source, tmp_path):
    run(large_source, tmp_path, '--shard_mb=1')
    (tmp_path / '.tmp-0123-train-00000-of-00005.tfrecord').write_bytes(b'of a run that was killed')
    (tmp_path / 'notes.txt').write_bytes(b"the user's own")
    (tmp_path / 'mine.tfrecord').write_bytes(b"the user's own")
    run(large_source, tmp_path, '--shard_mb=128')
    assert sorted(contents(tmp_path)) == [
        'categories.csv', 'manifest.json', 'mine.tfrecord', 'notes.txt',
        'test-00000-of-00001.tfrecord', 'train-00000-of-00001.tfrecord', 'val-00000-of-00001.tfrecord',
    ]  # fmt: skip


# Bad input.

GOOD = [catalogue.document(product, [JPEG], 1000 + product % 2) for product in range(20)]
START = len(GOOD[0]) * 20  # where what a case adds begins
CATEGORY_NAMES = b'category_id,category_level1,category_level2,category_level3\n'
MEND = 'get the file again, or mend this document'


def change(name: str, to: Callable[[bytes], bytes | None]) -> Callable[[Path], None]:
    """Replaces a file's bytes, or removes it."""

    def do(folder: Path) -> None:
        data = to((folder / name).read_bytes())
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)

    return do


def append(document: bytes, name: str = 'train.bson') -> Callable[[Path], None]:
    return change(name, lambda data: data + document)


def missing(name: str) -> tuple[Callable[[Path], None], str]:
    rule = f'{name}: no such file; make a catalogue with python -m tools.demo_catalogue --output_dir='
    remedy = '.*, or get the real one: https://www.kaggle.com/c/cdiscount-image-classification-challenge/data'
    return change(name, lambda _: None), rule + remedy


# What is done to a good catalogue, and the error after the catalogue's folder; .* stands for that folder.
BAD_INPUT = {
    'no train.bson': missing('train.bson'),
    'no test.bson': missing('test.bson'),
    'no category_names.csv': missing('category_names.csv'),
    'train.bson empty': (
        change('train.bson', lambda _: b''),
        'train.bson: byte 0: the file is empty; get the file again',
    ),
    'cut in the length': (
        append(b'\x05\x00\x00'),
        f'train.bson: byte {START}: not a BSON document (its length reads 5); {MEND}',
    ),
    'cut in a document': (
        change('train.bson', lambda data: data[:-7]),
        f'train.bson: byte {START - len(GOOD[0])}: the file is cut off: this document has {len(GOOD[0])} bytes, '
        f'{len(GOOD[0]) - 7} are there; get the file again',
    ),
    'zeros': (append(bytes(4096)), f'train.bson: byte {START}: not a BSON document (its length reads 0); {MEND}'),
    'test.bson cut': (
        append(GOOD[0][:50], 'test.bson'),
        f'test.bson: byte {len(catalogue.document(90, [JPEG]))}: the file is cut off: this document has '
        f'{len(GOOD[0])} bytes, 50 are there; get the file again',
    ),
    'no pictures': (
        append(catalogue.document(90, [], 1000)),
        f'train.bson: byte {START}: product 90 has no pictures; imgs must be [{{picture: binary}}, ...]; {MEND}',
    ),
    'no JPEG': (
        append(catalogue.document(90, [b'GIF89a'], 1000)),
        f'train.bson: byte {START}: product 90: picture 0 is no JPEG (starts with 47 49 46 38); {MEND}',
    ),
    'unknown category': (
        append(catalogue.document(90, [JPEG], 1002)),
        f'train.bson: byte {START}: product 90 is of category 1002, which is not in '
        '.*/category_names.csv; add it there',
    ),
    'train without category': (
        append(catalogue.document(90, [JPEG])),
        f'train.bson: byte {START}: product 90: category_id must be a whole number, is None; {MEND}',
    ),
    'test with category': (
        change('test.bson', lambda _: GOOD[0]),
        'test.bson: byte 0: product 0 has a category_id, which a test file must not have; is this the train file?',
    ),
    'repeated product': (
        append(GOOD[3]),
        f'train.bson: byte {START}: product 3 stands at byte {3 * len(GOOD[0])} already; each may stand once',
    ),
    'repeated product of another category': (
        append(catalogue.document(3, [JPEG], 1000)),
        f'train.bson: byte {START}: product 3 stands at byte {3 * len(GOOD[0])} already; each may stand once',
    ),
    'repeated product in test': (
        append(catalogue.document(90, [JPEG]), 'test.bson'),
        f'test.bson: byte {len(catalogue.document(90, [JPEG]))}: product 90 stands at byte 0 already; '
        'each may stand once',
    ),
    'names without header': (
        change('category_names.csv', lambda _: b'1000,A,A,A\n'),
        'category_names.csv: row 1 must be category_id,category_level1,category_level2,category_level3, is 1000,A,A,A',
    ),
    'names with a bad row': (
        append(b'1002,A\n', 'category_names.csv'),
        'category_names.csv: row 4 must be category_id,category_level1,category_level2,category_level3, is 1002,A',
    ),
    'names with a repeated id': (
        append(b'1000,A,A,A\n', 'category_names.csv'),
        'category_names.csv: row 4 repeats category 1000; each must stand once',
    ),
    'names not in UTF-8': (
        append(b'1002,\xff,A,A\n', 'category_names.csv'),
        "category_names.csv: must be UTF-8 text with commas ('utf-8' codec can't decode byte 0xff in position .*: "
        'invalid start byte)',
    ),
    'names empty': (
        change('category_names.csv', lambda _: CATEGORY_NAMES),
        'category_names.csv: holds no category; get the file again',
    ),
}  # fmt: skip


def exactly(folder: Path, error: str) -> str:
    return f'^{re.escape(str(folder))}/{re.escape(error).replace(re.escape(".*"), ".*")}$'


@pytest.fixture
def good_source(tmp_path) -> Path:
    write_source(tmp_path / 'data', GOOD, [catalogue.document(90, [JPEG])], [1000, 1001])
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def earlier(tmp_path_factory) -> dict[str, bytes]:
    """The files of a good dataset."""
    folder = tmp_path_factory.mktemp('earlier')
    write_source(folder / 'data', GOOD, [], [1000, 1001])
    run(folder / 'data', folder / 'shards')
    return contents(folder / 'shards')


@pytest.mark.parametrize(('damage', 'error'), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_clear_line_and_an_earlier_dataset_stays(good_source, earlier, tmp_path, damage, error):
    output = tmp_path / 'shards'
    output.mkdir()
    for name, data in earlier.items():
        (output / name).write_bytes(data)
    damage(good_source)
    with pytest.raises(InputError, match=exactly(good_source, error)) as raised:
        run(good_source, output)
    assert '\n' not in str(raised.value)
    assert contents(output) == earlier


@pytest.mark.parametrize('name', ['no test.bson', 'cut in a document', 'repeated product', 'names empty'])
def test_bad_input_leaves_an_empty_folder_empty(good_source, tmp_path, name):
    BAD_INPUT[name][0](good_source)
    with pytest.raises(InputError):
        run(good_source, tmp_path / 'shards')
    assert contents(tmp_path / 'shards') == {}


def test_a_source_that_changes_meanwhile_leaves_no_half_shard_and_no_manifest(good_source, tmp_path):
    the_job = job(good_source, tmp_path / 'shards')
    (made, _) = plan.plan_source(0, train_places(the_job), the_job)
    assert isinstance(made, plan.Split)
    shards.note_places(made, the_job)
    reordered = GOOD[1:] + GOOD[:1]
    (good_source / 'train.bson').write_bytes(b''.join(reordered))
    error = 'train.bson: changed while it was read; run the conversion again'
    with pytest.raises(InputError, match=exactly(good_source, error)):
        shards.write_shard(made.shards[0], the_job)
    assert contents(tmp_path / 'shards') == {}


def test_the_same_product_may_stand_in_train_and_test(good_source, tmp_path):
    append(catalogue.document(0, [JPEG]), 'test.bson')(good_source)
    run(good_source, tmp_path / 'shards')
    assert sorted(ids(tmp_path / 'shards', 'test')) == [0, 90]


def test_a_catalogue_may_come_without_test_products(good_source, tmp_path):
    (good_source / 'test.bson').write_bytes(b'')
    run(good_source, tmp_path / 'shards')
    assert read_manifest(tmp_path / 'shards').of_split('test') == ()
    assert len(ids(tmp_path / 'shards', 'train')) == 18


# As users start it.


def start(folder: Path, *words: str, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the program as typed, but in another folder; no file may grow beyond `file_limit` bytes."""
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    command = [sys.executable, '-m', 'pipeline.convert', *words]
    before = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_limit,) * 2) if file_limit else None
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=before)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a program said on stderr, but for its progress, which a slow machine makes it show."""
    return [line for line in done.stderr.splitlines() if line and not re.match('(read and plan|write): ', line)]


def test_the_command_works_as_typed(good_source, tmp_path):
    done = start(tmp_path, '--runner=DirectRunner')
    assert (done.returncode, errors(done)) == (0, [])
    assert len(ids(tmp_path / 'data' / 'shards', 'train')) == 18


def test_a_disk_that_takes_no_more_is_one_line_that_names_the_file_and_leaves_no_manifest(good_source, tmp_path):
    done = start(tmp_path, '--runner=DirectRunner', file_limit=10_000)
    assert done.returncode == 1
    (line,) = errors(done)
    assert re.fullmatch(r"error: \[Errno 27\] File too large: 'data/shards/(train|test)-00000-of-00001.tfrecord'", line)
    left = set(contents(tmp_path / 'data' / 'shards'))
    assert left <= {'val-00000-of-00001.tfrecord', 'test-00000-of-00001.tfrecord'}, 'those that were small enough'


@pytest.mark.parametrize('name', ['no train.bson', 'zeros'])
def test_bad_input_exits_with_1_and_one_line_on_stderr(good_source, tmp_path, name):
    damage, error = BAD_INPUT[name]
    damage(good_source)
    done = start(tmp_path, '--direct_num_workers=2')
    assert done.returncode == 1
    (line,) = errors(done)
    assert re.match(exactly(Path('error: data'), error), line)
    assert contents(tmp_path / 'data' / 'shards') == {}


@pytest.mark.parametrize(
    ('word', 'error'),
    [
        ('--shard_md=64', 'unknown flag --shard_md, perhaps --shard_mb is meant'),
        ('--runer=DirectRunner', 'unknown flag --runer, perhaps --runner is meant'),
        ('data', "unexpected argument 'data': every option is written --name=value"),
        ('--val_fraction=0.6', 'flag --val_fraction=0.6: 0.6 is not a number in the range [0, 0.5]'),
        ('--shard_mb=0', 'flag --shard_mb=0: 0 is not a positive integer'),
        ('--direct_num_workers=x', "argument --direct_num_workers: invalid int value: 'x'"),
    ],
)
def test_bad_usage_exits_with_2(good_source, tmp_path, monkeypatch, capsys, word, error):
    monkeypatch.setattr(sys, 'argv', ['convert', f'--input_dir={good_source}', f'--output_dir={tmp_path}/out', word])
    with pytest.raises(SystemExit) as end:
        convert.program.run(convert.main)
    assert end.value.code == 2
    assert capsys.readouterr().err == f'error: {error}; --help lists the flags\n'
    assert contents(tmp_path / 'out') == {}


def test_a_mistyped_flag_says_no_more_than_that(good_source, tmp_path):
    done = start(tmp_path, '--shard_md=64')
    assert done.returncode == 2
    assert done.stderr == 'error: unknown flag --shard_md, perhaps --shard_mb is meant; --help lists the flags\n'


def test_how_far_the_catalogue_is_read_is_told(good_source, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, 'NOTE_SECONDS', 0)
    the_job = job(good_source, tmp_path / 'out')
    train, test = ((good_source / name).stat().st_size for name in plan.SOURCES)
    for source, size in enumerate((0, train, train + test)):
        assert convert._progress(the_job) == ('read and plan', size, train + test, 'B', '')
        list(convert.plan_source(source, the_job) if source < 2 else ())
    shards.begin(the_job, [plan.Total('train', 18, 18, 2, train, 3)], [])
    assert convert._progress(the_job) == ('write', 0, 3, 'shards', '')


def test_help_lists_every_flag_and_makes_nothing(tmp_path):
    done = start(tmp_path, '-h')
    assert done.stdout == start(tmp_path, '--help').stdout
    assert (done.returncode, done.stderr) == (0, '')
    listed = re.findall(r'^  --(?:\[no\])?(\w+)', done.stdout, re.MULTILINE)
    assert sorted(listed) == [
        'flagfile', 'help', 'input_dir', 'max_rejected', 'on_error', 'output_dir', 'plan_only', 'seed', 'shard_mb',
        'val_fraction',
    ]  # fmt: skip
    assert '--runner=DirectRunner' in done.stdout
    assert contents(tmp_path) == {}


def job(source: Path, output: Path) -> plan.Job:
    return plan.Job(
        input_dir=str(source),
        output_dir=str(output),
        label_map=categories.read_source(str(source)),
        val_fraction=0.1,
        seed=0,
        shard_bytes=128 * 10**6,
        skip=False,
        max_rejected=0,
        plan_only=False,
        sources=tuple(convert._identity(str(source / name)) for name in plan.SOURCES),
    )


def train_places(the_job: plan.Job) -> np.ndarray:
    (places,) = plan.index_source(0, the_job)
    assert isinstance(places, np.ndarray)
    return places
