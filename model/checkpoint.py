"""Atomic save and exact resume of a training run: one file is one checkpoint, and the last two are kept.

checkpoints/step-000001302.npz    weights, optimizer, state of dropout, and how far the run is

The file is numpy's: every array in it has a checksum, so a damaged checkpoint is found, and the one before it taken.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from model.history import Window
from pipeline import storage
from pipeline.errors import one_line

KEPT = 2


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        step: updates done.
        epoch: artificial epochs done, their validation included.
        stage: number of the stage that the last update belongs to; the optimizer is of this stage. -1 before any.
        window: what was seen since the last row of history.csv.
        best_accuracy: the best validation accuracy so far.
        settings: the run's, its seed among them.
    """

    step: int = 0
    epoch: int = 0
    stage: int = -1
    window: Window = field(default_factory=Window)
    best_accuracy: float = -1
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    path: str
    state: State
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]


def save(model: keras.Model, state: State, folder: str) -> str:
    """Writes a checkpoint of a model with `classifier` and `optimizer`, and removes all but the last two.

    Returns:
        Its path.
    """
    storage.make_folder(folder)
    path = path_of(folder, state.step)
    arrays = {
        f'{kind}/{number:05d}': keras.ops.convert_to_numpy(variable)
        for kind, variables in _variables(model).items()
        for number, variable in enumerate(variables)
    }
    described = np.frombuffer(json.dumps(dataclasses.asdict(state)).encode(), np.uint8)
    with storage.atomic_writer(path) as file:
        np.savez(file, state=described, **arrays)
    names = _names(folder)
    done = [name for name in names if storage.join(folder, name) <= path]  # later ones are damaged, or left behind
    left_over = [name for name in storage.list_names(folder) if storage.is_temporary(name)]
    for name in {*names, *left_over} - set(done[-KEPT:]):
        storage.remove(storage.join(folder, name))
    return path


def read(folder: str) -> Checkpoint | None:
    """The last checkpoint in a folder that is sound; None if there is none. A damaged one is told and passed over."""
    for name in reversed(_names(folder)):
        path = storage.join(folder, name)
        try:
            return _read(path)
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            print(f'{path}: damaged ({one_line(error)}); taking the checkpoint before it')
    return None


def restore(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Fills a model built and compiled as the saved one was.

    Raises:
        RuntimeError: the checkpoint is of another model or another stage.
    """
    for kind, variables in _variables(model).items():
        values = getattr(checkpoint, kind)
        if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
            raise RuntimeError(f'{checkpoint.path}: its {kind} has other shapes than the model')
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def path_of(folder: str, step: int) -> str:
    """Where the checkpoint after so many updates lies."""
    return storage.join(folder, f'step-{step:09d}.npz')


def _variables(model: keras.Model) -> dict[str, list[Any]]:
    return {'weights': model.classifier.variables, 'optimizer': model.optimizer.variables}


def _names(folder: str) -> list[str]:
    return [name for name in storage.list_names(folder) if re.fullmatch(r'step-\d{9}\.npz', name)]


def _read(path: str) -> Checkpoint:
    with storage.open_read(path) as opened, np.load(opened) as file:
        arrays = {name: file[name] for name in sorted(file.files)}
    state = json.loads(arrays.pop('state').tobytes())
    state['window'] = Window(**state['window'])
    weights, optimizer = (
        [value for name, value in arrays.items() if name.startswith(f'{kind}/')] for kind in ('weights', 'optimizer')
    )
    return Checkpoint(path, State(**state), weights, optimizer)
