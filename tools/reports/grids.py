"""The tables of Table I, laid out once for text and pages: rules x stores, what pictures and views bring, and parts.

Synopsis:

    print(grids.markdown(rows, 'val'))  # rows: what table.measure_all() found
    grid = grids.overview(rows)
    block = page.table(grid.head, grid.lines)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble import rules, scores
from ensemble.scores import Score
from tools import page
from tools.page import Cell
from tools.table import PICTURES, REFERENCE, Row

BEST = 'product'  # with power the paper's best
SIGNIFICANT = 0.05
PAPER_TITLE = 'paper (Cdiscount)'  # it may stand beside another dataset
EMPTY = Cell('', '')


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        head: titles of its columns.
        lines: its cells.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str | Cell]]


def told(rows: Sequence[Row], products: str) -> str:
    """What the numbers of overview() are; `products` is Runs.products."""
    return (
        f'Accuracy over the {rows[0].accuracy.count:,} products of {products}, ± half of its 95 % bootstrap interval; '
        f'* where it differs from {REFERENCE} with p < {SIGNIFICANT} (McNemar, each rule by itself).\n'
        "Views are pooled. The paper's figures are Table I's, on Cdiscount's validation set; its x0.1 is power."
    )


def overview(rows: Sequence[Row]) -> Grid:
    """Rules down, stores across, as in the paper; beside each what the paper has."""
    pooled = [row for row in rows if row.views == rules.VIEWS[0]]
    head, lines = ['rule'], {row.rule: list[str | Cell]([row.rule]) for row in pooled}
    for store in dict.fromkeys(row.store for row in pooled):
        head += [store.title, PAPER_TITLE] if store.paper else [store.title]
        for row in pooled:
            if row.store == store:
                mark = ' *' if row.p_value < SIGNIFICANT else ''
                lines[row.rule].append(_plus_minus(row.accuracy, mark))
                lines[row.rule] += [page.number(row.paper)] if store.paper else []
    return Grid(head, list(lines.values()))


def gains(rows: Sequence[Row]) -> Grid:
    """What several pictures, and several views of each, bring by the rule product: paired, on the same products.

    For each store its title, the difference to the rule first and its p value, and if any has several views those to
    the logits of one view.
    """
    correct = {(row.store, row.rule): row.correct for row in rows if row.views == rules.VIEWS[0]}
    plain = {store.configuration: store for store, _ in correct if store.tta == 1}
    head, lines = ['logits', f'{BEST} over first', 'p', 'over one view', 'p'], list[list[str | Cell]]()
    for store in dict.fromkeys(store for store, _ in correct):
        ours, one_view = correct[store, BEST], correct[plain[store.configuration], BEST]
        views = _gain(ours, one_view) if store.tta > 1 else [EMPTY, EMPTY]
        lines.append([store.title, *_gain(ours, correct[store, 'first']), *views])
    columns = len(head) if any(store.tta > 1 for store, _ in correct) else 3
    return Grid(head[:columns], [line[:columns] for line in lines])


def _gain(correct: np.ndarray, over: np.ndarray) -> list[Cell]:
    """A difference and its p value."""
    return [_signed(scores.gain(correct, over)), _probability(scores.p_value(correct, over))]


def comparison(rows: Sequence[Row]) -> Grid:
    """A line for each row: accuracy, what it has over the rule mean, and the levels of the categories."""
    interval = '(95 % interval)'
    head = ['rule', f'accuracy {interval}', f'over {REFERENCE} {interval}', 'p', 'top 5']
    return Grid(
        [*head, 'level 1', 'level 2', 'level 3'],
        [
            [
                name_of(row),
                _with_interval(row.accuracy),
                _signed(row.over_mean),
                _probability(row.p_value),
                *map(page.number, (row.top5, *(level.value for level in row.levels))),
            ]
            for row in rows
        ],
    )


def parts(rows: Sequence[Row]) -> Grid:
    """A line for each row: accuracy over parts of the products, by what they are and how many there are."""
    names = ['1 picture', *(f'{count} pictures' for count in PICTURES[1:])]
    if rows[0].by_seen:
        names += ['a picture seen', 'none seen']
    lines = [[*row.by_pictures, *(row.by_seen or ())] for row in rows]
    head = [f'{name} ({part.count:,})' for name, part in zip(names, lines[0], strict=True)]
    cells = [[_plus_minus(part) for part in line] for line in lines]
    return Grid(['rule', *head], [[name_of(row), *line] for row, line in zip(rows, cells, strict=True)])


def with_stores(grid: Grid, rows: Sequence[Row]) -> Grid:
    """A grid with a line for each row, of several stores: which one stands before it."""
    lines = [[row.store.title, *line] for row, line in zip(rows, grid.lines, strict=True)]
    return Grid(['logits', *grid.head], lines)


def name_of(row: Row) -> str:
    """What a line is called: its rule, and its way to take views where that isn't the paper's."""
    return row.rule if row.views == rules.VIEWS[0] else f'{row.rule}, {row.views}'


def markdown(rows: Sequence[Row], products: str) -> str:
    """The table in the paper's form, what the paper found held against it, and all that was measured store by store.

    Args:
        rows: what was measured of one store or more, of the same products.
        products: which, as Runs.products.
    """
    blocks = [told(rows, products), text(overview(rows)), text(gains(rows))]
    for store in dict.fromkeys(row.store for row in rows):
        its = [row for row in rows if row.store == store]
        blocks += [f'### {store.title}', text(comparison(its)), text(parts(its))]
    return '\n\n'.join(blocks) + '\n'


def text(grid: Grid) -> str:
    """A Markdown table whose columns stand under each other as plain text too."""
    lines = [[cell.text if isinstance(cell, Cell) else cell for cell in line] for line in grid.lines]
    widths = [max(map(len, column)) for column in zip(grid.head, *lines, strict=True)]
    return '\n'.join(
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |'
        for line in (grid.head, ['-' * width for width in widths], *lines)
    )


def _plus_minus(score: Score, mark: str = '') -> Cell:
    """A share and half of its interval; empty where there is nothing to count."""
    if math.isnan(score.value):
        return EMPTY
    return Cell(f'{score.value:.3f} ± {(score.high - score.low) / 2:.3f}{mark}', score.value)


def _with_interval(score: Score) -> Cell:
    return Cell(f'{score.value:.3f} ({score.low:.3f} to {score.high:.3f})', score.value)


def _signed(score: Score) -> Cell:
    return Cell(f'{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f})', score.value)


def _probability(value: float) -> Cell:
    return Cell(f'{value:.3f}' if value >= 0.001 else '< 0.001', value)
