"""How the logits of one model or several become a product's scores: a rule for the pictures, a mean over the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ensemble import rules
from ensemble.rules import Products, Scores
from pipeline.errors import InputError

ACROSS = ('arithmetic', 'geometric')


@dataclass(frozen=True)
class Mixture:
    """A rule, and how much each model counts.

    Attributes:
        rule: its name.
        power: exponent p of the rule power.
        views: pooled or nested.
        weights: of the models, not negative, at least one above 0.
        across: the mean over the models' probabilities of a product: arithmetic or geometric.
        sharpness: exponent of a geometric mean's probabilities, before they are divided by their sum. It changes no
            prediction, only how certain they are; above 1, more than the mean.
    """

    rule: str = 'product'
    power: float = rules.POWER
    views: str = 'pooled'
    weights: tuple[float, ...] = (1.0,)
    across: str = 'arithmetic'
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        rules.find(self.rule, power=self.power)
        for name, known in (('views', rules.VIEWS), ('across', ACROSS)):
            if getattr(self, name) not in known:
                raise InputError(f'{name} must be {" or ".join(known)}, is {getattr(self, name)!r}')
        if any(not 0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            given = ','.join(f'{weight:g}' for weight in self.weights)
            raise InputError(f'weights must be 0 or more, and one of them above 0; they are {given}')
        if not 0 < self.sharpness < math.inf:
            raise InputError(f'sharpness must be above 0, is {self.sharpness:g}')


class Models:
    """What several models say of the same products; what several mixtures need is computed once.

    Attributes:
        each: the rows of each model.
    """

    def __init__(self, each: Sequence[Products]) -> None:
        self.each = each
        self._found: dict[tuple[int, str, float, str], tf.Tensor] = {}

    def scores(self, mixture: Mixture) -> Scores:
        """The products' scores, [P, C]."""
        if len(mixture.weights) != len(self.each):
            raise ValueError(f'{len(mixture.weights)} weights for {len(self.each)} models')
        if len(self.each) == 1:
            rule = rules.find(mixture.rule, power=mixture.power)
            return rules.combine(self.each[0], rule, views=mixture.views)
        used = [
            (self.log_probabilities(model, mixture), weight) for model, weight in enumerate(mixture.weights) if weight
        ]
        if mixture.across == 'geometric':
            scale = mixture.sharpness / sum(mixture.weights)
            return Scores(tf.add_n([weight * scale * logs for logs, weight in used]), in_logs=True)
        parts = tf.stack([logs + np.float32(math.log(weight)) for logs, weight in used])
        highest = tf.maximum(tf.reduce_max(parts, axis=0), rules.LOWEST)
        return Scores(highest + rules.log(tf.reduce_sum(rules.exp(parts - highest), axis=0)), in_logs=True)

    def log_probabilities(self, model: int, mixture: Mixture) -> tf.Tensor:
        """The logs of one model's probabilities of each product's classes by the mixture's rule, float32 [P, C]."""
        key = model, mixture.rule, mixture.power, mixture.views
        if key not in self._found:
            rule = rules.find(mixture.rule, power=mixture.power)
            scores = rules.combine(self.each[model], rule, views=mixture.views)
            self._found[key] = rules.log_probabilities(scores)
        return self._found[key]
