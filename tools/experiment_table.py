"""What the experiments of a plan gained: accuracy over products, with intervals over products and seeds.

Synopsis:

    results = experiment_table.measure(plan, trainings, split='val')
    lines = experiment_table.lines(plan, trainings, {'val': results})
    print(experiment_table.markdown(plan, lines, lacking=experiment_table.missing(plan, trainings)))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ensemble import logits_folder, predictions, reduction, scores
from ensemble.mixture import Mixture, Models
from ensemble.rules import Products
from ensemble.scores import Score
from ensemble.submission import Solution
from model import runs
from pipeline import tables, worklog
from pipeline.errors import InputError
from tools.experiment_plan import Experiment, Plan
from tools.experiment_runs import Training
from tools.reports import grids
from tools.reports.grids import Grid

Trainings = Mapping[tuple[str, int], Training]  # by the experiment's name and seed


@dataclass(frozen=True, eq=False)
class Result:
    """What an experiment has right in a split.

    Attributes:
        experiment: the experiment.
        seeds: S of them, ascending in the plan's order.
        correct: bool [S, P], by product, in the dataset's order.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    correct: np.ndarray = field(repr=False)

    @property
    def accuracy(self) -> float:
        """The mean over seeds and products."""
        return float(self.correct.mean())

    def of(self, seeds: Sequence[int]) -> np.ndarray:
        """The rows of these seeds."""
        return self.correct[[self.seeds.index(seed) for seed in seeds]]


@dataclass(frozen=True)
class Gain:
    """What an experiment has over its base in a split.

    Attributes:
        accuracy: the experiment's, over products, in the mean over seeds.
        base: name of the base; '' if it has none, or none that was run.
        gain: over the base, with the seeds that both have; nan without a base.
        each: the same seed by seed.
    """

    accuracy: Score
    base: str
    gain: Score
    each: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        experiment: the experiment.
        seeds: by which it was run.
        gains: by split.
        parameters: of its network, or of all that it combines.
        minutes: of training, a seed, those that it begins with or combines included.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    gains: Mapping[str, Gain]
    parameters: int
    minutes: float


def done_seeds(plan: Plan, experiment: Experiment, done: Trainings) -> tuple[int, ...]:
    """By which seeds all runs of an experiment are finished."""
    names = experiment.members or (experiment.name,)
    return tuple(seed for seed in plan.seeds_of(experiment) if all((name, seed) in done for name in names))


def measure(plan: Plan, done: Trainings, *, split: str, solution: Solution | None = None) -> dict[str, Result]:
    """Scores what was run, by the experiments' names; what is of a part of the products only is left out.

    Args:
        plan: the plan.
        done: the finished trainings.
        split: val or test.
        solution: the products' categories, if the logits don't have them (test).

    Raises:
        InputError: logits are damaged, or not of the same products.
    """
    results: dict[str, Result] = {}
    first: np.ndarray | None = None
    for experiment in plan.experiments:
        found = []
        seeds = done_seeds(plan, experiment, done)
        for seed in seeds:
            correct = _correct(plan, experiment, stores(experiment, seed, done, split=split), solution)
            if correct is None:
                break
            product_id, right = correct
            first = product_id if first is None else first
            if not np.array_equal(product_id, first):
                raise InputError(f'experiment {experiment.name}: has other products than the others; remove its runs')
            found.append(right)
        if found:
            results[experiment.name] = Result(experiment, seeds, np.stack(found))
    return results


def stores(experiment: Experiment, seed: int, done: Trainings, *, split: str) -> list[str]:
    """Of each model the folders of its logits, as ensemble.combine takes them."""
    models = (experiment.combine or experiment.name).split(',')
    return [
        logits_folder.JOINT.join(
            logits_folder.folder(done[name, seed].run_dir, split) for name in model.split(logits_folder.JOINT)
        )
        for model in models
    ]


def _correct(
    plan: Plan, experiment: Experiment, stores: Sequence[str], solution: Solution | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The products, int64 [P], and which of them are right, bool [P]; None if they aren't all of the split."""
    opened = reduction.open_stores(stores)
    if opened.part:
        return None
    mixture = Mixture(plan.rule, weights=(1.0,) * len(stores), across=experiment.across)
    found = predictions.Predictions.concatenate(
        [
            predictions.predict(Models([Products(one) for one in rows]), mixture, category_ids=opened.label_map.ids)
            for part in opened.parts()
            for rows in reduction.aligned(opened.groups, part.files)
        ]
    )
    truth = solution.of(found.product_id) if solution else found.true_category_id
    return found.product_id, found.category_id == truth


def lines(plan: Plan, done: Trainings, results: Mapping[str, Mapping[str, Result]]) -> list[Line]:
    """The table: every experiment that was measured, in the plan's order.

    Args:
        plan: the plan.
        done: the finished trainings.
        results: what measure() found, by split; val is one.
    """
    made = []
    for experiment in plan.experiments:
        if experiment.name not in results['val']:
            continue
        base = _base(experiment, results['val'])
        gains = {split: gain(some[experiment.name], some.get(base)) for split, some in results.items()}
        seeds = results['val'][experiment.name].seeds
        members = experiment.members or (experiment.name,)
        minutes = sum(_seconds(plan, members, done, seed) for seed in seeds) / len(seeds) / 60
        parameters = sum(runs.parameters(done[name, seeds[0]].run_dir) for name in members)
        made.append(Line(experiment, seeds, gains, parameters, minutes))
    return made


def _base(experiment: Experiment, on_val: Mapping[str, Result]) -> str:
    """Of the bases that were run the one that is best on validation."""
    there = [name for name in experiment.bases if name in on_val]
    return max(there, key=lambda name: on_val[name].accuracy, default='')


def gain(result: Result, base: Result | None) -> Gain:
    """What an experiment has over another, with the seeds of both."""
    accuracy = scores.gain_over_seeds(result.correct, np.zeros_like(result.correct))
    both = [seed for seed in result.seeds if base and seed in base.seeds]
    if not base or not both:
        return Gain(accuracy, '', Score(math.nan, math.nan, math.nan, 0), ())
    ours, others = result.of(both), base.of(both)
    each = (ours.mean(axis=1) - others.mean(axis=1)).tolist()
    return Gain(accuracy, base.experiment.name, scores.gain_over_seeds(ours, others), tuple(each))


def _seconds(plan: Plan, names: Sequence[str], done: Trainings, seed: int) -> float:
    """Of the trainings of these experiments, with those from whose weights they begin, each once."""
    every = set(names)
    while first := {plan.find(name).weights for name in every} - every - {''}:
        every |= first
    return sum(
        entry.seconds
        for name in every
        if (name, seed) in done
        for entry in worklog.read(done[name, seed].run_dir)
        if entry.name == 'train'
    )


def missing(plan: Plan, done: Trainings) -> list[str]:
    """What the table lacks, in words: a sentence for each experiment that wasn't run by all its seeds."""
    found = []
    for experiment in plan.experiments:
        lacking = sorted(set(plan.seeds_of(experiment)) - set(done_seeds(plan, experiment, done)))
        if lacking:
            found.append(f'{experiment.name}: not run with seed {", ".join(map(str, lacking))}.')
    return found


def write_csv(table: Sequence[Line], path: str) -> None:
    """Writes all numbers, a line for each experiment; accuracies are shares, the claim is in points."""
    rows = [_cells(line) for line in table]
    tables.write(path, list(rows[0]), [list(row.values()) for row in rows])


def _cells(line: Line) -> dict[str, object]:
    cells: dict[str, object] = {
        'experiment': line.experiment.name,
        'idea': line.experiment.idea,
        'seeds': ' '.join(map(str, line.seeds)),
        'parameters': line.parameters,
        'minutes': f'{line.minutes:.2f}',
        'claim_points': line.experiment.claim or '',
    }
    for split, found in line.gains.items():
        cells |= {f'{split}_products': found.accuracy.count, f'{split}_over': found.base}
        for name, score in (('accuracy', found.accuracy), ('gain', found.gain)):
            values = {'': score.value, '_low': score.low, '_high': score.high}
            cells |= {f'{split}_{name}{end}': '' if math.isnan(one) else f'{one:.6g}' for end, one in values.items()}
        cells[f'{split}_gain_each'] = ' '.join(f'{one:.6g}' for one in found.each)
    return cells


def markdown(plan: Plan, table: Sequence[Line], *, lacking: Sequence[str]) -> str:
    """The table as text: a table for each split, what each took, what is missing, and the plan's notes."""
    blocks = []
    for split in table[0].gains:
        products = table[0].gains[split].accuracy.count
        blocks += [
            f'On the {products:,} products of {split}, rule {plan.rule}: accuracy in the mean over seeds, gains in '
            'points with 95 % intervals over products and seeds, then seed by seed.',
            grids.text(_grid([line for line in table if split in line.gains], split)),
        ]
    blocks += ['What each took; minutes of a seed, with those of the runs that it begins with or combines.']
    blocks += [grids.text(_costs(table))]
    blocks += ['\n'.join(f'- {note}' for note in (*plan.notes, *lacking))] if plan.notes or lacking else []
    return '\n\n'.join(blocks) + '\n'


def _grid(table: Sequence[Line], split: str) -> Grid:
    head = ['experiment', 'idea', 'accuracy', 'over', 'gain', 'by seed', 'winner']
    return Grid(head, list(_grid_lines(table, split)))


def _grid_lines(table: Sequence[Line], split: str) -> Iterator[list[str]]:
    for line in table:
        found, claim = line.gains[split], line.experiment.claim
        accuracy = f'{found.accuracy.value:.3f} ({found.accuracy.low:.3f} to {found.accuracy.high:.3f})'
        points = f'{_points(found.gain.value)} ({_points(found.gain.low)} to {_points(found.gain.high)})'
        yield [
            line.experiment.name,
            line.experiment.idea,
            accuracy,
            found.base,
            points if found.base else '',
            ', '.join(map(_points, found.each)),
            f'{claim:+.1f}' if claim else '',
        ]


def _costs(table: Sequence[Line]) -> Grid:
    head = ['experiment', 'seeds', 'parameters', 'minutes']
    rows = [
        [line.experiment.name, str(len(line.seeds)), f'{line.parameters:,}', f'{line.minutes:.1f}'] for line in table
    ]
    return Grid(head, rows)


def _points(share: float) -> str:
    return f'{100 * share:+.1f}'
