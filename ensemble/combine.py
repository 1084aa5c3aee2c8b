"""Combines the logits of each product's pictures into one prediction: `python -m ensemble.combine --rule product`

Logits are what a network says of a picture: a number for each category, the higher the likelier. model.train and
model.predict write them. Here a Beam job reads those of one model or several, and writes into the run's folder
predictions/SPLIT: Parquet files with each product's category, its probability and the five likeliest.
  test logits  make submission.csv.gz for Kaggle too; with --solution=data/solution.csv the accuracy is printed
  val logits   the accuracy is printed with its 95 % interval
  --rule all   compares all rules in one reading of the logits: prints a table and writes it as rules-val.csv
Several models: --logits=runs/a/logits/test,runs/b/logits/test, with --weights=2,1, or --fit=val to find the weights on
the val logits beside them: says what that gains by cross-validation, writes mixture.json, and combines with it. Later
--weights=PATH/mixture.json does the same again. With --rule=power the exponent is found too.
One model in several stores: --logits=runs/p1/logits/test+runs/p2/logits/test+... takes each product from the store of
the model for its number of pictures (model.train --pictures=K), and where there is none from the one of all products.
Such a store alone is combined for its products only; a submission needs all.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from ensemble import (
    fit,
    known_images,
    logits_folder,
    mixture,
    mixture_file,
    predictions,
    reduction,
    rules,
    scores,
    submission,
)
from ensemble.known_images import Known
from ensemble.logits_folder import JOINT
from ensemble.mixture import Mixture
from ensemble.predictions import UNKNOWN, Predictions
from ensemble.reduction import Job, Part, Stores
from ensemble.scores import Score
from ensemble.submission import Solution
from pipeline import beam_job, manifest, storage, tables, worklog
from pipeline.beam_job import Engine
from pipeline.errors import InputError, UsageError

FLAGS = program.flag_values()
program.group(FLAGS, 'Input, rule and output')
LOGITS = flags.DEFINE_string(
    'logits', 'runs/latest/logits/test', 'Folder of a logits store; of several models with commas between, and with + '
    'between those that are one model, each for products with another number of pictures.', flag_values=FLAGS,
)  # fmt: skip
RULE = flags.DEFINE_string(
    'rule', 'product', f"How a product's pictures are combined: {', '.join(rules.names())}, or all to compare them.",
    flag_values=FLAGS,
)  # fmt: skip
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', '',
    "Folder for what is written; if none is named, the run's, two above --logits, or runs/ensemble with several runs.",
    flag_values=FLAGS,
)  # fmt: skip
SOLUTION = flags.DEFINE_string(
    'solution', '', "A file solution.csv with the test products' categories, to tell the accuracy on them.",
    flag_values=FLAGS,
)  # fmt: skip
POWER = flags.DEFINE_float(
    'power', rules.POWER, 'Exponent of the rule power, which averages probabilities raised to it (paper: 0.1).',
    flag_values=FLAGS,
)  # fmt: skip
VIEWS = flags.DEFINE_enum(
    'views', 'pooled', rules.VIEWS,
    'With several views of each picture: the rule over all views of all pictures (as the paper), or over the views of '
    'each picture first.', flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Several models')
WEIGHTS = flags.DEFINE_string(
    'weights', '',
    'How much each model counts: numbers with commas between, or the mixture.json that --fit wrote, with the rule and '
    'all. With none they count alike.', flag_values=FLAGS,
)  # fmt: skip
FIT = flags.DEFINE_enum(
    'fit', None, fit.SPLITS, 'Find the weights, and the exponent of --rule=power, on the logits of this split, which '
    'lie beside --logits.', flag_values=FLAGS,
)  # fmt: skip
ACROSS = flags.DEFINE_enum(
    'across', 'arithmetic', mixture.ACROSS, "Which mean of the models' probabilities of a product is taken.",
    flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Pictures that are known')
KNOWN_IMAGES = flags.DEFINE_bool(
    'known_images', False,
    'A product takes the category of the labelled products that have the same pictures byte for byte, if all of these '
    'are of one; reads the shards too. Accuracy is printed apart for products with such pictures and without.',
    flag_values=FLAGS,
)  # fmt: skip
SHARDS_DIR = flags.DEFINE_string(
    'shards_dir', 'data/shards', 'Folder of the shards that the logits were made from, for --known_images.',
    flag_values=FLAGS,
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Combines stores of logits."""
    engine = beam_job.engine(program.parse(FLAGS, argv, doc=__doc__, pass_through=True), known=FLAGS)
    names = _names(LOGITS.value)
    compare = RULE.value == 'all'
    _check_flags(compare=compare)
    stores = reduction.open_stores(names)
    solution = _read_solution(SOLUTION.value, stores, compare=compare)
    ways = _mixtures(stores, compare=compare)
    fit_on = _open_fit(stores, FIT.value) if FIT.value else None
    if KNOWN_IMAGES.value:
        if FIT.value == stores.split:
            raise UsageError(f'--fit={FIT.value} on logits of {FIT.value} only fits; leave out --known_images')
        known_images.check(SHARDS_DIR.value, digest=stores.dataset_digest)
    output_dir = OUTPUT_DIR.value or _output_dir(stores)
    if stores.part:
        print(f'note: {", ".join(stores.names)}: only {stores.groups[0].told}')
    if compare:
        with _logged('combine all', stores, output_dir=output_dir):
            _compare(engine, stores, ways, solution, output_dir=output_dir)
        return
    older = storage.join(output_dir, submission.NAME)
    if _makes_submission(stores) and storage.exists(older):
        storage.remove(older)  # so that an interruption leaves none, not one of other predictions
    if fit_on:
        with _logged(f'fit {ways[0].rule}', fit_on, output_dir=output_dir):
            ways = [_fit(engine, fit_on, ways[0], output_dir=output_dir)]
    if FIT.value == stores.split:
        return  # there is nothing to add: on what it was fitted on it only looks good
    with _logged(f'combine {ways[0].rule}', stores, output_dir=output_dir):
        known = _find_known(engine, stores, SHARDS_DIR.value, output_dir=output_dir) if KNOWN_IMAGES.value else None
        _combine(engine, stores, ways[0], solution, known, output_dir=output_dir)


@contextlib.contextmanager
def _logged(work: str, stores: Stores, *, output_dir: str) -> Iterator[None]:
    """Adds a line to the worklog when the work is done."""
    started = time.monotonic()
    yield
    counts = {
        'products': stores.products,
        'rows': sum(store.rows for store in stores.each),
        'bytes': sum(file.bytes for store in stores.each for file in store.manifest.files),
    }
    name = f'{work} on {_kind(stores)}'
    worklog.add(output_dir, name, seconds=time.monotonic() - started, counts=counts)


def _kind(stores: Stores) -> str:
    """The first store's own name, such as test-tta5: what is made of the stores is called so."""
    return os.path.basename(stores.each[0].folder)


def _makes_submission(stores: Stores) -> bool:
    """Whether Kaggle can be told of all its products."""
    return stores.split == 'test' and not stores.part


def _names(flag: str) -> list[str]:
    """The models that --logits names."""
    models = [[folder.rstrip('/') for folder in name.split(JOINT)] for name in flag.split(',')]
    if not all(folder for folders in models for folder in folders):
        raise UsageError(f'--logits={flag} must name a folder, or several with one comma or {JOINT} between two')
    return [JOINT.join(folders) for folders in models]


def _check_flags(*, compare: bool) -> None:
    """Refuses flags that would have no effect beside another."""
    if FIT.value and (WEIGHTS.value or compare):
        other = '--weights' if WEIGHTS.value else '--rule=all'
        raise UsageError(f'--fit finds the weights of one rule; leave out --fit or {other}')
    if KNOWN_IMAGES.value and compare:
        raise UsageError('--rule=all compares what the rules make of the logits alone; leave out --known_images')


def _mixtures(stores: Stores, *, compare: bool) -> list[Mixture]:
    """What the flags say: one way to combine, or one for each rule."""
    if WEIGHTS.value.endswith('.json'):
        return [_read_mixture(WEIGHTS.value, stores)]
    weights = _weights(len(stores.groups))
    names = rules.names() if compare else (RULE.value,)
    return [Mixture(name, POWER.value, VIEWS.value, weights, ACROSS.value) for name in names]


def _weights(models: int) -> tuple[float, ...]:
    if not WEIGHTS.value:
        return (1.0,) * models
    try:
        weights = tuple(float(word) for word in WEIGHTS.value.split(','))
    except ValueError:
        raise UsageError(
            f'--weights must be numbers with commas between, or a {mixture_file.NAME}, are {WEIGHTS.value!r}'
        ) from None
    if len(weights) != models:
        raise UsageError(f'--weights has {len(weights)} numbers for {models} stores of logits; give one for each')
    return weights


def _read_mixture(path: str, stores: Stores) -> Mixture:
    """What was fitted; a flag that was given and says otherwise is refused."""
    found = mixture_file.read(path, stores)
    for flag, fitted in ((RULE, found.rule), (POWER, found.power), (VIEWS, found.views), (ACROSS, found.across)):
        if FLAGS[flag.name].present and flag.value != fitted:
            raise InputError(
                f'--{flag.name}={flag.value}, but {path} was fitted with {fitted}; leave the flag out, or fit anew '
                'with --fit=val'
            )
    if stores.split in fit.SPLITS:
        print(f'note: {path} may have been fitted on these products, which flatters it; --fit says what it is worth')
    return found


def _open_fit(stores: Stores, split: str) -> Stores:
    """The same models' logits of another split, to fit on."""
    found = reduction.open_stores([logits_folder.of_split(name, split) for name in stores.names])
    mixture_file.check_same_models(found, stores)
    return found


def _fit(engine: Engine, stores: Stores, start: Mixture, *, output_dir: str) -> Mixture:
    """Finds the weights, says what they are worth and writes them."""
    print(f'fitting {start.rule} on {stores.products:,} products in {", ".join(stores.names)}', flush=True)
    found = fit.fit(stores, start)
    print(fit.table(stores, found, fit.cross_validate(engine, stores, found, output_dir=output_dir)))
    path = storage.join(output_dir, mixture_file.NAME)
    mixture_file.write(path, found.every.mixture, stores)
    test = ','.join(logits_folder.of_split(name, 'test') for name in stores.names)
    again = program.command('ensemble.combine', f'--weights={path}', f'--logits={test}')
    program.last_line(f'wrote {path}: what was fitted', then=again)
    return found.every.mixture


def _read_solution(path: str, stores: Stores, *, compare: bool) -> Solution | None:
    if path and stores.split != 'test':
        raise InputError(f'--solution={path} is for the test set, these logits are of {stores.split}; leave it out')
    if compare and stores.split == 'test' and not path:
        raise InputError(
            '--rule all needs labels, which the test set has not: give --solution=data/solution.csv, or --logits with '
            'the val logits of the run'
        )
    if not path:
        return None
    solution = submission.read_solution(path, stores.label_map, part=stores.part > 0)
    expected = stores.groups[0].dataset_products
    if len(solution.product_id) != expected:  # known now, which products only when they are predicted
        raise InputError(
            f'{path}: has {len(solution.product_id):,} products, the logits {expected:,}; give the solution of this '
            'test set'
        )
    return solution


def _output_dir(stores: Stores) -> str:
    run = os.path.dirname(os.path.dirname(stores.each[0].folder)) or '.'
    return run if len(stores.each) == 1 else storage.join(os.path.dirname(run) or '.', 'ensemble')


def _combine(
    engine: Engine, stores: Stores, way: Mixture, solution: Solution | None, known: Known | None, *, output_dir: str
) -> None:
    """Writes the predictions, and for the test products the submission."""
    folder = storage.join(output_dir, 'predictions', _kind(stores))
    _reduce(engine, stores, [way], [folder], known)
    columns = ('product_id', 'true_category_id', 'category_id', *(('known', 'likeliest') if known else ()))
    found = predictions.read(folder, columns)
    if known:
        _say_known(found, known)
    if solution or stores.split != 'test':
        _say_accuracy(way.rule, found, solution, known)
    written = f'wrote {folder}: the predictions for {stores.groups[0].told}'
    if _makes_submission(stores):
        print(written)
        path = storage.join(output_dir, submission.NAME)
        submission.write(path, found.product_id, found.category_id, expected=stores.products)
        kaggle = 'upload it to https://www.kaggle.com/c/cdiscount-image-classification-challenge'
        program.last_line(f'wrote {path}: {len(found):,} products', then=kaggle)
    elif stores.split == 'test':
        others = f'name the stores of the others too, joined by {JOINT}: --logits={stores.names[0]}{JOINT}...'
        program.last_line(f'{written}; no {submission.NAME}, which needs all products', then=others)
    else:
        program.last_line(written, then=_command(way.rule, stores))


def _find_known(engine: Engine, stores: Stores, shards_dir: str, *, output_dir: str) -> Known:
    sources = known_images.sources_for(stores.split)
    print(f'looking for the pictures of {stores.split} in {" and ".join(sources)}', flush=True)
    known = known_images.find(engine, shards_dir, stores.split, sources=sources, output_dir=output_dir)
    return known.with_pictures(stores.part) if stores.part else known


def _say_known(found: Predictions, known: Known) -> None:
    changed = int((found.category_id != found.likeliest[:, 0]).sum())
    print(
        f'known images: of {len(found):,} products {_share(known.seen > 0)} have known pictures, {_share(found.known)} '
        f'take their category; {changed:,} predictions change'
    )


def _share(chosen: np.ndarray) -> str:
    return f'{chosen.sum():,} ({chosen.mean():.1%})'


def _say_accuracy(rule: str, found: Predictions, solution: Solution | None, known: Known | None) -> None:
    truth = solution.of(found.product_id) if solution else found.true_category_id
    correct = found.category_id == truth
    print(f'{rule}: accuracy {scores.accuracy(correct)}')
    if not known:
        return
    network = found.likeliest[:, 0] == truth
    print(f'  by the network {scores.accuracy(network)}')
    print(f'  known images gain {scores.gain(correct, network)}')
    for name, chosen in (('with known pictures', known.seen > 0), ('without', known.seen == 0)):
        if chosen.any():
            print(f'  {name}: {scores.accuracy(correct[chosen])}, by the network {scores.accuracy(network[chosen])}')


def _compare(
    engine: Engine, stores: Stores, ways: list[Mixture], solution: Solution | None, *, output_dir: str
) -> None:
    """Prints and writes the table of all rules."""
    with storage.scratch(output_dir, 'combine') as scratch:
        folders = {way.rule: storage.join(scratch, way.rule) for way in ways}
        _reduce(engine, stores, ways, list(folders.values()))
        first = predictions.read(folders['first'], ('product_id', 'pictures', 'true_category_id'))
        truth = solution.of(first.product_id) if solution else first.true_category_id
        correct = {
            rule: predictions.read(folder, ['category_id']).category_id == truth for rule, folder in folders.items()
        }
    path = storage.join(output_dir, f'rules-{_kind(stores)}.csv')
    _report_all(correct, first.pictures >= 2, path=path)
    program.last_line(f'wrote {path}: all rules', then=_command('product', stores))


def _reduce(
    engine: Engine, stores: Stores, ways: list[Mixture], folders: list[str], known: Known | None = None
) -> None:
    """Runs the job."""
    parts = stores.parts()
    rows = ' and '.join(f'{sum(store.rows for store in group.stores):,}' for group in stores.groups)
    print(
        f'combining {rows} rows of {stores.products:,} products in {", ".join(stores.names)} '
        f'({len(parts)} files) by {", ".join(way.rule for way in ways)}',
        flush=True,
    )
    if known:
        ends = np.cumsum([part.files[0].products for part in parts])[:-1]
        category_id = np.where(known.label < 0, UNKNOWN, stores.label_map.ids[known.label])
        pieces = zip(np.split(known.product_id, ends), np.split(category_id, ends), strict=True)
        parts = [Part(part.files, piece) for part, piece in zip(parts, pieces, strict=True)]
    reduction.run(engine, parts, Job(stores, ways, folders, known_images=known is not None))


def _command(rule: str, stores: Stores) -> str:
    """The command that combines the same models' test logits in the same way, or makes those that are missing."""
    for store in stores.each:
        folder = logits_folder.of_split(store.folder, 'test')
        if not storage.exists(storage.join(folder, manifest.NAME)):
            return logits_folder.command(folder)
    given = [flag for flag in (POWER, VIEWS, WEIGHTS, ACROSS) if FLAGS[flag.name].present]
    words = [f'--{flag.name}={flag.value}' for flag in given]
    logits = ','.join(logits_folder.of_split(name, 'test') for name in stores.names)
    return program.command('ensemble.combine', '--rule', rule, *words, f'--logits={logits}')


def _report_all(correct: dict[str, np.ndarray], several: np.ndarray, *, path: str) -> None:
    """Prints and writes the comparison.

    Args:
        correct: bool [P], by rule.
        several: bool [P], whether a product has two pictures or more.
        path: of the .csv file.
    """
    table = [(name, scores.accuracy(one), scores.accuracy(one[several])) for name, one in correct.items()]
    print(
        f'{"rule":8}  {"accuracy":>8}  {"95 % interval":>16}  {"products":>10}  {"2+ pictures":>11}  {"products":>10}'
    )
    for name, every, some in table:
        print(
            f'{name:8}  {every.value:8.4f}  {every.low:.4f} to {every.high:.4f}  {every.count:10,}'
            f'  {some.value:11.4f}  {some.count:10,}'
        )
    if several.any():
        gain = scores.gain(correct['product'][several], correct['first'][several])
        print(f'with two pictures or more, product gains {gain} over first')
    _write_table(table, path)


def _write_table(table: list[tuple[str, Score, Score]], path: str) -> None:
    columns = ('rule', 'accuracy', 'low', 'high', 'products', 'accuracy_2_pictures', 'products_2_pictures')
    rows = []
    for name, every, some in table:
        numbers = [f'{number:.6f}' for number in (every.value, every.low, every.high)]
        rows.append([name, *numbers, every.count, f'{some.value:.6f}' if some.count else '', some.count])
    tables.write(path, columns, rows)


if __name__ == '__main__':
    program.run(main)
