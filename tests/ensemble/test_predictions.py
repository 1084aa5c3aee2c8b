"""The predictions store: what is found, what is written, and what is read of it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from pyarrow import parquet

from ensemble import predictions, rules
from ensemble.logits import Rows
from ensemble.mixture import Mixture, Models
from ensemble.predictions import UNKNOWN, Predictions
from ensemble.rules import Products
from pipeline.errors import InputError
from tests.ensemble.reference import random_rows

NAME = 'val-00000-of-00001.parquet'
FIELDS = [field.name for field in dataclasses.fields(Predictions)]
IDS = np.array([1000, 1010, 1020])


def random_predictions(products: int, classes: int = 30, *, first: int = 0) -> Predictions:
    """One in three is known otherwise, the true category of one in two isn't known."""
    generator = np.random.default_rng(first)
    rows = random_rows(generator.integers(1, 5, products).tolist(), classes, seed=first)
    label = np.where(rows.product_id % 2, rows.product_id % classes, -1)
    rows = dataclasses.replace(rows, product_id=rows.product_id + first, label=label)
    found = predictions.predict(Models([Products(rows)]), Mixture(), category_ids=np.arange(classes) * 10 + 1000)
    return predictions.with_known(found, found.product_id, np.where(np.arange(products) % 3 == 0, 1000, UNKNOWN))


def write(folder: Path, *parts: Predictions) -> None:
    names = [f'val-{number:05}-of-{len(parts):05}.parquet' for number in range(len(parts))]
    files = [
        predictions.write_file(str(folder), name, part, split='val') for name, part in zip(names, parts, strict=True)
    ]
    predictions.finish(str(folder), files[::-1], {'split': 'val'})


def assert_same(found: Predictions, expected: Predictions) -> None:
    for name in FIELDS:
        values, wanted = getattr(found, name), getattr(expected, name)
        assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape), name
        np.testing.assert_array_equal(values, wanted)


def test_predict_names_categories_by_their_ids(make_rows: Callable[..., Rows]) -> None:
    rows = make_rows([(9, 2, [(1, 2, 5)]), (4, -1, [(8, 6, 2), (2, 6, 8)])])
    found = predictions.predict(Models([Products(rows)]), Mixture('mean'), category_ids=IDS)
    assert found.product_id.tolist() == [9, 4]
    assert found.pictures.tolist() == [1, 2]
    assert found.true_category_id.tolist() == [1020, UNKNOWN]
    assert found.category_id.tolist() == [1020, 1010]
    np.testing.assert_allclose(found.probability, [5 / 8, 12 / 32], rtol=2e-3)
    assert found.known.tolist() == [False, False]
    assert found.likeliest[0].tolist() == [1020, 1010, 1000]  # of three categories; there is no fourth
    np.testing.assert_allclose(found.probabilities[0], [5 / 8, 2 / 8, 1 / 8], rtol=2e-3)
    types = [getattr(found, name).dtype.name for name in FIELDS]
    assert types == ['int64'] * 4 + ['float32', 'bool', 'int64', 'float32']


def test_predict_goes_by_the_mixture(make_rows: Callable[..., Rows]) -> None:
    models = Models([Products(make_rows([(7, 0, [row])])) for row in ([6, 1, 1], [1, 1, 6])])
    for weights, category_id in (((2, 1), 1000), ((1, 2), 1020), ((1, 1), 1000)):
        found = predictions.predict(models, Mixture(weights=weights), category_ids=IDS)
        assert found.category_id.tolist() == [category_id]


@pytest.mark.parametrize(('classes', 'places'), [(1, 1), (4, 4), (5, 5), (6, 5), (5270, 5)])
def test_there_are_five_likeliest_or_all_categories(tmp_path: Path, classes: int, places: int) -> None:
    found = random_predictions(4, classes)
    assert found.likeliest.shape == found.probabilities.shape == (4, places)
    write(tmp_path, found)
    assert_same(predictions.read(str(tmp_path)), found)


def test_known_categories_stand_in_place_of_the_networks() -> None:
    found = random_predictions(4)
    found = dataclasses.replace(found, known=np.zeros(4, bool))
    mended = predictions.with_known(found, found.product_id, np.array([UNKNOWN, 5, UNKNOWN, found.category_id[3]]))
    assert mended.known.tolist() == [False, True, False, True]
    assert mended.category_id.tolist() == [found.category_id[0], 5, found.category_id[2], found.category_id[3]]
    assert mended.probability.tolist() == [found.probability[0], 1, found.probability[2], 1]
    assert mended.probability.dtype == np.float32
    unchanged = {'known': found.known, 'category_id': found.category_id, 'probability': found.probability}
    assert_same(dataclasses.replace(mended, **unchanged), found)


@pytest.mark.parametrize('products', [0, 1, 1000])
def test_what_is_written_is_read_again(tmp_path: Path, products: int) -> None:
    found = random_predictions(1000)
    found = Predictions(*(getattr(found, name)[:products] for name in FIELDS))
    info = predictions.write_file(str(tmp_path), NAME, found, split='val')
    assert_same(predictions.read_file(str(tmp_path), info), found)
    assert (info.name, info.split, info.products, info.images) == (NAME, 'val', products, found.pictures.sum())
    assert info.bytes == (tmp_path / NAME).stat().st_size


def test_a_store_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    parts = [random_predictions(40, first=first) for first in (0, 1000, 500)]
    write(tmp_path, *parts)
    assert len(predictions.read(str(tmp_path))) == 120
    assert_same(predictions.read(str(tmp_path)), Predictions.concatenate(parts))
    manifest = predictions.read_manifest(str(tmp_path))
    assert (manifest.about, manifest.products('val')) == ({'split': 'val'}, 120)


def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    parts = [random_predictions(40, first=first) for first in (0, 1000)]
    write(tmp_path, *parts)
    found = predictions.read(str(tmp_path), ['likeliest', 'product_id'])
    expected = Predictions.concatenate(parts)
    for name in FIELDS:
        wanted = getattr(expected, name) if name in ('likeliest', 'product_id') else []
        np.testing.assert_array_equal(getattr(found, name), wanted)


def test_other_programs_read_the_columns_by_name(tmp_path: Path) -> None:
    found = random_predictions(3)
    write(tmp_path, found)
    rows = parquet.read_table(str(tmp_path / NAME)).to_pylist()
    assert list(rows[0]) == FIELDS
    assert [row['likeliest'] for row in rows] == found.likeliest.tolist()
    assert [row['known'] for row in rows] == [True, False, False]


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ('one', 'two'):
        write(tmp_path / folder, random_predictions(300))
    for name in (NAME, 'manifest.json'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()
    write(tmp_path / 'three', random_predictions(300, first=1))
    assert (tmp_path / 'one' / NAME).read_bytes() != (tmp_path / 'three' / NAME).read_bytes()


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    info = predictions.write_file(str(tmp_path), NAME, random_predictions(40), split='val')
    intact = (tmp_path / NAME).read_bytes()
    for place in range(0, len(intact), len(intact) // 40):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << place % 8
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(InputError, match=f"{NAME}: its checksum is not the manifest's; combine the logits again"):
            predictions.read_file(str(tmp_path), info)


@pytest.mark.parametrize('left', [0, 1, 1000, -1])
def test_a_file_cut_short_is_seen_with_the_manifest_and_without(tmp_path: Path, left: int) -> None:
    write(tmp_path, random_predictions(100))
    (info,) = predictions.read_manifest(str(tmp_path)).files
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:left])
    with pytest.raises(InputError, match=f'{NAME}: missing or not {info.bytes} bytes long; .*ensemble.combine'):
        predictions.read_manifest(str(tmp_path))
    with pytest.raises(InputError, match=f"{NAME}: its checksum is not the manifest's"):
        predictions.read_file(str(tmp_path), info)


@pytest.mark.parametrize('data', [b'', b'PAR1', b'_id,category_id\n', b'PAR1' + bytes(100) + b'PAR1'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    info = predictions.write_file(str(tmp_path), NAME, random_predictions(1), split='val')
    (tmp_path / NAME).write_bytes(data)
    info = dataclasses.replace(info, crc32c=google_crc32c.Checksum(data).hexdigest().decode())
    with pytest.raises(InputError, match=f'{NAME}: not a file of predictions .*; combine the logits again') as error:
        predictions.read_file(str(tmp_path), info)
    assert '\n' not in str(error.value)


def test_a_store_that_was_not_finished_is_refused_with_the_command(tmp_path: Path) -> None:
    predictions.write_file(str(tmp_path), NAME, random_predictions(1), split='val')
    with pytest.raises(InputError, match='holds no finished predictions; .* python -m ensemble.combine --rule product'):
        predictions.read(str(tmp_path))


@pytest.mark.parametrize('rule', rules.names())
def test_the_five_stand_from_the_likeliest_down(rule: str) -> None:
    rows = random_rows([1, 2, 3, 4] * 20, 30, seed=1)
    found = predictions.predict(Models([Products(rows)]), Mixture(rule), category_ids=np.arange(30))
    assert (np.diff(found.probabilities) <= 0).all()
    assert found.probability.tolist() == found.probabilities[:, 0].tolist()
    assert found.category_id.tolist() == found.likeliest[:, 0].tolist()
    assert ((found.probabilities > 0) & (found.probabilities <= 1)).all()
