"""The paper's Table I for runs of ours: rules x views x configurations, with intervals and tests, as numbers and CSV.

Synopsis:

    compared = table.open_runs(['runs/noaug', 'runs/aug'], 'val')
    rows = table.measure_all(engine, compared, shards_dir='data/shards', scratch='runs/.tmp-table')
    table.write_csv(rows, 'runs/table.csv')
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ensemble import known_images, logits, logits_folder, predictions, reduction, routing, rules, scores, submission
from ensemble.known_images import Known
from ensemble.logits_folder import JOINT
from ensemble.mixture import Mixture
from ensemble.reduction import Job, Stores
from ensemble.scores import Score
from ensemble.submission import Solution
from model import runs
from pipeline import dataset, manifest, storage, tables
from pipeline.beam_job import Engine
from pipeline.errors import InputError
from tools.reports import calibration
from tools.reports.calibration import Calibration

REFERENCE = 'mean'  # what the other rules are held against
PICTURES = tuple(range(1, dataset.PICTURES + 1))
VIEWS = 5  # the paper's
# Table I, accuracy on Cdiscount's validation set, by configuration and views of each picture.
PAPER: dict[tuple[str, int], dict[str, float]] = {
    ('noaug', 1): {
        'mean': 0.708, 'product': 0.712, 'rms': 0.707, 'median': 0.707, 'power': 0.712, 'max': 0.706, 'first': 0.691,
    },
    ('noaug', 5): {
        'mean': 0.698, 'product': 0.698, 'rms': 0.698, 'median': 0.687, 'power': 0.698, 'max': 0.697, 'first': 0.648,
    },
    ('aug', 1): {'mean': 0.707, 'product': 0.710, 'rms': 0.706, 'first': 0.695},
    ('aug', 5): {'mean': 0.713, 'product': 0.715, 'rms': 0.712, 'first': 0.695},
}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A store of logits that becomes a part of the table.

    Attributes:
        folder: where it lies; several with + between, where runs are one model together.
        configuration: the name of its run, or of its runs.
        tta: views of each picture.
        paper: the paper's accuracy of the same configuration and views by rule, as far as it gives it.
    """

    folder: str
    configuration: str
    tta: int
    paper: Mapping[str, float] = field(hash=False)

    @property
    def title(self) -> str:
        """What the table calls it."""
        return self.configuration + (f', {self.tta} views' if self.tta > 1 else '')


@dataclass(frozen=True, eq=False)
class Runs:
    """Logits of one or more runs that belong together: of the same products, all of a run by the same weights.

    Attributes:
        folders: of the runs; with + between those that are one model together.
        split: val or test.
        stores: all their logits of the split.
        opened: the same, in the same order.
        truth: the products' categories, if the logits don't have them (test).
    """

    folders: Sequence[str]
    split: str
    stores: Sequence[Store]
    opened: Stores
    truth: Solution | None

    @property
    def products(self) -> str:
        """Which products they are of, in words."""
        part = self.opened.part
        if not part:
            return self.split
        return (
            f'{self.split} with {part} picture{"s" if part > 1 else ""}, of {self.opened.groups[0].dataset_products:,}'
        )


@dataclass(frozen=True, eq=False)
class Row:
    """What a rule makes of a store; the fields are columns of the table.

    Attributes:
        store: the logits.
        views: pooled or nested.
        rule: its name.
        accuracy: over all products.
        over_mean: how much more accurate it is than the rule mean, with the same store and views.
        p_value: of McNemar's exact test of that difference.
        top5: share of products whose category is among the five likeliest.
        levels: accuracy as far as level 1, 2 and 3 of the categories' names.
        by_pictures: accuracy over the products with 1, 2, 3 and 4 pictures.
        correct: bool [P], which products it has right, in the dataset's order.
        by_seen: accuracy over the products of whose pictures one or more are in the training set, byte for byte, and
            over the others; None if that isn't known.
        calibration: of the predictions' probabilities.
    """

    store: Store
    views: str
    rule: str
    accuracy: Score
    over_mean: Score
    p_value: float
    top5: float
    levels: tuple[Score, ...]
    by_pictures: tuple[Score, ...]
    correct: np.ndarray = field(repr=False)
    by_seen: tuple[Score, Score] | None
    calibration: Calibration

    @property
    def paper(self) -> float:
        """The paper's accuracy; nan if it gives none. Its views are pooled."""
        return self.store.paper.get(self.rule, math.nan) if self.views == rules.VIEWS[0] else math.nan


def members(folder: str) -> list[str]:
    """The folders of the runs that are one model together: runs/p1+runs/p2 -> runs/p1, runs/p2."""
    return folder.split(JOINT)


def all_members(folders: Sequence[str]) -> list[str]:
    """All runs, each once."""
    return list(dict.fromkeys(run for folder in folders for run in members(folder)))


def names(folders: Sequence[str]) -> list[str]:
    """What runs are called; those that are one model together have + between."""
    every = all_members(folders)
    name_of = dict(zip(every, runs.names(every), strict=True))
    return [JOINT.join(name_of[run] for run in members(folder)) for folder in folders]


def logits_of(folder: str, split: str, *, tta: int = 1) -> str:
    """Where the logits of a split lie; of several runs with + between."""
    return JOINT.join(logits_folder.folder(run, split, tta=tta) for run in members(folder))


def _views_made(folder: str, split: str) -> list[int]:
    """The numbers of views above 1 of which there are logits, of all runs that are one model together."""
    made = [set(logits_folder.views_made(run, split)) for run in members(folder)]
    return sorted(set.intersection(*made))


def find_stores(folders: Sequence[str], split: str) -> list[Store]:
    """The stores of a split's logits that runs have: of the pictures as they are, and of each number of views there is.

    Args:
        folders: of the runs.
        split: val or test.
    """
    return [
        Store(logits_of(folder, split, tta=tta), name, tta, _paper(members(folder)[0], tta))
        for folder, name in zip(folders, names(folders), strict=True)
        for tta in (1, *_views_made(folder, split))
    ]


def lacking(folder: str, split: str) -> str:
    """Why a run has no logits of a split to report on, and what to do about it; '' if it has them.

    Raises:
        InputError: they are damaged.
    """
    found = members(folder)
    return next((problem for run in found if (problem := _lacking(run, split, alone=len(found) == 1))), '')


def _lacking(folder: str, split: str, *, alone: bool) -> str:
    path = logits_folder.folder(folder, split)
    listed = storage.join(path, manifest.NAME)
    if storage.exists(listed):
        found = routing.Store(path, logits.read_manifest(path))
        none = f'none of {found.which}' if found.part else 'none'
        problem = f'{path} holds no product, because the dataset has {none} in {split}; take another split'
        # Of some numbers of pictures there may be no products: such a run is nothing alone, and a part of a whole.
        return '' if found.products or not alone else problem
    if storage.exists(storage.join(folder, runs.SETTINGS_NAME)) and not runs.is_finished(folder):
        return (
            f'{folder} has no logits of {split} yet: its training is not finished; the same model.train command goes '
            'on with it'
        )
    return f'{listed}: no such file, so {path} holds no finished logits; make them: {logits_folder.command(path)}'


def open_runs(folders: Sequence[str], split: str, *, solution: str = '') -> Runs:
    """Opens all logits of a split that runs have.

    Args:
        folders: of the runs.
        split: val or test.
        solution: path of a solution.csv with the products' categories; '' if there is none.

    Raises:
        InputError: a run has none, or they don't belong together.
    """
    for folder in folders:
        if problem := lacking(folder, split):
            raise InputError(problem)
    stores = find_stores(folders, split)
    opened = reduction.open_stores([store.folder for store in stores])
    _check_same_weights(opened)
    # The paper has no model that looks at whole products.
    stores = [
        replace(store, paper={}) if group.stores[0].pictures else store
        for store, group in zip(stores, opened.groups, strict=True)
    ]
    truth = submission.read_solution(solution, opened.label_map, part=opened.part > 0) if solution else None
    return Runs(tuple(folders), split, stores, opened, truth)


def _check_same_weights(opened: Stores) -> None:
    """Checks that all logits of a run are by the same weights.

    Raises:
        InputError: some of a run are older; names the command that makes them again.
    """
    first: dict[str, tuple[str, str]] = {}
    for store in opened.each:
        digest = store.manifest.about['weights_digest']
        folder, expected = first.setdefault(os.path.dirname(store.folder), (store.folder, digest))
        if digest != expected:
            raise InputError(
                f'{store.folder}: by other weights than {folder}; make both again: '
                f'{logits_folder.command(store.folder)} && {logits_folder.command(folder)}'
            )


def _tell_missing(folders: Sequence[str], split: str) -> None:
    """Says which logits with several views some runs have and others lack, and how to make them."""
    made = {folder: _views_made(folder, split) for folder in folders}
    for tta in sorted({VIEWS}.union(*made.values())):
        for folder in folders:
            if tta not in made[folder]:
                command = logits_folder.command(logits_of(folder, split, tta=tta))
                print(f'{folder}: has no logits of {tta} views; to have them in the table: {command}')


def _find_known(engine: Engine, opened: Stores, *, shards_dir: str, scratch: str) -> Known | None:
    """Which pictures of the products are in the training set, too; None if it can't be known, which is told."""
    try:
        known_images.check(shards_dir, digest=opened.dataset_digest)
    except InputError as error:
        print(f'left out, which pictures the training set has too: {error}')
        return None
    known = known_images.find(engine, shards_dir, opened.split, output_dir=scratch)
    return known.with_pictures(opened.part) if opened.part else known


def measure_all(engine: Engine, compared: Runs, *, shards_dir: str, scratch: str) -> list[Row]:
    """Combines all logits of runs by all rules, and scores what they predict; says what it does, and what is missing.

    Args:
        engine: what runs the jobs.
        compared: what open_runs() found.
        shards_dir: the dataset; without it, it isn't known which pictures the training set has too.
        scratch: a folder that all workers reach; the caller removes it. predictions_folder() is where it holds the
            first store's predictions.
    """
    _tell_missing(compared.folders, compared.split)
    known = _find_known(engine, compared.opened, shards_dir=shards_dir, scratch=scratch)
    rows: list[Row] = []
    for store in compared.stores:
        print(f'combining {store.folder} by all rules', flush=True)
        part = scratch if store == compared.stores[0] else storage.join(scratch, 'others')
        rows += measure(engine, store, scratch=part, solution=compared.truth, known=known)
    return rows


def measure(
    engine: Engine, store: Store, *, scratch: str, solution: Solution | None = None, known: Known | None = None
) -> Iterator[Row]:
    """Combines a store by all rules, in one reading, and scores what they predict.

    Args:
        engine: what runs the job.
        store: the logits.
        scratch: a folder for the predictions that all workers reach; the caller removes it.
        solution: the products' categories, if the logits don't have them (test).
        known: which of the products' pictures are in the training set.

    Raises:
        InputError: the logits can't be used, or the solution is of other products.
    """
    opened = reduction.open_stores([store.folder])
    ways = [
        Mixture(rule, views=views)
        for views in (rules.VIEWS if store.tta > 1 else rules.VIEWS[:1])
        for rule in rules.names()
    ]
    outputs = {way: predictions_folder(scratch, views=way.views, rule=way.rule) for way in ways}
    reduction.run(engine, opened.parts(), Job(opened, ways, list(outputs.values())))
    means = {
        way.views: predictions.read(outputs[way], ['category_id']).category_id for way in ways if way.rule == REFERENCE
    }
    for way, folder in outputs.items():  # one at a time: a table of Kaggle's size has 70 MB of predictions a row
        found = predictions.read(folder)
        if known and not np.array_equal(found.product_id, known.product_id):
            raise InputError(f'{store.folder}: holds other products than the shards; make the logits again')
        truth = solution.of(found.product_id) if solution else found.true_category_id
        correct = found.category_id == truth
        over = means[way.views] == truth
        yield Row(
            store=store,
            views=way.views,
            rule=way.rule,
            accuracy=scores.accuracy(correct),
            over_mean=scores.gain(correct, over),
            p_value=scores.p_value(correct, over),
            top5=float(scores.among_likeliest(found.likeliest, truth).mean()),
            levels=tuple(map(scores.accuracy, scores.right_by_level(found.category_id, truth, opened.label_map))),
            by_pictures=tuple(scores.accuracy(correct[found.pictures == count]) for count in PICTURES),
            correct=correct,
            by_seen=None
            if known is None
            else (scores.accuracy(correct[known.seen > 0]), scores.accuracy(correct[known.seen == 0])),
            calibration=calibration.measure(found.probability, correct),
        )


def predictions_folder(scratch: str, *, views: str, rule: str) -> str:
    """Where measure() leaves what a rule predicts."""
    return storage.join(scratch, views, rule)


def write_csv(rows: Sequence[Row], path: str) -> None:
    """Writes all numbers, a line for each store, way to take its views, and rule; what there is not is empty."""
    lines = [_cells(row) for row in rows]
    tables.write(path, list(lines[0]), [list(line.values()) for line in lines])


def _cells(row: Row) -> dict[str, object]:
    """A line of the .csv file by column."""
    cells: dict[str, object] = {
        'configuration': row.store.configuration,
        'tta': row.store.tta,
        'views': row.views,
        'rule': row.rule,
        'products': row.accuracy.count,
    }
    for name, score in (('accuracy', row.accuracy), (f'over_{REFERENCE}', row.over_mean)):
        cells |= {name: score.value, f'{name}_low': score.low, f'{name}_high': score.high}
    cells |= {'p_value': row.p_value, 'top5': row.top5}
    cells |= {f'level{level}': share.value for level, share in enumerate(row.levels, start=1)}
    parts = dict(zip((f'{count}_pictures' for count in PICTURES), row.by_pictures, strict=True))
    if row.by_seen:
        parts |= dict(zip(('seen', 'unseen'), row.by_seen, strict=True))
    for name, score in parts.items():
        cells |= {f'accuracy_{name}': score.value, f'products_{name}': score.count}
    cells['paper'] = row.paper
    return {name: _cell(value) for name, value in cells.items()}


def _cell(value: object) -> object:
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.6g}'
    return value


def _paper(folder: str, tta: int) -> Mapping[str, float]:
    """The paper's figures for the configuration that a run's settings make it; without settings its name does."""
    name = os.path.basename(os.path.realpath(folder))
    if storage.exists(storage.join(folder, runs.SETTINGS_NAME)):
        settings = runs.read_settings(folder)
        name = 'aug' if settings.get('crop_probability') or settings.get('flip_probability') else 'noaug'
    return PAPER.get((name, tta), {})
