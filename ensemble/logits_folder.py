"""How the folder of a logits store is named, and what its name says.

runs/NAME/logits/{train,val,test}[-tta5][-best][-top100]
          features/{train,val,test}
"""

from __future__ import annotations

import os
import re

from pipeline import storage
from pipeline.errors import InputError

KINDS = ('logits', 'features')
PROGRAMS = dict(zip(KINDS, ('model.predict', 'model.features'), strict=True))
JOINT = '+'  # between the folders of stores that are one model together (routing.py)


def folder(run_dir: str, split: str, *, tta: int = 1, best: bool = False, top_k: int = 0, kind: str = 'logits') -> str:
    """Where a run's logits, or features, of a split lie.

    Args:
        run_dir: the run's folder.
        split: train, val or test.
        tta: views of each picture: 1 for the picture as it is.
        best: whether they are by the run's best model, not its last.
        top_k: how many of each row's logits are kept; 0: all.
        kind: of KINDS.
    """
    name = split + (f'-tta{tta}' if tta > 1 else '') + ('-best' if best else '') + (f'-top{top_k}' if top_k else '')
    return storage.join(run_dir, kind, name)


def command(folder: str) -> str:
    """The command that makes the store of this folder; the commands, if it is several with JOINT between."""
    return ' && '.join(_command(one) for one in folder.split(JOINT))


def _command(folder: str) -> str:
    views = r'(-tta(?P<tta>\d+))?(?P<best>-best)?(-top(?P<top_k>\d+))?'
    found = re.fullmatch(rf'(?P<run>.+)/(?P<kind>{"|".join(KINDS)})/(?P<split>[^/]+?){views}/*', folder)
    named = found.groupdict() if found else {'run': 'runs/latest', 'split': 'test', 'kind': 'logits'}
    words = [f'python -m {PROGRAMS[named["kind"]]} --run_dir={named["run"]} --split={named["split"]}']
    words += [f'--{flag}={named[flag]}' for flag in ('tta', 'top_k') if named.get(flag)]
    return ' '.join([*words, '--best'] if named.get('best') else words)


def of_split(name: str, split: str) -> str:
    """The store of another split beside a store: runs/a/logits/test-tta5 -> runs/a/logits/val-tta5.

    Args:
        name: a folder, or several with JOINT between.
        split: train, val or test.

    Raises:
        InputError: a folder isn't named by its split.
    """
    return JOINT.join(_of_split(folder, split) for folder in name.split(JOINT))


def _of_split(folder: str, split: str) -> str:
    parent, name = os.path.split(folder)
    found = re.fullmatch(r'(train|val|test)(-.+)?', name)
    if not found:
        raise InputError(
            f'{folder}: its name must begin with its split, as test or test-tta5 does, so that the logits of {split} '
            'are found beside it'
        )
    return storage.join(parent or '.', split + (found[2] or ''))


def views_made(run_dir: str, split: str) -> list[int]:
    """The numbers of views above 1 of which a run has logits, ascending: all of each row's, by its last model."""
    names = storage.list_names(os.path.dirname(folder(run_dir, split)))
    found = [re.fullmatch(rf'{split}-tta(\d+)', name) for name in names]
    return sorted(int(name[1]) for name in found if name and name[1] != '1')
