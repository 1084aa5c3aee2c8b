"""Accuracy by category against its size, by number of pictures, and by level of the categories' hierarchy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble import rules, scores
from ensemble.scores import Score
from tools import page, table
from tools.page import Section
from tools.reports import outcome as outcome_lib
from tools.reports.confusions import Pairs
from tools.reports.outcome import Outcome
from tools.table import Row

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

FEWEST = 5  # products here that a category must have to be a point of the plot: fewer have it jump by over 0.2
MANY = 500  # points; more are drawn smaller
BASELINE = 'first'


def parts_section(rows: Sequence[Row], rule: str) -> Section:
    """Accuracy by number of pictures and by level, of a rule against the one that looks at the first picture only.

    Args:
        rows: what table.measure() found.
        rule: its name.
    """
    by_rule = {row.rule: row for row in rows if row.store == rows[0].store and row.views == rules.VIEWS[0]}
    chosen = {name: by_rule[name] for name in dict.fromkeys((rule, BASELINE))}
    counts = [f'{count}\n({part.count:,})' for count, part in zip(table.PICTURES, rows[0].by_pictures, strict=True)]
    caption = 'Accuracy by number of pictures, with 95 % intervals; in brackets how many products have so many.'
    plots = [
        _plot_parts(
            'pictures of the product', counts, {name: row.by_pictures for name, row in chosen.items()}, caption
        ),
        _plot_parts(
            'level',
            ['1', '2', '3'],
            {name: row.levels for name, row in chosen.items()},
            "Accuracy as far as level 1, 2 and 3 of the categories' names, with 95 % intervals.",
        ),
    ]
    return Section('Pictures and levels', [page.side_by_side(plots)])


def _plot_parts(label: str, names: Sequence[str], parts: dict[str, tuple[Score, ...]], caption: str) -> Markup:
    """Points with intervals, rules beside one another."""
    drawn, axes = page.axes(label, 'accuracy')
    for number, (rule, some) in enumerate(parts.items()):
        x = np.arange(len(names)) + 0.12 * (number - (len(parts) - 1) / 2)
        _with_intervals(axes, x, some, label=rule)
    axes.set_xticks(range(len(names)), names)
    axes.legend()
    return page.figure(drawn, caption)


def _with_intervals(axes: Axes, x: np.ndarray, some: Sequence[Score], **options: Any) -> None:
    """Points with error bars; there are none where there is nothing to count."""
    value, low, high = np.array([[one.value, one.low, one.high] for one in some]).reshape(-1, 3).T
    axes.errorbar(x, value, np.stack([value - low, high - value]), fmt='o', markersize=4, capsize=3, **options)


def categories_section(outcome: Outcome, pairs: Pairs, sizes: np.ndarray | None) -> Section:
    """Accuracy of each category.

    Args:
        outcome: the predictions.
        pairs: their mistakes.
        sizes: int64 [C], training products of each category; None if they aren't known.
    """
    blocks = [] if sizes is None else [_plot_sizes(outcome, sizes)]
    return Section('Categories', [*blocks, page.fold('All categories', [_all_categories(outcome, pairs, sizes)])])


def _plot_sizes(outcome: Outcome, sizes: np.ndarray) -> Markup:
    products, right = _counts(outcome)
    drawn, axes = page.axes('training products of the category', 'accuracy')
    enough = (products >= FEWEST) & (sizes > 0)
    size = 4 if enough.sum() <= MANY else 2
    axes.plot(sizes[enough], right[enough] / products[enough], 'o', markersize=size, markeredgewidth=0, alpha=0.6)
    bins = by_size(outcome, sizes)
    _with_intervals(axes, np.array([size for size, _ in bins]), [score for _, score in bins], linestyle='-', color='C1')
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter('{x:,.0f}')
    caption = (
        f'{outcome.title}: each point a category with {FEWEST} products or more here ({enough.sum():,} of '
        f'{len(sizes):,}); the line is the accuracy over all products of the categories with 1, 2 to 3, 4 to 7, 8 to '
        '15... training products, with 95 % intervals.'
    )
    return page.figure(drawn, caption)


def by_size(outcome: Outcome, sizes: np.ndarray) -> list[tuple[float, Score]]:
    """Accuracy over the products of categories of 1, 2 to 3, 4 to 7... training products.

    Args:
        outcome: the predictions.
        sizes: int64 [C], training products of each category.

    Returns:
        for each such class that has products: the geometric mean of the sizes of their categories, and the accuracy.
    """
    size = sizes[outcome.true_labels]
    power = np.frexp(size)[1]  # size is in [2^(power - 1), 2^power)
    found = []
    for one in np.unique(power[size > 0]).tolist():
        chosen = (power == one) & (size > 0)
        found.append((float(np.exp(np.log(size[chosen]).mean())), scores.accuracy(outcome.correct[chosen])))
    return found


def _counts(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Products and right predictions of each category, int64 [C] each."""
    classes = len(outcome.label_map)
    return (
        np.bincount(outcome.true_labels, minlength=classes),
        np.bincount(outcome.true_labels[outcome.correct], minlength=classes),
    )


def _all_categories(outcome: Outcome, pairs: Pairs, sizes: np.ndarray | None) -> Markup:
    """A table of all categories; without products here, one has no accuracy."""
    label_map, (products, right) = outcome.label_map, _counts(outcome)
    worst = pairs.worst_of(len(label_map)).tolist()
    rows = []
    for label, (count, hits) in enumerate(zip(products.tolist(), right.tolist(), strict=True)):
        place = worst[label]
        mistake = '' if place < 0 else f'{outcome.names[pairs.predicted[place]]} ({pairs.products[place]:,})'
        size = [] if sizes is None else [page.count(sizes[label])]
        accuracy = page.number(hits / count if count else math.nan)
        name = outcome_lib.path(label_map, label)
        rows.append(
            [
                page.Cell(str(label_map.ids[label]), int(label_map.ids[label])),
                name,
                *size,
                page.count(count),
                accuracy,
                mistake,
            ]
        )
    trained = [] if sizes is None else ['training products']
    return page.table(['id', 'category', *trained, 'products here', 'accuracy', 'most frequent mistake'], rows)
