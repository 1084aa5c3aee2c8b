"""What a program says when a run has come to its end."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ensemble import logits_folder
from model import runs
from model.inputs import Inputs
from pipeline import commands, program


def last_line(run_dir: str, *, inputs: Inputs, splits: Sequence[str], shards_dir: str, seconds: float) -> None:
    """Makes the run the latest; says what was made and the command that makes the most of it.

    Args:
        run_dir: the run's folder.
        inputs: what its network sees.
        splits: those whose logits were written.
        shards_dir: the dataset.
        seconds: how long it took.
    """
    latest = runs.point_latest(run_dir)
    if latest != os.path.normpath(run_dir):
        print(f'{latest} is now {run_dir}')
    logits = f'logits of {" and ".join(splits)}' if splits else 'no logits'
    program.last_line(
        f'wrote {run_dir}: {runs.MODEL_NAME}, history.csv and {logits}, in {seconds:.0f} s',
        then=_next(run_dir, inputs, splits, shards_dir),
    )


def _next(run_dir: str, inputs: Inputs, splits: Sequence[str], shards_dir: str) -> str:
    if 'test' in splits or 'val' in splits:
        whole = not inputs.pictures or inputs.fewer  # what is of a part of the products alone makes no submission
        name, rule = ('test', 'product') if 'test' in splits and (whole or 'val' not in splits) else ('val', 'all')
        folder = logits_folder.folder(run_dir, name)
        is_default = os.path.realpath(f'runs/{runs.LATEST}') == os.path.realpath(run_dir) and name == 'test'
        return program.command('ensemble.combine', '--rule', rule, *(() if is_default else (f'--logits={folder}',)))
    return program.command('model.predict', f'--run_dir={run_dir}', '--split=test', *commands.of_shards(shards_dir))
