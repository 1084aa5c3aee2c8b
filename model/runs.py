"""A run's folder: what it was made with, its finished model, and which run is the latest.

runs/NAME/run.json        settings and the dataset's digest
          checkpoints/    the last two
          history.csv     a row for every 20,000 pictures
          categories.csv  what the model's outputs mean
          tensorboard/
          best.keras      the classifier after the artificial epoch with the best validation accuracy
          model.keras     the classifier at the end; not there until then
          accuracy_by_category.csv
          worklog.jsonl   what was done when, and how long it took
          logits/         per-image logits by split
runs/latest               -> the last finished run
"""

from __future__ import annotations

import json
import math
import os
import uuid
import zipfile
from collections.abc import Sequence
from typing import Any

import h5py
import keras

from model import join, title
from model.grouped_conv import GroupedConv2D
from pipeline import categories, storage
from pipeline.categories import Categories
from pipeline.errors import InputError, UsageError, one_line

MODEL_NAME = 'model.keras'
BEST_NAME = 'best.keras'
BY_CATEGORY_NAME = 'accuracy_by_category.csv'
SETTINGS_NAME = 'run.json'
LATEST = 'latest'
# Layers of our own that a saved classifier may have.
LAYERS = {keras.saving.get_registered_name(layer): layer for layer in (GroupedConv2D, join.Join, title.Head)}


def check_folder(run_dir: str) -> None:
    """Refuses a folder that a run can't lie in, before anything is trained.

    Raises:
        InputError: it is remote, or it is a new run named latest.
    """
    if storage.is_remote(run_dir):
        raise UsageError(f'--run_dir={run_dir}: a run must lie on a local disk; copy it when it is finished')
    if os.path.basename(os.path.normpath(run_dir)) == LATEST and not os.path.islink(run_dir.rstrip('/')):
        raise UsageError(f'--run_dir={run_dir}: {LATEST} is the link to the last finished run; take another name')


def check_settings(run_dir: str, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than it began with; a folder without a run is fine.

    Raises:
        InputError: names a setting that differs.
    """
    if not storage.exists(storage.join(run_dir, SETTINGS_NAME)):
        return
    check_same(run_dir, read_settings(run_dir), settings)


def check_same(run_dir: str, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuses settings that differ from those found.

    Raises:
        InputError: names a setting that differs.
    """
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
        found = storage.folders_with(os.path.dirname(os.path.normpath(run_dir)) or '.', SETTINGS_NAME)
        others = f'; there are: {", ".join(found[:5])}' if found else ''
        raise InputError(
            f'{path}: no such file, so {run_dir} is no run; train one: python -m model.train --help{others}'
        )
    with storage.open_read(path) as file:
        try:
            return json.loads(file.read())
        except ValueError as error:
            raise InputError(f'{path}: damaged ({error}); remove {run_dir} and train again') from None


def names(folders: Sequence[str]) -> list[str]:
    """What runs are called: the names of their folders, or the whole paths if two have the same name."""
    found = [os.path.basename(os.path.realpath(folder)) for folder in folders]
    return found if len(set(found)) == len(found) else list(folders)


def is_finished(run_dir: str) -> bool:
    """Whether the run's training came to its end."""
    return storage.exists(storage.join(run_dir, MODEL_NAME))


def save_model(classifier: keras.Model, run_dir: str, *, name: str = MODEL_NAME) -> None:
    """Writes the finished classifier, or the best so far."""
    with storage.atomic_path(storage.join(run_dir, name)) as path:
        classifier.save(path)


def by_category_path(run_dir: str) -> str:
    """Where the accuracy of every category is written."""
    return storage.join(run_dir, BY_CATEGORY_NAME)


def finished_model(run_dir: str, *, best: bool = False) -> str:
    """The path of a finished run's classifier: the last, or the one with the best validation accuracy.

    Raises:
        InputError: there is no run, it isn't finished, or it was never validated.
    """
    read_settings(run_dir)
    if not is_finished(run_dir):
        raise InputError(f'{run_dir}: its training is not finished; the same model.train command goes on with it')
    path = storage.join(run_dir, BEST_NAME if best else MODEL_NAME)
    if not storage.exists(path):
        raise InputError(f'{path}: no such file, because the run had no validation pictures; leave --best out')
    return path


def parameters(run_dir: str) -> int:
    """How many parameters a finished run's classifier has, as Keras counts them, without making the classifier.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = finished_model(run_dir)
    counts: list[int] = []

    def add(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and 'seed_generator' not in name:
            counts.append(math.prod(found.shape))

    try:
        with zipfile.ZipFile(path) as archive, archive.open('model.weights.h5') as file, h5py.File(file) as weights:
            weights['layers'].visititems(add)
    except (zipfile.BadZipFile, OSError, KeyError) as error:
        raise InputError(
            f'{path}: damaged ({one_line(error)}); remove it, and train again with the same command'
        ) from None
    return sum(counts)


def load_model(run_dir: str, *, best: bool = False) -> keras.Model:
    """Reads the classifier of a finished run.

    Raises:
        InputError: there is none (see finished_model()), or it is damaged.
    """
    path = finished_model(run_dir, best=best)
    try:
        return keras.models.load_model(path, custom_objects=LAYERS, compile=False)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f'{path}: damaged ({one_line(error)}); remove it, and train again with the same command'
        ) from None


def read_categories(run_dir: str, classifier: keras.Model) -> Categories:
    """What the outputs of a run's classifier mean.

    Raises:
        InputError: model.train hasn't written it yet, or it is of another model.
    """
    path = storage.join(run_dir, categories.NAME)
    if not storage.exists(path):
        raise InputError(f'{path}: no such file; the same model.train command adds it to a finished run')
    label_map, classes = categories.read(run_dir), classifier.output_shape[-1]
    if len(label_map) != classes:
        raise InputError(
            f'{path}: has {len(label_map)} categories, the model {classes}; the same model.train command writes it anew'
        )
    return label_map


def point_latest(run_dir: str) -> str:
    """Makes runs/latest, beside the run, point to it; gives the path of the link."""
    parent, name = os.path.split(os.path.realpath(run_dir))
    temporary = os.path.join(parent, f'.tmp-{uuid.uuid4().hex}')
    os.symlink(name, temporary)
    os.replace(temporary, os.path.join(parent, LATEST))
    beside = os.path.dirname(os.path.normpath(run_dir))  # as it was typed, unless the run's folder is a link elsewhere
    return os.path.join(beside if os.path.realpath(beside) == parent else parent, LATEST)
