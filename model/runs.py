"""A run's folder: what it was made with, its finished model, and which run is the latest.

runs/NAME/run.json        settings and the dataset's digest
          checkpoints/    of an unfinished run
          history.csv     an artificial epoch a row
          tensorboard/
          model.keras     the finished classifier
          logits/         per-image logits by split
runs/latest               -> the last finished run
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import keras

from pipeline import storage
from pipeline.errors import InputError

MODEL_NAME = 'model.keras'
SETTINGS_NAME = 'run.json'


def check_settings(run_dir: str, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than it began with; a folder without a run is fine.

    Raises:
        InputError: names a setting that differs.
    """
    if not storage.exists(storage.join(run_dir, SETTINGS_NAME)):
        return
    found = read_settings(run_dir)
    for name in sorted({*found, *settings}):
        if found.get(name) != settings.get(name):
            raise InputError(
                f'{run_dir}: began with {name}={found.get(name)}, now it is {settings.get(name)}; give the same '
                'flags to go on, or another --run_dir to begin anew'
            )


def write_settings(run_dir: str, settings: dict[str, Any]) -> None:
    """Makes a run's folder."""
    storage.make_folder(run_dir)
    with storage.atomic_writer(storage.join(run_dir, SETTINGS_NAME)) as file:
        file.write((json.dumps(settings, indent=1, sort_keys=True) + '\n').encode())


def read_settings(run_dir: str) -> dict[str, Any]:
    """What write_settings() was given.

    Raises:
        InputError: there is no run in this folder.
    """
    path = storage.join(run_dir, SETTINGS_NAME)
    if not storage.exists(path):
        raise InputError(f'{path}: no such file, so {run_dir} is no run; train one: python -m model.train --help')
    with storage.open_read(path) as file:
        return json.loads(file.read())


def is_finished(run_dir: str) -> bool:
    """Whether the run's training came to its end."""
    return storage.exists(storage.join(run_dir, MODEL_NAME))


def save_model(classifier: keras.Model, run_dir: str) -> None:
    """Writes the finished classifier."""
    with storage.atomic_path(storage.join(run_dir, MODEL_NAME)) as path:
        classifier.save(path)


def load_model(run_dir: str) -> keras.Model:
    """Reads the finished classifier.

    Raises:
        InputError: there is no run, or it isn't finished.
    """
    read_settings(run_dir)
    if not is_finished(run_dir):
        raise InputError(f'{run_dir}: its training is not finished; the same model.train command goes on with it')
    return keras.models.load_model(storage.join(run_dir, MODEL_NAME), compile=False)


def point_latest(run_dir: str) -> None:
    """Makes runs/latest, beside the run, point to it."""
    parent, name = os.path.split(os.path.abspath(run_dir))
    temporary = os.path.join(parent, f'.tmp-{uuid.uuid4().hex}')
    os.symlink(name, temporary)
    os.replace(temporary, os.path.join(parent, 'latest'))
