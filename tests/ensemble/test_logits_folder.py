"""A store's folder says what its logits are, and the command that makes them is found by it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ensemble import logits_folder
from pipeline.errors import InputError


@pytest.mark.parametrize(
    ('options', 'name', 'flags'),
    [
        ({}, 'val', ''),
        ({'tta': 5}, 'val-tta5', ' --tta=5'),
        ({'best': True}, 'val-best', ' --best'),
        ({'top_k': 100}, 'val-top100', ' --top_k=100'),
        ({'tta': 5, 'best': True, 'top_k': 100}, 'val-tta5-best-top100', ' --tta=5 --top_k=100 --best'),
    ],
)
def test_what_decides_the_logits_decides_the_folder_and_the_command(
    options: dict[str, Any], name: str, flags: str
) -> None:
    folder = logits_folder.folder('runs/a', 'val', **options)
    assert folder == f'runs/a/logits/{name}'
    assert logits_folder.command(folder) == f'python -m model.predict --run_dir=runs/a --split=val{flags}'


def test_no_two_kinds_of_logits_share_a_folder() -> None:
    kinds = list(itertools.product(('train', 'val', 'test'), (1, 2, 12), (False, True), (0, 1, 2, 12)))
    folders = {logits_folder.folder('runs/a', split, tta=tta, best=best, top_k=k) for split, tta, best, k in kinds}
    assert len(folders) == len(kinds)


@pytest.mark.parametrize(
    ('folder', 'expected'),
    [
        ('runs/a/logits/test', 'runs/a/logits/val'),
        ('runs/a/logits/test-tta5-best', 'runs/a/logits/val-tta5-best'),
        ('s3://bucket/a/test-best', 's3://bucket/a/val-best'),
        ('/x/val', '/x/val'),
        ('runs/p1/logits/test+runs/p2/logits/test-tta5', 'runs/p1/logits/val+runs/p2/logits/val-tta5'),
    ],
)
def test_the_val_logits_are_beside_the_test_logits(folder: str, expected: str) -> None:
    assert logits_folder.of_split(folder, 'val') == expected


@pytest.mark.parametrize('folder', ['runs/a/logits/mine', 'runs/a/logits/tests', 'elsewhere/', 'a/test+b/mine'])
def test_a_folder_that_is_not_named_by_its_split_has_none_beside_it(folder: str) -> None:
    with pytest.raises(InputError, match='its name must begin with its split'):
        logits_folder.of_split(folder, 'val')


def test_the_views_made_are_those_of_whole_logits_by_the_last_model(tmp_path: Path) -> None:
    assert logits_folder.views_made(str(tmp_path), 'val') == []
    others = ['val', 'val-best', 'val-top9', 'val-tta3-best', 'val-tta4-top9', 'test-tta6', 'val-ttax']
    for name in ['val-tta12', 'val-tta5', *others]:
        (tmp_path / 'logits' / name).mkdir(parents=True)
    assert logits_folder.views_made(str(tmp_path), 'val') == [5, 12]
