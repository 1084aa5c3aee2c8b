"""A plan is run, gone on with and measured: commands, signals, the arithmetic of the table."""

import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensemble.logits import Rows
from model import runs
from pipeline.errors import InputError, UsageError
from tests import shards as small
from tests.commands import following
from tests.documents import ROOT
from tests.ensemble import stores
from tests.model import finished_run
from tools import experiment_plan, experiment_runs, experiment_table, experiments
from tools.experiment_plan import Experiment
from tools.experiment_runs import Options
from tools.experiment_table import Result

PLAN = """
flags = ['--backbone=tiny', '--image_size=32', '--micro_batch=4', '--accumulate=2', '--epochs=%s', '--epoch_images=40']
seeds = [1, 2]
notes = ['Of a tiny network.']

[[experiment]]
name = 'base'
flags = ['--weights=none']

[[experiment]]
name = 'on'
idea = 'more training'
weights = 'base'
base = 'base'
claim = 1.5

[[experiment]]
name = 'both'
idea = 'two models'
combine = 'base,on'
base = 'base,on'
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / 'mine.toml').write_text(PLAN % 1)
    return experiment_plan.read(str(tmp_path / 'mine.toml'))


@pytest.fixture
def options(tmp_path):
    return Options('shards', 'd', str(tmp_path / 'runs'), ('val',))


def result(name: str, *rows: str) -> Result:
    """An experiment that has products right as told for each seed, 1 or 0 a product."""
    correct = np.array([[letter == '1' for letter in row] for row in rows])
    return Result(Experiment(name), tuple(range(1, len(rows) + 1)), correct)


def test_a_gain_is_the_mean_over_seeds_and_products() -> None:
    found = experiment_table.gain(result('new', '1110', '1100'), result('base', '1000', '1000'))
    assert (found.base, found.accuracy.value, found.gain.value) == ('base', 5 / 8, 3 / 8)
    assert found.each == (0.5, 0.25)
    assert found.gain.low <= found.gain.value <= found.gain.high


def test_a_gain_is_over_the_seeds_that_both_have() -> None:
    found = experiment_table.gain(result('new', '11'), result('base', '10', '00'))
    assert (found.gain.value, found.each) == (0.5, (0.5,))


def test_without_a_base_there_is_no_gain() -> None:
    found = experiment_table.gain(result('new', '1110'), None)
    assert (found.base, found.accuracy.value, found.each, math.isnan(found.gain.value)) == ('', 0.75, (), True)


def test_of_several_bases_the_best_on_validation_counts() -> None:
    results = {'a': result('a', '1000'), 'b': result('b', '1100'), 'c': result('c', '1111')}
    assert experiment_table._base(Experiment('new', base='a,b,gone'), results) == 'b'


def test_each_seed_has_a_command_with_the_weights_of_its_own(plan, options, tmp_path):
    made = experiment_runs.trainings(plan, options)
    assert [(one.experiment.name, one.seed) for one in made] == [('base', 1), ('on', 1), ('base', 2), ('on', 2)]
    folder = tmp_path / 'runs'
    assert made[3].words[-5:] == (
        f'--weights={folder}/base-s2', '--seed=2', f'--run_dir={folder}/on-s2', '--shards_dir=shards', '--predict=val',
    )  # fmt: skip
    assert [one.experiment.name for one in experiment_runs.trainings(plan, options, only=['base'])] == ['base', 'base']


def test_what_is_done_is_known_by_all_that_decides_it(plan, options, tmp_path):
    """Flags of the run itself, and of that from whose weights it begins."""
    base, on, *_ = experiment_runs.trainings(plan, options)
    label_map = stores.label_map(3)
    for one in (base, on):
        assert not one.finished()
        one.begin()
        assert not one.finished(), 'not trained yet'
        finished_run.write(Path(one.run_dir), label_map, seed=0)
        assert not one.finished(), 'no logits yet'
        stores.write(Path(one.run_dir) / 'logits' / 'val', [stores.random_rows(3, 3, seed=0)], label_map)
        assert one.finished()
    (tmp_path / 'mine.toml').write_text((PLAN % 1).replace("'--weights=none'", "'--weights=none', '--dropout=0.1'"))
    changed = experiment_runs.trainings(experiment_plan.read(plan.path), options)
    for one in changed[:2]:
        with pytest.raises(
            InputError, match=f'^{one.run_dir}: was made by other flags, from other weights or on other'
        ):
            one.finished()


@pytest.fixture
def measured(plan, options):
    """Both runs by seed 1, with logits that have other products right; by seed 2 only the first."""
    label_map = stores.label_map(3)
    said = {('base', 1): [0, 0, 0, 1], ('on', 1): [0, 1, 0, 1], ('base', 2): [0, 1, 2, 2]}
    done = {}
    for one in experiment_runs.trainings(plan, options):
        if labels := said.get((one.experiment.name, one.seed)):
            finished_run.write(Path(one.run_dir), label_map, seed=0)
            # The first run is surer than the second, so it decides where they are combined.
            certain = 8 if one.experiment.name == 'base' else 1
            write_logits(Path(one.run_dir), labels, certain=certain)
            done[one.experiment.name, one.seed] = one
    return done


def write_logits(run_dir: Path, labels: list[int], *, certain: float) -> None:
    """Of products of the categories 0, 1, 2, 0, of which these are said."""
    count = len(labels)
    rows = Rows(
        np.arange(count),
        np.zeros(count, int),
        np.zeros(count, int),
        np.array([0, 1, 2, 0]),
        certain * np.eye(3)[labels].astype(np.float16),
    )
    stores.write(run_dir / 'logits' / 'val', [rows], stores.label_map(3), weights_digest=run_dir.name)


def test_the_table_has_what_was_run_and_says_what_is_missing(plan, measured, tmp_path):
    results = experiment_table.measure(plan, measured, split='val')
    right = {name: found.correct.tolist() for name, found in results.items()}
    assert right == {
        'base': [[True, False, False, False], [True, True, True, False]],
        'on': [[True, True, False, False]],
        'both': [[True, False, False, False]],
    }
    table = experiment_table.lines(plan, measured, {'val': results})
    found = {line.experiment.name: line.gains['val'] for line in table}
    assert [(name, one.accuracy.value, one.base) for name, one in found.items()] == [
        ('base', 0.5, ''), ('on', 0.5, 'base'), ('both', 0.25, 'base'),
    ]  # fmt: skip
    assert (found['on'].gain.value, found['on'].each) == (0.25, (0.25,))
    assert found['both'].gain.value == 0
    lacking = experiment_table.missing(plan, measured)
    assert lacking == ['on: not run with seed 2.', 'both: not run with seed 2.']
    text = experiment_table.markdown(plan, table, lacking=lacking)
    assert '- Of a tiny network.\n- on: not run with seed 2.\n' in text
    (line,) = (line for line in text.splitlines() if line.startswith('| on ') and 'more training' in line)
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert (cells[3], cells[5], cells[6]) == ('base', '+25.0', '+1.5') and cells[4].startswith('+25.0 (')
    one = runs.load_model(measured['base', 1].run_dir).count_params()
    assert [line.parameters for line in table] == [one, one, 2 * one]

    experiment_table.write_csv(table, str(tmp_path / 'table.csv'))
    with open(tmp_path / 'table.csv', newline='') as file:
        lines = {line['experiment']: line for line in csv.DictReader(file)}
    assert (lines['on']['val_gain'], lines['on']['val_over'], lines['on']['claim_points']) == ('0.25', 'base', '1.5')
    assert (lines['base']['val_gain'], lines['base']['seeds'], lines['base']['val_products']) == ('', '1 2', '4')


def test_bad_usage_is_told_before_anything_is_run(plan, tmp_path, monkeypatch):
    small.write(tmp_path / 'shards', train=14, val=7)
    monkeypatch.chdir(tmp_path)
    words = ['experiments', f'--plan={plan.path}', '--shards_dir=shards']
    with pytest.raises(UsageError, match='--only=of: no such experiment in .*; there are base, on, both'):
        experiments.main([*words, '--only=of'])
    with pytest.raises(UsageError, match='--seeds=a: must be whole numbers'):
        experiments.main([*words, '--seeds=a'])
    with pytest.raises(InputError, match='--seeds: must be different whole numbers, are 1, 1'):
        experiments.main([*words, '--seeds=1,1'])
    assert not (tmp_path / 'runs').exists()


@pytest.fixture
def call(tmp_path):
    """Starts the program in a folder where the tiny backbone is known, to it and to what it starts."""
    small.write(tmp_path / 'shards', train=48, val=12)
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(
        f'from tests.model import tiny\ntiny.PATHS.append({str(ROOT / "tests" / "model" / "backbones")!r})\n'
    )
    environment = os.environ | {'PYTHONPATH': f'{tmp_path}/site:{ROOT}', 'CUDA_VISIBLE_DEVICES': ''}

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, '-m', 'tools.experiments', '--plan=mine.toml', '--shards_dir=shards', *words]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.mark.slow
def test_a_flag_that_model_train_does_not_know_is_told_with_file_and_experiment(call, tmp_path):
    (tmp_path / 'mine.toml').write_text((PLAN % 1).replace('--weights=none', '--widht=2'))
    ended = call()
    said, error = ended.communicate()
    assert ended.returncode == 1
    assert error == 'error: mine.toml: experiment base: flags: unknown flag --widht, perhaps --width is meant\n'
    assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_a_plan_that_is_ended_by_sigterm_goes_on_to_its_table(call, tmp_path):
    (tmp_path / 'mine.toml').write_text(PLAN % 40)
    running = call('--seeds=1')
    for line in running.stdout:  # until the first training is in the middle
        if 'stage 1 of 1' in line:
            break
    checkpoints = tmp_path / 'runs' / 'mine' / 'base-s1' / 'checkpoints'
    while running.poll() is None and not (checkpoints.exists() and list(checkpoints.iterdir())):
        signal.sigtimedwait([], 0.05)
    running.send_signal(signal.SIGTERM)
    said, error = running.communicate()
    assert running.returncode == 0, error
    assert 'ending after this update, then saving' in error
    folder = tmp_path / 'runs' / 'mine'
    again = 'python -m tools.experiments --plan=mine.toml --shards_dir=shards --seeds=1'
    assert said.splitlines()[-1] == f'wrote runs/mine/base-s1: ended as asked; next: {again}'
    assert not runs.is_finished(str(folder / 'base-s1')) and not (folder / 'mine.md').exists()

    ended = call('--seeds=1')
    said, error = ended.communicate()
    assert ended.returncode == 0, error
    assert '0 of 2 trainings are done' in said and 'going on from runs/mine/base-s1/checkpoints/' in said
    assert (folder / 'mine.md').read_text() in said
    with open(folder / 'mine.csv', newline='') as file:
        lines = {line['experiment']: line for line in csv.DictReader(file)}
    assert list(lines) == ['base', 'on', 'both']
    assert all(0 <= float(line['val_accuracy']) <= 1 and line['val_products'] == '12' for line in lines.values())
    assert float(lines['on']['minutes']) > float(lines['base']['minutes']) > 0, 'with those it begins with'
    assert float(lines['both']['minutes']) == pytest.approx(float(lines['on']['minutes']), abs=0.02)
    assert following(said).startswith('python -m ensemble.combine --rule product --logits=runs/mine/')

    ended = call('--seeds=1', '--dry_run')
    said, error = ended.communicate()
    assert ended.returncode == 0, error
    assert '2 of 2 trainings are done' in said
