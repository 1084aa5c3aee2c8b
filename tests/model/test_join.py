"""Features of pictures become features of products."""

import keras
import numpy as np
import pytest

from model.join import KINDS, Join

# Two products of three pictures at most, two features each; the second has one picture, and rubbish where it has none.
# The third row only fills up a batch.
FEATURES = np.array([[1, 10], [2, 30], [3, 20], [5, 7], [99, 99], [-99, 99], *[[99, -99]] * 3], np.float32)
PRESENT = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)


def joined(kind: str, features: np.ndarray = FEATURES, present: np.ndarray = PRESENT) -> np.ndarray:
    return Join(kind, 3)(features, present).numpy()


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('concat', [[1, 10, 2, 30, 3, 20], [5, 7, 0, 0, 0, 0], [0] * 6]),
        ('mean', [[2, 20], [5, 7], [0, 0]]),
        ('max', [[3, 30], [5, 7], [0, 0]]),
        ('gated', [[2, 20], [5, 7], [0, 0]]),  # as it begins
    ],
)
def test_what_a_product_has_is_joined_and_what_it_has_not_is_left_out(kind, expected):
    np.testing.assert_allclose(joined(kind), expected, rtol=1e-6)


def test_the_gate_weighs_each_feature_of_each_picture():
    layer = Join('gated', 2)
    features, present = np.array([[1, 0], [0, 3]], np.float32), np.ones([1, 2], np.float32)
    layer(features, present)
    # The inner layer has one unit: the first feature. So the gates of the pictures are s(1), s(-1) and s(0), s(0).
    layer.set_weights([np.array([[1.0], [0]]), np.zeros(1), np.array([[1.0, -1]]), np.zeros(2)])
    high, low, half = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0.5
    expected = [[high / (high + half), 3 * half / (low + half)]]
    np.testing.assert_allclose(layer(features, present), expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['mean', 'max', 'gated'])
def test_the_order_of_pictures_does_not_matter(kind):
    layer = Join(kind, 3)
    layer(FEATURES, PRESENT)
    layer.set_weights([np.random.default_rng(0).normal(size=value.shape) for value in layer.get_weights()])
    some = layer(FEATURES[:3], PRESENT[:1])
    np.testing.assert_allclose(some, layer(FEATURES[[2, 0, 1]], PRESENT[:1]), rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('precision', ['float32', 'mixed_float16', 'mixed_bfloat16'])
def test_a_model_with_it_is_the_same_after_it_is_saved(tmp_path, kind, precision):
    features, present = keras.Input([2]), keras.Input([3])
    model = keras.Model([features, present], Join(kind, 3, dtype=precision)(features, present))
    model.set_weights([np.random.default_rng(0).normal(size=value.shape) for value in model.get_weights()])
    model.save(tmp_path / 'a.keras')
    again = keras.models.load_model(tmp_path / 'a.keras')
    np.testing.assert_array_equal(again([FEATURES, PRESENT]), model([FEATURES, PRESENT]))
    assert np.isfinite(model([FEATURES, PRESENT]).numpy().astype(np.float32)).all()


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of concat, mean, max, gated, is 'sum'"):
        Join('sum', 2)


@pytest.mark.parametrize('kind', ['mean', 'gated'])
def test_a_row_without_pictures_is_finite(kind):
    """Such rows fill a last batch up; their loss is multiplied by 0, which nan would outlive."""
    found = Join(kind, 2)(np.ones([4, 3], np.float32), np.array([[1, 1], [0, 0]], np.float32))
    np.testing.assert_allclose(found, [[1, 1, 1], [0, 0, 0]])
