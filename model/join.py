"""How the features of a product's pictures become features of the product."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

KINDS = ('concat', 'mean', 'max', 'gated')
LOWEST = -6e4  # below any feature, and finite in float16


@keras.saving.register_keras_serializable(package='model')
class Join(layers.Layer):
    """Features of pictures -> features of products, over the pictures that a product has.

    concat: one after the other, zeros for those that it hasn't.
    mean, max: of each feature.
    gated: the mean of each feature by weights that a small network learned to give each picture for each feature: two
        dense layers, the first half as wide as the features, and a sigmoid (the second place's head sums so weighted
        features, research of its published code and report; divided by the sum of the weights they keep their scale,
        so that a dense layer that was trained on single pictures fits). The second layer begins at zero, so that it
        begins as the mean.
    """

    def __init__(self, kind: str, pictures: int, **options: Any) -> None:
        """Makes one for so many pictures a product.

        Raises:
            ValueError: there is no such kind.
        """
        super().__init__(**options)
        if kind not in KINDS:
            raise ValueError(f'kind must be one of {", ".join(KINDS)}, is {kind!r}')
        self.kind = kind
        self.pictures = pictures

    def build(self, features_shape: Any, present_shape: Any) -> None:
        """Makes the gate's two layers.

        Their weights are this layer's own: model/weights.py looks for those of a layer, not of layers within it.
        """
        if self.kind == 'gated':
            features = features_shape[-1]
            units = max(1, features // 2)
            self.squeeze = self.add_weight(name='squeeze', shape=[features, units])
            self.squeeze_bias = self.add_weight(name='squeeze_bias', shape=[units], initializer='zeros')
            self.gate = self.add_weight(name='gate', shape=[units, features], initializer='zeros')
            self.gate_bias = self.add_weight(name='gate_bias', shape=[features], initializer='zeros')

    def call(self, features: Any, present: Any) -> Any:
        """Joins.

        Args:
            features: float [n * pictures, F], of each product's pictures one after the other.
            present: float [n, pictures], 1 where a product has a picture, 0 where not.

        Returns:
            float [n, F], or [n, pictures * F] for concat; zeros for rows without a picture, which fill up a batch.
        """
        count = features.shape[-1]
        features = ops.reshape(features, [-1, self.pictures, count])
        weights = ops.cast(present, features.dtype)[:, :, None]
        if self.kind == 'concat':
            return ops.reshape(features * weights, [-1, self.pictures * count])
        if self.kind == 'max':
            highest = ops.max(ops.where(weights > 0, features, ops.full_like(features, LOWEST)), axis=1)
            return highest * ops.max(weights, axis=1)
        if self.kind == 'gated':
            squeezed = ops.relu(ops.matmul(features, self.squeeze) + self.squeeze_bias)
            weights = weights * ops.sigmoid(ops.matmul(squeezed, self.gate) + self.gate_bias)
        return ops.divide_no_nan(ops.sum(features * weights, axis=1), ops.sum(weights, axis=1))

    def compute_output_shape(self, features_shape: Any, present_shape: Any) -> tuple[int | None, int]:
        """[n, F], or [n, pictures * F]."""
        return (None, features_shape[-1] * (self.pictures if self.kind == 'concat' else 1))

    def get_config(self) -> dict[str, Any]:
        """What makes it again from a file."""
        return {**super().get_config(), 'kind': self.kind, 'pictures': self.pictures}
