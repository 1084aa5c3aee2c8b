"""What a classifier costs, as a line beside the plain one's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from model import backbone as backbones
from model import classifier, memory, sizes, train
from model.accumulate import AccumulatingModel
from model.classifier import Options
from model.inputs import Inputs
from pipeline import program
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


@pytest.mark.parametrize('flags', [['--width=0.2'], ['--width=1.2'], ['--width=0.2', '--head_units=7']])
def test_the_plain_network_stands_beside_one_that_is_more(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, '_seconds', lambda step: 2.0)
    words = ['--backbone=xception_small', '--image_size=32', '--micro_batch=2', '--unfreeze=all@0', *flags]
    program.parse(train.FLAGS, ['train', *words], doc='')
    options = Options(units=train.HEAD_UNITS.value)
    train._tell_sizes(options, classes=5)
    found = [int(one.replace(',', '')) for one in re.findall(r'([\d,]+) parameters', capsys.readouterr().out)]
    widths = {'--width=0.2': [0.2, 0.2], '--width=1.2': [1, 1.2]}[flags[0]]
    expected = [
        classifier.build(
            backbones.build('xception_small', image_size=32, width=width), classes=5, options=one
        ).count_params()
        for width, one in zip(widths, (Options(), options), strict=True)
    ]
    assert found == (expected if flags != ['--width=0.2'] else []), 'of a smaller one there is nothing to tell'


def test_the_time_of_a_step_is_the_median_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 100, 101, 101, 104, 104, 106])
    monkeypatch.setattr(time, 'perf_counter', lambda: next(clock))
    assert sizes._seconds(lambda: {'loss': 1.0}) == 2
