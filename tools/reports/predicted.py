"""All sections of a page that come from logits: rules, categories, confusions, single products, calibration.

Synopsis:

    sections = predicted.sections(
        engine, ['runs/noaug', 'runs/aug'], split='val', rule='product', solution='', shards_dir='data/shards',
        output_dir='runs/noaug',
    )
    page.write('report.html', 'noaug', '', sections)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble import known_images, predictions, reduction, rules, submission
from ensemble.mixture import Mixture
from ensemble.predictions import Predictions
from ensemble.reduction import Job, Stores
from ensemble.submission import Solution
from pipeline import dataset, storage
from pipeline.beam_job import Engine
from pipeline.dataset import Shards
from pipeline.errors import InputError
from tools import page, sample_products, table
from tools.page import Section
from tools.reports import accuracies, cards, confusions, table_one, training_products
from tools.reports.confusions import Pairs
from tools.reports.outcome import Outcome
from tools.reports.training_products import TrainingProducts
from tools.table import Row, Store


def sections(
    engine: Engine, folders: Sequence[str], *, split: str, rule: str, solution: str, shards_dir: str, output_dir: str
) -> list[Section]:
    """Combines the runs' logits by all rules, and reports on what comes of them.

    Args:
        engine: what runs the jobs.
        folders: of runs. The first one is reported on in full, by its logits of one view; the others are only compared.
        split: val or test.
        rule: the one whose predictions are looked at one by one.
        solution: path of a solution.csv; '' if there is none. Without it, test has no truth to report on, and there is
            only a section of the least certain products of the first run.
        shards_dir: the dataset. If it isn't the one that the logits were made from, what needs it is left out, and the
            page tells why.
        output_dir: a folder that all workers reach; what they leave there goes at the end.

    Raises:
        InputError: a run has no logits of the split, logits don't belong together, or something is damaged.
    """
    rules.find(rule)
    stores = table.find_stores(folders, split)
    opened = reduction.open_stores([store.folder for store in stores])
    table.check_same_weights(stores, opened)
    shards, why = _open_shards(shards_dir, opened)
    if split == 'test' and not solution:
        return [_noted(_least_certain(_predict(engine, stores[0], rule, output_dir=output_dir), shards, split), why)]
    truth = submission.read_solution(solution, opened.label_map) if solution else None
    table.tell_missing(folders, split)
    known = table.find_known(engine, opened, shards_dir=shards_dir, output_dir=output_dir)
    rows: list[Row] = []
    with storage.scratch(output_dir, 'report') as scratch:
        for store in stores:
            print(f'combining {store.folder} by all rules', flush=True)
            part = storage.join(scratch, 'first' if store == stores[0] else 'others')
            rows += table.measure(engine, store, scratch=part, solution=truth, known=known)
        folder = table.predictions_folder(storage.join(scratch, 'first'), views=rules.VIEWS[0], rule=rule)
        outcome = _outcome(stores[0], rule, predictions.read(folder), truth, opened)
    return [
        table_one.accuracy_section(rows, split),
        accuracies.parts_section(rows, rule),
        *_mistakes(outcome, shards, split, why),
        _noted(_least_certain(outcome, shards, split), why),
        table_one.calibration_section(rows),
    ]


def _open_shards(folder: str, opened: Stores) -> tuple[Shards | None, str]:
    """The dataset that the logits were made from; or None, and why."""
    try:
        known_images.check(folder, digest=opened.dataset_digest)
        return dataset.open_shards(folder), ''
    except InputError as error:
        return None, str(error)


def _predict(engine: Engine, store: Store, rule: str, *, output_dir: str) -> Outcome:
    """The predictions of one rule alone, without the truth."""
    opened = reduction.open_stores([store.folder])
    print(f'combining {store.folder} by {rule}', flush=True)
    with storage.scratch(output_dir, 'report') as scratch:
        reduction.run(engine, opened.parts(), Job(opened, [Mixture(rule)], [scratch]))
        return _outcome(store, rule, predictions.read(scratch), None, opened)


def _outcome(store: Store, rule: str, found: Predictions, truth: Solution | None, opened: Stores) -> Outcome:
    true = truth.of(found.product_id) if truth else found.true_category_id
    return Outcome(f'{rule} on {store.title}', found, true, opened.label_map)


def _mistakes(outcome: Outcome, shards: Shards | None, split: str, why: str) -> list[Section]:
    """What needs the truth: accuracy by category, confusions, the most confident mistakes."""
    pairs = confusions.count(outcome.true_labels, outcome.predicted_labels, classes=len(outcome.label_map))
    trained = None
    if shards:
        shown = {*pairs.true[: confusions.SHOWN].tolist(), *pairs.predicted[: confusions.SHOWN].tolist()}
        trained = training_products.count(shards, examples_of=shown, examples=confusions.EXAMPLES)
    wrong = cards.most_confident_mistakes(outcome)
    words = f'{outcome.title}: wrong predictions, those of the highest probability first.'
    made = [
        accuracies.categories_section(outcome, pairs, trained.counts if trained else None),
        confusions.section(outcome, pairs, _pair_images(outcome, pairs, shards, trained, split)),
        cards.section('Most confident mistakes', words, outcome, wrong, _images(shards, split, wrong)),
    ]
    return [_noted(section, why) for section in made]


def _least_certain(outcome: Outcome, shards: Shards | None, split: str) -> Section:
    places = cards.least_certain(outcome)
    words = f'{outcome.title}: the predictions of the lowest probability.'
    return cards.section('Least certain', words, outcome, places, _images(shards, split, places))


def _noted(section: Section, why: str) -> Section:
    """The section, with what is left out of it told."""
    note = [page.text(f'What needs the shards is left out: {why}', faint=True)] if why else []
    return Section(section.title, [*note, *section.blocks])


def _images(shards: Shards | None, split: str, places: np.ndarray) -> list[tuple[bytes, ...]]:
    """All pictures of each product, by their places in the split; [] without shards."""
    if not shards:
        return []
    found = sample_products.find(shards.manifest.of_split(split), places)
    return [product.images for product in sample_products.read(shards.folder, found)]


def _pair_images(
    outcome: Outcome, pairs: Pairs, shards: Shards | None, trained: TrainingProducts | None, split: str
) -> list[list[list[bytes]]]:
    """The first pictures of some products of each pair, as confusions.section() takes them; [] without shards."""
    if not shards or not trained:
        return []

    def training(label: int) -> list[bytes]:
        return [product.images[0] for product in sample_products.read(shards.folder, trained.places[label])]

    return [
        [[images[0] for images in _images(shards, split, places)], training(true), training(predicted)]
        for places, true, predicted in zip(
            confusions.examples(outcome, pairs), pairs.true.tolist(), pairs.predicted.tolist(), strict=False
        )
    ]
