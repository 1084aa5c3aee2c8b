"""All sections of a page that come from logits: rules, categories, confusions, single products, calibration.

Synopsis:

    sections = predicted.sections(
        engine, ['runs/noaug', 'runs/aug'], split='val', rule='product', solution='', shards_dir='data/shards',
        output_dir='runs/noaug',
    )
    page.write('report.html', 'noaug', '', sections)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ensemble import predictions, reduction, rules
from ensemble.mixture import Mixture
from ensemble.predictions import Predictions
from ensemble.reduction import Job, Stores
from ensemble.submission import Solution
from pipeline import storage
from pipeline.beam_job import Engine
from tools import page, table
from tools.page import Section
from tools.reports import accuracies, cards, confusions, table_one, training_products
from tools.reports.gallery import Gallery, first_pictures, open_gallery
from tools.reports.outcome import Outcome
from tools.table import Store


def sections(
    engine: Engine, folders: Sequence[str], *, split: str, rule: str, solution: str, shards_dir: str, output_dir: str
) -> list[Section]:
    """Combines the runs' logits by all rules, and reports on what comes of them.

    Args:
        engine: what runs the jobs.
        folders: of runs. The first one is reported on in full, by its logits of one view; the others are only compared.
            Those without logits of the split are left out, which the page tells; if the first has none, that is all.
        split: val or test.
        rule: the one whose predictions are looked at one by one.
        solution: path of a solution.csv; '' if there is none. Without it, test has no truth to report on, and there is
            only a section of the least certain products of the first run.
        shards_dir: the dataset. If it isn't the one that the logits were made from, what needs it is left out, and the
            page tells why.
        output_dir: a folder that all workers reach; what they leave there goes at the end.

    Raises:
        InputError: logits don't belong together, or something is damaged.
    """
    rules.find(rule)
    lacking = {folder: table.lacking(folder, split) for folder in folders}
    if lacking[folders[0]]:
        return [Section('Predictions', [page.text(f'{lacking[folders[0]]}.')])]
    compared = table.open_runs([folder for folder in folders if not lacking[folder]], split, solution=solution)
    gallery = open_gallery(shards_dir, compared.opened)
    if split == 'test' and not solution:
        return [_least_certain(_predict(engine, compared.stores[0], rule, output_dir=output_dir), gallery)]
    with storage.scratch(output_dir, 'report') as scratch:
        rows = table.measure_all(engine, compared, shards_dir=shards_dir, scratch=scratch)
        found = predictions.read(table.predictions_folder(scratch, views=rules.VIEWS[0], rule=rule))
        outcome = _outcome(compared.stores[0], rule, found, compared.truth, compared.opened)
    accuracy = table_one.accuracy_section(rows, compared.products)
    left_out = [page.text(f'Left out: {problem}.', faint=True) for problem in lacking.values() if problem]
    return [
        Section(accuracy.title, [*accuracy.blocks, *left_out]),
        accuracies.parts_section(rows, rule),
        *_mistakes(outcome, gallery),
        _least_certain(outcome, gallery),
        table_one.calibration_section(rows),
    ]


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


def _mistakes(outcome: Outcome, gallery: Gallery) -> list[Section]:
    """What needs the truth: accuracy by category, confusions, the most confident mistakes."""
    pairs = confusions.count(outcome.true_labels, outcome.predicted_labels, classes=len(outcome.label_map))
    shown = list(zip(pairs.true.tolist(), pairs.predicted.tolist(), strict=True))[: confusions.SHOWN]
    sizes, images = None, []
    if gallery.shards:
        labels = set(itertools.chain(*shown))
        trained = training_products.count(
            gallery.shards, examples_of=labels, examples=confusions.EXAMPLES, pictures=gallery.part
        )
        examples = {label: first_pictures(gallery.pictures_at(places)) for label, places in trained.places.items()}
        mistaken = [
            first_pictures(gallery.pictures(outcome.found, places)) for places in confusions.examples(outcome, pairs)
        ]
        images = [(some, *(examples[label] for label in pair)) for some, pair in zip(mistaken, shown, strict=True)]
        sizes = trained.counts
    wrong = cards.most_confident_mistakes(outcome)
    words = f'{outcome.title}: wrong predictions, those of the highest probability first.'
    made = [
        accuracies.categories_section(outcome, pairs, sizes),
        confusions.section(outcome, pairs, images),
        cards.section('Most confident mistakes', words, outcome, wrong, gallery.pictures(outcome.found, wrong)),
    ]
    return [_noted(section, gallery) for section in made]


def _least_certain(outcome: Outcome, gallery: Gallery) -> Section:
    places = cards.least_certain(outcome)
    words = f'{outcome.title}: the predictions of the lowest probability.'
    images = gallery.pictures(outcome.found, places)
    return _noted(cards.section('Least certain', words, outcome, places, images), gallery)


def _noted(section: Section, gallery: Gallery) -> Section:
    """The section, with what is left out of it told."""
    told = f'What needs the shards is left out: {gallery.problem}'
    return Section(section.title, [*([page.text(told, faint=True)] if gallery.problem else []), *section.blocks])
