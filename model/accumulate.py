"""The train step: one call is one effective batch, taken in micro batches, with one update at its end.

Why the loop is inside: one all-reduce an update whatever the number of micro batches, no gradient left over between
calls, and everything that counts steps (the optimizer, schedules, callbacks) counts updates. Keras' own
`gradient_accumulation_steps` fails under MirroredStrategy (keras issue 20582).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from model import devices
from model.inputs import SINGLE, Inputs
from pipeline import augment
from pipeline.augment import Augmentation


class AccumulatingModel(keras.Model):
    """Trains a classifier on effective batches larger than the device can take at once.

    The loss is the mean softmax cross entropy over the effective batch, on however many replicas.
    """

    def __init__(
        self,
        classifier: keras.Model,
        *,
        micro_batch: int,
        inputs: Inputs = SINGLE,
        augmentation: Augmentation = augment.NONE,
        label_smoothing: float = 0,
        xla: bool = False,
    ) -> None:
        """Wraps a classifier.

        Args:
            classifier: what Inputs.prepare() gives -> logits float32 [n, classes].
            micro_batch: rows (pictures or products) that a replica takes at a time.
            inputs: what the classifier sees of a row.
            augmentation: how training pictures vary.
            label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
            xla: whether XLA compiles forward and backward of a micro batch. It compiles anew for each size of one.
        """
        super().__init__()
        self.classifier = classifier
        self.micro_batch = micro_batch
        self.inputs_of_row = inputs
        self.augmentation = augmentation
        self.label_smoothing = label_smoothing
        self.xla = xla
        self.image_size = classifier.inputs[0].shape[1]
        self.built = True  # the classifier is; there is nothing more to build

    @property
    def whole(self) -> keras.Model:
        """What a run keeps as its model."""
        return self.classifier

    def compile(self, optimizer: keras.Optimizer) -> None:
        """Sets the optimizer of the variables that are trainable now.

        Under mixed_float16 it is wrapped in Keras' loss scaling.
        """
        if self.classifier.compute_dtype == 'float16':
            # 2 to the 15 is Keras' scale for the mean of a micro batch; ours is a sum.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**15 / self.micro_batch)
        inner = getattr(optimizer, 'inner_optimizer', optimizer)
        # Gradients come to it summed over the replicas: see train_step.
        inner._all_reduce_sum_gradients = list
        super().compile(optimizer=optimizer, jit_compile=False)
        optimizer.build(self.trainable_variables)

    def call(self, prepared: Any, training: bool = False) -> Any:
        """Logits of what prepare() gives."""
        return self.classifier(prepared, training=training)

    def prepare(self, images: Any, *more: Any, augmentation: Augmentation | None) -> Any:
        """The classifier's inputs, of the columns that pipeline.dataset gives.

        Args:
            images: uint8 [n, side, side, 3], or [n, pictures, side, side, 3].
            more: mask bool [n, pictures], if a row is a product; then draws float32 [n, augment.DRAWS] or
                [n, pictures, augment.DRAWS], with `augmentation`.
            augmentation: how the pictures vary; None: not at all.
        """
        mask, *draws = more if self.inputs_of_row.pictures else (None, *more)
        return self.inputs_of_row.prepare(
            images, mask, *(draws or [None]), augmentation=augmentation, size=self.image_size
        )

    def train_step(self, data: Any, leave: Any = 0.0) -> dict[str, Any]:
        """One update from this replica's part of an effective batch, of any size.

        All that the replicas must share goes through one all-reduce of one vector: gradients, the sums behind the
        results, the moving statistics of batch normalisation (Keras 3 leaves each replica its own, and saves the first
        one's, which has seen only its part of the data), and whether a machine wants to leave. So gradients are summed
        before the optimizer sees them, and Keras' loss scaling, which looks at one replica's only, is right on all.

        Args:
            data: columns of pipeline.dataset.train: images uint8 [n, side, side, 3], draws float32 [n, augment.DRAWS],
                labels int64 [n], or those of products; n may differ between replicas and need not be a multiple of the
                micro batch.
            leave: 1 if this machine was asked to end.

        Returns:
            float32 [] each, the same on all replicas: loss and accuracy (means over the effective batch, before the
            update; smoothed, without regularisation), gradient_norm, and leaving: how many replicas were asked to end.
        """
        loss, hits, gradients = self._summed_over_micro_batches(data)
        count = tf.cast(tf.shape(data[0])[0], tf.float32)
        statistics = self._moving_statistics()
        leave = tf.cast(leave, tf.float32)
        gradients, means, (count, loss, hits, leaving) = _summed_over_replicas(
            [gradients, [tf.convert_to_tensor(one.value) for one in statistics], [count, loss, hits, leave]]
        )
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        for variable, total in zip(statistics, means, strict=True):
            variable.assign(total / replicas)
        # Dividing by the pictures of all replicas, not of this one, makes the update that of the mean loss over the
        # effective batch however it is divided.
        gradients = [gradient / count + penalty for gradient, penalty in zip(gradients, self._penalties(), strict=True)]
        self.optimizer.apply(gradients, self.trainable_variables)
        norm = tf.linalg.global_norm(gradients) / self.optimizer.scale_loss(1.0)
        return {'loss': loss / count, 'accuracy': hits / count, 'gradient_norm': norm, 'leaving': leaving}

    def logits(self, images: Any, *more: Any, augmentation: Augmentation | None = None) -> Any:
        """Logits of decoded pictures, as in evaluation; arguments as for prepare().

        Returns:
            float32 [n, classes].
        """
        return self.classifier(self.prepare(images, *more, augmentation=augmentation), training=False)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build. For it Keras' fit would add up the replicas' pictures, of equal number or not."""

    def _summed_over_micro_batches(self, columns: Any) -> Any:
        """Sums, over the rows, of loss, hits and gradients; the tape lives for one micro batch at a time."""
        variables = [variable.value for variable in self.trainable_variables]
        size = tf.shape(columns[0])[0]

        # A function of its own for each replica: the variables that it captures are this replica's.
        @tf.function(jit_compile=True if self.xla else None, autograph=False)
        def sums_of(*columns: Any) -> Any:
            *given, labels = columns
            prepared = self.prepare(*given, augmentation=self.augmentation)
            with tf.GradientTape() as tape:
                logits = self.classifier(prepared, training=True)
                loss = tf.reduce_sum(_losses(labels, logits, smoothing=self.label_smoothing))
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return loss, tf.reduce_sum(_hits(labels, logits)), gradients

        def add_one(start: Any, loss: Any, hits: Any, sums: Any) -> Any:
            """Adds a micro batch, the last of which may be smaller."""
            part = slice(start, start + self.micro_batch)
            part_loss, part_hits, gradients = sums_of(*(column[part] for column in columns))
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
            return start + self.micro_batch, loss + part_loss, hits + part_hits, sums

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        # TensorFlow would begin the next micro batch while one is at work: with the memory of both, and in any order.
        _, loss, hits, sums = tf.while_loop(
            lambda start, *_: start < size, add_one, [0, 0.0, 0.0, zeros], parallel_iterations=1
        )
        return loss, hits, sums

    def _moving_statistics(self) -> list[Any]:
        """Mean and variance of every batch normalisation that learns now."""
        return [
            variable
            for layer in self.classifier.layers
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]

    def _penalties(self) -> list[Any]:
        """Gradients of the regularisation of weights: once an update, whatever the number of parts."""
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            penalty = tf.add_n([0.0, *(one.regularizer(one) for one in variables if one.regularizer)])
            penalty = self.optimizer.scale_loss(penalty)
        found = tape.gradient(penalty, [variable.value for variable in variables])
        return [0.0 if one is None else one for one in found]


def _summed_over_replicas(groups: list[list[Any]]) -> list[list[Any]]:
    """Sums groups of tensors over all replicas by a single all-reduce, of one vector."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return groups
    tensors = [tensor for group in groups for tensor in group]
    vector = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)
    parts = iter(tf.split(total, [tensor.shape.num_elements() for tensor in tensors]))
    return [[tf.reshape(next(parts), tensor.shape) for tensor in group] for group in groups]


def part_dropout(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Has every replica draw dropout masks of its own; Keras starts all of them from the same seed.

    The first replica's state stays as it is, so doing it twice on one machine changes nothing.
    """
    worker, _ = devices.place(strategy)
    for variable in seed_states(model):
        parts = strategy.experimental_local_results(variable.value)
        for replica, part in enumerate(parts, start=worker * len(parts)):
            part.assign(parts[0] + tf.constant([replica, 0], parts[0].dtype))


def seed_states(model: keras.Model) -> list[Any]:
    """What dropout draws its next mask from: variables [2] that Keras leaves out of a weights file."""
    return [variable for variable in model.variables if variable.path.endswith('/seed_generator_state')]


def _losses(labels: Any, logits: Any, *, smoothing: float = 0) -> Any:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:  # the cross entropy with the even distribution is that of the mean logit
        losses += smoothing * (tf.gather(logits, labels, axis=1, batch_dims=1) - tf.reduce_mean(logits, axis=1))
    return losses


def _hits(labels: Any, logits: Any) -> Any:
    return tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32)
