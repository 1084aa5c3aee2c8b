"""The weights that make the true categories the most likely, against closed forms and other ways to find them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ensemble import likelihood
from ensemble.likelihood import Function

CLASSES = 4


def draw(seed: int, *, models: int, products: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Logs of probabilities float32 [n, M, C] by models that know more or less of the labels, and the labels."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, CLASSES, products)
    values = spread * generator.normal(size=(products, models, CLASSES))
    values[np.arange(products), :, label] += spread * generator.normal(0.5, size=models)
    values -= np.log(np.exp(values).sum(axis=2, keepdims=True))
    return values.astype(np.float32), label


def arithmetic(log_q: np.ndarray, label: np.ndarray) -> Function:
    return likelihood.arithmetic(log_q[np.arange(len(label)), :, label])


def geometric(log_q: np.ndarray, label: np.ndarray) -> Function:
    return likelihood.geometric(log_q, label, np.arange(len(label)))


MEANS = [arithmetic, geometric]
Mean = Callable[[np.ndarray, np.ndarray], Function]


def alike(models: int) -> np.ndarray:
    return np.full(models, 1 / models)


@pytest.mark.parametrize(('by_first', 'by_second'), [(3, 3), (5, 3), (3, 5), (8, 0), (0, 8)])
def test_an_arithmetic_means_weights_follow_the_share_of_products_that_each_model_knows(
    by_first: int, by_second: int
) -> None:
    log_q = np.log([[0.8, 0.2]] * by_first + [[0.2, 0.8]] * by_second)
    # with weight w the first kind has probability 0.2 + 0.6 w, which is best as their share
    expected = np.clip((by_first / (by_first + by_second) - 0.2) / 0.6, 0, 1)
    found = likelihood.maximise(likelihood.arithmetic(log_q), alike(2))
    np.testing.assert_allclose(found, [expected, 1 - expected], atol=1e-4)


@pytest.mark.parametrize('models', [1, 2, 5])
@pytest.mark.parametrize('right', [6, 9])
def test_a_geometric_means_weights_make_models_as_certain_as_they_are_right_and_same_ones_share_alike(
    models: int, right: int
) -> None:
    log_q = np.log(np.tile([0.75, 0.25], (10, models, 1))).astype(np.float32)
    label = np.array([0] * right + [1] * (10 - right))
    total = math.log(right / (10 - right)) / math.log(3)  # odds 3 to the power of it are right : wrong
    found = likelihood.maximise(geometric(log_q, label), alike(models))
    np.testing.assert_allclose(found, np.full(models, total / models), rtol=1e-4)


@pytest.mark.parametrize('mean', MEANS)
def test_models_that_say_the_same_share_alike(mean: Mean) -> None:
    log_q, label = draw(3, models=3, products=50, spread=2)
    weights = likelihood.maximise(mean(log_q[:, [0, 1, 1, 2, 1]], label), np.array([0.2, 0.5, 0.1, 0.1, 0.1]))
    assert weights[1] > 0.01
    np.testing.assert_allclose(weights[[2, 4]], weights[[1, 1]], rtol=1e-4)


@pytest.mark.parametrize('mean', MEANS)
def test_a_model_that_says_nothing_gets_no_weight(mean: Mean) -> None:
    log_q, label = draw(2, models=3, products=50, spread=1)
    log_q[np.arange(50), :2, label] += 3
    log_q[:, 2] = 0
    log_q -= np.log(np.exp(log_q).sum(axis=2, keepdims=True))
    weights = likelihood.maximise(mean(log_q, label), alike(3))
    assert weights[2] < 1e-4 < weights[0]


@pytest.mark.parametrize('mean', MEANS)
def test_gradient_and_curvature_are_the_derivatives(mean: Mean) -> None:
    function = mean(*draw(3, models=3, products=20, spread=2))
    at, step = np.array([0.2, 0.5, 0.9]), 1e-5
    for model, change in enumerate(step * np.eye(3)):
        below, above = function(at - change), function(at + change)
        assert (above.value - below.value) / (2 * step) == pytest.approx(function(at).gradient[model], abs=1e-7)
        np.testing.assert_allclose(
            (below.gradient - above.gradient) / (2 * step), function(at).curvature[model], atol=1e-7
        )


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    log_q, label = draw(4, models=2, products=31, spread=2)
    places = np.arange(3, 29)
    whole = likelihood.geometric(log_q, label, places)(np.array([0.4, 0.9]))
    monkeypatch.setattr(likelihood, 'CHUNK_VALUES', 7 * 2 * CLASSES)
    parts = likelihood.geometric(log_q, label, places)(np.array([0.4, 0.9]))
    assert parts.value == pytest.approx(whole.value)
    np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-9)
    np.testing.assert_allclose(parts.curvature, whole.curvature, rtol=1e-9)


@pytest.mark.parametrize('seed', range(8))
def test_a_grid_of_an_arithmetic_means_weights_has_none_better(seed: int) -> None:
    function = arithmetic(*draw(seed, models=3, products=30, spread=3))
    ticks = np.linspace(0, 1, 41)
    grid = [(a, b, 1 - a - b) for a in ticks for b in ticks if a + b <= 1]
    highest = max(function(np.array(weights)).value for weights in grid)
    found = likelihood.maximise(function, alike(3))
    assert highest - 1e-6 <= function(found).value <= highest + 0.01
    assert found.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('seed', range(8))
def test_a_grid_of_a_geometric_means_weights_has_none_better(seed: int) -> None:
    function = geometric(*draw(seed, models=2, products=30, spread=2))
    ticks = np.linspace(0, 2, 41)
    highest = max(function(np.array([a, b])).value for a in ticks for b in ticks)
    found = likelihood.maximise(function, alike(2))
    assert found.max() < 2
    assert highest - 1e-6 <= function(found).value <= highest + 0.01


@pytest.mark.parametrize('seed', range(20))
def test_expectation_maximisation_finds_nothing_better(seed: int) -> None:
    generator = np.random.default_rng(seed)
    models, products = int(generator.integers(2, 12)), int(generator.integers(1, 60))
    log_q, label = draw(seed, models=models, products=products, spread=float(generator.choice([0.3, 3, 30])))
    log_q[:, -1] = log_q[:, 0]
    of_truth = np.exp(log_q[np.arange(products), :, label].astype(np.float64))
    weights = alike(models)
    for _ in range(2000):
        shares = of_truth * weights
        weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    reached = np.log(of_truth @ weights).mean()
    found = likelihood.maximise(arithmetic(log_q, label), alike(models))
    assert (found >= 0).all()
    assert arithmetic(log_q, label)(found).value > reached - 1e-6


@pytest.mark.parametrize('mean', MEANS)
@pytest.mark.parametrize('seed', range(10))
def test_every_step_raises_the_log_likelihood_and_few_are_needed(mean: Mean, seed: int) -> None:
    function = mean(*draw(seed, models=6, products=40, spread=10))
    values = [function(likelihood.maximise(function, alike(6), steps=steps)).value for steps in range(26)]
    assert (np.diff(values) > -1e-9 - likelihood.PENALTY * 100).all()
    assert values[-1] == pytest.approx(function(likelihood.maximise(function, alike(6))).value, abs=1e-9)


@pytest.mark.parametrize('mean', MEANS)
def test_one_product_and_predictions_that_are_all_right_have_finite_weights(mean: Mean) -> None:
    label = np.array([1])
    log_q = np.log(np.array([[[0.2, 0.8], [0.4, 0.6]]], np.float32))
    function = mean(log_q, label)
    found = likelihood.maximise(function, alike(2))
    assert np.isfinite(found).all()
    assert found[0] > found[1]
    assert function(found).value > function(alike(2)).value


@pytest.mark.parametrize('mean', MEANS)
def test_probabilities_too_small_for_a_float_do_no_harm(mean: Mean) -> None:
    log_q = np.array([[[0, -5000], [-3, 0]], [[0, -5000], [0, -3]]], np.float32)
    function = mean(log_q, np.array([1, 0]))
    found = likelihood.maximise(function, alike(2))
    assert np.isfinite(function(found).value)
    assert function(found).value >= function(alike(2)).value
