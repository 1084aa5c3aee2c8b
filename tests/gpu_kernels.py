"""Which operations of a graph have a kernel on a GPU: TensorFlow for Linux lists them without one too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

LISTED = pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason='this TensorFlow lists no GPU kernels')


def of(operation: tf.Operation) -> list[Any]:
    """Those for its types."""
    return [
        kernel
        for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel
        if kernel.device_type in ('GPU', 'DEFAULT')
        and all(operation.node_def.attr[one.name].type in one.allowed_values.list.type for one in kernel.constraint)
    ]


def copied_to_the_host(operation: tf.Operation, kernel: Any) -> list[str]:
    """Its arguments that the kernel reads or writes on the host, but for constants, which are there already."""
    constants = {
        argument.name
        for argument, tensor in zip(operation.op_def.input_arg, operation.inputs, strict=True)
        if tensor.op.type == 'Const'
    }
    return [name for name in kernel.host_memory_arg if name not in constants]


def check(operations: Iterable[tf.Operation]) -> None:
    """Fails unless all run on a GPU and nothing is copied to the host."""
    for one in operations:
        if one.type == 'Const':
            continue
        types = [tensor.dtype.name for tensor in one.inputs]
        on_gpu = of(one)
        assert on_gpu, f'{one.type} of {types} has no GPU kernel'
        assert [] in [copied_to_the_host(one, kernel) for kernel in on_gpu], f'{one.type} of {types}'
