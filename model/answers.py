"""The chain for products that stand in no shard: pixels -> logits -> a rule -> the likeliest categories.

Synopsis:

    model = AccumulatingModel(runs.load_model('runs/latest'), micro_batch=answers.AT_ONCE)
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
from pipeline import dataset

AT_ONCE = 64  # views that go through the network together, as by default in model.predict


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
        self._forward = inference.step(model, plain=options.tta == 1)

    def __call__(self, products: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest labels of products.

        Args:
            products: the pictures of each, uint8 [k, 180, 180, 3]. For the views beside the plain one, which hang on
                Kaggle's id of a product, the first has the id 0.

        Returns:
            labels int64 [P, count] and probabilities float32 [P, count], as rules.likeliest() gives them.
        """
        options = self.options
        counts = [len(pixels) for pixels in products]
        product = np.repeat(np.arange(len(products)), counts).repeat(options.tta)
        picture = np.concatenate([np.arange(count) for count in counts]).repeat(options.tta)
        view = np.tile(np.arange(options.tta), sum(counts))
        pixels = np.concatenate(products)
        row = np.arange(len(pixels)).repeat(options.tta)
        draws = dataset.view_draws(options.seed, product, picture, view)
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(row), AT_ONCE)]
        values = np.concatenate([self._forward(pixels[row[part]], draws[part]) for part in parts])
        rows = Rows(product, picture, view, np.full_like(product, -1), values)
        scores = rules.combine(rules.Products(rows), rules.find(options.rule, power=options.power))
        return rules.likeliest(scores, count=options.count)
