"""Training products counted by category, with the places of the first of some."""

from __future__ import annotations

import pytest

from pipeline import shard_chunks
from pipeline.errors import InputError
from pipeline.manifest import CHUNK_PRODUCTS
from tests import shards
from tools import sample_products
from tools.reports import training_products


def test_all_are_counted_and_found_over_chunks_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_chunks, 'READ_CHUNKS', 1)
    half = CHUNK_PRODUCTS + 12  # a multiple of 7
    made = shards.write(tmp_path, train=2 * half, val=5, shards=2)
    found = training_products.count(made, examples_of=[2, 5], examples=1000)
    assert found.counts.tolist() == [2 * half // 7] * 7
    files = made.manifest.of_split('train')
    for label, places in found.places.items():
        assert places == [(file, record) for file in files for record in range(label, half, 7)]
    read = sample_products.read(str(tmp_path), found.places[5])
    assert {(product.label, product.split) for product in read} == {(5, 'train')}


def test_examples_go_on_in_the_next_file(tmp_path):
    made = shards.write(tmp_path, train=14, shards=2)
    found = training_products.count(made, examples_of=[3], examples=3)
    names = [file.name for file in made.manifest.of_split('train')]
    assert [(file.name, record) for file, record in found.places[3]] == [(names[0], 3), (names[1], 3)]


def test_only_products_with_as_many_pictures_are_counted_if_a_number_is_asked_for(tmp_path):
    """Of shards.write, products have 1, 3, 2, 4, 1, 1 and 2 pictures by label."""
    made = shards.write(tmp_path, train=28, shards=2)
    found = training_products.count(made, examples_of=[2, 3], examples=3, pictures=2)
    assert found.counts.tolist() == [0, 0, 4, 0, 0, 0, 4]
    assert [record for _, record in found.places[2]] == [2, 9, 2]
    assert found.places[3] == []


def test_a_damaged_shard_is_one_line(tmp_path):
    made = shards.write(tmp_path, train=7)
    path = tmp_path / made.manifest.files[0].name
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-00000\S+: the record at byte \d+ doesn't fit its checksum"):
        training_products.count(made, examples_of=[], examples=3)
