"""How much a network computes: the multiply-adds of a forward pass, counted on its graph.

Synopsis:

    network = classifier.build(backbone, classes=5270)
    print(operations.multiply_adds(network))
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')
PRODUCTS = ('MatMul', 'BatchMatMul', 'BatchMatMulV2')


def multiply_adds(network: keras.Model) -> int:
    """The multiply-adds of convolutions and matrix products for one row; what else there is takes less than 3 %.

    Raises:
        ValueError: the network has an operation of this kind whose cost isn't known, or sizes that vary.
    """
    given = [tf.TensorSpec([1, *one.shape[1:]], one.dtype) for one in network.inputs]
    traced = tf.function(lambda *row: network(list(row) if len(row) > 1 else row[0], training=False), autograph=False)
    graph = traced.get_concrete_function(*given).graph
    return sum(map(_multiply_adds, graph.get_operations()))


def _multiply_adds(operation: Any) -> int:
    if 'Einsum' in operation.type or operation.type.startswith(('Conv3D', 'StatefulPartitionedCall')):
        raise ValueError(f'{operation.type}: not known how much it computes')
    if operation.type not in (*CONVOLUTIONS, *PRODUCTS):
        return 0
    out, (first, second) = operation.outputs[0].shape, operation.inputs
    if not out.is_fully_defined():
        raise ValueError(f'{operation.name}: its size varies: {out}')
    if operation.type in PRODUCTS:
        turned = operation.get_attr('transpose_a' if operation.type == 'MatMul' else 'adj_x')
        return math.prod(out) * first.shape[-2 if turned else -1]
    # A kernel has, for each number that comes out, as many weights as are multiplied: those of its group of channels.
    side_y, side_x, channels, _ = second.shape
    return math.prod(out) * side_y * side_x * (channels if operation.type == 'Conv2D' else 1)
