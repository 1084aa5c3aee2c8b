"""How much memory training takes of a device, told before it starts; what can't fit is refused then.

memory = needed(model, micro_batch=64, accumulate=12, replicas=strategy.num_replicas_in_sync)
check(memory, of_device(strategy), micro_batch=64, accumulate=12)
print(describe(memory, of_device(strategy)))
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from model import devices
from model.inputs import SINGLE, Inputs
from pipeline.errors import InputError

ADAM_SLOTS = 2  # means of the gradient and of its square
BATCHES_IN_FLIGHT = 2  # one is taken while the next is brought
# Float32 pictures that augment.upscale_crop_flip holds at a time, of the larger of the two sides: at 180 and 299 pixels
# a side its peak grew by 6.2 and 6.4 of them a picture.
AUGMENTATION_PICTURES = 6
# What a gradient reads of these is a shape: they run at once, and what they are given needn't be kept for them.
SHAPE_OPS = ('Shape', 'ShapeN', 'Size', 'Rank')
# Other names for the memory of what they are given.
ALIAS_OPS = ('Identity', 'Reshape', 'Squeeze', 'ExpandDims', 'StopGradient')


@dataclass(frozen=True)
class Memory:
    """What one replica's device holds while it trains, in bytes.

    Attributes:
        weights: all variables of the classifier.
        optimizer: Adam's two slots of each variable that learns.
        gradients: their sums over the micro batches.
        activations: what the forward pass of a micro batch keeps for the backward pass.
        working: what a micro batch needs besides at its peak: the augmentation, or a layer's input and output.
        copies: of the gradients: a micro batch's own, and among replicas what a packed all-reduce takes and gives.
        batch: the decoded pictures, the batch at work and the next one.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    working: int
    copies: int
    batch: int

    @property
    def least(self) -> int:
        """What is there all at once at the end of a forward pass."""
        return self.weights + self.optimizer + self.gradients + self.activations

    @property
    def total(self) -> int:
        """All of it; not all parts have their peak at the same time."""
        return self.least + self.working + self.copies + self.batch


def needed(
    classifier: keras.Model,
    *,
    micro_batch: int,
    accumulate: int,
    inputs: Inputs = SINGLE,
    input_side: int = 180,
    replicas: int = 1,
) -> Memory:
    """What training the layers that are trainable now takes of each device; ask anew for each stage.

    Activations are the tensors that the gradients' graph takes from the forward pass: it is traced (one to three
    seconds for Xception), not run. To add up the layers' outputs would be simpler, but they tell half precision wrong,
    by a third: batch normalisation keeps its input in float32 there.

    Held to the growth of a training step's peak memory on a CPU (tensorflow 2.17, 180 pixels a side, MB a picture
    of the micro batch, between micro batches of 8, 16 and 32): measured, activations, activations + working

        xception_small                       68-80   64   72
        xception_small, bfloat16 (2 to 8)    49-50   43   47
        xception                             84-91   83   91
        xception, from block 10 on           15-17   14   16
        xception_small, head (8 to 64)       10-20    0    8

    Where blocks learn, activations were 0.80 to 0.99 of what was measured, and with working 0.90 to 1.08; the head
    alone takes little, and more than this says. The rest was 5.4 times the weights in a stack of 20 dense layers;
    weights, optimizer, gradients and copies are 5. Where one layer has most of the weights it is more (7.5 to 8.5 in a
    stack of two): the update's own intermediate values aren't counted. Nor is what can't be measured without a GPU:
    cuDNN's workspaces, what XLA fuses away or computes again, and the gaps between allocations. Nor are the casts of
    weights to half precision.

    Args:
        classifier: what Inputs.prepare() gives -> logits.
        micro_batch: pictures that a replica takes at a time; products, where they are the rows. All that the classifier
            keeps of a product is counted as often as it sees pictures of it, which is too much for its dense layers.
        accumulate: micro batches that a replica takes for an update.
        inputs: what the classifier sees of a row.
        input_side: pixels a side of the decoded pictures.
        replicas: of all machines.
    """
    learning = _bytes(classifier.trainable_variables)
    kept = _kept_a_picture(classifier)
    pictures = micro_batch * inputs.pictures_a_row
    side = max(input_side, classifier.inputs[0].shape[1])
    augmentation = AUGMENTATION_PICTURES * side * side * 3 * tf.float32.size
    peak = max(augmentation, _largest_layer(classifier, learns=False), kept + _largest_layer(classifier, learns=True))
    return Memory(
        weights=_bytes(classifier.variables),
        optimizer=ADAM_SLOTS * learning,
        gradients=learning,
        activations=pictures * kept,
        working=pictures * (peak - kept),
        copies=learning * (3 if replicas > 1 else 1),
        batch=BATCHES_IN_FLIGHT * micro_batch * accumulate * max(1, inputs.pictures) * input_side * input_side * 3,
    )


def of_device(strategy: tf.distribute.Strategy) -> int | None:
    """Bytes that each replica on this machine may use; None where that isn't known.

    That is TensorFlow's limit for the smallest GPU, or where there are no GPUs an equal part of the memory that is
    available now, within the container's limit.
    """
    if tf.config.list_logical_devices('GPU'):
        return _tensorflow_limit('GPU')
    available = _available('/proc/meminfo')
    limits = [_number(f'/sys/fs/cgroup/{name}') for name in ('memory.max', 'memory/memory.limit_in_bytes')]
    known = [amount for amount in (available, *limits) if amount is not None]
    _, machines = devices.place(strategy)
    return min(known) // (strategy.num_replicas_in_sync // machines) if known else None


def check(memory: Memory, device_bytes: int | None, *, micro_batch: int, accumulate: int, xla: bool = False) -> None:
    """Refuses what certainly can't fit.

    Args:
        memory: what needed() says of the same two numbers.
        device_bytes: what of_device() says; None is taken to be enough.
        micro_batch: pictures that a replica takes at a time.
        accumulate: micro batches that a replica takes for an update.
        xla: whether XLA compiles a micro batch. It may leave out what it can compute again (ReLU, casts and so on),
            so only half of the activations are taken for certain.

    Raises:
        InputError: the device has less than memory.least.
    """
    certain = dataclasses.replace(memory, activations=memory.activations // 2) if xla else memory
    if device_bytes is None or certain.least <= device_bytes:
        return
    batch = micro_batch * accumulate
    smaller = [size for size in range(micro_batch - 1, 0, -1) if batch % size == 0]

    def fitting(size: int, most: int, parts: int) -> bool:
        """Whether `most` bytes fit when `parts` of them shrink with the micro batch to this size."""
        return most - parts * (micro_batch - size) // micro_batch <= device_bytes

    likely = [size for size in smaller if fitting(size, memory.total, memory.activations + memory.working)]
    possible = [size for size in smaller if fitting(size, certain.least, certain.activations)]
    if likely or possible:
        size = (likely or possible)[0]
        remedy = f'--micro_batch={size} --accumulate={batch // size} takes as many pictures an update'
    else:
        remedy = 'not even one picture at a time fits: take a smaller --backbone, --width or --image_size'
    raise InputError(
        f'--micro_batch={micro_batch}: needs at least {_readable(certain.least)} of a device, which has '
        f'{_readable(device_bytes)}; {remedy}'
    )


def describe(memory: Memory, device_bytes: int | None) -> str:
    """The line of the plan: the total, its parts, and what there is."""
    names = ('weights', 'optimizer', 'gradients', 'activations', 'working', 'copies', 'batch')
    parts = ', '.join(f'{name} {_readable(getattr(memory, name))}' for name in names)
    there = '' if device_bytes is None else f' of {_readable(device_bytes)}'
    return f'memory a device: {_readable(memory.total)}{there} ({parts})'


def _kept_a_picture(classifier: keras.Model) -> int:
    """Bytes a picture that the forward pass keeps for the gradients of what is trainable."""
    local = tf.distribute.get_strategy().experimental_local_results
    variables = [local(variable.value)[0] for variable in classifier.trainable_variables]
    forward: set[str] = set()

    def gradients(*given: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = classifier(given if len(given) > 1 else given[0], training=True)
        forward.update(operation.name for operation in tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(logits, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    given = [tf.TensorSpec([None, *one.shape[1:]], tf.float32) for one in classifier.inputs]
    kept, seen = {}, set()
    waiting = [output.op for output in tf.function(gradients, autograph=False).get_concrete_function(*given).outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name in seen or operation.type in SHAPE_OPS:
            continue
        seen.add(operation.name)
        for tensor in operation.inputs:
            if tensor.op.name in forward:
                tensor = _aliased(tensor)
                kept[tensor.name] = tensor
            else:
                waiting.append(tensor.op)
    return sum(_bytes_a_picture(tensor.shape, tensor.dtype.size) for tensor in kept.values())


def _aliased(tensor: Any) -> Any:
    """The tensor whose memory it is."""
    while tensor.op.type in ALIAS_OPS:
        tensor = tensor.op.inputs[0]
    return tensor


def _largest_layer(classifier: keras.Model, *, learns: bool) -> int:
    """Bytes a picture of the input and output of the layer where they are largest, among those that learn or don't."""
    return max(
        (
            sum(
                _bytes_a_picture(tensor.shape, tf.as_dtype(tensor.dtype).size)
                for tensor in keras.tree.flatten([layer.input, layer.output])
            )
            for layer in classifier.layers
            if layer.trainable == learns
        ),
        default=0,
    )


def _bytes_a_picture(shape: Any, size: int) -> int:
    """Of a tensor [n, ...] with `size` bytes an element; 0 for what doesn't grow with n, such as weights."""
    if shape is None or not len(shape) or shape[0] is not None or None in tuple(shape)[1:]:
        return 0
    return math.prod(tuple(shape)[1:]) * size


def _bytes(variables: Any) -> int:
    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)


def _tensorflow_limit(kind: str) -> int | None:
    """What TensorFlow may use of the smallest device of this kind.

    A session is the one public way to ask. On GPUs it shares the allocators of the devices that there are.
    """
    try:
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            found = [device.memory_limit_bytes for device in session.list_devices() if device.device_type == kind]
    except tf.errors.OpError:
        return None
    return min(found, default=0) or None


def _available(path: str) -> int | None:
    try:
        with open(path, encoding='ascii') as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith('MemAvailable:'))
    except (OSError, StopIteration):
        return None  # not on Linux
    return int(kilobytes) * 1024


def _number(path: str) -> int | None:
    try:
        with open(path, encoding='ascii') as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # `max` is no limit


def _readable(count: int) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
