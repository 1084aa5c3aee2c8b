"""mixture.json: a mixture fitted on some logits, kept for other logits by the same models.

Synopsis:

    mixture_file.write('mixture.json', mixture, reduction.open_stores(['runs/a/logits/val', 'runs/b/logits/val']))
    mixture = mixture_file.read('mixture.json', reduction.open_stores(['runs/a/logits/test', 'runs/b/logits/test']))
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ensemble import logits_folder
from ensemble.logits_folder import JOINT
from ensemble.mixture import Mixture
from ensemble.reduction import Stores
from pipeline import storage
from pipeline.errors import InputError

NAME = 'mixture.json'
FORMAT_VERSION = 2
MODEL = ('weights_digest', 'label_map_digest', 'tta')  # alike in two stores of logits by the same model


def write(path: str, mixture: Mixture, stores: Stores) -> None:
    """Writes a mixture, whole or not at all.

    Args:
        path: of the file.
        mixture: what was fitted.
        stores: the logits that it was fitted on.
    """
    models = [
        [{'logits': store.folder, **{name: store.manifest.about[name] for name in MODEL}} for store in group.stores]
        for group in stores.groups
    ]
    values = {
        'kind': 'mixture',
        'format_version': FORMAT_VERSION,
        'dataset_digest': stores.dataset_digest,
        'split': stores.split,
        'models': models,
        'mixture': dataclasses.asdict(mixture),
    }
    storage.make_folder(os.path.dirname(path) or '.')
    with storage.atomic_writer(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b'\n')


def read(path: str, stores: Stores) -> Mixture:
    """Reads a mixture for stores by the same models.

    Raises:
        InputError: no such file, a damaged one, or one for other models than the stores' or in another order.
    """
    mixture, models = _parse(path)
    named = ','.join(JOINT.join(str(store['logits']) for store in model) for model in models)
    if len(models) != len(stores.groups):
        raise InputError(
            f'{path}: is for {len(models)} models, --logits has {len(stores.groups)}; give those that it was fitted '
            f'on, in their order: {named}'
        )
    for model, group in zip(models, stores.groups, strict=True):
        difference = _difference([store.manifest.about for store in group.stores], model)
        if difference:
            raise InputError(
                f'{group.name}: not by the model that {path} was fitted on ({difference}); give the logits of its '
                f'models in their order ({named}), or fit anew with --fit=val'
            )
    return mixture


def check_same_models(fitted: Stores, used: Stores) -> None:
    """Checks that the stores to fit on are by the same models, in order, as those that are to be combined.

    Raises:
        InputError: one isn't; names both, and the commands that make them again.
    """
    for one, other in zip(fitted.each, used.each, strict=True):
        difference = _difference([one.manifest.about], [other.manifest.about])
        if difference:
            raise InputError(
                f'{one.folder} and {other.folder} are not by the same model ({difference}); make both again: '
                f'{logits_folder.command(one.folder)} && {logits_folder.command(other.folder)}'
            )


def _parse(path: str) -> tuple[Mixture, Sequence[Sequence[Mapping[str, Any]]]]:
    with storage.open_read(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
        if (values['kind'], values['format_version']) != ('mixture', FORMAT_VERSION):
            raise ValueError(f'kind and format_version must be mixture and {FORMAT_VERSION}')
        fields = {field.name: values['mixture'][field.name] for field in dataclasses.fields(Mixture)}
        mixture = Mixture(**{**fields, 'weights': tuple(fields['weights'])})
        models = [[{name: one[name] for name in ('logits', *MODEL)} for one in model] for model in values['models']]
        if len(models) != len(mixture.weights):
            raise ValueError(f'{len(mixture.weights)} weights for {len(models)} models')
    except KeyError as error:
        raise InputError(f'{path}: not a mixture that --fit=val writes: {error} is missing; fit it anew') from None
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f'{path}: not a mixture that --fit=val writes ({error}); fit it anew') from None
    return mixture, models


def _difference(model: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> str:
    """The first thing in which two models differ, in words; '' if they are the same.

    Args:
        model: what is told of each of its stores.
        other: what is told of each of the other's.
    """
    if len(model) != len(other):
        return f'it has {len(model)} stores with {JOINT} between, not {len(other)}'
    for about, expected in zip(model, other, strict=True):
        for name in MODEL:
            if about[name] != expected[name]:
                return f'its {name} is {str(about[name])[:12]}, not {str(expected[name])[:12]}'
    return ''
