"""Sections of a page on the rules: the paper's Table I with intervals and tests, and how far probabilities hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

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
        page.table(['logits', f'{table.BEST} over first', 'p', 'over one view', 'p'], table.findings(rows)),
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
        head += [store.title, 'paper'] if store.paper else [store.title]
        for rule, line in lines.items():
            line.append(_plus_minus(accuracy[rule, store]))
            if store.paper:
                line.append(page.number(store.paper.get(rule, math.nan)))
    return page.table(head, lines.values())


def _comparison(rows: Sequence[Row]) -> Markup:
    head = ['logits', 'rule', 'accuracy', '95 % interval', f'over {table.REFERENCE}', '95 % interval', 'p', 'top 5']
    return page.table(
        [*head, 'paper'],
        [
            [
                row.store.title,
                table.name_of(row),
                page.number(row.accuracy.value),
                f'{row.accuracy.low:.3f} to {row.accuracy.high:.3f}',
                Cell(f'{row.over_mean.value:+.3f}', row.over_mean.value),
                f'{row.over_mean.low:+.3f} to {row.over_mean.high:+.3f}',
                Cell(table.probability(row.p_value), row.p_value),
                page.number(row.top5),
                page.number(row.paper),
            ]
            for row in rows
        ],
    )


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
    drawn, axes = page.axes('probability of the prediction', 'share that is right')
    axes.plot([0, 1], [0, 1], color='C0', alpha=0.3, linewidth=1)
    chosen = [row for row in rows if row.store == rows[0].store and row.views == rules.VIEWS[0]]
    for number, row in enumerate(chosen):
        found = row.calibration
        enough = found.products >= FEWEST
        axes.plot(
            np.where(enough, found.confidence, np.nan)[enough],
            found.accuracy[enough],
            'o-' if number < page.SERIES else 's--',  # colours begin anew
            markersize=3,
            linewidth=1,
            label=row.rule,
        )
    axes.legend()
    axes.set_aspect('equal')
    caption = (
        f'Reliability by rule, {rows[0].store.title}: above the diagonal a rule is too modest, below too sure. '
        f'{calibration.BINS} bins of equal width, those of {FEWEST} products or more drawn (Guo et al., 2017).'
    )
    head = ['logits', 'rule', 'expected calibration error', 'mean probability', 'accuracy', 'difference']
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
    return Section('Calibration', [page.figure(drawn, caption), page.table(head, lines)])
