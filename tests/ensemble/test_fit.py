"""Weights and the power rule's exponent, found on val logits and used on test logits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble import combine, fit, likelihood, logits, predictions, reduction
from ensemble.logits import Rows
from ensemble.mixture import Mixture
from ensemble.reduction import Stores
from pipeline import beam_job, worklog
from pipeline.categories import Categories
from pipeline.errors import InputError

CLASSES = 3
MADE: dict[str, Any] = {'weights_digest': 'a', 'tta': 1, 'dataset_digest': 'd', 'seed': 0}
Store = Callable[..., str]


@pytest.fixture
def store(label_map: Categories) -> Store:
    """Writes a store of logits in two files: values float [P, pictures, C], label int [P]."""

    def write(folder: Path, values: np.ndarray, label: Sequence[int] | np.ndarray, **made: Any) -> str:
        split = folder.name.split('-')[0]
        pictures = values.shape[1]
        rows = Rows(
            product_id=np.repeat(np.arange(len(values)), pictures),
            image_index=np.tile(np.arange(pictures), len(values)),
            view=np.zeros(len(values) * pictures, np.int64),
            label=np.repeat(np.asarray(label, np.int64), pictures),
            logits=values.reshape(-1, values.shape[2]).astype(np.float16),
        )
        middle = len(values) // 2 * pictures
        files = [
            logits.write_shard(str(folder), f'{split}-{number:05}-of-00002.tfrecord', part, split=split)
            for number, part in enumerate((rows[:middle], rows[middle:]))
        ]
        logits.finish(str(folder), files, split=split, categories=label_map, **{**MADE, **made})
        return str(folder)

    return write


def draw(seed: int, *, products: int, knows: Sequence[int], pictures: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits [P, pictures, C] of a model that knows only some of the classes, and labels, the same for any seed."""
    label = np.random.default_rng(0).integers(0, CLASSES, products)
    values = np.random.default_rng(seed).normal(size=(products, pictures, CLASSES))
    known = np.flatnonzero(np.isin(label, knows))
    values[known, :, label[known]] += 2
    return values.astype(np.float16), label


def log_softmax(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Stores:
    """Two models, one good at two of three classes and one at the third."""
    a, label = draw(1, products=90, knows=[0, 1])
    b, _ = draw(2, products=90, knows=[2])
    return reduction.open_stores(
        [store(tmp_path / 'a/val', a, label), store(tmp_path / 'b/val', b, label, weights_digest='b')]
    )


def test_an_arithmetic_means_weights_are_the_best_of_a_grid(two: Stores) -> None:
    a, label = draw(1, products=90, knows=[0, 1])
    b, _ = draw(2, products=90, knows=[2])
    of_truth = [np.exp(log_softmax(one[:, 0]))[np.arange(90), label] for one in (a, b)]
    ticks = np.linspace(0, 1, 1001)
    values = [np.log(w * of_truth[0] + (1 - w) * of_truth[1]).mean() for w in ticks]
    found = fit.fit(two, Mixture())
    assert found.every.mixture.weights[0] == pytest.approx(ticks[np.argmax(values)], abs=0.001)
    assert found.every.log_likelihood == pytest.approx(max(values), abs=1e-4)
    assert found.start_log_likelihood == pytest.approx(values[500], abs=1e-4)
    assert (found.start.weights, found.products) == ((0.5, 0.5), 90)


def test_a_geometric_means_weights_and_sharpness_are_the_best_of_a_grid(two: Stores) -> None:
    a, label = draw(1, products=90, knows=[0, 1])
    b, _ = draw(2, products=90, knows=[2])

    def value(first: float, second: float) -> float:
        logs = log_softmax(first * log_softmax(a[:, 0]) + second * log_softmax(b[:, 0]))
        return float(logs[np.arange(90), label].mean())

    found = fit.fit(two, Mixture(across='geometric')).every
    ticks = np.linspace(0, 2, 81)
    highest, *best = max((value(x, y), x, y) for x in ticks for y in ticks)
    np.testing.assert_allclose(np.multiply(found.mixture.sharpness, found.mixture.weights), best, atol=0.025)
    assert highest <= found.log_likelihood + 1e-4
    assert sum(found.mixture.weights) == pytest.approx(1)


@pytest.mark.parametrize('across', ['arithmetic', 'geometric'])
def test_what_is_fitted_predicts_with_the_likelihood_that_was_promised(
    two: Stores, tmp_path: Path, across: str
) -> None:
    found = fit.fit(two, Mixture(across=across)).every
    out = str(tmp_path / 'out')
    reduction.run(beam_job.engine(['--runner=FnApiRunner']), two.parts(), reduction.Job(two, [found.mixture], [out]))
    read = predictions.read(out)
    of_truth = read.probabilities[read.likeliest == read.true_category_id[:, None]]
    assert np.log(of_truth).mean() == pytest.approx(found.log_likelihood, abs=1e-4)


@pytest.mark.parametrize('pictures', [2, 3])
def test_the_exponent_found_is_the_best_of_a_grid(store: Store, tmp_path: Path, pictures: int) -> None:
    values, label = draw(3, products=80, knows=[0], pictures=pictures)
    values[:, 0] += 3 * np.random.default_rng(5).normal(size=(80, CLASSES))  # a picture that misleads: product is wrong
    stores = reduction.open_stores([store(tmp_path / 'a/val', values, label)])
    found = fit.fit(stores, Mixture('power', weights=(1,)))

    def value(power: float) -> float:
        logs = np.logaddexp.reduce(power * log_softmax(values), axis=1) / power
        return float((logs[np.arange(80), label] - np.logaddexp.reduce(logs, axis=1)).mean())

    highest = max(value(2.0 ** (step / 8)) for step in range(-64, 65))
    assert value(found.every.mixture.power) == pytest.approx(highest, abs=1e-4)
    assert found.every.log_likelihood == pytest.approx(highest, abs=1e-4)
    assert found.start_log_likelihood == pytest.approx(value(0.1), abs=1e-4)
    assert value(0.1) < highest - 0.01, 'there must be something to find'


@pytest.mark.parametrize('across', ['arithmetic', 'geometric'])
def test_each_exponent_has_weights_of_its_own(store: Store, tmp_path: Path, across: str) -> None:
    folders = []
    for seed, knows in ((4, [0, 1]), (5, [2])):
        values, label = draw(seed, products=60, knows=knows, pictures=2)
        folders.append(store(tmp_path / str(seed) / 'val', values, label))
    stores = reduction.open_stores(folders)
    start = Mixture('power', weights=(1, 1), across=across)
    best = fit.fit(stores, start).every
    assert best.mixture.power != start.power
    sample = fit.read_sample(stores, best.mixture)
    function = sample.function(np.arange(60))
    weights = likelihood.maximise(function, np.array([0.5, 0.5]))
    assert best.log_likelihood == pytest.approx(function(weights).value)
    np.testing.assert_allclose(best.mixture.weights, weights / weights.sum(), atol=1e-3)


def cross_validate(stores: Stores, start: Mixture, output_dir: Path) -> tuple[fit.Fit, fit.Trial]:
    found = fit.fit(stores, start)
    before = list(output_dir.iterdir())
    trial = fit.cross_validate(beam_job.engine(['--runner=FnApiRunner']), stores, found, output_dir=str(output_dir))
    assert list(output_dir.iterdir()) == before
    return found, trial


def test_each_product_is_predicted_by_what_was_fitted_without_its_fold(two: Stores, tmp_path: Path) -> None:
    found, trial = cross_validate(two, Mixture(), tmp_path)
    (a, label), (b, _) = draw(1, products=90, knows=[0, 1]), draw(2, products=90, knows=[2])
    q = np.stack([np.exp(log_softmax(one[:, 0])) for one in (a, b)], axis=1)  # [P, M, C]
    fold = fit.fold_of(np.arange(90))
    expected = np.zeros(90, bool)
    for number in range(fit.FOLDS):
        others = np.log(q[np.arange(90), :, label][fold != number])
        weights = likelihood.maximise(likelihood.arithmetic(others), np.array([0.5, 0.5]))
        np.testing.assert_allclose(found.folds[number].mixture.weights, weights, atol=1e-3)
        expected = np.where(fold == number, (weights @ q).argmax(axis=1) == label, expected)
    np.testing.assert_array_equal(trial.fitted, expected)
    np.testing.assert_array_equal(trial.start, q.sum(axis=1).argmax(axis=1) == label)
    for model in range(2):
        np.testing.assert_array_equal(trial.alone[model], q[:, model].argmax(axis=1) == label)


def test_cross_validation_does_not_flatter(store: Store, tmp_path: Path) -> None:
    """Labels are random and there are many models: whatever is learnt of them is chance."""
    generator = np.random.default_rng(7)
    label = generator.integers(0, CLASSES, 60)
    folders = [
        store(tmp_path / str(model) / 'val', 3 * generator.normal(size=(60, 1, CLASSES)), label) for model in range(12)
    ]
    stores = reduction.open_stores(folders)
    start = Mixture(across='geometric', weights=(1,) * 12)
    found, trial = cross_validate(stores, start, tmp_path)
    flattered = dataclasses.replace(found, folds=(found.every,) * fit.FOLDS)
    engine = beam_job.engine(['--runner=FnApiRunner'])
    on_itself = fit.cross_validate(engine, stores, flattered, output_dir=str(tmp_path)).fitted.mean()
    assert on_itself > trial.fitted.mean() + 0.1
    assert trial.fitted.mean() < 1 / CLASSES + 0.12  # two standard deviations


def test_folds_are_the_products_own_and_about_as_large() -> None:
    product_id = np.random.default_rng(0).integers(0, 2**40, 5000)
    fold = fit.fold_of(product_id)
    order = np.random.default_rng(1).permutation(5000)
    np.testing.assert_array_equal(fit.fold_of(product_id[order]), fold[order])
    assert np.abs(np.bincount(fold, minlength=fit.FOLDS) - 1000).max() < 4 * math.sqrt(5000 * 0.2 * 0.8)


@pytest.mark.parametrize('across', ['arithmetic', 'geometric'])
@pytest.mark.parametrize('products', [2, 3, 4])
def test_fewer_products_than_folds(store: Store, tmp_path: Path, products: int, across: str) -> None:
    folders = [store(tmp_path / str(seed) / 'val', *draw(seed, products=products, knows=[seed])) for seed in range(2)]
    found, trial = cross_validate(reduction.open_stores(folders), Mixture(across=across), tmp_path)
    assert len(trial.fitted) == found.products == products


@pytest.mark.parametrize('across', ['arithmetic', 'geometric'])
def test_of_a_single_product_nothing_can_be_held_out_so_models_are_alike(
    store: Store, tmp_path: Path, across: str, make_rows: Callable[..., Rows], label_map: Categories
) -> None:
    folders = []
    for name, odds in (('a', (1, 5, 1)), ('b', (3, 2, 2))):
        folder = str(tmp_path / name / 'val')
        rows = make_rows([(8, 1, [odds])])
        files = [logits.write_shard(folder, 'val-00000-of-00001.tfrecord', rows, split='val')]
        logits.finish(folder, files, split='val', categories=label_map, **MADE)
        folders.append(folder)
    found, trial = cross_validate(reduction.open_stores(folders), Mixture(across=across), tmp_path)
    assert found.every.mixture.weights[0] > 0.99
    (own,) = fit.fold_of(np.array([8]))
    assert found.folds[own] == fit.Fitted(found.start, -math.inf)
    np.testing.assert_array_equal(trial.fitted, [True])


def test_models_that_all_mislead_count_alike(store: Store, tmp_path: Path) -> None:
    values = np.eye(CLASSES)[[0, 1, 2] * 5][:, None] * 4
    wrong = np.array([1, 2, 0] * 5)
    folders = [store(tmp_path / name / 'val', values, wrong) for name in 'ab']
    found = fit.fit(reduction.open_stores(folders), Mixture(across='geometric', weights=(1, 1)))
    assert found.every.mixture == found.start


def test_the_sample_is_the_first_products_of_each_file(two: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, 'SAMPLE_PRODUCTS', 9)
    first = [0, 1, 2, 3, 4, 45, 46, 47, 48, 49]
    for across in ('arithmetic', 'geometric'):
        sample = fit.read_sample(two, Mixture(weights=(1, 1), across=across))
        values, label = draw(2, products=90, knows=[2])
        assert sample.product_id.tolist() == first
        assert sample.label.tolist() == label[first].tolist()
        expected = log_softmax(values[first, 0])
        expected = expected if across == 'geometric' else expected[np.arange(10), label[first]]
        np.testing.assert_allclose(sample.log_q[:, 1], expected, atol=1e-5)
    assert fit.fit(two, Mixture()).products == 10


def test_probabilities_of_all_classes_are_kept_up_to_a_limit(two: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, 'SAMPLE_BYTES', 20 * 2 * CLASSES * 4)
    geometric = fit.read_sample(two, Mixture(weights=(1, 1), across='geometric'))
    assert (geometric.log_q.shape, geometric.log_q.dtype) == ((20, 2, CLASSES), np.float32)
    assert fit.read_sample(two, Mixture(weights=(1, 1))).log_q.shape == (90, 2)


def test_a_sample_serves_to_predict_all(two: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fit, 'SAMPLE_PRODUCTS', 9)
    found, trial = cross_validate(two, Mixture(), tmp_path)
    assert len(trial.fitted) == 90
    assert 'fitted on 10 products: ' in fit.table(two, found, trial)


@pytest.mark.parametrize('place', [0, 3])
def test_a_product_without_a_category_is_refused(store: Store, tmp_path: Path, place: int) -> None:
    values, label = draw(1, products=4, knows=[0])
    label[place] = -1
    stores = reduction.open_stores([store(tmp_path / 'a/val', values, label), store(tmp_path / 'b/val', values, label)])
    with pytest.raises(InputError, match=rf'a/val: product {place} has label -1, none of the 3 categories'):
        fit.fit(stores, Mixture(weights=(1, 1)))


def test_a_product_without_a_category_is_refused_outside_the_sample_too(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, 'SAMPLE_PRODUCTS', 2)
    monkeypatch.setattr(logits, 'BLOCK_ROWS', 1)
    values, label = draw(1, products=4, knows=[0])
    label[3] = -1
    stores = reduction.open_stores([store(tmp_path / 'a/val', values, label), store(tmp_path / 'b/val', values, label)])
    with pytest.raises(InputError, match=r'a/val: product 3 has label -1'):
        cross_validate(stores, Mixture(weights=(1, 1)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']


@pytest.fixture
def runs(store: Store, tmp_path: Path) -> Path:
    """Two runs with val and test logits."""
    for seed, knows in ((1, [0, 1]), (2, [2])):
        values, label = draw(seed, products=40, knows=knows, pictures=2)
        run = tmp_path / 'runs' / 'ab'[seed - 1] / 'logits'
        store(run / 'val', values, label, weights_digest=str(seed))
        store(run / 'test', values, [-1] * 40, weights_digest=str(seed))
    return tmp_path / 'runs'


def run(runs: Path, *words: str, stores: str = 'a/logits/test,b/logits/test') -> None:
    folders = ','.join(f'{runs}/{name}' for name in stores.split(','))
    combine.main(['combine', f'--logits={folders}', '--runner=FnApiRunner', *words])


def test_what_is_fitted_on_val_combines_test_at_once_and_from_its_file(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(runs, '--fit=val', '--rule=mean')
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f'fitting mean on 40 products in {runs}/a/logits/val, {runs}/b/logits/val'
    assert [line.split()[0] for line in shown[3:5]] == [f'{runs}/a/logits/val', f'{runs}/b/logits/val']
    assert shown[5].startswith('equal weights ')
    assert shown[6].startswith('fitted, by cross-validation ')
    assert shown[7].startswith('by cross-validation what was fitted gains ')
    assert shown[8].startswith(
        f'wrote {runs}/ensemble/mixture.json: what was fitted; next: python -m ensemble.combine '
    )
    names = ['mixture.json', 'predictions', 'submission.csv.gz', worklog.NAME]
    assert sorted(path.name for path in (runs / 'ensemble').iterdir()) == names
    assert [entry.name for entry in worklog.read(f'{runs}/ensemble')] == ['fit mean on val', 'combine mean on test']
    at_once = (runs / 'ensemble' / 'submission.csv.gz').read_bytes()
    (runs / 'ensemble' / 'submission.csv.gz').unlink()
    run(runs, f'--weights={runs}/ensemble/mixture.json')
    assert (runs / 'ensemble' / 'submission.csv.gz').read_bytes() == at_once
    about = predictions.read_manifest(str(runs / 'ensemble' / 'predictions' / 'test')).about
    assert about['mixture']['rule'] == 'mean'
    assert about['mixture'] == json.loads((runs / 'ensemble' / 'mixture.json').read_text())['mixture']


def test_one_store_has_its_exponent_fitted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(runs, '--fit=val', '--rule=power', stores='a/logits/test')
    assert ', before 0.1\n' in capsys.readouterr().out
    power = json.loads((runs / 'a' / 'mixture.json').read_text())['mixture']['power']
    assert power != 0.1
    run(runs, f'--weights={runs}/a/mixture.json', f'--power={power}', '--rule=power', stores='a/logits/test')


def test_val_logits_themselves_are_only_fitted_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(runs, '--fit=val', stores='a/logits/val,b/logits/val')
    assert sorted(path.name for path in (runs / 'ensemble').iterdir()) == ['mixture.json', worklog.NAME]
    assert capsys.readouterr().out.endswith(f'--logits={runs}/a/logits/test,{runs}/b/logits/test\n')
    run(runs, f'--weights={runs}/ensemble/mixture.json', stores='a/logits/val,b/logits/val')
    assert 'may have been fitted on these products, which flatters it' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'stores', 'message'),
    [
        (['--fit=val', '--weights=1,2'], 'a/logits/test,b/logits/test', 'leave out --fit or --weights$'),
        (['--fit=val', '--rule=all'], 'a/logits/test,b/logits/test', 'leave out --fit or --rule=all$'),
        (['--fit=val'], 'a/logits/test', 'with one model only the exponent of --rule=power can be fitted'),
        (['--weights=none.json'], 'a/logits/test', 'none.json: no such file'),
        (['--weights=x'], 'a/logits/test', r"numbers with commas between, or a mixture\.json, are 'x'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(runs: Path, words: list[str], stores: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(runs, *words, stores=stores)
    assert '\n' not in str(caught.value)
    assert sorted(path.name for path in runs.iterdir()) == ['a', 'b']
    assert [path.name for path in (runs / 'a').iterdir()] == ['logits']


def test_missing_val_logits_are_told_with_the_command_that_makes_them(runs: Path, store: Store) -> None:
    values, _ = draw(1, products=40, knows=[0])
    store(runs / 'a/logits/test-tta3-best', values, [-1] * 40, tta=3)
    message = r'val-tta3-best holds no finished.*--run_dir=\S+/a --split=val --tta=3 --best$'
    with pytest.raises(InputError, match=message):
        run(runs, '--fit=val', '--rule=power', stores='a/logits/test-tta3-best')


@pytest.mark.parametrize('made', [{'weights_digest': 'other'}, {'tta': 2}])
def test_val_logits_by_another_model_are_refused(runs: Path, store: Store, made: dict[str, object]) -> None:
    values, label = draw(2, products=40, knows=[0])
    store(runs / 'b/logits/val', values, label, **{'weights_digest': '2', **made})
    message = r'b/logits/val and \S+b/logits/test are not by the same model .*--split=val && .*--split=test$'
    with pytest.raises(InputError, match=message):
        run(runs, '--fit=val')
    assert not (runs / 'ensemble').exists()


@pytest.mark.parametrize(
    ('words', 'stores', 'message'),
    [
        (
            [],
            'a/logits/test',
            r'mixture.json: is for 2 models, --logits has 1; give .*: \S+a/logits/val,\S+val$',
        ),
        ([], 'b/logits/test,a/logits/test', r'b/logits/test: not by the model .*\(its weights_digest is 2, not 1\)'),
        (['--rule=mean'], 'a/logits/test,b/logits/test', r'--rule=mean, but \S+ was fitted with product'),
        (['--rule=all'], 'a/logits/val,b/logits/val', r'--rule=all, but \S+ was fitted with product'),
        (['--power=0.2'], 'a/logits/test,b/logits/test', r'--power=0.2, but \S+ was fitted with 0.1'),
        (['--views=nested'], 'a/logits/test,b/logits/test', r'--views=nested, but \S+ was fitted with pooled'),
        (['--across=geometric'], 'a/logits/test,b/logits/test', r'--across=geometric, but \S+ was .*arithmetic'),
    ],
)
def test_a_file_holds_for_the_models_and_settings_that_it_was_fitted_with(
    runs: Path, words: list[str], stores: str, message: str
) -> None:
    run(runs, '--fit=val', '--across=arithmetic')
    with pytest.raises(InputError, match=message) as caught:
        run(runs, f'--weights={runs}/ensemble/mixture.json', *words, stores=stores)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('{\n', '', 'Expecting|Extra data'),
        ('"kind": "mixture"', '"kind": "shards"', 'kind and format_version must be'),
        ('"rule": "product",', '', "'rule' is missing"),
        ('"rule": "product"', '"rule": "best"', "unknown rule 'best'"),
        ('"rule": "product"', '"rule": ["product"]', 'unhashable'),
        ('"power": 0.1', '"power": "0.1"', 'not supported'),
        ('"sharpness": 1.0', '"sharpness": NaN', 'sharpness must be above 0'),
        ('"weights": [', '"weights": [1.0,', '3 weights for 2 models'),
        ('"weights": [', '"weights": [-1.0,', 'weights must be 0 or more'),
        ('"tta": 1', '"tta": 2', 'its tta is 1, not 2'),
    ],
)
def test_a_damaged_file_is_refused(runs: Path, old: str, new: str, message: str) -> None:
    run(runs, '--fit=val')
    path = runs / 'ensemble' / 'mixture.json'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=f'mixture.json.*({message})') as caught:
        run(runs, f'--weights={path}')
    assert '\n' not in str(caught.value)
