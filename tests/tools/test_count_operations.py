"""The table of what networks compute."""

import re

import pytest

from pipeline.errors import UsageError
from tests.commands import following
from tests.model import tiny
from tools import count_operations


def test_the_hours_are_those_of_three_passes_of_two_operations_each(capsys):
    words = ['--image_size=32', '--categories=10', '--images=1e9', '--teraflops=0.001']
    with tiny.known():
        count_operations.main(['count_operations', *words, 'tiny'])
    said = capsys.readouterr().out
    (line,) = re.findall('^tiny.*$', said, re.MULTILINE)
    # 15 places of 15 of 3 channels to 8, 7 of 7 of 8 to 8, and the dense layer.
    count = 15 * 15 * 9 * 3 * 8 + 7 * 7 * 9 * 8 * 8 + 8 * 10
    # Kernels, batch normalisations of four numbers a channel, and the dense layer with its biases.
    parameters = 9 * 3 * 8 + 9 * 8 * 8 + 2 * 4 * 8 + 8 * 10 + 10
    assert line.split() == ['tiny', f'{parameters:,}', f'{count:,}', f'{6 * count * 1e9 / 1e9 / 3600:.1f}']
    assert following(said).startswith('python -m model.train')


def test_an_unknown_network_is_answered_with_those_there_are():
    with pytest.raises(UsageError, match='--backbone=vgg: no such backbone; known are .*xception'):
        count_operations.main(['count_operations', 'vgg'])
