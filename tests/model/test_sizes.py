"""What a classifier costs, as a line beside the plain one's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from model import backbone as backbones
from model import classifier, memory, sizes
from model.accumulate import AccumulatingModel
from model.classifier import Options
from model.inputs import Inputs
from tests.model import tiny


def model_of(options: Options) -> AccumulatingModel:
    with tiny.known():
        network = backbones.build('tiny', image_size=16, width=1)
    return AccumulatingModel(
        classifier.build(network, classes=5, options=options), micro_batch=4, inputs=options.inputs
    )


@pytest.mark.parametrize('inputs', [Inputs(), Inputs(2), Inputs(3), Inputs(title='top')])
def test_a_line_tells_parameters_memory_and_pictures_a_second(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(Options(inputs=inputs, units=7))
    losses = []

    def two_seconds(step: Callable[[], dict[str, Any]]) -> float:
        losses.append(float(step()['loss']))
        return 2.0

    monkeypatch.setattr(sizes, '_seconds', two_seconds)
    line = sizes.describe('this one', model, accumulate=3)
    taken = memory.needed(model.classifier, micro_batch=4, accumulate=3, inputs=inputs).total
    found = re.fullmatch(r'this one +([\d,]+) parameters +([\d.]+) GB a device +([\d.]+) images/s', line)
    assert found, line
    assert found[1] == f'{model.classifier.count_params():,}'
    assert found[2] == f'{taken / 1e9:.2f}'
    pictures = {0: 8, 2: 8, 3: 6}[inputs.pictures]  # as many whole products as have no more than eight
    assert found[3] == f'{pictures / 2:.1f}'
    assert losses[0] > 0, 'it really trains'


def test_the_time_of_a_step_is_the_median_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 100, 101, 101, 104, 104, 106])
    monkeypatch.setattr(time, 'perf_counter', lambda: next(clock))
    assert sizes._seconds(lambda: {'loss': 1.0}) == 2
