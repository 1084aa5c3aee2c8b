"""The job over several stores of logits: products stay together, and what doesn't belong together is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble import logits, predictions, reduction, rules
from ensemble.logits import Rows
from ensemble.mixture import Mixture
from ensemble.predictions import Predictions
from ensemble.reduction import Job, Stores
from pipeline import beam_job
from pipeline.categories import Categories
from pipeline.errors import InputError
from tests.ensemble import stores

CLASSES = 7
LABEL_MAP = stores.label_map(CLASSES)


def rows_of(model: int, *, views: int = 1, products: int = 60) -> list[Rows | None]:
    """Two files of products, and one without any between."""
    first = stores.random_rows(products, CLASSES, seed=model, views=views)
    second = stores.random_rows(5, CLASSES, seed=model + 100, views=views, first_id=1000)
    return [first, None, second]


def opened(tmp_path: Path, *models: list[Rows | None], **about: object) -> Stores:
    folders = [tmp_path / f'run{number}' / 'logits' / 'val' for number in range(len(models))]
    return reduction.open_stores(
        [stores.write(folder, rows, LABEL_MAP, **about) for folder, rows in zip(folders, models, strict=True)]
    )


def run(found: Stores, ways: list[Mixture], tmp_path: Path) -> list[Predictions]:
    engine = beam_job.engine(['--runner=FnApiRunner'])
    outputs = [str(tmp_path / 'out' / str(number)) for number in range(len(ways))]
    reduction.run(engine, found.parts(), Job(found, ways, outputs))
    return [predictions.read(folder) for folder in outputs]


def test_each_mixture_gets_a_store_with_the_products_in_order(tmp_path: Path) -> None:
    first, second = rows_of(1), rows_of(2)
    ways = [Mixture('mean', weights=(1, 0)), Mixture('product', weights=(0, 1))]
    mean, product = run(opened(tmp_path, first, second), ways, tmp_path)
    for found, model, name in ((mean, first, 'mean'), (product, second, 'product')):
        assert found.product_id.tolist() == [*range(60), *range(1000, 1005)]
        for rows, part in ((model[0], slice(60)), (model[2], slice(60, 65))):
            assert rows is not None
            alone = rules.combine(rules.Products(rows), rules.find(name))
            labels, probabilities = rules.likeliest(alone)
            assert found.likeliest[part].tolist() == LABEL_MAP.ids[labels].tolist()
            np.testing.assert_allclose(found.probabilities[part], probabilities, rtol=1e-4)
    about = predictions.read_manifest(str(tmp_path / 'out' / '1')).about
    assert about['mixture'] == {
        'rule': 'product', 'power': 0.1, 'views': 'pooled', 'weights': [0, 1], 'across': 'arithmetic', 'sharpness': 1,
    }  # fmt: skip
    assert (about['split'], about['dataset_digest'], about['known_images']) == ('val', 'd', False)
    assert [made['tta'] for made in about['logits']] == [1, 1]


@pytest.mark.parametrize('views', [1, 3, 40])
def test_stores_with_other_numbers_of_views_have_their_products_together(tmp_path: Path, views: int) -> None:
    """With 40 views a block holds a product or two."""
    found = opened(tmp_path, rows_of(1), rows_of(2, views=views))
    expected = [*range(60), *range(1000, 1005)]
    seen: list[int] = []
    for part in found.parts():
        for one, other in reduction.aligned(found.groups, part.files):
            assert one.product_id[one.starts()].tolist() == other.product_id[other.starts()].tolist()
            assert len(other) == views * len(one)
            seen += one.product_id[one.starts()].tolist()
    assert seen == expected


def test_files_of_the_same_products_in_another_order_are_refused(tmp_path: Path) -> None:
    first, second = rows_of(1), rows_of(2)
    rows = second[2]
    assert rows is not None
    end = rows.starts()[1]
    second[2] = Rows.concatenate([rows[end:], rows[:end]])
    with pytest.raises(InputError, match=r'val-00002\S+ and \S+val-00002\S+: do not hold the same products') as caught:
        run(opened(tmp_path, first, second), [Mixture(weights=(1, 1))], tmp_path)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.rglob('*.parquet'))


@pytest.mark.parametrize(
    ('about', 'message'),
    [
        ({'dataset_digest': 'another'}, 'its dataset is another, that of .* is d; only logits of the same shards'),
        ({'split': 'test'}, 'its split is test, that of .* is val; only logits'),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(tmp_path: Path, about: dict, message: str) -> None:
    folders = [stores.write(tmp_path / 'a' / 'val', rows_of(1), LABEL_MAP)]
    folders.append(stores.write(tmp_path / 'b' / 'val', rows_of(2), LABEL_MAP, **about))
    with pytest.raises(InputError, match=f'b/val: {message}'):
        reduction.open_stores(folders)


def test_stores_of_other_categories_are_refused(tmp_path: Path) -> None:
    other = Categories(LABEL_MAP.ids + 1, LABEL_MAP.names)
    folders = [
        stores.write(tmp_path / name / 'val', rows_of(1), made) for name, made in (('a', LABEL_MAP), ('b', other))
    ]
    with pytest.raises(InputError, match='b/val: its label map is [0-9a-f]{12}, that of .* is [0-9a-f]{12}; only'):
        reduction.open_stores(folders)


@pytest.mark.parametrize('files', [rows_of(2)[:2], [*rows_of(2)[:2], None], rows_of(2, products=59)])
def test_stores_of_other_files_are_refused(tmp_path: Path, files: list[Rows | None]) -> None:
    folders = [stores.write(tmp_path / 'a' / 'val', rows_of(1), LABEL_MAP)]
    folders.append(stores.write(tmp_path / 'b' / 'val', files, LABEL_MAP))
    with pytest.raises(InputError, match='b/val: has other files or products than .*a/val; make the logits again'):
        reduction.open_stores(folders)


def test_a_prediction_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    folders = [stores.write(tmp_path / 'runs' / name / 'logits' / 'val', rows_of(1), LABEL_MAP) for name in 'ab']
    Path(folders[1], 'manifest.json').unlink()
    with pytest.raises(
        InputError, match='holds no finished logits; make them: python -m model.predict --run_dir=.*/b '
    ):
        reduction.open_stores(folders)


@pytest.mark.parametrize('model', [0, 1])
def test_damage_in_any_store_is_named_and_leaves_nothing(tmp_path: Path, model: int) -> None:
    found = opened(tmp_path, rows_of(1), rows_of(2))
    path = Path(found.names[model], 'val-00002-of-00003.tfrecord')
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf'run{model}/logits/val/val-00002\S+: record 0 is damaged'):
        run(found, [Mixture(weights=(1, 1)), Mixture('max', weights=(1, 1))], tmp_path)
    assert not list(tmp_path.rglob('*.parquet'))


def test_what_an_earlier_run_left_goes(tmp_path: Path) -> None:
    stale = tmp_path / 'out' / '0' / 'val-00000-of-00001.parquet'
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b'')
    (stale.parent / 'notes.txt').write_text('not ours')
    run(opened(tmp_path, rows_of(1)), [Mixture()], tmp_path)
    made = predictions.read_manifest(str(stale.parent))
    assert sorted(path.name for path in stale.parent.iterdir()) == [
        'manifest.json',
        'notes.txt',
        *(file.name for file in made.files),
    ]
    assert not stale.exists()


def test_categories_that_are_known_by_pictures_stand_in_place_of_the_networks(tmp_path: Path) -> None:
    found = opened(tmp_path, rows_of(1))
    engine = beam_job.engine(['--runner=FnApiRunner'])
    parts = found.parts()
    known = np.full(5, predictions.UNKNOWN)
    known[3] = 1060
    parts = [
        reduction.Part(parts[0].files, (np.arange(60), np.full(60, predictions.UNKNOWN))),
        reduction.Part(parts[1].files, (np.arange(1000, 1005), known)),
    ]
    reduction.run(engine, parts, Job(found, [Mixture()], [str(tmp_path / 'known')], known_images=True))
    made = predictions.read(str(tmp_path / 'known'))
    (plain,) = run(found, [Mixture()], tmp_path)
    assert np.flatnonzero(made.known).tolist() == [63]
    assert (made.category_id[63], made.probability[63]) == (1060, 1)
    unknown = ~made.known
    assert made.category_id[unknown].tolist() == plain.category_id[unknown].tolist()
    assert made.likeliest.tolist() == plain.likeliest.tolist()


def test_known_categories_of_other_products_are_refused(tmp_path: Path) -> None:
    found = opened(tmp_path, rows_of(1))
    known = np.arange(60)[::-1], np.full(60, 1000)
    parts = [reduction.Part(found.parts()[0].files, known), found.parts()[1]]
    with pytest.raises(InputError, match='the logits hold other products than the shards, or in another order'):
        reduction.run(
            beam_job.engine(['--runner=FnApiRunner']), parts, Job(found, [Mixture()], [str(tmp_path / 'out')])
        )
    assert not list(tmp_path.rglob('*.parquet'))


def test_every_rule_gives_the_same_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [Mixture(name, views=views) for name in rules.names() for views in rules.VIEWS]
    made = []
    for number, limit in enumerate((logits.BLOCK_ROWS, 1)):
        monkeypatch.setattr(logits, 'BLOCK_ROWS', limit)
        made.append(run(opened(tmp_path / str(number), rows_of(3, views=3)), ways, tmp_path))
    for one, other in zip(*made, strict=True):
        assert one.category_id.tolist() == other.category_id.tolist()
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
