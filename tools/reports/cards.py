"""Single products with all their pictures: the most confident mistakes, and the least certain predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ensemble.predictions import UNKNOWN
from tools import page
from tools.page import Section, Share
from tools.reports.outcome import Outcome

if TYPE_CHECKING:
    from markupsafe import Markup

SHOWN = 24  # products a section


def most_confident_mistakes(outcome: Outcome) -> np.ndarray:
    """Places of products with a wrong prediction, int64 [SHOWN or fewer]: the likeliest first, then by product id."""
    wrong = np.flatnonzero(~outcome.correct)
    return _first(outcome, wrong, -outcome.found.probability[wrong])


def least_certain(outcome: Outcome) -> np.ndarray:
    """Places of products, int64 [SHOWN or fewer]: the prediction of lowest probability first, then by product id."""
    return _first(outcome, np.arange(len(outcome.found)), outcome.found.probability)


def _first(outcome: Outcome, places: np.ndarray, key: np.ndarray) -> np.ndarray:
    return places[np.lexsort((outcome.found.product_id[places], key))[:SHOWN]]


def section(title: str, words: str, outcome: Outcome, places: np.ndarray, images: Sequence[Sequence[bytes]]) -> Section:
    """A section with a card for each product.

    Args:
        title: its heading.
        words: what the products are.
        outcome: the predictions.
        places: of the products among them.
        images: all pictures of each product; or [].
    """
    cards = [_card(outcome, place, images[number] if images else ()) for number, place in enumerate(places.tolist())]
    return Section(title, [page.text(words if cards else 'There are none.'), page.cards(cards)])


def _card(outcome: Outcome, place: int, images: Sequence[bytes]) -> list[Markup]:
    from markupsafe import Markup

    product, true = int(outcome.found.product_id[place]), int(outcome.truth[place])
    predicted = int(outcome.found.category_id[place])
    likeliest = outcome.found.likeliest[place].tolist()
    blocks = [page.pictures(images, f'product {product}')] if images else []
    blocks.append(page.text(f'Product {product}', faint=True))
    if true != UNKNOWN:
        blocks.append(page.text(Markup('true: <b>{}</b>{}').format(outcome.name(true), outcome.place(true))))
    named = outcome.name(predicted), outcome.place(predicted)
    blocks.append(page.text(Markup('predicted: <b>{}</b>{}').format(*named)))
    shares = [
        Share(outcome.name(category), probability, _mark(category, true=true, predicted=predicted))
        for category, probability in zip(likeliest, outcome.found.probabilities[place].tolist(), strict=True)
    ]
    blocks.append(page.bars(shares))
    if true != UNKNOWN and true not in likeliest:
        blocks.append(page.text(f'The true category is not among the {len(likeliest)} likeliest.', faint=True))
    return blocks


def _mark(category: int, *, true: int, predicted: int) -> str:
    if true == UNKNOWN:
        return ''
    return 'right' if category == true else 'wrong' if category == predicted else ''
