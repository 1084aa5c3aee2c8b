"""The chain for products that stand in no shard: pixels -> logits -> a rule -> the likeliest categories.

Synopsis:

    model = inference.load('runs/latest', micro_batch=answers.AT_ONCE)
    labels, probabilities = answers.Chain(model, answers.Options())([pixels_of_one_product, pixels_of_another])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble import rules
from ensemble.logits import Rows
from model import inference
from model.accumulate import AccumulatingModel
from model.inputs import Inputs
from pipeline import dataset
from pipeline.errors import InputError

AT_ONCE = 64  # pictures that go through the network together, as by default in model.predict


@dataclass(frozen=True)
class Options:
    """How a product's pictures are taken together.

    Attributes:
        rule: one of rules.names().
        power: the exponent of the rule power.
        tta: views a picture; view 0 is the plain picture.
        seed: of the other views.
        count: how many categories are wanted.
    """

    rule: str = 'product'
    power: float = rules.POWER
    tta: int = 1
    seed: int = 0
    count: int = rules.LIKELIEST

    def __post_init__(self) -> None:
        rules.find(self.rule, power=self.power)


class Chain:
    """What model.predict and ensemble.combine do with a product, without files between."""

    def __init__(self, model: AccumulatingModel, options: Options) -> None:
        self.options = options
        self._inputs = model.inputs_of_row
        self._forward = inference.step(model, plain=options.tta == 1)

    def __call__(self, products: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest labels of products.

        Args:
            products: the pictures of each, uint8 [k, 180, 180, 3]. For the views beside the plain one, which hang on
                Kaggle's id of a product, the first has the id 0.

        Returns:
            labels int64 [P, count] and probabilities float32 [P, count], as rules.likeliest() gives them.

        Raises:
            InputError: a product has other numbers of pictures than the model takes.
        """
        options = self.options
        if self._inputs.pictures:
            product, pixels, mask = self._whole(products)
            picture = np.zeros_like(product)
        else:
            counts = [len(pixels) for pixels in products]
            product = np.repeat(np.arange(len(products)), counts)
            picture = np.concatenate([np.arange(count) for count in counts])
            pixels, mask = np.concatenate(products), None
        row = np.arange(len(pixels)).repeat(options.tta)
        view = np.tile(np.arange(options.tta), len(pixels))
        draws = self._draws(product[row], picture[row], view)
        at_once = max(1, AT_ONCE // self._inputs.pictures_a_row)
        parts = [row[start : start + at_once] for start in range(0, len(row), at_once)]
        given = (pixels,) if mask is None else (pixels, mask)
        values = np.concatenate(
            [
                self._forward(*(column[part] for column in given), draws[start : start + len(part)])
                for start, part in zip(range(0, len(row), at_once), parts, strict=True)
            ]
        )
        pictures = None if mask is None else mask.sum(axis=1)[row]
        rows = Rows(product[row], picture[row], view, np.full_like(row, -1), values, pictures)
        scores = rules.combine(rules.Products(rows), rules.find(options.rule, power=options.power))
        return rules.likeliest(scores, count=options.count)

    def _whole(self, products: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Products as rows: their numbers [P], pixels [P, pictures, 180, 180, 3], and mask [P, pictures]."""
        count = self._inputs.pictures
        pixels = np.zeros([len(products), count, *products[0].shape[1:]], np.uint8)
        mask = np.zeros([len(products), count], bool)
        for number, given in enumerate(products):
            check_count(self._inputs, len(given))
            pixels[number, : len(given)] = given[:count]
            mask[number, : len(given)] = True
        return np.arange(len(products)), pixels, mask

    def _draws(self, product: np.ndarray, picture: np.ndarray, view: np.ndarray) -> np.ndarray:
        """What varies the views: float32 [n, augment.DRAWS], for products [n, pictures, augment.DRAWS]."""
        if not self._inputs.pictures:
            return dataset.view_draws(self.options.seed, product, picture, view)
        pictures = range(self._inputs.pictures)
        each = [dataset.view_draws(self.options.seed, product, np.full_like(product, one), view) for one in pictures]
        return np.stack(each, axis=1)


def check_count(inputs: Inputs, count: int) -> None:
    """Refuses a product with other numbers of pictures than a model takes.

    Raises:
        InputError: it has.
    """
    if inputs.pictures and not inputs.fewer and count != inputs.pictures:
        raise InputError(
            f'a product with {count} picture(s): this run was trained on products with exactly {inputs.pictures} '
            '(--pictures without --fewer_pictures); take another run'
        )
