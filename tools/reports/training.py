"""How runs were trained, for a page: the paper's Figure 3 from history.csv, their settings, and what took how long.

Synopsis:

    found = training.sections(['runs/noaug', 'runs/aug'], shards_dir='data/shards')
    page.write('report.html', 'noaug', '', [found.curves, *found.others])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble.routing import Store
from model import history, runs
from model.inputs import Inputs
from pipeline import manifest, split, storage, worklog
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.worklog import Entry
from tools import page
from tools.page import Section

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

WIDE = 9.0  # inches: Figure 3 has the page's whole width
FEW = 3  # rows
SHORT = 12  # hexadecimal digits of a digest that are shown


@dataclass(frozen=True, eq=False)
class Run:
    """What is drawn of a run.

    Attributes:
        name: of its folder.
        folder: where it lies.
        settings: as in run.json.
        history: history.csv by column, float64 [rows]; nan where a cell is empty.
        log: what was done in its folder.
        finished: whether its training came to its end.
    """

    name: str
    folder: str
    settings: Mapping[str, Any]
    history: Mapping[str, np.ndarray]
    log: Sequence[Entry]
    finished: bool

    @property
    def validated(self) -> np.ndarray:
        """bool [rows], where an artificial epoch ends."""
        return ~np.isnan(self.history['val_accuracy'])

    @property
    def passes(self) -> float:
        """How far it was trained."""
        return max(self.history['passes'], default=0)

    @property
    def noun(self) -> str:
        """What a row of its data is: pictures or products."""
        return Inputs.of_run(self.settings).noun

    def decays(self) -> list[float]:
        """The passes after which the learning rate decays, as far as it was trained."""
        return [float(point) for point in self.settings['decay_at'] if point and float(point) <= self.passes]

    def stages(self) -> list[tuple[float, str]]:
        """From which passes on which layers learn, as far as it was trained."""
        entries = [entry.strip().split('@') for entry in self.settings['unfreeze'].split(',')]
        return [(float(start), block) for block, start in entries if float(start) <= self.passes]


@dataclass(frozen=True)
class Sections:
    """The parts of a page that tell how runs were trained.

    Attributes:
        curves: how it went.
        others: what it was trained on, and what took how long.
    """

    curves: Section
    others: Sequence[Section]


def read(folder: str, name: str) -> Run:
    """Reads what a run's folder tells of its training.

    Raises:
        InputError: there is no run in the folder.
    """
    settings = runs.read_settings(folder)
    return Run(name, folder, settings, history.read(folder), worklog.read(folder), runs.is_finished(folder))


def sections(folders: Sequence[str], *, shards_dir: str) -> Sections:
    """The parts of a page that tell how runs were trained.

    Args:
        folders: of the runs; the first is the one that the page is about.
        shards_dir: the dataset.

    Raises:
        InputError: a folder has no run.
    """
    found = [read(folder, name) for folder, name in zip(folders, runs.names(folders), strict=True)]
    return Sections(
        Section('Training', _training(found)),
        [
            Section('What it was trained on', _data(found, shards_dir)),
            Section('Time and throughput', _time(found[0], worklog.read(shards_dir))),
        ],
    )


def _training(found: Sequence[Run]) -> list[Markup]:
    drawn = [run for run in found if len(run.history['step'])]
    blocks = [page.text(_told(run)) for run in found]
    nouns = ' or '.join(dict.fromkeys(run.noun for run in drawn))
    if not drawn:
        return [*blocks, page.text('history.csv has no row yet: there is nothing to draw.')]
    return [
        *blocks,
        _curves(
            drawn,
            'accuracy',
            'accuracy',
            width=WIDE,
            caption=f'Accuracy by passes over the training data: lines are means over the training {nouns} of each row '
            f'of history.csv, dots the validation {nouns}. Dashed lines: the learning rate decays or layers are '
            "unfrozen. (The paper's Figure 3.)",
        ),  # fmt: skip
        page.side_by_side(
            [
                _curves(drawn, 'loss', 'loss', caption='Loss: training (lines) and validation (dots).'),
                _levels(drawn[0]),
            ]
        ),
    ]


def _told(run: Run) -> str:
    """A run in one sentence."""
    state = 'finished' if run.finished else 'not finished'
    text = f'{run.name}: {run.settings["backbone"]}, {state}, {run.passes:.2f} of {run.settings["epochs"]:g} passes'
    accuracies = run.history['val_accuracy'][run.validated]
    if len(accuracies):
        where = run.history['passes'][run.validated][np.argmax(accuracies)]
        text += f'; validation accuracy {accuracies[-1]:.4f}, at best {accuracies.max():.4f} after {where:.2f} passes'
    return f'{text}.'


def _curves(found: Sequence[Run], column: str, label: str, *, caption: str, width: float | None = None) -> Markup:
    """A column of history.csv of all runs, and its validation beside it."""
    figure, axes = page.axes('passes over the training data', label)
    for number, run in enumerate(found):
        style = page.series(number)
        axes.plot(
            run.history['passes'], run.history[column], label=f'{run.name}, training',
            **style | {'marker': _marker(run)},
        )  # fmt: skip
        seen = run.validated
        axes.plot(
            run.history['passes'][seen], run.history[f'val_{column}'][seen], markersize=4.5,
            label=f'{run.name}, validation', **style | {'linestyle': 'none'},
        )  # fmt: skip
    _mark(axes, found)
    axes.set_xlim(left=0)
    if column == 'accuracy':
        axes.set_ylim(0, 1)
    axes.legend(loc='best')
    return page.figure(figure, caption, width=width)


def _marker(run: Run) -> str:
    """What marks the rows of a line: a cross where they are so few that it is a point or hardly more."""
    return 'x' if len(run.history['step']) < FEW else ''


def _mark(axes: Axes, found: Sequence[Run]) -> None:
    """Where the learning rate decays and layers are unfrozen; in a run's colour if several differ in it."""
    plans = {(tuple(run.decays()), tuple(run.stages())) for run in found}
    for number, run in enumerate(found[:1] if len(plans) == 1 else found):
        style: dict[str, Any] = {'color': page.FAINT if len(plans) == 1 else page.series(number)['color'], 'alpha': 0.8}
        points = [(point, f'learning rate x {run.settings["decay_factor"]:g}') for point in run.decays()]
        points += [(start, f'{block} on' if block != 'all' else 'all layers') for start, block in run.stages() if start]
        for place, words in points:
            axes.axvline(place, linestyle='--' if number < page.SERIES else ':', linewidth=1, **style)
            axes.annotate(
                words, (place, 0.02), xycoords=('data', 'axes fraction'), xytext=(-2, 0), textcoords='offset points',
                rotation=90, fontsize=page.SMALL, ha='right', va='bottom', **style,
            )  # fmt: skip


def _levels(run: Run) -> Markup:
    """Validation accuracy by level of the categories."""
    figure, axes = page.axes('passes over the training data', 'validation accuracy')
    for level in (1, 2, 3):
        values = run.history[f'val_level{level}'][run.validated]
        axes.plot(run.history['passes'][run.validated], values, marker='o', markersize=4, label=f'level {level}')
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.legend(loc='best')
    return page.figure(figure, f'{run.name}: validation {run.noun} whose category is right as far as this level.')


def _data(found: Sequence[Run], shards_dir: str) -> list[Markup]:
    """The dataset, the settings and the identities."""
    blocks: list[Markup] = []
    try:
        made = manifest.read(shards_dir, kind='shards', remedy='python -m pipeline.convert', check_files=False)
    except InputError as error:
        blocks.append(page.text(f'The dataset is not told of: {error}.'))
    else:
        blocks += _dataset(made, shards_dir)
        other = [run.name for run in found if run.settings['dataset_digest'] != made.digest()]
        if other:
            blocks.append(page.text(f'Trained on another dataset than this one: {", ".join(other)}.'))
    return [*blocks, page.heading('Settings'), _settings(found), page.heading('Logits'), _logits(found)]


def _dataset(made: Manifest, shards_dir: str) -> list[Markup]:
    source = made.about.get('source', {})
    files = ', '.join(f'{name} ({values["bytes"]:,} bytes)' for name, values in sorted(source.items()))
    told = f'{shards_dir}: {made.about.get("categories", 0):,} categories' + (f', made from {files}' if files else '')
    rows = [
        [name, page.count(made.products(name)), page.count(made.images(name)), page.count(len(made.of_split(name)))]
        for name in split.SPLITS
    ]
    return [
        page.text(f'{told}; digest {made.digest()}.'),
        page.table(['split', 'products', 'pictures', 'shards'], rows),
    ]


def _settings(found: Sequence[Run]) -> Markup:
    """The settings of all runs; where they differ, that is said in a column to sort by."""
    rows: list[list[object]] = []
    for name in sorted({name for run in found for name in run.settings}):
        values = [_shown(run.settings.get(name)) for run in found]
        differs = ['differs' if len(set(values)) > 1 else ''] if len(found) > 1 else []
        rows.append([name, *values, *differs])
    return page.table(['setting', *(run.name for run in found), *(['differs'] if len(found) > 1 else [])], rows)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ', '.join(map(str, value)) or 'none'
    return '' if value is None else str(value)


def _logits(found: Sequence[Run]) -> Markup:
    """Which logits the runs have, and by which weights."""
    rows = []
    for run in found:
        parent = storage.join(run.folder, 'logits')
        for name in sorted(storage.list_names(parent)) if storage.exists(parent) else []:
            try:
                made = manifest.read(storage.join(parent, name), kind='logits', remedy='', check_files=False)
            except InputError:
                continue  # not finished
            store = Store(storage.join(parent, name), made)
            weights = made.about['weights_digest'][:SHORT]
            rows.append([run.name, name, page.count(store.products), store.which, page.count(store.rows), weights])
    return page.table(['run', 'logits', 'products', 'of', 'rows', 'weights (SHA-256)'], rows)


def _time(run: Run, of_shards: Sequence[Entry]) -> list[Markup]:
    """What was done when, how long it took, and how fast it went."""
    blocks = _speed(run) if len(run.history['step']) else []
    entries = [*of_shards, *run.log]
    if not entries:
        return [*blocks, page.text(f'{worklog.NAME} is not there, so nothing is known of when and where it was done.')]
    columns = ['step', 'began (UTC)', 'seconds', 'how much', 'a second', 'where', 'command']
    rows = [
        [one.name, one.started, page.number(one.seconds, 1), *_rate(one), _machine(one), one.command] for one in entries
    ]
    return [*blocks, page.table(columns, rows), page.heading('Versions'), _versions(entries)]


def _speed(run: Run) -> list[Markup]:
    """Pictures, or products, a second while it was trained."""
    rates, images = run.history['images_per_second'], run.history['images']
    seconds = float(np.sum(np.diff(images, prepend=0) / rates))
    figure, axes = page.axes('passes over the training data', f'{run.noun} a second')
    axes.plot(run.history['passes'], rates, marker=_marker(run))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    told = f'The updates of {run.name} took {_duration(seconds)}: {images[-1] / seconds:,.0f} {run.noun} a second'
    return [
        page.text(f'{told}, validation and checkpoints not counted.'),
        page.figure(figure, f'{run.name}: training {run.noun} a second, in each row of history.csv.'),
    ]


def _rate(entry: Entry) -> list[object]:
    """What was counted, and the first of it by the second, unless some of it was there already."""
    amounts = ', '.join(f'{value:,} {name}' for name, value in entry.counts.items())
    name, value = next(iter(entry.counts.items()), ('', 0))
    whole = name and entry.seconds and not entry.counts.get('kept_shards')
    return [amounts, f'{value / entry.seconds:,.0f} {name}' if whole else '']


def _machine(entry: Entry) -> str:
    replicas = [f'{entry.replicas} replicas'] if entry.replicas and entry.replicas > 1 else []
    return ', '.join([f'{entry.cores} cores', *entry.gpus, *replicas])


def _versions(entries: Sequence[Entry]) -> Markup:
    """Each package's versions, with what was done by them if there are several."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        for name, version in entry.versions.items():
            found.setdefault(name, {}).setdefault(version, []).append(entry.name)
    rows = [
        [name, version, ', '.join(dict.fromkeys(works)) if len(versions) > 1 else 'all']
        for name, versions in found.items()
        for version, works in versions.items()
    ]
    return page.table(['package', 'version', 'used by'], rows)


def _duration(seconds: float) -> str:
    """In words: 3 h 20 min, 5 min 2 s, 14 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f'{hours} h', f'{minutes} min'] if hours else [f'{minutes} min', f'{rest} s'] if minutes else [f'{rest} s']
    return re.sub(r' 0 (min|s)$', '', ' '.join(parts))
