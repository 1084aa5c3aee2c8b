"""The accumulated step is the step of one big batch, however the batch is divided."""

import functools
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from model import accumulate, devices
from model.accumulate import AccumulatingModel, part_dropout, seed_states
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
    # A bias before batch normalisation has no gradient but rounding, of which Adam makes full steps.
    convolution = layers.Conv2D(
        5, 3, use_bias=not batch_normalization, kernel_initializer=keras.initializers.GlorotUniform(seed=1)
    )
    x = convolution(x)
    if batch_normalization:
        x = layers.BatchNormalization()(x)
    x = layers.Flatten()(layers.Activation('relu')(x))
    if dropout:
        x = layers.Dropout(dropout)(x)
    head = layers.Dense(CLASSES, dtype='float32', kernel_initializer=keras.initializers.GlorotUniform(seed=2))
    return keras.Model(image, head(x))


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
    history = model.fit(data, verbose=0, shuffle=False)
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


@pytest.mark.parametrize('replicas', [1, 2])
def test_loss_and_accuracy_are_means_over_all_pictures_of_all_replicas(replicas):
    _, history = train([17], replicas=replicas, micro_batch=3, optimizer=lambda: keras.optimizers.SGD(0.0))
    ((images, _, labels),) = batches([17])
    logits = small_classifier()(tf.cast(images, tf.float32))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    np.testing.assert_allclose(history['loss'], [np.mean(losses)], rtol=1e-5)
    np.testing.assert_allclose(history['accuracy'], [np.mean(tf.argmax(logits, 1) == labels)], rtol=1e-5)


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize(('batch_normalization', 'dropout'), [(True, 0), (False, 0.5), (True, 0.5)])
def test_batch_normalization_and_dropout_are_those_of_micro_batches_of_each_replica(
    replicas, batch_normalization, dropout
):
    """Five updates equal those of a plain loop that knows the rules, on one device.

    Batch normalisation takes mean and variance of one micro batch, so it can't equal that of one big batch. Each
    replica has moving statistics of its own within an update; after it all have their mean. Dropout draws each micro
    batch's mask from the replica's own seed, so it can't equal that of another number of replicas.
    """
    classifier = functools.partial(small_classifier, batch_normalization=batch_normalization, dropout=dropout)
    sizes = [24, 24, 21, 24, 3]
    strategy = devices.strategy('mirrored' if replicas == 2 else 'one')
    with strategy.scope():
        random.seed(3)
        model = AccumulatingModel(classifier(), micro_batch=5)
        part_dropout(model, strategy)
        model.compile(keras.optimizers.Adam())
    data = batches(sizes).apply(tf.data.experimental.assert_cardinality(5))
    model.fit(data, verbose=0, shuffle=False)
    random.seed(3)
    expected = plain_loop(classifier(), sizes, micro_batch=5, replicas=replicas)
    for got, value in zip(model.classifier.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, value, atol=1e-6)


def plain_loop(classifier: keras.Model, sizes: list[int], *, micro_batch: int, replicas: int) -> list[np.ndarray]:
    """Weights after an update a batch, each replica's part in turn, from its own moving statistics and seeds."""
    optimizer = keras.optimizers.Adam()
    own = [v for v in classifier.non_trainable_variables if 'seed' in v.path or 'moving' in v.path]
    states = [[v.numpy() + ([replica, 0] if 'seed' in v.path else 0) for v in own] for replica in range(replicas)]
    for images, _, labels in batches(sizes):
        # What Keras' fit gives each replica: the first gets the larger part.
        ends = [(len(labels) + replicas - 1) // replicas * replica for replica in range(replicas)] + [len(labels)]
        total = [tf.zeros(v.shape) for v in classifier.trainable_variables]
        for replica in range(replicas):
            for variable, value in zip(own, states[replica], strict=True):
                variable.assign(value)
            for start in range(ends[replica], ends[replica + 1], micro_batch):
                part = slice(start, min(start + micro_batch, ends[replica + 1]))
                with tf.GradientTape() as tape:
                    logits = classifier(tf.cast(images[part], tf.float32), training=True)
                    loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[part], logits))
                gradients = tape.gradient(loss, [v.value for v in classifier.trainable_variables])
                total = [one + other for one, other in zip(total, gradients, strict=True)]
            states[replica] = [v.numpy() for v in own]
        optimizer.apply([one / len(labels) for one in total], classifier.trainable_variables)
        for number, variable in enumerate(own):
            if 'moving' in variable.path:
                mean = np.mean([state[number] for state in states], axis=0)
                for state in states:
                    state[number] = mean
    for variable, value in zip(own, states[0], strict=True):
        variable.assign(value)
    return classifier.get_weights()


def test_one_big_batch_is_normalised_otherwise():
    """What can't be equal: batch normalisation of 24 pictures at once, and of 6 at a time."""
    classifier = functools.partial(small_classifier, batch_normalization=True)
    one, other = (
        train([24], replicas=1, micro_batch=size, optimizer=keras.optimizers.SGD, classifier=classifier)[0]
        for size in (24, 6)
    )
    assert max(np.abs(a - b).max() for a, b in zip(one.get_weights(), other.get_weights(), strict=True)) > 1e-4


def test_frozen_batch_normalization_is_left_alone():
    def classifier():
        made = small_classifier(batch_normalization=True)
        made.layers[3].trainable = False
        return made

    model, _ = train([8] * 2, replicas=2, micro_batch=2, optimizer=keras.optimizers.Adam, classifier=classifier)
    assert isinstance(model.classifier.layers[3], layers.BatchNormalization)
    for value, expected in zip(model.classifier.layers[3].get_weights(), (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(value, np.full(5, expected))


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize(('replicas', 'expected'), [(1, 0), (2, 2)])
def test_an_update_has_one_all_reduce(replicas, expected, xla):
    """One op of it in each replica's part of the graph, whatever the number of micro batches."""
    strategy = devices.strategy('mirrored' if replicas == 2 else 'one')
    with strategy.scope():
        model = AccumulatingModel(small_classifier(batch_normalization=True, dropout=0.5), micro_batch=2, xla=xla)
        model.compile(keras.optimizers.Adam())
    parts = distributed(strategy, [batch(8), batch(8)])
    graph = tf.function(lambda data: strategy.run(model.train_step, args=(data,))).get_concrete_function(parts).graph
    functions = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, 'graph'))]
    names = [op.type for one in functions for op in one.get_operations()]
    assert sum('CollectiveReduce' in name or 'AllReduce' in name for name in names) == expected
    assert 'While' in ' '.join(names), 'the micro batches are a loop in the same graph'


def distributed(strategy: tf.distribute.Strategy, parts: list):
    """A batch whose parts are the replicas'."""
    if strategy.num_replicas_in_sync == 1:
        return tuple(tf.constant(column) for column in parts[0])
    columns = [tuple(tf.constant(column) for column in part) for part in parts]
    return strategy.experimental_distribute_values_from_function(lambda c: columns[c.replica_id_in_sync_group])


@pytest.mark.parametrize('replicas', [1, 2])
def test_xla_makes_the_same_updates(replicas):
    """With batch normalisation and augmentation, in micro batches of two sizes; XLA draws dropout masks otherwise."""
    sizes = [12, 11, 12]
    strategy = devices.strategy('mirrored' if replicas == 2 else 'one')
    found = []
    for xla in (False, True):
        with strategy.scope():
            augmentation = augment.Augmentation(crop_probability=0.5, flip_probability=0.5)
            model = AccumulatingModel(
                small_classifier(batch_normalization=True),
                micro_batch=4,
                augmentation=augmentation,
                xla=xla,
            )
            model.compile(keras.optimizers.Adam(0.01))
        model.fit(batches(sizes), verbose=0, shuffle=False)
        found.append(model.classifier.get_weights())
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize('replicas', [1, 2])
def test_schedules_and_callbacks_count_updates(replicas):
    """Three micro batches an update; the rate of Keras' own schedule falls after the second update."""
    ends = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ends.append((batch, int(self.model.optimizer.iterations.numpy())))

    with devices.strategy('mirrored' if replicas == 2 else 'one').scope():
        model = AccumulatingModel(linear_classifier(), micro_batch=2)
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.0])
        model.compile(keras.optimizers.SGD(schedule))
    weights = []
    for number in range(5):
        model.fit(batches([6 * replicas]), verbose=0, shuffle=False, callbacks=[Count()])
        weights.append(model.classifier.get_weights()[0])
        assert ends[-1] == (0, number + 1)
    moved = [bool((one != other).any()) for one, other in zip(weights, weights[1:], strict=False)]
    assert moved == [True, True, False, False]  # updates 2 and 3 at rate 1, 4 and 5 at rate 0


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize('sizes', [[12] * 3, [12, 11, 7]])
def test_regularisation_counts_once_an_update(replicas, sizes):
    def classifier():
        image = keras.Input([SIDE, SIDE, 3])
        dense = layers.Dense(
            CLASSES,
            kernel_regularizer=keras.regularizers.L2(0.3),
            kernel_initializer=keras.initializers.GlorotUniform(1),
        )
        return keras.Model(image, dense(layers.Flatten()(layers.Rescaling(1 / 255)(image))))

    model, _ = train(
        sizes, replicas=replicas, micro_batch=4, optimizer=lambda: keras.optimizers.SGD(0.1), classifier=classifier
    )
    expected, optimizer = classifier(), keras.optimizers.SGD(0.1)
    for images, _, labels in batches(sizes):
        with tf.GradientTape() as tape:
            logits = expected(tf.cast(images, tf.float32))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)) + sum(expected.losses)
        gradients = tape.gradient(loss, [variable.value for variable in expected.trainable_variables])
        optimizer.apply(gradients, expected.trainable_variables)
    for got, value in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(got, value, atol=1e-6)


def test_label_smoothing_is_that_of_keras():
    labels, logits = np.array([0, 2, 1]), np.random.default_rng(0).normal(size=[3, CLASSES]).astype(np.float32)
    for smoothing in (0, 0.1, 0.5):
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction='none')
        found = accumulate._losses(labels, tf.constant(logits), smoothing=smoothing)
        np.testing.assert_allclose(found, loss(np.eye(CLASSES)[labels], logits), rtol=1e-5)


@pytest.fixture
def precision():
    """Sets a precision for one test."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy('float32')


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize(('name', 'tolerance'), [('mixed_bfloat16', 0.02), ('mixed_float16', 0.004)])
def test_half_precision_trains_nearly_as_float32(precision, replicas, name, tolerance):
    """By the first update's gradient, which plain SGD shows as it is."""
    classifier = functools.partial(small_classifier, batch_normalization=True)

    def change():
        model, _ = train(
            [24], replicas=replicas, micro_batch=6, optimizer=lambda: keras.optimizers.SGD(1.0), classifier=classifier
        )
        assert all(variable.dtype == 'float32' for variable in model.trainable_variables)
        return [w - b for w, b in zip(model.get_weights(), classifier().get_weights(), strict=True)]

    expected = change()
    precision(name)
    for got, value in zip(change(), expected, strict=True):
        np.testing.assert_allclose(got, value, atol=tolerance * max(1, np.abs(value).max()))


@pytest.mark.parametrize('xla', [False, True])
@pytest.mark.parametrize('name', ['float32', 'mixed_bfloat16', 'mixed_float16'])
def test_replicas_keep_equal_weights_in_every_precision(precision, name, xla):
    """Dropout, batch normalisation and augmentation together."""
    precision(name)
    strategy = devices.strategy('mirrored')
    with strategy.scope():
        model = AccumulatingModel(
            small_classifier(batch_normalization=True, dropout=0.5),
            micro_batch=3,
            augmentation=augment.Augmentation(crop_probability=0.5, flip_probability=0.5),
            xla=xla,
        )
        part_dropout(model, strategy)
        model.compile(keras.optimizers.Adam(0.01))
    before = model.classifier.get_weights()
    model.fit(batches([12, 11, 12]), verbose=0, shuffle=False)
    assert int(model.optimizer.iterations.numpy()) > 0
    for variable, value in zip(model.classifier.weights, before, strict=True):
        first, second = parts(variable)
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()
        assert (first != value).any()


@pytest.mark.parametrize('spoilt', [0, 1])
def test_an_overflow_on_one_replica_leaves_out_the_update_on_all(precision, monkeypatch, spoilt):
    """Keras' loss scaling alone would look at the first replica only, and spoil all weights."""
    precision('mixed_float16')
    losses = accumulate._losses
    monkeypatch.setattr(
        accumulate,
        '_losses',
        lambda labels, logits, **o: losses(labels, logits, **o) * tf.where(labels == 2, np.inf, 1.0),
    )
    strategy = devices.strategy('mirrored')
    with strategy.scope():
        model = AccumulatingModel(small_classifier(), micro_batch=2)
        model.compile(keras.optimizers.Adam(0.01))
    before, scale = model.classifier.get_weights(), float(model.optimizer.dynamic_scale.numpy())
    assert scale == 2**14
    step = tf.function(lambda data: strategy.run(model.train_step, args=(data,)))
    labels = [np.where(np.arange(4) == 3, 2 if replica == spoilt else 0, 1) for replica in range(2)]
    step(distributed(strategy, [(*batch(4)[:2], one) for one in labels]))
    assert float(model.optimizer.dynamic_scale.numpy()) == scale / 2
    assert int(model.optimizer.iterations.numpy()) == 0
    for variable, value in zip(model.classifier.weights, before, strict=True):
        np.testing.assert_array_equal(parts(variable), [value, value])
    step(distributed(strategy, [(*batch(4)[:2], np.zeros(4, np.int64))] * 2))
    assert int(model.optimizer.iterations.numpy()) == 1
    assert all(np.isfinite(parts(variable)).all() for variable in model.classifier.weights)


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
