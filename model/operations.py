"""How much a network computes: the multiply-adds of a forward pass, counted layer by layer.

Synopsis:

    network = classifier.build(backbone, classes=5270)
    print(operations.multiply_adds(network))
"""

from __future__ import annotations

import math

import keras


def multiply_adds(network: keras.Model) -> int:
    """The multiply-adds of convolutions and dense layers for one picture; what else there is takes a few hundredths.

    Every weight of a kernel is multiplied once for every place of the layer's output, whatever kind of convolution it
    is: grouped and depthwise kernels have as many weights fewer.

    Args:
        network: of pictures, one a row, each layer used once.
    """
    return sum(
        math.prod(layer.output.shape[1:-1]) * math.prod(weight.shape)
        for layer in network.layers
        for weight in layer.weights
        if len(weight.shape) > 1
    )
