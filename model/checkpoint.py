"""Atomic save and resume of a training run: weights, optimizer, state of dropout, and how far it is.

`checkpoint.json` names the weights file that it belongs to and is written after it, so that at every moment the folder
holds one whole checkpoint or none.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import keras

from model.accumulate import seed_states
from pipeline import storage

NAME = 'checkpoint.json'


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        step: updates done.
        stage: number of the stage that the last of them belongs to; the optimizer is of this stage.
        epoch: artificial epochs done.
    """

    step: int
    stage: int
    epoch: int


def save(model: keras.Model, state: State, folder: str) -> None:
    """Writes a checkpoint and removes the one before it."""
    storage.make_folder(folder)
    weights_name = f'step-{state.step:09d}.weights.h5'
    with storage.atomic_path(storage.join(folder, weights_name)) as path:
        model.save_weights(path)
    with storage.atomic_writer(storage.join(folder, NAME)) as file:
        seeds = [variable.numpy().tolist() for variable in seed_states(model)]
        file.write(json.dumps({'weights': weights_name, 'seeds': seeds, **dataclasses.asdict(state)}).encode())
    for name in storage.list_names(folder):
        if name not in (NAME, weights_name):
            storage.remove(storage.join(folder, name))


def read_state(folder: str) -> State | None:
    """How far the run in this folder is; None if it has no checkpoint."""
    found = _read(folder)
    return State(found['step'], found['stage'], found['epoch']) if found else None


def restore(model: keras.Model, folder: str) -> None:
    """Loads weights and optimizer into a model built and compiled as the saved one was.

    Raises:
        RuntimeError: the optimizer's state does not fit (Keras itself only warns).
    """
    found = _read(folder)
    if found is None:
        raise FileNotFoundError(f'{folder}: no {NAME}')
    path = storage.join(folder, found['weights'])
    before = [variable.shape for variable in model.optimizer.variables]
    model.load_weights(path)
    after = [variable.shape for variable in model.optimizer.variables]
    if before != after or not int(model.optimizer.iterations.numpy()):
        raise RuntimeError(f"{path}: the optimizer's state was not restored")
    for variable, value in zip(seed_states(model), found['seeds'], strict=True):
        variable.assign(value)


def _read(folder: str) -> dict[str, Any] | None:
    path = storage.join(folder, NAME)
    if not storage.exists(path):
        return None
    with storage.open_read(path) as file:
        return json.loads(file.read())
