"""The accumulated step is the step of one big batch, however the batch is divided."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from model import devices
from model.accumulate import AccumulatingModel, AverageBatchNormalization, part_dropout, seed_states
from pipeline import augment

SIDE = 4
CLASSES = 3


def linear_classifier() -> keras.Model:
    """Mean colour -> logits, all weights 0."""
    image = keras.Input([SIDE, SIDE, 3])
    pooled = layers.GlobalAveragePooling2D()(image)
    return keras.Model(image, layers.Dense(CLASSES, kernel_initializer='zeros')(pooled))


def small_classifier(*, batch_normalization: bool = False, dropout: float = 0) -> keras.Model:
    image = keras.Input([SIDE, SIDE, 3])
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(5, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))(x)
    if batch_normalization:
        x = layers.BatchNormalization()(x)
    x = layers.Flatten()(layers.Activation('relu')(x))
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(image, layers.Dense(CLASSES, kernel_initializer=keras.initializers.GlorotUniform(seed=2))(x))


def batch(size: int, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, [size, SIDE, SIDE, 3], np.uint8),
        np.full([size, augment.DRAWS], augment.PLAIN, np.float32),
        rng.integers(0, CLASSES, size),
    )


def batches(sizes: list[int]) -> tf.data.Dataset:
    """Batches of these sizes."""
    columns = [np.concatenate(column) for column in zip(*(batch(s, seed=i) for i, s in enumerate(sizes)), strict=True)]
    ends = np.cumsum(sizes)
    starts = tf.data.Dataset.from_tensor_slices((ends - sizes, ends))
    return starts.map(lambda start, end: tuple(tf.constant(column)[start:end] for column in columns))


def train(sizes: list[int], *, replicas: int, micro_batch: int, optimizer, classifier=small_classifier):
    strategy = devices.strategy('mirrored' if replicas == 2 else 'one')
    with strategy.scope():
        model = AccumulatingModel(classifier(), micro_batch=micro_batch)
        model.compile(optimizer())
    data = batches(sizes).apply(tf.data.experimental.assert_cardinality(len(sizes)))
    history = model.fit(data, callbacks=[AverageBatchNormalization(strategy)], verbose=0, shuffle=False)
    return model, history.history


@pytest.mark.parametrize(
    ('replicas', 'labels', 'bias'),
    [
        # Zero weights give each class 1/3. The gradient of the bias is 1/3 less the share of the class; SGD with rate
        # 1 takes it off once. Micro batches are of 2 pictures.
        (1, [0, 0, 0, 1, 1, 2], [3 / 6 - 1 / 3, 2 / 6 - 1 / 3, 1 / 6 - 1 / 3]),
        (2, [0, 0, 0, 1, 1, 2], [3 / 6 - 1 / 3, 2 / 6 - 1 / 3, 1 / 6 - 1 / 3]),
        (2, [2, 2, 2, 2], [-1 / 3, -1 / 3, 2 / 3]),
        (1, [0, 1, 2, 0, 1, 2, 1], [2 / 7 - 1 / 3, 3 / 7 - 1 / 3, 2 / 7 - 1 / 3]),
        (1, [1], [-1 / 3, 2 / 3, -1 / 3]),
    ],
)
def test_one_step_gives_the_closed_form(replicas, labels, bias):
    size = len(labels)
    images = np.zeros([size, SIDE, SIDE, 3], np.uint8)
    draws = np.full([size, augment.DRAWS], augment.PLAIN, np.float32)
    data = tf.data.Dataset.from_tensor_slices((images, draws, np.array(labels, np.int64))).batch(size)
    with devices.strategy('mirrored' if replicas == 2 else 'one').scope():
        model = AccumulatingModel(linear_classifier(), micro_batch=2)
        model.compile(keras.optimizers.SGD(1.0))
        history = model.fit(data, verbose=0, shuffle=False).history
    np.testing.assert_allclose(model.classifier.get_weights()[1], bias, atol=1e-7)
    np.testing.assert_allclose(history['loss'], [np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(history['accuracy'], [labels.count(0) / size], rtol=1e-6)  # ties go to class 0


@pytest.mark.parametrize(
    ('sizes', 'micro_batch', 'replicas'),
    [
        # five updates; sizes of the effective batches, pictures a replica takes at a time, replicas
        ([24] * 5, 24, 1),
        ([24] * 5, 6, 1),
        ([24] * 5, 7, 1),  # a last micro batch of 3
        ([24] * 5, 6, 2),
        ([24, 24, 24, 24, 21], 4, 2),  # replicas of 11 and 10
        ([24, 23, 25, 1, 2], 5, 1),
        ([24, 23, 25, 3, 2], 5, 2),
    ],
)
def test_accumulating_equals_one_big_batch(sizes, micro_batch, replicas):
    model, _ = train(sizes, replicas=replicas, micro_batch=micro_batch, optimizer=lambda: keras.optimizers.Adam(0.01))
    for got, expected in zip(model.classifier.get_weights(), big_batch_weights(sizes), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert int(model.optimizer.iterations.numpy()) == 5, 'an update counts once, however many micro batches it has'


def big_batch_weights(sizes: list[int]) -> list[np.ndarray]:
    """What plain TensorFlow makes of the same batches: the mean loss of the whole batch, on one device."""
    model, optimizer = small_classifier(), keras.optimizers.Adam(0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for images, _, labels in batches(sizes):
        with tf.GradientTape() as tape:
            value = loss(labels, model(tf.cast(images, tf.float32), training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(value, model.trainable_variables), model.trainable_variables, strict=True)
        )
    return model.get_weights()


def test_loss_and_accuracy_are_means_over_all_pictures_of_all_replicas():
    sizes = [10, 7]
    _, history = train(sizes, replicas=2, micro_batch=3, optimizer=lambda: keras.optimizers.SGD(0.0))
    losses, hits = [], []
    model = small_classifier()
    for images, _, labels in batches(sizes):
        logits = model(tf.cast(images, tf.float32))
        losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        hits.append(tf.argmax(logits, 1) == labels)
    np.testing.assert_allclose(history['loss'], [np.mean(np.concatenate(losses))], rtol=1e-5)
    np.testing.assert_allclose(history['accuracy'], [np.mean(np.concatenate(hits))], rtol=1e-5)


def test_evaluation_leaves_out_pictures_of_weight_0():
    images, _, labels = batch(6)
    weights = np.array([1, 1, 1, 1, 0, 0], np.float32)
    model = AccumulatingModel(small_classifier(), micro_batch=2)
    model.compile(keras.optimizers.SGD())
    data = tf.data.Dataset.from_tensors((images, labels, weights))
    found = model.evaluate(data, verbose=0, return_dict=True)
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[:4], model.classifier(images[:4].astype('f')))
    np.testing.assert_allclose(found['loss'], np.mean(expected), rtol=1e-5)


def test_replicas_share_the_mean_of_their_moving_statistics_after_an_epoch():
    """Each replica has seen other pictures; the mean is that of what they had before."""
    before: list[list[np.ndarray]] = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            before.append([parts(variable) for variable in moving_statistics(self.model)])

    strategy = devices.strategy('mirrored')
    with strategy.scope():
        model = AccumulatingModel(small_classifier(batch_normalization=True, dropout=0.5), micro_batch=2)
        model.compile(keras.optimizers.Adam())
    data = batches([8] * 4).apply(tf.data.experimental.assert_cardinality(4))
    model.fit(data, callbacks=[Record(), AverageBatchNormalization(strategy)], verbose=0, shuffle=False)
    for variable, (first, second) in zip(moving_statistics(model), before[-1], strict=True):
        assert np.abs(first - second).max() > 1e-4, 'replicas differed'
        np.testing.assert_allclose(parts(variable), [(first + second) / 2] * 2, rtol=1e-6)


def moving_statistics(model: keras.Model) -> list:
    return [variable for variable in model.non_trainable_variables if '/moving_' in variable.path]


def parts(variable) -> np.ndarray:
    """A variable's value on each replica."""
    return np.stack([part.numpy() for part in variable.value.values])


def test_replicas_draw_dropout_masks_of_their_own():
    strategy = devices.strategy('mirrored')
    with strategy.scope():
        model = AccumulatingModel(small_classifier(dropout=0.5), micro_batch=2)
        for _ in range(2):
            part_dropout(model, strategy)
    (state,) = seed_states(model)
    first, second = parts(state)
    np.testing.assert_array_equal(second, first + [1, 0])
    masks = strategy.run(lambda: model.classifier.layers[-2](tf.ones([1, 64]), training=True))
    one, other = (value.numpy() for value in masks.values)
    assert (one != other).any()


def test_micro_batches_are_augmented_by_their_own_draws():
    """Where every picture is mirrored, the update is that of the mirrored pictures."""
    images, draws, labels = batch(6)
    draws = np.zeros_like(draws)

    def weights(images, augmentation):
        model = AccumulatingModel(small_classifier(), micro_batch=4, augmentation=augmentation)
        model.compile(keras.optimizers.SGD(1.0))
        model.fit(tf.data.Dataset.from_tensors((images, draws, labels)), verbose=0, shuffle=False)
        return model.get_weights()

    always = augment.Augmentation(crop_probability=0, flip_probability=1)
    for got, expected in zip(weights(images, always), weights(images[:, :, ::-1], augment.NONE), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
