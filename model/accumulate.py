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
from pipeline import augment
from pipeline.augment import Augmentation


class AccumulatingModel(keras.Model):
    """Trains a classifier on effective batches larger than the device can take at once.

    Batches are what pipeline.dataset makes: (images, draws, labels) to train, (images, labels, weights) to evaluate.
    It has its loss (softmax cross entropy) and its metrics.
    """

    def __init__(self, classifier: keras.Model, *, micro_batch: int, augmentation: Augmentation = augment.NONE) -> None:
        """Wraps a classifier.

        Args:
            classifier: float32 [n, size, size, 3], 0..255 -> logits float32 [n, classes].
            micro_batch: pictures that a replica takes at a time.
            augmentation: how training pictures vary.
        """
        super().__init__()
        self.classifier = classifier
        self.micro_batch = micro_batch
        self.augmentation = augmentation
        self.image_size = classifier.input_shape[1]
        self.loss_metric = keras.metrics.Mean(name='loss')
        self.accuracy_metric = keras.metrics.Mean(name='accuracy')
        self.built = True  # the classifier is; there is nothing more to build

    @property
    def metrics(self) -> list[keras.Metric]:
        """Mean loss and accuracy over the pictures since the last reset."""
        return [self.loss_metric, self.accuracy_metric]

    def compile(self, optimizer: keras.Optimizer) -> None:
        """Sets the optimizer of the variables that are trainable now.

        XLA is off: it would need every micro batch to have the same size.
        """
        super().compile(optimizer=optimizer, jit_compile=False)
        optimizer.build(self.trainable_variables)

    def call(self, images: Any, training: bool = False) -> Any:
        """Logits of prepared pictures."""
        return self.classifier(images, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update from this replica's part of an effective batch, of any size.

        Args:
            data: images uint8 [n, side, side, 3], draws float32 [n, augment.DRAWS], labels int64 [n]; n may differ
                between replicas and need not be a multiple of the micro batch.
        """
        loss, hits, gradients = self._summed_over_micro_batches(*data)
        count = tf.cast(tf.shape(data[0])[0], tf.float32)
        # The optimizer sums the replicas' gradients. Dividing by the pictures of all replicas, not of this one, makes
        # the update that of the mean loss over the effective batch however it is divided.
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, count)
        self.optimizer.apply([gradient / total for gradient in gradients], self.trainable_variables)
        return self._update_metrics(loss, hits, count)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Loss and accuracy of plain pictures; those of weight 0 don't count."""
        images, labels, weights = data
        logits = self.logits(images)
        losses = weights * _losses(labels, logits)
        hits = weights * _hits(labels, logits)
        return self._update_metrics(tf.reduce_sum(losses), tf.reduce_sum(hits), tf.reduce_sum(weights))

    def logits(self, images: Any, draws: Any = None, *, augmentation: Augmentation | None = None) -> Any:
        """Logits of decoded pictures, as in evaluation.

        Args:
            images: uint8 [n, side, side, 3].
            draws: float32 [n, augment.DRAWS], with `augmentation`; without them the pictures are taken as they are.
            augmentation: how the pictures vary.

        Returns:
            float32 [n, classes].
        """
        if augmentation is None:
            prepared = augment.resize(images, size=self.image_size)
        else:
            prepared = augment.upscale_crop_flip(images, draws, augmentation=augmentation, size=self.image_size)
        return self.classifier(prepared, training=False)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Nothing is left to build. Keras would begin the stream once more for it, at every fit and evaluation.

        Among several machines that even fails: it takes the mean of the replicas' pictures.
        """

    def _summed_over_micro_batches(self, images: Any, draws: Any, labels: Any) -> Any:
        """Sums, over the pictures, of loss, hits and gradients; the tape lives for one micro batch at a time."""
        variables = [variable.value for variable in self.trainable_variables]
        size = tf.shape(images)[0]

        def one(start: Any, loss: Any, hits: Any, sums: Any) -> Any:
            """Adds a micro batch, the last of which may be smaller."""
            part = slice(start, start + self.micro_batch)
            prepared = augment.upscale_crop_flip(
                images[part], draws[part], augmentation=self.augmentation, size=self.image_size
            )
            with tf.GradientTape() as tape:
                logits = self.classifier(prepared, training=True)
                part_loss = tf.reduce_sum(_losses(labels[part], logits))
            gradients = tape.gradient(part_loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
            return start + self.micro_batch, loss + part_loss, hits + tf.reduce_sum(_hits(labels[part], logits)), sums

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
        _, loss, hits, sums = tf.while_loop(lambda start, *_: start < size, one, [0, 0.0, 0.0, zeros])
        return loss, hits, sums

    def _update_metrics(self, loss: Any, hits: Any, count: Any) -> dict[str, Any]:
        self.loss_metric.update_state(tf.math.divide_no_nan(loss, count), sample_weight=count)
        self.accuracy_metric.update_state(tf.math.divide_no_nan(hits, count), sample_weight=count)
        _, machines = devices.place(tf.distribute.get_strategy())
        # Among several machines Keras takes the mean of these over their first dimension, which numbers don't have.
        shape = [] if machines == 1 else [1]
        return {metric.name: tf.reshape(metric.result(), shape) for metric in self.metrics}


class AverageBatchNormalization(keras.callbacks.Callback):
    """Gives every replica the mean of the replicas' moving statistics, before each evaluation and epoch's end.

    Keras 3 leaves each replica its own and saves the first one's, which has seen only its part of the data.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Averages."""
        self._average()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Averages."""
        self._average()

    def _average(self) -> None:
        if self.strategy.num_replicas_in_sync == 1:
            return
        with self.strategy.scope():
            for variable in self.model.non_trainable_variables:
                if variable.path.endswith(('/moving_mean', '/moving_variance')):
                    variable.value.assign(self._mean(self.strategy.experimental_local_results(variable.value)))

    def _mean(self, parts: Any) -> Any:
        # strategy.reduce takes a mirrored variable for equal on all replicas, and gives the first's: it gets values.
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.identity(parts[context.replica_id_in_sync_group % len(parts)])
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None)


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


def _losses(labels: Any, logits: Any) -> Any:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _hits(labels: Any, logits: Any) -> Any:
    return tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32)
