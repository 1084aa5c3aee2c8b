"""Which categories are taken for which: pairs counted, and shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tools import page
from tools.page import Section
from tools.reports.outcome import Outcome

if TYPE_CHECKING:
    from markupsafe import Markup

SHOWN = 15  # pairs
EXAMPLES = 3  # pictures of each kind beside a pair


@dataclass(frozen=True, eq=False)
class Pairs:
    """Mistakes by true and predicted category, the most frequent first, then in order of the labels.

    Attributes:
        true: int64 [n], labels.
        predicted: int64 [n], labels, other ones.
        products: int64 [n], how many products of the one are taken for the other; above 0.
        reverse: int64 [n], how many of the other are taken for the one.
    """

    true: np.ndarray
    predicted: np.ndarray
    products: np.ndarray
    reverse: np.ndarray

    def worst_of(self, classes: int) -> np.ndarray:
        """The place of each category's most frequent mistake here, int64 [classes]; -1 if it has none."""
        places = np.full(classes, -1)
        labels, first = np.unique(self.true, return_index=True)
        places[labels] = first
        return places


def count(true: np.ndarray, predicted: np.ndarray, *, classes: int) -> Pairs:
    """Counts mistakes.

    Args:
        true: int64 [P], labels.
        predicted: int64 [P], labels.
        classes: how many categories there are.
    """
    wrong = true != predicted
    codes, products = np.unique(true[wrong] * classes + predicted[wrong], return_counts=True)
    one, other = np.divmod(codes, classes)
    backward = other * classes + one
    places = np.minimum(np.searchsorted(codes, backward), len(codes) - 1)
    reverse = np.where(codes[places] == backward, products[places], 0) if len(codes) else products
    order = np.argsort(-products, kind='stable')
    return Pairs(one[order], other[order], products[order], reverse[order])


def examples(outcome: Outcome, pairs: Pairs) -> list[np.ndarray]:
    """Of each pair shown the first products that are mistaken: their places among the outcome's, int64."""
    return [
        np.flatnonzero((outcome.true_labels == true) & (outcome.predicted_labels == predicted))[:EXAMPLES]
        for true, predicted in zip(pairs.true[:SHOWN], pairs.predicted[:SHOWN], strict=True)
    ]


def section(outcome: Outcome, pairs: Pairs, images: Sequence[Sequence[Sequence[bytes]]]) -> Section:
    """The pairs most often mistaken.

    Args:
        outcome: the predictions.
        pairs: what count() found.
        images: of each pair shown: pictures of products mistaken, of the true category's training data, and of the
            predicted one's; or [].
    """
    if not len(pairs.true):
        return Section('Confusions', [page.text('No product is taken for one of another category.')])
    ids = outcome.label_map.ids
    of_category = np.bincount(outcome.true_labels, minlength=len(outcome.label_map))
    rows, cards = [], []
    for place in range(min(SHOWN, len(pairs.true))):
        true, predicted, products = pairs.true[place], pairs.predicted[place], int(pairs.products[place])
        names = outcome.name(ids[true]), outcome.name(ids[predicted])
        share, reverse = page.number(products / of_category[true]), page.count(pairs.reverse[place])
        rows.append([*names, page.count(products), share, reverse])
        if images:
            places = outcome.place(ids[true]), outcome.place(ids[predicted])
            cards.append(_card(names, places, f'{products:,} of {of_category[true]:,}', images[place]))
    told = (
        f'{outcome.title}: {pairs.products.sum():,} products are taken for one of another category, in '
        f'{len(pairs.true):,} pairs of categories. The most frequent ones:'
    )
    head = ['category', 'taken for', 'products', "share of the category's", 'the other way round']
    return Section('Confusions', [page.text(told), page.table(head, rows), *([page.cards(cards)] if cards else [])])


def _card(
    names: Sequence[Markup], places: Sequence[Markup | str], count: str, images: Sequence[Sequence[bytes]]
) -> list[Markup]:
    """Pictures of three kinds, one under the other, so that a phone shows which side a mistaken one resembles."""
    from markupsafe import Markup

    mistaken, *examples = images
    blocks = [
        page.text(Markup('<b>{}</b> taken for <b>{}</b>: {}').format(*names, count)),
        page.pictures(mistaken, 'mistaken products'),
    ]
    for name, place, some, kind in zip(names, places, examples, ('true', 'predicted'), strict=True):
        blocks.append(page.text(Markup('{} in the training data{}').format(name, place), faint=True))
        blocks.append(page.pictures(some, f'products of the {kind} category'))
    return blocks
