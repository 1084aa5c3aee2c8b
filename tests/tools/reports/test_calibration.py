"""Calibration in numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tools.reports import calibration


def test_the_error_is_that_worked_out_by_hand():
    """With two bins: (0.25, 0.5] hold 1 of 2 right at 0.4, and 1 of 3 right at 0.8: 2/5 * 0.1 + 3/5 * (0.8 - 1/3)."""
    probability, correct = np.array([0.3, 0.5, 0.7, 0.8, 0.9]), np.array([True, False, False, True, False])
    found = calibration.measure(probability, correct, bins=2)
    assert found.products.tolist() == [2, 3]
    assert found.confidence == pytest.approx([0.4, 0.8])
    assert found.accuracy == pytest.approx([1 / 2, 1 / 3])
    assert found.error == pytest.approx(0.04 + 0.28)
    assert found.excess == pytest.approx(-0.04 + 0.28), 'the first bin is too modest'
    assert found.mean_confidence == pytest.approx(3.2 / 5)


def test_predictions_that_are_right_as_often_as_they_say_have_no_error():
    probability = np.repeat([0.25, 0.5, 0.75, 1.0], 4)
    correct = np.arange(16) % 4 < np.repeat([1, 2, 3, 4], 4)
    found = calibration.measure(probability, correct)
    assert (found.error, found.excess) == (0, 0)
    assert found.products.sum() == 16


def test_sure_and_always_wrong_is_the_largest_error():
    assert calibration.measure(np.ones(3), np.zeros(3, bool)).error == 1


@pytest.mark.parametrize(('probability', 'place'), [(0.0, 0), (0.25, 0), (0.2500001, 1), (0.5, 1), (0.76, 3), (1.0, 3)])
def test_a_bin_has_its_upper_end(probability, place):
    found = calibration.measure(np.array([probability]), np.array([True]), bins=4)
    assert np.flatnonzero(found.products).tolist() == [place]
    assert np.isnan(found.accuracy).sum() == 3


def test_as_many_bins_as_in_the_paper():
    assert len(calibration.measure(np.array([0.5], np.float32), np.array([True])).products) == 15
