"""Sections of a page on the rules: the paper's Table I with intervals and tests, and how far probabilities hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ensemble import rules
from tools import page, table
from tools.page import Cell, Section
from tools.reports import calibration, grids
from tools.reports.grids import Grid
from tools.table import Row

if TYPE_CHECKING:
    from markupsafe import Markup

FEWEST = 10  # products that make a point of the reliability curve; of fewer it tells nothing


def accuracy_section(rows: Sequence[Row], products: str) -> Section:
    """All rules of all stores of logits against each other and the paper.

    Args:
        rows: what table.measure() found.
        products: of which they are, as Runs.products.
    """
    best = max(rows, key=lambda row: row.accuracy.value)
    found = f'The best here is {grids.name_of(best)} on {best.store.title}: {best.accuracy.value:.3f}.'
    blocks = [
        page.text(f'{grids.told(rows, products)} {found}'),
        _table(grids.overview(rows)),
        _table(grids.with_stores(grids.comparison(rows), rows)),
        page.text(
            f"Each rule is held against {table.REFERENCE} on the same logits and products, by McNemar's exact test.",
            faint=True,
        ),
        page.heading('What several pictures bring, and several views of each'),
        _table(grids.gains(rows)),
        page.heading('By number of pictures' + (' and whether training had one of them' if rows[0].by_seen else '')),
        _table(grids.with_stores(grids.parts(rows), rows)),
    ]
    return Section('Rules (Table I)', blocks)


def _table(grid: Grid) -> Markup:
    return page.table(grid.head, grid.lines)


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
            grids.name_of(row),
            page.number(row.calibration.error),
            page.number(row.calibration.mean_confidence),
            page.number(row.accuracy.value),
            Cell(f'{row.calibration.excess:+.3f}', row.calibration.excess),
        ]
        for row in rows
    ]
    return Section('Calibration', [page.text(told), page.figure(drawn, caption), page.table(head, lines)])
