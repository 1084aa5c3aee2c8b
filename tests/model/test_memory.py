"""What training takes of a device, before it starts."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

from model import backbone, classifier, devices, memory, stages
from model.memory import Memory
from pipeline.errors import InputError

# 100 bytes that don't depend on the micro batch, 60 of them certain; 8 pictures with 10 certain bytes each, and 2 more.
PLAIN = Memory(weights=20, optimizer=30, gradients=10, activations=80, working=16, copies=10, batch=30)


def network(*, dtype: str = 'float32', normalised: bool = False) -> keras.Model:
    image = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, use_bias=False, dtype=dtype, name='conv')(image)
    if normalised:
        x = layers.BatchNormalization(dtype=dtype)(x)
    x = layers.Activation('relu', dtype=dtype)(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, layers.Dense(5, dtype=dtype)(x))


def needed(model: keras.Model, **changes) -> Memory:
    return memory.needed(model, **{'micro_batch': 1, 'accumulate': 1, 'input_side': 8, **changes})


def test_a_small_network_takes_what_arithmetic_says():
    """108 weights of the convolution, 25 of the dense layer; it keeps the picture, the ReLU's output and the means."""
    kept = 4 * (8 * 8 * 3 + 6 * 6 * 4 + 4)
    assert needed(network(), micro_batch=5, accumulate=3) == Memory(
        weights=4 * 133,
        optimizer=4 * 133 * 2,
        gradients=4 * 133,
        activations=5 * kept,
        working=5 * (6 * 4 * 8 * 8 * 3 - kept),  # the augmentation, whose peak is higher than the network's
        copies=4 * 133,
        batch=2 * 15 * 8 * 8 * 3,
    )


def test_layers_that_are_frozen_keep_nothing():
    model = network()
    model.get_layer('conv').trainable = False
    found = needed(model)
    assert found.activations == 4 * 4
    assert (found.weights, found.optimizer, found.gradients) == (4 * 133, 4 * 25 * 2, 4 * 25)


@pytest.mark.parametrize(
    ('normalised', 'dtype', 'kept'),
    [
        (False, 'float32', 4 * (192 + 144 + 4)),
        (False, 'mixed_bfloat16', 2 * (192 + 144 + 4)),
        (True, 'float32', 4 * (192 + 144 + 144 + 4)),
        (True, 'mixed_bfloat16', 2 * (192 + 144 + 4) + 4 * 144),
    ],
)
def test_half_precision_halves_activations_but_for_what_batch_normalisation_keeps(normalised, dtype, kept):
    assert needed(network(normalised=normalised, dtype=dtype)).activations == kept


def test_a_tensor_under_two_names_counts_once():
    image = keras.Input([8, 8, 3])
    flat = layers.Flatten()(layers.Activation('relu')(layers.Conv2D(4, 3)(image)))
    assert needed(keras.Model(image, layers.Dense(5)(flat))).activations == 4 * (8 * 8 * 3 + 6 * 6 * 4)


def test_more_replicas_add_what_their_all_reduce_takes_and_gives():
    one, two = needed(network(), replicas=1), needed(network(), replicas=2)
    assert two == replace(one, copies=3 * one.copies)


def test_mirrored_variables_are_told_like_others_and_left_as_they_are():
    strategy = devices.strategy('mirrored')
    plain = needed(network(normalised=True))
    with strategy.scope():
        model = network(normalised=True)
        before = model.get_weights()
        assert needed(model) == plain
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_earlier_blocks_wider_layers_and_larger_pictures_take_more():
    def activations(first_block: str = 'all', width: float = 0.1, image_size: int = 64) -> int:
        network = backbone.build('xception_small', image_size=image_size, width=width)
        model = classifier.build(network, classes=3, options=classifier.Options(dropout=0.2))
        stages.set_trainable(model, first_block, network.blocks)
        return needed(model).activations

    by_stage = [activations(first_block) for first_block in ('head', 'block7', 'block2', 'all')]
    assert by_stage == sorted(set(by_stage))
    assert activations(width=0.2) > by_stage[-1]
    assert activations(image_size=96) > by_stage[-1]


def test_what_certainly_fits_or_is_unknown_is_not_refused():
    assert PLAIN.least == 60 + 80
    assert PLAIN.total == 100 + 96
    for device_bytes in (None, 140, 141):
        memory.check(PLAIN, device_bytes, micro_batch=8, accumulate=3)


@pytest.mark.parametrize(
    ('device_bytes', 'micro_batch', 'accumulate'),
    [
        # 100 + 12 bytes a picture fit with the largest divisor of 24 below 8; if none does, 60 + 10 a picture.
        (139, 3, 8),
        (136, 3, 8),
        (135, 2, 12),
        (124, 2, 12),
        (123, 1, 24),
        (112, 1, 24),
        (111, 4, 6),
        (100, 4, 6),
        (99, 3, 8),
        (70, 1, 24),
    ],
)
def test_what_cannot_fit_is_refused_with_a_micro_batch_that_does(device_bytes, micro_batch, accumulate):
    remedy = f'--micro_batch={micro_batch} --accumulate={accumulate} takes as many pictures an update'
    with pytest.raises(InputError, match=f'; {remedy}$'):
        memory.check(PLAIN, device_bytes, micro_batch=8, accumulate=3)


def test_where_no_picture_fits_a_smaller_network_is_the_remedy():
    for size in (8, 1):
        with pytest.raises(InputError, match='not even one picture .* smaller --backbone, --width or --image_size$'):
            memory.check(replace(PLAIN, activations=10 * size), 69, micro_batch=size, accumulate=3)


def test_the_refusal_and_the_plan_are_one_line():
    large = Memory(*(int(value * 1e9) for value in (0.13, 0.26, 0.13, 40.68, 3, 0.13, 0.15)))
    expected = (
        '--micro_batch=4096: needs at least 41.2 GB of a device, which has 16.0 GB; '
        '--micro_batch=1024 --accumulate=4 takes as many pictures an update'
    )
    with pytest.raises(InputError, match=f'^{re.escape(expected)}$'):
        memory.check(large, 16_000_000_000, micro_batch=4096, accumulate=1)
    parts = (
        '(weights 130 MB, optimizer 260 MB, gradients 130 MB, activations 40.7 GB, working 3.0 GB, copies 130 MB, '
        'batch 150 MB)'
    )
    assert memory.describe(large, 16_000_000_000) == f'memory a device: 44.5 GB of 16.0 GB {parts}'
    assert memory.describe(large, None) == f'memory a device: 44.5 GB {parts}'


def test_half_of_the_activations_are_certain_where_xla_may_compute_them_again():
    assert PLAIN.activations == 80
    memory.check(PLAIN, 100, micro_batch=8, accumulate=3, xla=True)
    with pytest.raises(InputError, match='needs at least 0 MB'):
        memory.check(PLAIN, 99, micro_batch=8, accumulate=3, xla=True)


@pytest.mark.parametrize(
    ('available', 'limit', 'one', 'two'),
    [(1001, None, 1001, 500), (1001, 800, 800, 400), (None, 800, 800, 400), (None, None, None, None)],
)
def test_replicas_on_a_cpu_share_what_the_machine_or_the_container_has(monkeypatch, available, limit, one, two):
    monkeypatch.setattr(memory, '_available', lambda path: available)
    monkeypatch.setattr(memory, '_number', lambda path: limit)
    assert memory.of_device(devices.strategy('one')) == one
    assert memory.of_device(devices.strategy('mirrored')) == two


def test_what_the_system_says_is_read(tmp_path):
    (tmp_path / 'meminfo').write_text('MemTotal:  9 kB\nMemAvailable:   3 kB\n')
    (tmp_path / 'limit').write_text('4096\n')
    (tmp_path / 'none').write_text('max\n')
    assert memory._available(f'{tmp_path}/meminfo') == 3 * 1024
    assert memory._available(f'{tmp_path}/limit') is memory._available(f'{tmp_path}/missing') is None
    assert memory._number(f'{tmp_path}/limit') == 4096
    assert memory._number(f'{tmp_path}/none') is memory._number(f'{tmp_path}/missing') is None


def test_tensorflow_says_the_limit_of_a_device():
    assert (memory._tensorflow_limit('CPU') or 0) > 0
    assert memory._tensorflow_limit('no such kind') is None


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak from /proc')
def test_the_peak_of_a_training_step_grows_as_told():
    """Within a third of all that is told; between one size and the next it varies by a tenth.

    In a process of its own, whose memory nothing else has used.
    """
    code = """
        from pipeline import program
        import keras
        import tensorflow as tf
        from model import backbone, classifier, memory
        from model.accumulate import AccumulatingModel

        def peak(pictures):
            images = tf.zeros([pictures, 180, 180, 3], tf.uint8)
            for _ in range(2):
                step(images, tf.zeros([pictures, 4]), tf.zeros([pictures], tf.int64))
            with open('/proc/self/status') as file:
                return next(int(line.split()[1]) for line in file if line.startswith('VmHWM:')) * 1024

        network = backbone.build('xception_small', image_size=180, width=1)
        model = AccumulatingModel(classifier.build(network, classes=10), micro_batch=100)
        model.compile(keras.optimizers.Adam())
        step = tf.function(lambda *data: model.train_step(data), reduce_retracing=True)
        peak(2)
        peak(3)
        small, large = peak(4), peak(12)
        told = memory.needed(model.classifier, micro_batch=8, accumulate=1)
        print((large - small) / told.activations, (large - small) / (told.activations + told.working))
    """
    # Of the allocator: memory that is given back is the system's again at once.
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    certain, told = (float(number) for number in done.stdout.split())
    assert 0.9 < certain < 1.5
    assert 0.8 < told < 1.3
