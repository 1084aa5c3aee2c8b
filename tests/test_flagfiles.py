"""Flagfiles and the README's commands say what the programs understand."""

import importlib
import json
import os
import subprocess
import textwrap
from typing import Any

import pytest

from model import devices, stages, train
from model.backbone import names
from pipeline import program
from tests.commands import understood
from tests.documents import ROOT, commands
from tools import bench, import_weights

FLAGFILES = sorted(path.name for path in ROOT.glob('*.flags'))


def values(flagfile: str) -> dict[str, Any]:
    program.parse(train.FLAGS, ['train', f'--flagfile={flagfile}'], doc='')
    return {name: train.FLAGS[name].value for name in train.FLAGS}


@pytest.mark.parametrize('name', FLAGFILES)
def test_a_flagfile_is_understood_and_says_its_command(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert values(name)['backbone'] in names()
    header = (ROOT / name).read_text()
    assert f'Command: python -m model.train --flagfile={name}' in header
    assert all(f'# {word}' in header or f' {word}' in header for word in ('Data:', 'Time:', 'Score'))


def test_the_papers_two_configurations_differ_as_in_the_paper(monkeypatch):
    monkeypatch.chdir(ROOT)
    noaug, aug = values('noaug.flags'), values('aug.flags')
    changed = {name: (noaug[name], aug[name]) for name in noaug if noaug[name] != aug[name]}
    assert changed.pop('run_dir') == ('runs/noaug', 'runs/aug')
    assert changed.pop('flagfile', None) in (None, ('', ''))
    assert changed == {'dropout': (0, 0.2), 'crop_probability': (0, 0.75), 'flip_probability': (0, 0.5)}
    assert aug['crop_upscale'] == 200
    assert aug['micro_batch'] * aug['accumulate'] * 2 == 1536, 'pictures an update on the two GPUs of the paper'
    assert (aug['learning_rate'], aug['unfreeze'], len(aug['decay_at'])) == (5e-3, 'block10@0,all@2.9', 4)
    assert (aug['epoch_images'], aug['val_images'], aug['epochs']) == (2_000_000, 50_000, 10)


@pytest.mark.parametrize('name', sorted({*names()} - {'xception', 'xception_small'}))
def test_every_other_backbone_has_a_flagfile_to_fine_tune_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = values(f'{name}.flags')
    assert (found['backbone'], found['run_dir']) == (name, f'runs/{name}')
    blocks = tuple(importlib.import_module(f'model.backbones.{name}').BLOCKS)
    first, second = stages.parse_stages(found['unfreeze'], blocks)
    assert (first.first_block in blocks, second.first_block) == (True, 'all')
    assert found['micro_batch'] * found['accumulate'] * 2 == 1536, 'as in the paper'
    assert found['weights'] == (f'weights/{name}.weights.h5' if name in import_weights.NAMES else 'imagenet')


COMMANDS = sorted(commands('README.md', 'BUILD.md', 'Makefile', 'docs/results.md', 'docs/winner.md'))


def test_the_three_commands_are_in_the_readme():
    assert {
        'pipeline.convert --runner=DirectRunner',
        'model.train --flagfile=noaug.flags',
        'ensemble.combine --rule product',
    } <= set(commands('README.md'))


@pytest.mark.parametrize('command', COMMANDS)
def test_a_documented_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = understood(f'python -m {command}')
    if command.startswith('tools.classify'):
        assert words == ['front.jpg', 'back.jpg']
    elif command.startswith('tools.bench'):
        assert set(words) <= set(bench.PARTS)
    elif command.startswith('tools.count_operations'):
        assert set(words) <= {*names(), 'densenet161', 'dpn92'}
    elif command.startswith('tools.report'):
        assert all(word.startswith('runs/') for word in words)
    else:
        assert not words


def test_the_slurm_script_tells_each_machine_its_place(tmp_path):
    """The README's script, with stand-ins for Slurm's commands and for Python."""
    text = (ROOT / 'README.md').read_text()
    script = textwrap.dedent(text[text.index('    #!/bin/bash') :].split('\n\n')[0])
    assert '#SBATCH' in script
    for name, line in {
        'scontrol': '[ "$1" = requeue ] && echo requeued "$2" || printf "node7\\nnode8\\n"',
        'srun': 'shift; for rank in 0 1; do SLURM_PROCID=$rank "$@"; done',
        'python': 'echo "$TF_CONFIG"',
    }.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{line}\n')
        (tmp_path / name).chmod(0o755)
    environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_NODELIST': 'node[7-8]', 'SLURM_JOB_ID': '12'}
    done = subprocess.run(
        ['bash', '-c', script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second, last = done.stdout.splitlines()
    for index, config in enumerate((first, second)):
        devices._check_cluster(config)
        assert json.loads(config) == {
            'cluster': {'worker': ['node7:4000', 'node8:4000']},
            'task': {'type': 'worker', 'index': index},
        }
    assert last == 'requeued 12'
