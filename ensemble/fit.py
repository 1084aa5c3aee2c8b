"""Finds how much each model shall count, and the power rule's exponent, on products whose categories are known.

Synopsis:

    from ensemble import fit, mixture_file, reduction
    from ensemble.mixture import Mixture
    from pipeline import beam_job

    engine = beam_job.engine(['--runner=FnApiRunner'])
    stores = reduction.open_stores(['runs/a/logits/val', 'runs/b/logits/val'])
    found = fit.fit(stores, Mixture('product', weights=(1, 1)))
    trial = fit.cross_validate(engine, stores, found, output_dir='runs')
    print(fit.table(stores, found, trial))
    mixture_file.write('mixture.json', found.every.mixture, stores)

Found are the weights that make the true categories the most likely (likelihood.py); the exponent is searched for, with
weights of its own for each that is tried. What that gains is told by cross-validation, because on the products
that weights were fitted on any weights look good: the products are parted into five folds by a hash of their id, and
each fold is predicted by what was fitted on the other four.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ensemble import likelihood, predictions, reduction, rules, scores
from ensemble.mixture import Mixture, Models
from ensemble.reduction import Job, Part, Stores
from ensemble.rules import Products
from pipeline import hashing, progress, storage
from pipeline.beam_job import Engine
from pipeline.errors import InputError

SPLITS = ('val',)  # not train: a model is surer of what it was trained on than of anything else
FOLDS = 5
# M weights fitted on n products fall short of the best ones by M / 2n nats a product on average (half a nat a weight,
# as ever by maximum likelihood): by 0.0005 with 20 models. More products would only take longer.
SAMPLE_PRODUCTS = 20_000
# A geometric mean needs the probabilities of all classes again and again. In 256 MiB there are those of 6,367 products
# by two models with 5,270 classes each: short by 0.0002.
SAMPLE_BYTES = 2**28
# Exponents tried first; then twice as large and as small as the best of them, and so on to a quarter of an octave. The
# log-likelihood is so flat around its highest value that nearer isn't better.
POWERS = tuple(4.0**exponent for exponent in range(-4, 5))
REFINEMENTS = (2.0, 2.0**0.5, 2.0**0.25)


@dataclass(frozen=True)
class Fitted:
    """What was found on some products.

    Attributes:
        mixture: with the weights found, whose sum is 1.
        log_likelihood: of the true categories of these products, nats a product; -inf if there are none.
    """

    mixture: Mixture
    log_likelihood: float


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        start: what it was begun with: all models alike.
        start_log_likelihood: nats a product.
        every: fitted on all products of the sample.
        folds: FOLDS of them; number k was fitted on those that are not in fold k.
        products: how many the sample has.
    """

    start: Mixture
    start_log_likelihood: float
    every: Fitted
    folds: tuple[Fitted, ...]
    products: int


@dataclass(frozen=True, eq=False)
class Trial:
    """Which of the P products are predicted right: bool [P] each.

    Attributes:
        fitted: by cross-validation: each product by what was fitted without its fold.
        start: all models alike.
        alone: each model by itself; () if there is only one.
    """

    fitted: np.ndarray
    start: np.ndarray
    alone: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """What the models say of S products, by one rule.

    Attributes:
        product_id: int64 [S].
        label: int64 [S], the true classes.
        log_q: logs of the probabilities by each model: float32 [S, M, C] for a geometric mean, [S, M] of the true class
            only for an arithmetic one.
    """

    product_id: np.ndarray
    label: np.ndarray
    log_q: np.ndarray

    def function(self, places: np.ndarray) -> likelihood.Function:
        """The log-likelihood of some of the products (int64 [k]) by the weights."""
        if self.log_q.ndim == 2:
            return likelihood.arithmetic(self.log_q[places])
        return likelihood.geometric(self.log_q, self.label, places)


def fit(stores: Stores, start: Mixture) -> Fit:
    """Finds weights, and the exponent of the rule power.

    Args:
        stores: logits of products whose categories are known.
        start: the rule, views and mean; its weights don't matter.

    Raises:
        InputError: a product's category isn't known; a file is damaged; there is nothing to find.
    """
    models = len(stores.groups)
    if models == 1 and start.rule != 'power':
        raise InputError('with one model only the exponent of --rule=power can be fitted; give the logits of more')
    start = dataclasses.replace(start, weights=(1 / models,) * models)
    reduction.leave_gpus()
    sample = read_sample(stores, start)
    alike = sample.function(np.arange(len(sample.label)))(np.array(start.weights)).value
    tried = {start.power: _fit_each(sample, start)}
    products = len(sample.label)
    del sample  # the next one takes as much memory
    best = dict.fromkeys(range(FOLDS + 1), start.power)
    for factor in (None, *REFINEMENTS) if start.rule == 'power' else ():
        powers = POWERS if factor is None else {power * by for power in best.values() for by in (factor, 1 / factor)}
        for power in np.clip(sorted(powers), *rules.POWER_RANGE).tolist():
            if power not in tried:
                mixture = dataclasses.replace(start, power=power)
                tried[power] = _fit_each(read_sample(stores, mixture), mixture)
        best = {k: max(tried, key=lambda power: tried[power][k].log_likelihood) for k in best}
    every, *folds = (tried[power][k] for k, power in best.items())
    return Fit(start, alike, every, tuple(folds), products)


def read_sample(stores: Stores, mixture: Mixture) -> Sample:
    """Reads the first products of each file, which stand in an order as good as random.

    Raises:
        InputError: a product's category isn't known; a file is damaged.
    """
    models, classes = len(stores.groups), len(stores.label_map)
    all_classes = mixture.across == 'geometric' and models > 1
    limit = min(SAMPLE_PRODUCTS, SAMPLE_BYTES // (4 * models * classes)) if all_classes else SAMPLE_PRODUCTS
    parts = stores.parts()
    counts = [math.ceil(part.files[0].products * min(1, max(1, limit) / stores.products)) for part in parts]
    product_id, label = np.empty(sum(counts), np.int64), np.empty(sum(counts), np.int64)
    log_q = np.empty((sum(counts), models, classes) if all_classes else (sum(counts), models), np.float32)
    place = 0
    taking = progress.Progress(zip(parts, counts, strict=True), total=len(parts), label='read', unit='files')
    for part, count in taking:
        end = place + count
        for block in _blocks(stores, part):
            first = block.each[0]
            _check_known(first.label, first.product_id, stores)
            taken = slice(place, min(end, place + len(first.label)))
            few = taken.stop - taken.start
            product_id[taken], label[taken] = first.product_id[:few], first.label[:few]
            for model in range(models):
                logs = block.log_probabilities(model, mixture).numpy()[:few]
                log_q[taken, model] = logs if all_classes else logs[np.arange(few), first.label[:few]]
            place = taken.stop
            if place == end:
                break
    return Sample(product_id, label, log_q)


def _blocks(stores: Stores, part: Part) -> Iterator[Models]:
    return (Models([Products(one) for one in rows]) for rows in reduction.aligned(stores.groups, part.files))


def _check_known(label: np.ndarray, product_id: np.ndarray, stores: Stores) -> None:
    wrong = (label < 0) | (label >= len(stores.label_map))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(
            f'{stores.names[0]}: product {product_id[place]} has label {label[place]}, none of the '
            f'{len(stores.label_map)} categories; weights can only be fitted where the categories are known'
        )


def fold_of(product_id: np.ndarray) -> np.ndarray:
    """The fold 0..FOLDS-1 of each product: int64 [n], whatever their order; independent of what chose the split."""
    return (hashing.hashes(0, product_id, FOLDS) % np.uint64(FOLDS)).astype(np.int64)


def _fit_each(sample: Sample, mixture: Mixture) -> list[Fitted]:
    """Fits the weights on all products, then without each of the folds."""
    fold = fold_of(sample.product_id)
    alike = np.full(sample.log_q.shape[1], 1 / sample.log_q.shape[1])
    found = []
    weights = alike
    for left_out in progress.Progress((-1, *range(FOLDS)), total=FOLDS + 1, label='fit', unit='folds', leave=False):
        places = np.flatnonzero(fold != left_out)
        if not len(places):  # all products are in this fold
            found.append(Fitted(mixture, -math.inf))
            continue
        function = sample.function(places)
        best = likelihood.maximise(function, weights)
        weights = best if left_out == -1 else weights  # from there it isn't far to those of the folds
        found.append(Fitted(_mixture(mixture, best), function(best).value))
    return found


def _mixture(mixture: Mixture, weights: np.ndarray) -> Mixture:
    """The mixture with these weights; all alike if they are all 0: no model knows more than chance."""
    total = float(weights.sum())
    if total == 0:
        return mixture
    sharpness = total if mixture.across == 'geometric' and len(weights) > 1 else 1.0
    return dataclasses.replace(mixture, weights=tuple((weights / total).tolist()), sharpness=sharpness)


def cross_validate(engine: Engine, stores: Stores, found: Fit, *, output_dir: str) -> Trial:
    """Predicts all products by all that is to be compared, in one reading of the logits.

    Args:
        engine: what runs the job.
        stores: those that it was fitted on.
        found: what was found.
        output_dir: a folder that all workers reach, for predictions, which go at the end.

    Raises:
        InputError: a product's category isn't known; a file is damaged.
    """
    models = len(stores.groups)
    one_each = np.eye(models) if models > 1 else ()
    alone = [dataclasses.replace(found.start, weights=tuple(row.tolist())) for row in one_each]
    ways = [found.start, *alone, *(fold.mixture for fold in found.folds)]
    with storage.scratch(output_dir, 'fit') as scratch:
        folders = [storage.join(scratch, str(number)) for number in range(len(ways))]
        reduction.run(engine, stores.parts(), Job(stores, ways, folders))
        truth = predictions.read(folders[0], ['product_id', 'true_category_id'])
        correct = [
            predictions.read(folder, ['category_id']).category_id == truth.true_category_id for folder in folders
        ]
    product_id = truth.product_id
    _check_known(np.where(truth.true_category_id == predictions.UNKNOWN, -1, 0), product_id, stores)
    by_fold = np.stack(correct[-FOLDS:])
    return Trial(
        fitted=by_fold[fold_of(product_id), np.arange(len(product_id))],
        start=correct[0],
        alone=tuple(correct[1:-FOLDS]),
    )


def table(stores: Stores, found: Fit, trial: Trial) -> str:
    """What was found and what it is worth, to print."""
    every = found.every
    power = found.start.rule == 'power'
    lines = [
        f'fitted on {found.products:,} products: log-likelihood {every.log_likelihood:.4f} a product, before '
        f'{found.start_log_likelihood:.4f}'
    ]
    if power:
        lines.append(f'power {every.mixture.power:.4g}, before {found.start.power:.4g}')
    if every.mixture.across == 'geometric' and len(stores.groups) > 1:
        lines.append(f'sharpness {every.mixture.sharpness:.4f}')
    before = 'equal weights' if trial.alone else 'before'
    rows: list[tuple[str, float | None, np.ndarray]] = [
        *zip(stores.names, every.mixture.weights, trial.alone, strict=False),  # none alone if there is only one
        (before, None, trial.start),
        ('fitted, by cross-validation', None, trial.fitted),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines.append(f'{"model":{width}}  {"weight":>6}  {"accuracy":>8}  {"95 % interval":>16}')
    for name, weight, correct in rows:
        score = scores.accuracy(correct)
        shown = '' if weight is None else f'{weight:.4f}'
        lines.append(f'{name:{width}}  {shown:>6}  {score.value:8.4f}  {score.low:.4f} to {score.high:.4f}')
    lines.append(f'by cross-validation what was fitted gains {scores.gain(trial.fitted, trial.start)} over {before}')
    return '\n'.join(lines)
