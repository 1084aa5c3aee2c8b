"""Known pictures: whatever repeats is found, in whichever shard it stands; what tells no single category has none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ensemble import known_images
from ensemble.known_images import Known
from pipeline import beam_job, manifest, records, shard_chunks
from pipeline.errors import InputError
from pipeline.records import Product
from tests import shards

IN_MEMORY = '--runner=FnApiRunner'
REPOSITORY = Path(__file__).parents[2]
Images = tuple[bytes, ...]
Answer = tuple[int, int, int, int]  # product_id, pictures, seen, label


def find(
    folder: Path, split: str = 'test', *, sources: tuple[str, ...] = ('train',), words: Sequence[str] = ()
) -> Known:
    """What is known, on a runner; expects that nothing is left behind, whatever happens."""
    output_dir = folder / 'output'
    output_dir.mkdir(exist_ok=True)
    try:
        engine = beam_job.engine(list(words) or [IN_MEMORY])
        return known_images.find(engine, str(folder), split, sources=sources, output_dir=str(output_dir))
    finally:
        assert list(output_dir.iterdir()) == []


def answers(known: Known) -> list[Answer]:
    columns = [getattr(known, field.name) for field in dataclasses.fields(Known)]
    assert [column.dtype for column in columns] == [np.int64] * 4
    return list(zip(*(column.tolist() for column in columns), strict=True))


def source(label: int, *images: bytes, number: int = 0) -> Product:
    return Product(number, 1000 + label, label, 'train', images)


def asking(number: int, images: Images, *, label: int = -1) -> Product:
    return Product(number, -1, label, 'test', images)


# Each source product has a label and pictures; then the pictures of a product that asks, how many are seen, its label.
CASES: dict[str, tuple[list[Product], Images, int, int]] = {
    'none is known': ([source(1, b'a')], (b'b', b'c'), 0, -1),
    'one is known': ([source(1, b'a')], (b'a',), 1, 1),
    'one of several is known': ([source(1, b'a')], (b'b', b'a', b'c', b'd'), 1, 1),
    'label 0 is a label': ([source(0, b'a')], (b'a',), 1, 0),
    'several agree': ([source(1, b'a'), source(1, b'b')], (b'a', b'b', b'c'), 2, 1),
    'several of one product': ([source(1, b'a', b'b')], (b'b', b'a'), 2, 1),
    'several disagree': ([source(1, b'a'), source(2, b'b')], (b'a', b'b'), 2, -1),
    'one has two labels': ([source(1, b'a'), source(2, b'a')], (b'a',), 1, -1),
    'one has two labels, another one of them': ([source(1, b'a', b'b'), source(2, b'a')], (b'a', b'b'), 2, -1),
    'majorities do not count': ([source(1, b'a'), source(1, b'a'), source(2, b'a')], (b'a',), 1, -1),
    'one stands twice under its label': ([source(1, b'a'), source(1, b'a')], (b'a',), 1, 1),
    'one stands twice in a source': ([source(1, b'a', b'a')], (b'a',), 1, 1),
    'one stands twice in the product': ([source(1, b'a')], (b'a', b'a', b'b'), 2, 1),
    'one that has two labels stands twice in the product': ([source(1, b'a'), source(2, b'a')], (b'a', b'a'), 2, -1),
    'a picture without bytes': ([source(1, b'')], (b'',), 1, 1),
}


@pytest.fixture(scope='module')
def all_cases(tmp_path_factory) -> list[Answer]:
    """Of all cases, one dataset: pictures of different cases differ, products stand in three shards."""
    folder = tmp_path_factory.mktemp('cases')
    sources: list[Product] = []
    asked: list[Product] = []
    for number, (products, images, _, _) in enumerate(CASES.values()):
        for one in products:
            renamed = tuple(b'%d %s' % (number, image) for image in one.images)
            sources.append(one._replace(product_id=100 * len(sources), images=renamed))
        asked.append(asking(number, tuple(b'%d %s' % (number, image) for image in images)))
    shards.write_products(folder, {'train': [sources[::2], sources[1::2]], 'test': [asked[:4], asked[4:5], asked[5:]]})
    return answers(find(folder))


@pytest.mark.parametrize('number', range(len(CASES)), ids=CASES)
def test_a_product_of_each_kind(all_cases, number):
    _, images, seen, label = list(CASES.values())[number]
    assert all_cases[number] == (number, len(images), seen, label)


def reference(products: Mapping[str, Sequence[Sequence[Product]]], split: str, sources: Sequence[str]) -> list[Answer]:
    """The same by a dict of the pictures themselves."""
    labels = defaultdict(set)
    for name in sources:
        for some in products.get(name, ()):
            for product in some:
                for image in product.images:
                    labels[image].add(product.label)
    expected = []
    for some in products[split]:
        for product in some:
            found = [labels[image] for image in product.images if image in labels]
            told = set().union(*found)
            label = told.pop() if len(told) == 1 else -1
            expected.append((product.product_id, len(product.images), len(found), label))
    return expected


def random_products(seed: int, *, most: int = 60) -> dict[str, list[list[Product]]]:
    """Splits of a few shards, of which some are empty; pictures repeat, mostly under one label."""
    draw = np.random.default_rng(seed)
    made: dict[str, list[list[Product]]] = {}
    number = 0
    for name in ('train', 'val', 'test'):
        made[name] = [[] for _ in range(draw.integers(1, 5))]
        for some in made[name]:
            for _ in range(draw.integers(0, most)):
                keys = draw.integers(0, 150, draw.integers(1, 5))
                images = tuple(b'%d' % key for key in keys.tolist())
                label = int(keys[0] % 3 if draw.random() < 0.9 else draw.integers(3))
                some.append(Product(number, -1, -1 if name == 'test' else label, name, images))
                number += 7
        made[name][-1].append(Product(number, -1, 0, name, (b'last',)))
    return made


@pytest.mark.parametrize('seed', range(6))
def test_random_products_are_answered_as_by_a_dict(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(known_images, 'BUCKET_PICTURES', (40, 300, 2**21)[seed % 3])
    products = random_products(seed)
    shards.write_products(tmp_path, products)
    for split, sources in (('test', ('train',)), ('test', ('train', 'val')), ('val', ('train',)), ('train', ('val',))):
        expected = reference(products, split, sources)
        assert answers(find(tmp_path, split, sources=sources)) == expected
        assert {-1} < {label for *_, label in expected}


@pytest.mark.parametrize('count', [127, 128, 129, 256, 257, 600])
def test_shards_of_any_number_of_chunks_are_read_in_any_groups(tmp_path, monkeypatch, count):
    monkeypatch.setattr(shard_chunks, 'READ_CHUNKS', 2)
    train = [source(number % 5, b'%d' % number, b'%d' % -number, number=number) for number in range(count)]
    test = [asking(number, (b'%d' % (number - 50),)) for number in range(count)]
    shards.write_products(tmp_path, {'train': [train], 'test': [test]})
    assert answers(find(tmp_path)) == reference({'train': [train], 'test': [test]}, 'test', ['train'])


def test_md5s_that_differ_in_one_bit_are_different():
    """Whichever byte it is in: nothing is cut off."""
    base = np.frombuffer(hashlib.md5(b'a').digest(), np.uint8)
    sources, asked = np.zeros((2, 129), known_images.PICTURE)
    for both in (sources, asked):
        both['md5'] = base
        both['number'] = np.arange(129)
    for bit in range(128):
        sources['md5'][bit, bit // 8] ^= 1 << bit % 8
    product, label = known_images.join(asked[:128], sources[:128])
    assert (product.tolist(), label.tolist()) == ([], [])
    product, label = known_images.join(asked[:2], sources)
    assert (product.tolist(), label.tolist()) == ([0, 1], [128, 128])


@pytest.mark.parametrize(('asked', 'sources'), [(0, 0), (0, 3), (3, 0)])
def test_a_bucket_may_lack_pictures_of_either(asked, sources):
    product, label = known_images.join(np.zeros(asked, known_images.PICTURE), np.zeros(sources, known_images.PICTURE))
    assert (product.tolist(), label.tolist()) == ([], [])


def test_buckets_are_equal_ranges_of_the_first_bytes():
    md5 = np.zeros((5, 16), np.uint8)
    md5[:, :4] = [[0, 0, 0, 0], [0x55, 0x55, 0x55, 0x55], [0x55, 0x55, 0x55, 0x56], [0xAA, 0xAA, 0xAA, 0xAB], [255] * 4]
    assert known_images._buckets(md5, 3).tolist() == [0, 0, 1, 2, 2]
    assert known_images._buckets(md5, 1).tolist() == [0] * 5


def test_a_source_without_products_knows_nothing(tmp_path):
    shards.write_products(tmp_path, {'train': [[source(1, b'a')]], 'test': [[asking(5, (b'a',))]]})
    assert answers(find(tmp_path, sources=('val',))) == [(5, 1, 0, -1)]


# Every runner.


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('dataset')
    shards.write_products(folder, random_products(0, most=200))
    return folder


def test_several_processes_find_the_same(dataset):
    expected = reference(random_products(0, most=200), 'test', ['train', 'val'])
    words = ['--runner=DirectRunner', '--direct_num_workers=2']
    assert answers(find(dataset, sources=('train', 'val'), words=words)) == expected


PROGRAM = """
import sys
import numpy as np
from ensemble import known_images
from pipeline import beam_job
folder, output_dir, *words = sys.argv[1:]
known = known_images.find(beam_job.engine(words), folder, 'test', sources=('train', 'val'), output_dir=output_dir)
np.savez(f'{output_dir}/known.npz', **vars(known))
"""


@pytest.mark.flink
@pytest.mark.slow
def test_flink_finds_the_same(dataset, tmp_path):
    """In a process of its own: a job on Flink leaves its marks on the one that starts it."""
    subprocess.run([REPOSITORY / 'tools' / 'flink.sh', 'fetch'], check=True)
    jar = REPOSITORY / '.flink' / 'jars' / 'job-server.jar'
    words = ['--runner=FlinkRunner', '--flink_master=[local]', f'--flink_job_server_jar={jar}']
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    subprocess.run([sys.executable, '-c', PROGRAM, dataset, tmp_path, *words], check=True, env=environment)
    assert [path.name for path in tmp_path.iterdir()] == ['known.npz']
    with np.load(tmp_path / 'known.npz') as found:
        expected = reference(random_products(0, most=200), 'test', ['train', 'val'])
        assert answers(Known(**found)) == expected


# Errors.


@pytest.mark.parametrize(
    ('split', 'words'), [('train', [IN_MEMORY]), ('test', ['--runner=DirectRunner', '--direct_num_workers=2'])]
)
def test_damage_is_told_by_file_and_byte(dataset, tmp_path, split, words):
    folder = tmp_path / 'damaged'
    shutil.copytree(dataset, folder)
    listed = manifest.read(str(folder), kind='shards', remedy='').of_split(split)
    path = folder / max(listed, key=lambda file: file.products).name
    data = bytearray(path.read_bytes())
    first_length = 16 + int.from_bytes(data[:8], 'little')
    data[first_length + 40] ^= 1
    path.write_bytes(data)
    said = f"{path}: the record at byte {first_length} doesn't fit its checksum; {shard_chunks.REMEDY}"
    with pytest.raises(InputError, match=f'^{re.escape(said)}$'):
        find(folder, words=words)


@pytest.mark.parametrize(
    ('old', 'new', 'error'),
    [
        (b'image_md5', b'image_md6', 'the record at byte {byte} has not one image_md5'),
        (b'\n\x10', b'\n\x0f', 'the record at byte {byte} is no tf.train.Example'),
    ],
)
def test_a_record_without_good_md5s_is_told_by_its_byte(tmp_path, old, new, error):
    products = [source(1, b'a', number=1), source(1, b'b', number=2)]
    shards.write_products(tmp_path, {'train': [products], 'test': [[asking(5, (b'a',))]]})
    first, second = (records.encode(product) for product in products)
    place = second.index(b'image_md5')
    changed = second[:place] + second[place:].replace(old, new, 1)
    path = tmp_path / 'train-00000-of-00001.tfrecord'
    path.write_bytes(records.frame([first, changed]))
    said = f'{path}: {error.format(byte=len(records.frame([first])))}; {shard_chunks.REMEDY}'
    with pytest.raises(InputError, match=f'^{re.escape(said)}$'):
        find(tmp_path)


def test_another_number_of_products_than_the_manifest_tells_of_is_refused(tmp_path):
    shards.write_products(tmp_path, {'train': [[source(1, b'a')]], 'test': [[asking(5, (b'a',))]]})
    path = tmp_path / manifest.NAME
    values = json.loads(path.read_text())
    listed = values['files'][1]
    values['files'][1] = {**listed, 'products': 2, 'images': 2, 'chunks': [[listed['bytes'], 2, 0, 0, 0]]}
    path.write_text(json.dumps(values))
    said = 'from byte 0 on are 1 products, not the 2 that the manifest tells of'
    with pytest.raises(InputError, match=re.escape(f'test-00000-of-00001.tfrecord: {said}')):
        find(tmp_path)


def test_a_split_without_products_is_refused(tmp_path):
    shards.write_products(tmp_path, {'train': [[source(1, b'a')]], 'test': [[]]})
    for split in ('val', 'test'):
        with pytest.raises(InputError, match=f'^{re.escape(str(tmp_path))}: holds no product of the split {split}; '):
            find(tmp_path, split)


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'manifest\.json: no such file, .*python -m pipeline\.convert'):
        find(tmp_path)


@pytest.mark.parametrize(
    ('split', 'sources'),
    [('train', ('train',)), ('val', ('train', 'val')), ('test', ()), ('test', ('test',)), ('val', ('test',))],
)
def test_sources_that_would_know_themselves_or_nothing_are_refused(tmp_path, split, sources):
    with pytest.raises(ValueError, match=r"^sources must be some of \('train', 'val'\), and not the split"):
        find(tmp_path, split, sources=sources)
