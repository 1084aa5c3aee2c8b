"""Sections of a page on the rules: the paper's Table I with intervals and tests, and how far probabilities hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ensemble import rules
from ensemble.scores import Score
from tools import page, table
from tools.page import Cell, Section
from tools.reports import calibration
from tools.table import Row

if TYPE_CHECKING:
    from markupsafe import Markup

FEWEST = 10  # products that make a point of the reliability curve; of fewer it tells nothing


def accuracy_section(rows: Sequence[Row], split: str) -> Section:
    """All rules of all stores of logits against each other and the paper.

    Args:
        rows: what table.measure() found.
        split: val or test.
    """
    best = max(rows, key=lambda row: row.accuracy.value)
    blocks = [
        page.text(
            f'Accuracy over the {best.accuracy.count:,} products of {split}, with its 95 % bootstrap interval. The '
            f'best here is {table.name_of(best)} on {best.store.title}: {best.accuracy.value:.3f}.'
        ),
        *([_overview(rows)] if len({row.store for row in rows}) > 1 else []),
        _comparison(rows),
        page.text(
            f"Each rule is held against {table.REFERENCE} on the same logits and products, by McNemar's exact test. "
            "The paper's figures are Table I's, on Cdiscount's validation set; its x0.1 is power here.",
            faint=True,
        ),
        page.heading('What several pictures bring, and several views of each'),
        _gains(rows),
        page.heading('By number of pictures' + (' and whether training had one of them' if rows[0].by_seen else '')),
        page.table(
            ['logits', 'rule', *table.parts_of(rows[0])],
            [[row.store.title, table.name_of(row), *map(_plus_minus, table.parts_of(row).values())] for row in rows],
        ),
    ]
    return Section('Rules (Table I)', blocks)


def _overview(rows: Sequence[Row]) -> Markup:
    """Rules down, stores across, as in the paper."""
    accuracy = {(row.rule, row.store): row.accuracy for row in rows if row.views == rules.VIEWS[0]}
    head, lines = ['rule'], {rule: list[object]([rule]) for rule, _ in accuracy}
    for store in dict.fromkeys(store for _, store in accuracy):
        head += [store.title, table.PAPER_TITLE] if store.paper else [store.title]
        for rule, line in lines.items():
            line.append(_plus_minus(accuracy[rule, store]))
            if store.paper:
                line.append(page.number(store.paper.get(rule, math.nan)))
    return page.table(head, lines.values())


def _comparison(rows: Sequence[Row]) -> Markup:
    over = f'over {table.REFERENCE} (95 % interval)'
    return page.table(
        ['logits', 'rule', 'accuracy (95 % interval)', over, 'p', 'top 5', table.PAPER_TITLE],
        [
            [
                row.store.title,
                table.name_of(row),
                Cell(table.with_interval(row.accuracy), row.accuracy.value),
                Cell(table.signed(row.over_mean), row.over_mean.value),
                Cell(table.probability(row.p_value), row.p_value),
                page.number(row.top5),
                page.number(row.paper),
            ]
            for row in rows
        ],
    )


def _gains(rows: Sequence[Row]) -> Markup:
    """Without logits of several views there is nothing to tell of them."""
    lines = table.findings(rows)
    head = ['logits', f'{table.BEST} over first', 'p', 'over one view', 'p']
    columns = len(head) if any(line[-1] for line in lines) else 3
    return page.table(head[:columns], [line[:columns] for line in lines])


def _plus_minus(score: Score) -> Cell:
    """A share and half of its interval."""
    if math.isnan(score.value):
        return page.number(score.value)
    return Cell(f'{score.value:.3f} ± {(score.high - score.low) / 2:.3f}', score.value)


def calibration_section(rows: Sequence[Row]) -> Section:
    """How far the probabilities of each rule hold: a curve for each of the first store, numbers for all.

    Args:
        rows: what table.measure() found.
    """
    drawn, axes = page.axes('probability of the prediction', 'share that is right', size=(5.2, 4.8))
    axes.plot([0, 1], [0, 1], color='C0', alpha=0.3, linewidth=1)
    chosen = [row for row in rows if row.store == rows[0].store and row.views == rules.VIEWS[0]]
    for number, row in enumerate(chosen):
        found = row.calibration
        enough = found.products >= FEWEST
        style = {'markersize': 3, 'linewidth': 1} | page.series(number)
        axes.plot(found.confidence[enough], found.accuracy[enough], label=row.rule, **style)
    axes.legend()
    caption = (
        f'{rows[0].store.title}: above the diagonal a rule is too modest, below it too sure of itself. '
        f'Bins of equal width; those of fewer than {FEWEST} products are not drawn.'
    )
    told = (
        'Of the products predicted with probability 0.8, 80 % should be right. The expected calibration error (ECE) is '
        f'the gap between the two, over {calibration.BINS} bins of equal width, each weighted by its products (Guo et '
        'al., 2017). The difference of mean probability and accuracy tells how much too sure a rule is on the whole.'
    )
    head = ['logits', 'rule', 'ECE', 'mean probability', 'accuracy', 'difference']
    lines = [
        [
            row.store.title,
            table.name_of(row),
            page.number(row.calibration.error),
            page.number(row.calibration.mean_confidence),
            page.number(row.accuracy.value),
            Cell(f'{row.calibration.excess:+.3f}', row.calibration.excess),
        ]
        for row in rows
    ]
    return Section('Calibration', [page.text(told), page.figure(drawn, caption), page.table(head, lines)])
