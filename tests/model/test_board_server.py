"""What a real TensorBoard shows of real runs, asked over HTTP as its page does."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model import runs, train
from model.board import Board
from pipeline import convert
from tests import catalogue
from tests.model import tiny

pytestmark = pytest.mark.slow
FLAGS = (
    '--backbone=tiny', '--weights=none', '--image_size=32', '--micro_batch=8', '--accumulate=2', '--epochs=2',
    '--epoch_images=64', '--history_images=32', '--predict=', '--strategy=one', '--flip_probability=0.5',
)  # fmt: skip
TABS = {'timeseries', 'scalars', 'images', 'text', 'hparams'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Two runs, the second with a graph; and one that was killed after update 4 and went on from 2."""
    data, made = tmp_path_factory.mktemp('data'), tmp_path_factory.mktemp('runs')
    catalogue.write_catalogue(data, products=60, categories=3)
    convert.main(['convert', f'--input_dir={data}', f'--output_dir={data}/shards', '--runner=FnApiRunner'])
    with tiny.known():
        for name, more in (('plain', ['--seed=1']), ('graph', ['--seed=2', '--tensorboard_graph'])):
            train.main(['train', f'--shards_dir={data}/shards', f'--run_dir={made}/{name}', *FLAGS, *more])
    (made / 'latest').unlink()
    for first, last, factor in ((0, 4, 1.0), (3, 5, 10.0)):
        time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second
        killed = Board(str(made / 'killed'), first_step=first)
        for step in range(max(first, 1), last + 1):
            killed.scalars(step, {'loss': factor * step, 'val_loss': factor * step})
    return made


@pytest.fixture(scope='module')
def ask(folder) -> Iterator[Callable[..., Any]]:
    """Asks a server of all runs, once it has read them."""
    command = [sys.executable, '-m', 'tensorboard.main', f'--logdir={folder}', '--port=0']
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r'at (http://\S+?)/? \(Press', line):
                break
        else:
            pytest.fail(f'TensorBoard ended: {said[-1:]}')
        url = found[1]

        def get(path: str, body: object = None) -> Any:
            data = json.dumps(body).encode() if body else None
            request = urllib.request.Request(f'{url}/data/{path}', data, {'Content-Type': 'application/json'})
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        end = time.monotonic() + 60
        while len(get('runs')) < 8 and time.monotonic() < end:
            time.sleep(0.5)
        yield get
        server.terminate()


def test_the_tabs_are_those_of_what_was_written(ask):
    active = {name for name, tab in ask('plugins_listing').items() if tab['enabled']}
    assert active == TABS | {'graphs'}
    assert list(ask('plugin/graphs/info')) == ['graph/tensorboard/train'], 'only with --tensorboard_graph'


def test_training_and_validation_are_in_the_same_charts(ask):
    found = ask('plugin/scalars/tags')
    for name in ('plain', 'graph'):
        tags = {part: set(found[f'{name}/tensorboard/{part}']) for part in ('train', 'validation')}
        assert tags['train'] & tags['validation'] == {'quality/loss', 'quality/accuracy'}
        assert tags['train'] - tags['validation'] == {'training/learning_rate', 'training/images_per_second'}
        levels = {f'quality/accuracy_level{number}' for number in (1, 2, 3)}
        assert tags['validation'] - tags['train'] == levels | {'final/accuracy'}


@pytest.mark.parametrize('part', ['train', 'validation'])
def test_no_update_is_shown_twice(ask, part):
    points = ask(f'plugin/scalars/scalars?run=killed/{part}&tag=quality/loss')
    assert [(step, value) for _, step, value in points] == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]


def test_the_pictures_and_the_command_are_shown(ask):
    assert set(ask('plugin/images/tags')['plain/tensorboard/train']) == {'augmented training pictures'}
    (text,) = ask('plugin/text/text?run=plain/tensorboard&tag=command%20and%20settings')
    assert 'python -m model.train --shards_dir=' in text['text']
    assert '<td>learning_rate</td>' in text['text']


def test_runs_are_compared_by_settings_and_final_accuracy(ask, folder):
    infos = ask('plugin/hparams/experiment', {'experimentName': ''})
    assert {'seed', 'backbone', 'learning_rate'} <= {info['name'] for info in infos['hparamInfos']}
    found = ask(
        'plugin/hparams/session_groups',
        {'allowedStatuses': ['STATUS_SUCCESS'], 'startIndex': 0, 'sliceSize': 10, 'colParams': []},
    )
    assert sorted(group['hparams']['seed'] for group in found['sessionGroups']) == [1, 2]
    for group in found['sessionGroups']:
        values = {(value['name']['group'], value['name']['tag']): value['value'] for value in group['metricValues']}
        name = 'plain' if group['hparams']['seed'] == 1 else 'graph'
        told = (folder / name / runs.BY_CATEGORY_NAME).read_text().splitlines()[1:]
        counts = [line.split(',')[-2:] for line in told]
        images = sum(int(count) for count, _ in counts)
        hits = sum(round(int(count) * float(share or 0)) for count, share in counts)
        assert values['validation', 'final/accuracy'] == pytest.approx(hits / images)
        assert set(values) == {
            ('validation', 'final/accuracy'), ('validation', 'quality/accuracy'), ('validation', 'quality/loss'),
            ('train', 'quality/loss'),
        }  # fmt: skip
