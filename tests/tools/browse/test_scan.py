"""One pass over shards finds what is in them, in however many processes, and tells what is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest
from pipeline.errors import InputError
from pipeline.records import Product
from tests import catalogue, shards
from tools.browse import scan

A, B = catalogue.jpeg(0), catalogue.jpeg(1, size=(20, 10))


def read(folder: Path, processes: int = 1) -> scan.Scan:
    made = manifest.read(str(folder), kind='shards', remedy='')
    return scan.read(str(folder), made, categories=shards.CATEGORIES, processes=processes)


def write(folder: Path, *images: bytes, label: int = 0, split: str = 'train') -> None:
    shards.write_products(folder, {split: [[Product(5, 1000 + label, label, split, images)]]})


def test_products_and_pictures_stand_in_the_manifests_order(tmp_path):
    some = [Product(5, 1003, 3, 'train', (A, B)), Product(2, 1001, 1, 'train', (B,))]
    shards.write_products(tmp_path, {'train': [some[:1], some[1:]], 'test': [[Product(9, -1, -1, 'test', (A,))]]})
    found = read(tmp_path)
    assert found.product_id.tolist() == [5, 2, 9]
    assert found.label.tolist() == [3, 1, -1]
    assert found.split.tolist() == [0, 0, 2]
    assert found.images.tolist() == [2, 1, 1]
    assert found.product.tolist() == [0, 0, 1, 2]
    assert [md5.tobytes() for md5 in found.md5] == [hashlib.md5(image).digest() for image in (A, B, B, A)]
    assert found.length.tolist() == [len(A), len(B), len(B), len(A)]
    assert (found.sizes, found.step) == ({(180, 180): 2, (20, 10): 2}, 1)


def test_several_processes_find_the_same_as_one(tmp_path):
    shards.write(tmp_path, train=30, val=9, shards=2)
    one, two = read(tmp_path), read(tmp_path, processes=2)
    for field in dataclasses.fields(one):
        first, second = getattr(one, field.name), getattr(two, field.name)
        assert np.array_equal(first, second) if isinstance(first, np.ndarray) else first == second


@pytest.mark.parametrize('label', [-1, 7])
def test_a_label_that_is_none_is_refused(tmp_path, label):
    write(tmp_path, A, label=label)
    with pytest.raises(InputError, match=f'train-.*: product 5 has label {label}, must be 0 to 6; python'):
        read(tmp_path)


def test_shards_with_other_pictures_than_the_manifest_says_are_refused(tmp_path):
    write(tmp_path, A, B)
    made = manifest.read(str(tmp_path), kind='shards', remedy='')
    file = dataclasses.replace(made.files[0], images=4, chunks=((made.files[0].bytes, 0, 0, 0, 1),))
    manifest.write(dataclasses.replace(made, files=(file,)), str(tmp_path))
    with pytest.raises(InputError, match=f'{file.name}: holds 2 pictures, not the 4 that the manifest tells of'):
        read(tmp_path)


def test_a_product_with_an_md5_too_few_is_refused(tmp_path, monkeypatch):
    write(tmp_path, A, B)
    both = scan.columns.read_md5
    monkeypatch.setattr(scan.columns, 'read_md5', lambda *record: (both(*record)[0], both(*record)[1][1:]))
    with pytest.raises(InputError, match='the record at byte 0 has 2 pictures and 1 image_md5'):
        read(tmp_path)
