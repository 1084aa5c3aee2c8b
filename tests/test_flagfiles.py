"""Flagfiles and the README's commands say what the programs understand."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from model import train
from model.backbone import names
from pipeline import beam_job, program
from tools import bench

ROOT = Path(__file__).parents[1]
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


def commands() -> list[str]:
    text = ''.join((ROOT / name).read_text() for name in ('README.md', 'BUILD.md', 'Makefile'))
    found = re.findall(r'python -m ((?:pipeline|model|ensemble|tools)\.\w+(?:[^\S\n]+[^\s`|#)]+)*)', text)
    return sorted(command for command in set(found) if not command.startswith('pipeline.beam_worker '))


def test_the_three_commands_are_in_the_readme():
    assert {
        'pipeline.convert --runner=DirectRunner',
        'model.train --flagfile=noaug.flags',
        'ensemble.combine --rule product',
    } <= set(commands())


@pytest.mark.parametrize('command', commands())
def test_a_documented_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, *arguments = shlex.split(command)
    runs_beam = module in ('pipeline.convert', 'ensemble.combine')
    flag_values = importlib.import_module(module).FLAGS
    takes_words = module == 'tools.bench'
    rest = program.parse(flag_values, [module, *arguments], doc='', pass_through=runs_beam or takes_words)
    if takes_words:
        assert set(rest) <= set(bench.PARTS)
    if runs_beam:
        beam_job.engine(rest)
