"""Several stores as one model's: each product from the store made for it, in the dataset's order, or a refusal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble import logits, predictions, reduction, routing, rules
from ensemble.logits import Rows
from ensemble.mixture import Mixture
from ensemble.predictions import Predictions
from ensemble.reduction import Job
from pipeline import beam_job, split
from pipeline.errors import InputError
from pipeline.manifest import FileInfo
from tests.ensemble import stores

CLASSES = 6
LABEL_MAP = stores.label_map(CLASSES)
Shards = Sequence[Rows | None]


def pictures_of(*counts: int, views: int = 1, seed: int = 0) -> list[Rows]:
    """Files of so many products of one to four pictures, in a dataset's order; a row is a picture."""
    firsts = np.cumsum([0, *counts])[:-1].tolist()
    return [
        stores.in_order(stores.random_rows(count, CLASSES, seed=seed, views=views, first_id=first))
        for first, count in zip(firsts, counts, strict=True)
    ]


def products_of(shards: Sequence[Rows], *, seed: int = 7) -> list[Rows]:
    return [stores.of_products(rows, seed=seed) for rows in shards]


def read(name: str) -> Rows:
    """All that a group holds."""
    (group,) = routing.open_groups([name])
    return Rows.concatenate([rows for file in group.files() for rows in group.read(file)])


def same(left: Rows, right: Rows) -> bool:
    columns = [
        {name: value.tobytes() for name, value in vars(one).items() if value is not None} for one in (left, right)
    ]
    return columns[0] == columns[1]


def predict(
    names: Sequence[str], folder: Path, ways: Sequence[Mixture] = (Mixture(),), *flags: str
) -> list[Predictions]:
    opened = reduction.open_stores(names)
    outputs = [str(folder / str(number)) for number in range(len(ways))]
    reduction.run(beam_job.engine(list(flags or ['--runner=FnApiRunner'])), opened.parts(), Job(opened, ways, outputs))
    return [predictions.read(output) for output in outputs]


@pytest.mark.parametrize('limit', [1, 7, logits.BLOCK_ROWS])
@pytest.mark.parametrize('views', [1, 3])
def test_a_store_cut_into_parts_is_read_as_it_was(
    tmp_path: Path, views: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = products_of(pictures_of(60, 3, 1, 400, views=views))
    monkeypatch.setattr(logits, 'BLOCK_ROWS', limit)
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    found = read('+'.join(parts))
    assert same(found, Rows.concatenate(whole))
    assert same(read('+'.join(parts[::-1])), found), 'the order in which they are named does not matter'


@pytest.mark.parametrize(
    'runner', ['--runner=FnApiRunner', pytest.param('--runner=DirectRunner', marks=pytest.mark.slow)]
)
def test_predictions_by_parts_are_those_by_the_whole_on_every_runner(tmp_path: Path, runner: str) -> None:
    whole = products_of(pictures_of(50, 20, views=2))
    complete = stores.write(tmp_path / 'all' / 'val', whole, LABEL_MAP, pictures=4, fewer_pictures=True)
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    ways = [Mixture(rule, views=views) for rule in rules.names() for views in rules.VIEWS]
    expected = predict([complete], tmp_path / 'expected', ways)
    for one, other in zip(predict(['+'.join(parts)], tmp_path / 'found', ways, runner), expected, strict=True):
        for name, column in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), column, err_msg=name)


def test_each_product_is_taken_from_the_store_for_its_number_of_pictures(tmp_path: Path) -> None:
    """Of products with 2 and 3 pictures there are stores; the others come from that of all, picture by picture."""
    every = pictures_of(300, 40)
    whole = products_of(every)
    complete = stores.write(tmp_path / 'one' / 'val', every, LABEL_MAP)
    _, two, three, _ = stores.write_parts(tmp_path, whole, LABEL_MAP)
    found = read(f'{two}+{complete}+{three}')
    expected: list[Rows] = []
    for pictures, products in zip(every, whole, strict=True):
        assert products.pictures is not None
        for product_id, count in zip(products.product_id.tolist(), products.pictures.tolist(), strict=True):
            rows = (products if count in (2, 3) else pictures).take(
                np.flatnonzero((products if count in (2, 3) else pictures).product_id == product_id)
            )
            expected.append(dataclasses.replace(rows, pictures=np.full(len(rows), count)))
    assert same(found, Rows.concatenate(expected))


def test_what_the_store_for_a_number_of_pictures_lacks_comes_from_that_of_all(tmp_path: Path) -> None:
    every = pictures_of(30)
    whole = products_of(every)
    assert whole[0].pictures is not None
    complete = stores.write(tmp_path / 'all' / 'val', whole, LABEL_MAP, pictures=3, fewer_pictures=True)
    other = dataclasses.replace(whole[0], logits=whole[0].logits + np.float16(1))
    few = other.take(np.flatnonzero(other.pictures == 2)[1:])
    part = stores.write(tmp_path / 'p2' / 'val', [few], LABEL_MAP, pictures=2, dataset_products=30)
    found = read(f'{part}+{complete}')
    taken = np.isin(found.product_id, few.product_id)
    assert len(few) == taken.sum() > 1
    np.testing.assert_array_equal(found.product_id, whole[0].product_id)
    np.testing.assert_array_equal(found.logits, np.where(taken[:, None], other.logits, whole[0].logits))


@pytest.mark.parametrize('seed', [0, 3])
def test_products_stand_in_the_order_of_their_hashes(tmp_path: Path, seed: int) -> None:
    ids = np.array([11, 12, 13, 14, 15, 16])
    order = ids[np.argsort(split.order_hashes(ids, seed=seed))]
    assert order.tolist() != sorted(order.tolist())
    rows = [
        Rows(one, one * 0, one * 0, one * 0, np.zeros((3, CLASSES), np.float16), one * 0 + count)
        for count, one in ((1, order[[0, 2, 5]]), (2, order[[1, 3, 4]]))
    ]
    about = {'order_seed': seed, 'dataset_products': 6}
    names = [
        stores.write(tmp_path / f'{count}' / 'val', [one], LABEL_MAP, pictures=count, **about)
        for count, one in enumerate(rows, start=1)
    ]
    found = read('+'.join(names))
    assert found.product_id.tolist() == order.tolist()
    assert found.pictures is not None
    assert found.pictures.tolist() == [1, 2, 1, 2, 2, 1]


def test_a_file_without_products_of_a_part_is_read_as_none(tmp_path: Path) -> None:
    whole = products_of(pictures_of(3, 5, 2))
    for rows in whole[1:2]:
        assert rows.pictures is not None
        rows.pictures[:] = 1
    parts = stores.write_parts(tmp_path, [*whole, None], LABEL_MAP)
    held = [[file.products for file in logits.read_manifest(part).files] for part in parts]
    assert [counts[1] for counts in held] == [5, 0, 0, 0]
    (group,) = routing.open_groups(['+'.join(parts)])
    assert [file.products for file in group.files()] == [3, 5, 2, 0]
    assert same(read('+'.join(parts)), Rows.concatenate(whole))
    assert len(reduction.open_stores(['+'.join(parts)]).parts()) == 3


def test_no_more_than_a_block_of_each_file_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, 'BLOCK_ROWS', 16)
    parts = stores.write_parts(tmp_path, products_of(pictures_of(4000)), LABEL_MAP)
    taken: dict[str, int] = {}

    def read_shard(folder: str, file: FileInfo, original: Any = logits.read_shard) -> Iterator[Rows]:
        for rows in original(folder, file):
            taken[folder] = taken.get(folder, 0) + len(rows)
            yield rows

    monkeypatch.setattr(logits, 'read_shard', read_shard)
    (group,) = routing.open_groups(['+'.join(parts)])
    given = 0
    for rows in group.read(group.files()[0]):
        given += len(rows)
        assert len(rows) <= 4 * 16
        assert sum(taken.values()) - given <= 4 * 16
    assert given == 4000


def test_groups_are_models_beside_others(tmp_path: Path) -> None:
    every = pictures_of(80, 30)
    whole = products_of(every)
    parts = '+'.join(stores.write_parts(tmp_path, whole, LABEL_MAP))
    alone = stores.write(tmp_path / 'one' / 'val', every, LABEL_MAP)
    ways = [Mixture(weights=(1, 0)), Mixture(weights=(0, 1)), Mixture(weights=(1, 1))]
    by_parts, by_pictures, both = predict([parts, alone], tmp_path / 'found', ways)
    np.testing.assert_array_equal(by_parts.likeliest, predict([parts], tmp_path / 'parts')[0].likeliest)
    np.testing.assert_array_equal(by_pictures.likeliest, predict([alone], tmp_path / 'alone')[0].likeliest)
    np.testing.assert_array_equal(both.pictures, np.concatenate([rows.pictures for rows in whole]))
    about = predictions.read_manifest(str(tmp_path / 'found' / '2')).about
    told = [(one['model'], one['weights_digest'], one['pictures']) for one in about['logits']]
    assert told == [(0, 'w1', 1), (0, 'w2', 2), (0, 'w3', 3), (0, 'w4', 4), (1, 'w', 0)]
    assert about['dataset_products'] == 110


def test_a_single_store_of_a_part_is_of_its_products(tmp_path: Path) -> None:
    whole = products_of(pictures_of(50))
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    for count, part in enumerate(parts, start=1):
        opened = reduction.open_stores([part])
        (found,) = predict([part], tmp_path / str(count))
        assert set(found.pictures.tolist()) == {count}
        assert (opened.part, opened.products) == (count, len(found))
        assert opened.groups[0].told == (
            f'{len(found)} of 50 products (those with {count} picture{"s" if count > 1 else ""})'
        )
    twice = reduction.open_stores([parts[1], parts[1]])
    assert twice.part == 2


def test_where_all_products_have_as_many_pictures_their_store_is_of_no_part(tmp_path: Path) -> None:
    (rows,) = products_of(pictures_of(9))
    two = stores.write(
        tmp_path / 'p2' / 'val', [dataclasses.replace(rows, pictures=np.full(9, 2))], LABEL_MAP, pictures=2
    )
    opened = reduction.open_stores([two])
    assert (opened.part, opened.groups[0].told) == (0, '9 products')


def test_older_stores_are_of_all_products_picture_by_picture(tmp_path: Path) -> None:
    every = pictures_of(20)
    whole = products_of(every)
    _, two, *_ = stores.write_parts(tmp_path, whole, LABEL_MAP)
    older = stores.write(tmp_path / 'older' / 'val', every, LABEL_MAP)
    path = Path(older, 'manifest.json')
    text = path.read_text()
    for name in ('pictures', 'fewer_pictures', 'dataset_products', 'order_seed'):
        text = re.sub(rf'\n *"{name}": .*', '', text)
    path.write_text(text)
    assert 'pictures' not in logits.read_manifest(older).about
    assert read(f'{two}+{older}').product_id[0] == every[0].product_id[0]
    assert same(read(older), every[0])


@pytest.mark.parametrize(
    ('chosen', 'missing'),
    [
        ((1, 2, 3), r'4 of 30 products are missing, those with 4 pictures; name a store of them too'),
        ((2, 3, 4), r'9 of 30 products are missing, those with 1 picture; name a store of them too'),
        ((3, 2), r'13 of 30 products are missing, those with 1 or 4 pictures; name a store of each too'),
    ],
)
def test_a_group_that_lacks_products_is_refused(tmp_path: Path, chosen: tuple[int, ...], missing: str) -> None:
    (rows,) = products_of(pictures_of(30))
    counts = np.repeat([1, 2, 3, 4], [9, 8, 9, 4])
    parts = stores.write_parts(tmp_path, [dataclasses.replace(rows, pictures=counts)], LABEL_MAP)
    with pytest.raises(InputError, match=rf'{missing}, or one of all products, with \+ between$') as caught:
        routing.open_groups(['+'.join(parts[count - 1] for count in chosen)])
    assert '\n' not in str(caught.value)


def test_a_number_that_no_product_has_needs_no_store(tmp_path: Path) -> None:
    (rows,) = products_of(pictures_of(30))
    counts = np.repeat([1, 2, 4], 10)
    parts = stores.write_parts(tmp_path, [dataclasses.replace(rows, pictures=counts)], LABEL_MAP)
    first, second, third, fourth = parts
    assert len(read(f'{first}+{second}+{fourth}')) == len(read('+'.join(parts))) == 30
    with pytest.raises(InputError, match='p3/logits/val: holds no product; make the logits again'):
        routing.open_groups([third])


def test_two_stores_of_the_same_products_are_no_group(tmp_path: Path) -> None:
    every = pictures_of(30)
    whole = products_of(every)
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    others = stores.write_parts(tmp_path / 'others', whole, LABEL_MAP)
    message = (
        r'others/p2/logits/val: is of those with 2 pictures, as \S+/p2/logits/val is; join only stores of different'
    )
    with pytest.raises(InputError, match=message):
        routing.open_groups(['+'.join([*parts, others[1]])])
    complete = [
        stores.write(tmp_path / 'one' / 'val', every, LABEL_MAP),
        stores.write(tmp_path / 'all' / 'val', whole, LABEL_MAP, pictures=2, fewer_pictures=True),
    ]
    with pytest.raises(InputError, match=r'all/val: is of all products, as \S+/one/val is; join only stores'):
        routing.open_groups(['+'.join(complete)])


@pytest.mark.parametrize(
    ('about', 'message'),
    [
        ({'dataset_digest': 'another'}, 'its dataset is another, that of .* is d; only logits of the same shards'),
        ({'split': 'test'}, 'its split is test, that of .* is val; only logits'),
        ({'order_seed': 1}, 'has other files or products than .*; make the logits again'),
    ],
)
def test_stores_of_other_shards_are_no_group(tmp_path: Path, about: dict, message: str) -> None:
    whole = products_of(pictures_of(30))
    one = stores.write_parts(tmp_path / 'a', whole, LABEL_MAP)
    other = stores.write_parts(tmp_path / 'b', whole, LABEL_MAP, **about)
    with pytest.raises(InputError, match=f'b/p2/logits/(val|test): {message}'):
        routing.open_groups(['+'.join([one[0], other[1], *one[2:]])])


def test_stores_of_other_categories_or_files_are_no_group(tmp_path: Path) -> None:
    whole = products_of(pictures_of(30))
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    other = stores.write_parts(tmp_path / 'b', whole, dataclasses.replace(LABEL_MAP, ids=LABEL_MAP.ids + 1))
    with pytest.raises(InputError, match='b/p2/logits/val: its label map is'):
        routing.open_groups(['+'.join([parts[0], other[1]])])
    more = stores.write_parts(tmp_path / 'c', [*whole, None], LABEL_MAP)
    with pytest.raises(InputError, match='c/p2/logits/val: has other files or products than'):
        routing.open_groups(['+'.join([parts[0], more[1]])])


def test_models_of_other_products_are_not_combined(tmp_path: Path) -> None:
    every = pictures_of(30)
    parts = stores.write_parts(tmp_path, products_of(every), LABEL_MAP)
    alone = stores.write(tmp_path / 'one' / 'val', every, LABEL_MAP)
    message = (
        r'p2/logits/val: holds \d+ of 30 products \(those with 2 pictures\), \S+one/val 30 products; only logits of'
    )
    with pytest.raises(InputError, match=message) as caught:
        reduction.open_stores([alone, parts[1]])
    assert '\n' not in str(caught.value)
    with pytest.raises(InputError, match='those with 2 pictures.*those with 3 pictures'):
        reduction.open_stores([parts[2], parts[1]])


def test_a_store_of_all_that_lacks_some_is_refused(tmp_path: Path) -> None:
    folder = stores.write(tmp_path / 'one' / 'val', pictures_of(30), LABEL_MAP, dataset_products=31)
    with pytest.raises(InputError, match='one/val: holds 30 products, the dataset has 31; make the logits again'):
        reduction.open_stores([folder])


def swapped(folder: str, rows: Rows) -> None:
    """Writes other rows into a store, whose manifest then says so."""
    (file,) = logits.read_manifest(folder).files
    made = logits.write_shard(folder, file.name, rows, split=file.split)
    path = Path(folder, 'manifest.json')
    path.write_text(
        path.read_text().replace(file.crc32c, made.crc32c).replace(f'"bytes": {file.bytes}', f'"bytes": {made.bytes}')
    )


def test_a_product_in_two_stores_is_refused(tmp_path: Path) -> None:
    whole = products_of(pictures_of(30))
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    two, three = (read(part) for part in parts[1:3])
    assert three.pictures is not None
    product = int(two.product_id[1])
    ids = np.append(three.product_id[1:], product)
    forged = stores.in_order(dataclasses.replace(three, product_id=ids))
    swapped(parts[2], forged)
    message = (
        rf'^product {product} stands in \S+/p2/logits/val/\S+ and in \S+/p3/logits/val/\S+; make the logits again$'
    )
    with pytest.raises(InputError, match=message):
        predict(['+'.join(parts)], tmp_path / 'found')
    assert not list(tmp_path.rglob('*.parquet'))


def test_products_out_of_order_are_refused(tmp_path: Path) -> None:
    parts = stores.write_parts(tmp_path, products_of(pictures_of(30)), LABEL_MAP)
    rows = read(parts[1])
    swapped(parts[1], rows.take(np.arange(len(rows))[::-1]))
    with pytest.raises(InputError, match=r"p2/logits/val/\S+: its products don't stand in the dataset's order; make"):
        read('+'.join(parts))


def test_a_product_with_other_pictures_than_its_store_is_for_is_refused(tmp_path: Path) -> None:
    parts = stores.write_parts(tmp_path, products_of(pictures_of(30)), LABEL_MAP)
    rows = read(parts[1])
    assert rows.pictures is not None
    for wrong in (dataclasses.replace(rows, pictures=None), dataclasses.replace(rows, pictures=rows.pictures + 1)):
        swapped(parts[1], wrong)
        for name in (parts[1], '+'.join(parts)):
            with pytest.raises(
                InputError, match='p2/logits/val/.*: holds other products or pictures than its manifest'
            ):
                read(name)


def test_a_product_that_the_dataset_has_not_is_refused(tmp_path: Path) -> None:
    every = pictures_of(30)
    whole = products_of(every)
    complete = stores.write(tmp_path / 'one' / 'val', every, LABEL_MAP)
    parts = stores.write_parts(tmp_path, whole, LABEL_MAP)
    rows = read(parts[1])
    swapped(parts[1], stores.in_order(dataclasses.replace(rows, product_id=rows.product_id + 1000)))
    with pytest.raises(InputError, match=r'\d+ products are predicted, the manifest has 30; make the logits again'):
        predict([f'{parts[1]}+{complete}'], tmp_path / 'found')
    assert not list(tmp_path.rglob('*.parquet'))


def test_damage_in_any_store_of_a_group_is_named(tmp_path: Path) -> None:
    parts = stores.write_parts(tmp_path, products_of(pictures_of(60)), LABEL_MAP)
    path = next(Path(parts[3]).glob('*.tfrecord'))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'p4/logits/val/\S+: record 0 is damaged'):
        predict(['+'.join(parts)], tmp_path / 'found')
    assert not list(tmp_path.rglob('*.parquet'))
