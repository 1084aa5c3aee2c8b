"""Trains a classifier on shards, then writes its logits: `python -m model.train --flagfile=noaug.flags`

noaug.flags and aug.flags are the paper's two configurations, demo.flags a small Xception for two CPU cores. Flags after
the flagfile override it. The same command goes on with an interrupted run from its last artificial epoch, and leaves a
finished one as it is.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import itertools
import os
import random
import time
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from model import backbone as backbones
from model import callbacks, checkpoint, classifier, devices, inference, runs, stages
from model.accumulate import AccumulatingModel, AverageBatchNormalization, part_dropout
from model.backbone import Backbone
from model.stages import Schedule, Segment
from pipeline import dataset, split, storage
from pipeline.augment import Augmentation
from pipeline.dataset import Shards
from pipeline.errors import InputError

FLAGS = program.flag_values()
# Data and run
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
RUN_DIR = flags.DEFINE_string('run_dir', 'runs/default', "The run's folder.", flag_values=FLAGS)
PREDICT = flags.DEFINE_list(
    'predict', ['val', 'test'], 'Splits whose logits are written after training.', flag_values=FLAGS
)
SEED = flags.DEFINE_integer('seed', 0, 'Of first weights, order, augmentation and dropout.', flag_values=FLAGS)
SHUFFLE_IMAGES = flags.DEFINE_integer(
    'shuffle_images', dataset.SHUFFLE_IMAGES,
    'Encoded pictures among which the order is random: 5 kB of memory each, 300 MB by default, on every machine.',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
# Model
BACKBONE = flags.DEFINE_string(
    'backbone', 'xception', f'The network: {", ".join(backbones.names())}.', flag_values=FLAGS
)
WIDTH = flags.DEFINE_float(
    'width', 1, 'Times the published filters; other than 1 only xception and xception_small.', lower_bound=0.01,
    flag_values=FLAGS,
)  # fmt: skip
WEIGHTS = flags.DEFINE_string(
    'weights', 'imagenet', 'What it starts from: imagenet (downloaded), none (random), or a .keras, .weights.h5 or .h5 '
    'file of this network, with or without its dense layer.', flag_values=FLAGS,
)  # fmt: skip
IMAGE_SIZE = flags.DEFINE_integer('image_size', 180, 'Pixels a side.', lower_bound=32, flag_values=FLAGS)
DROPOUT = flags.DEFINE_float(
    'dropout', 0, 'Share of features left out before the dense layer (paper, aug: 0.2).', 0, 0.99, flag_values=FLAGS
)
# Augmentation
CROP_PROBABILITY = flags.DEFINE_float(
    'crop_probability', 0, 'Share of pictures upscaled and cropped at random (aug: 0.75).', 0, 1, flag_values=FLAGS
)
CROP_UPSCALE = flags.DEFINE_integer(
    'crop_upscale', 200, 'Pixels a side before the crop back to 180.', lower_bound=180, flag_values=FLAGS
)
FLIP_PROBABILITY = flags.DEFINE_float(
    'flip_probability', 0, 'Share of pictures mirrored (aug: 0.5).', 0, 1, flag_values=FLAGS
)
# Training
MICRO_BATCH = flags.DEFINE_integer(
    'micro_batch', 64, 'Pictures that a device takes at a time (paper: 64).', lower_bound=1, flag_values=FLAGS
)
ACCUMULATE = flags.DEFINE_integer(
    'accumulate', 12, 'Micro batches summed before an update (paper: 12).', lower_bound=1, flag_values=FLAGS
)
EPOCHS = flags.DEFINE_float('epochs', 10, 'Passes over the training data.', lower_bound=0.0001, flag_values=FLAGS)
EPOCH_IMAGES = flags.DEFINE_integer(
    'epoch_images', 2_000_000, 'Pictures in an artificial epoch: how often it validates and saves (paper: 2 million).',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
VAL_IMAGES = flags.DEFINE_integer(
    'val_images', 50_000, 'Pictures of the validation set looked at after an artificial epoch (paper: 50,000).',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
LEARNING_RATE = flags.DEFINE_float(
    'learning_rate', 5e-3, "Adam's step at the start (paper: 5e-3).", lower_bound=0, flag_values=FLAGS
)
DECAY_AT = flags.DEFINE_list(
    'decay_at', [], 'Passes after which the learning rate decays, such as 4,6,8.', flag_values=FLAGS
)
DECAY_FACTOR = flags.DEFINE_float('decay_factor', 0.3, 'What it is multiplied by then.', 0.0001, 1, flag_values=FLAGS)
UNFREEZE = flags.DEFINE_string(
    'unfreeze', 'all@0', 'Which layers learn from which pass on: block10@0,all@2.9 is block10, what follows it and the '
    'dense layer at first, and all layers after 2.9 passes; head@0 is the dense layer alone.',
    flag_values=FLAGS,
)  # fmt: skip
# Devices
PRECISION = flags.DEFINE_enum(
    'precision', 'float32', devices.PRECISIONS, 'What layers compute in; weights stay float32.', flag_values=FLAGS
)
STRATEGY = flags.DEFINE_enum(
    'strategy', 'auto', devices.STRATEGIES,
    'one device; mirrored: all GPUs of this machine (or its logical CPUs); auto: mirrored if there are several GPUs; '
    'multiworker: all GPUs of the machines that TF_CONFIG lists (or a CPU of each). Start the same command on each, '
    'with folders that all of them reach. Each reads shards of its own, all of them once a pass. The first writes the '
    'run, without checkpoints: an interrupted run begins anew. It predicts alone, on one device.',
    flag_values=FLAGS,
)  # fmt: skip

# Where the run and its shards lie, and what is predicted after it, do not change what it is.
NOT_SETTINGS = ('help', 'run_dir', 'shards_dir', 'predict')


def main(argv: list[str]) -> None:
    """Trains, or goes on training, then predicts."""
    program.parse(FLAGS, argv, doc=__doc__)
    started = time.monotonic()
    shards = dataset.open_shards(SHARDS_DIR.value)
    _check_flags(shards)
    runs.check_folder(RUN_DIR.value)
    devices.set_precision(PRECISION.value)
    strategy = devices.strategy(STRATEGY.value)
    worker, workers = devices.place(strategy)
    _stream(shards, strategy, start_step=0)  # refuses too few shards before a run is made
    with strategy.scope(), contextlib.nullcontext() if worker == 0 else contextlib.redirect_stdout(None):
        random.seed(SEED.value)  # Keras draws the seeds of first weights and dropout from here
        backbone = backbones.build(BACKBONE.value, image_size=IMAGE_SIZE.value, width=WIDTH.value)
        schedule = _schedule(shards, backbone, replicas=strategy.num_replicas_in_sync)
        runs.check_settings(RUN_DIR.value, _settings(shards, strategy))
        if runs.is_finished(RUN_DIR.value):
            print(f'{RUN_DIR.value}: training is finished already; give another --run_dir to train again')
        else:
            _train(shards, backbone, schedule, strategy)
    if worker:
        print(f'worker {worker} of {workers} is done; the first one predicts')
        return
    # The other machines don't predict, and the strategy of all would wait for them.
    strategy = strategy if workers == 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = _wrap(runs.load_model(RUN_DIR.value))
        batch_size = MICRO_BATCH.value * strategy.num_replicas_in_sync
        for name in PREDICT.value:
            inference.predict_split(
                model, shards, name, run_dir=RUN_DIR.value, tta=1, seed=SEED.value, batch_size=batch_size
            )
    runs.point_latest(RUN_DIR.value)
    print(f'wrote {RUN_DIR.value} ({runs.MODEL_NAME}, history.csv, logits) in {time.monotonic() - started:.0f} s')
    print('next: python -m ensemble.combine --rule product')


def _check_flags(shards: Shards) -> None:
    for name in PREDICT.value:
        if name not in split.SPLITS:
            raise InputError(f'--predict={name}: the splits are {", ".join(split.SPLITS)}')
    if not shards.manifest.images('train'):
        raise InputError(f'{SHARDS_DIR.value}: holds no training pictures')


def _settings(shards: Shards, strategy: tf.distribute.Strategy) -> dict[str, object]:
    """What makes the run what it is: it goes on only under the same."""
    settings = {name: FLAGS[name].value for name in FLAGS if name not in NOT_SETTINGS}
    replicas = strategy.num_replicas_in_sync  # the effective batch hangs on it
    _, workers = devices.place(strategy)  # the order hangs on it
    return {**settings, 'replicas': replicas, 'workers': workers, 'dataset_digest': shards.manifest.digest()}


def _schedule(shards: Shards, backbone: Backbone, *, replicas: int) -> Schedule:
    steps_per_pass = shards.manifest.images('train') / _effective_batch(replicas)
    return Schedule(
        steps_per_pass=steps_per_pass,
        epoch_steps=max(1, round(EPOCH_IMAGES.value / _effective_batch(replicas))),
        total_steps=max(1, round(EPOCHS.value * steps_per_pass)),
        stages=stages.parse_stages(UNFREEZE.value, backbone.blocks),
        learning_rate=LEARNING_RATE.value,
        decay_at=stages.parse_points(DECAY_AT.value, flag='--decay_at'),
        decay_factor=DECAY_FACTOR.value,
    )


def _effective_batch(replicas: int) -> int:
    return MICRO_BATCH.value * ACCUMULATE.value * replicas


def _wrap(model: keras.Model) -> AccumulatingModel:
    augmentation = Augmentation(CROP_PROBABILITY.value, CROP_UPSCALE.value, FLIP_PROBABILITY.value)
    return AccumulatingModel(model, micro_batch=MICRO_BATCH.value, augmentation=augmentation)


def _stream(shards: Shards, strategy: tf.distribute.Strategy, *, start_step: int) -> Any:
    """The training batches from an update on, one for each replica; none is divided or copied."""

    def of_machine(context: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = context.num_replicas_in_sync // context.num_input_pipelines  # each takes a batch of it an update
        return dataset.train(
            shards,
            seed=SEED.value,
            batch_size=_effective_batch(1),
            start_step=start_step * replicas,
            shuffle_images=SHUFFLE_IMAGES.value,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
        )

    return strategy.distribute_datasets_from_function(of_machine)


def _train(shards: Shards, backbone: Backbone, schedule: Schedule, strategy: tf.distribute.Strategy) -> None:
    """Trains from the start or the last checkpoint to the end of the schedule, and writes the finished model."""
    worker, workers = devices.place(strategy)
    model = _wrap(classifier.build(backbone, classes=len(shards.label_map), dropout=DROPOUT.value))
    folder = storage.join(RUN_DIR.value, 'checkpoints')
    state = checkpoint.read_state(folder)
    if state is None:
        print(classifier.load_weights(model.classifier, backbone, WEIGHTS.value))
        if worker == 0:
            runs.write_settings(RUN_DIR.value, _settings(shards, strategy))
        state = checkpoint.State(step=0, stage=-1, epoch=0)
    else:
        _begin_stage(model, backbone, schedule, state.stage)
        checkpoint.restore(model, folder)
        print(f'going on from update {state.step:,} of {schedule.total_steps:,}')
    part_dropout(model, strategy)
    _print_plan(shards, schedule, model, replicas=strategy.num_replicas_in_sync)
    segments = schedule.segments()
    validation = dataset.evaluation(
        shards, 'val', batch_size=MICRO_BATCH.value * strategy.num_replicas_in_sync, limit=VAL_IMAGES.value
    )
    calls = _callbacks(schedule, segments, strategy, folder)
    remaining = enumerate(segments[state.epoch :], start=state.epoch)
    stage = state.stage
    # One call of fit for all artificial epochs that are alike: each call begins a new stream of batches.
    for _, group in itertools.groupby(remaining, key=lambda item: (item[1].stage, item[1].steps)):
        alike = list(group)
        epoch, first = alike[0]
        if first.stage != stage:
            stage = first.stage
            _begin_stage(model, backbone, schedule, stage)
        calls[0].step = first.start
        model.fit(
            _stream(shards, strategy, start_step=first.start),
            initial_epoch=epoch,
            epochs=epoch + len(alike),
            steps_per_epoch=first.steps,
            validation_data=validation if shards.manifest.images('val') else None,
            callbacks=calls,
            shuffle=False,  # the stream is shuffled
            verbose=0 if worker else 1 if os.isatty(1) else 2,
        )
    if worker == 0:
        runs.save_model(model.classifier, RUN_DIR.value)


def _callbacks(
    schedule: Schedule, segments: list[Segment], strategy: tf.distribute.Strategy, folder: str
) -> list[keras.callbacks.Callback]:
    worker, workers = devices.place(strategy)
    calls = [callbacks.LearningRate(schedule), AverageBatchNormalization(strategy)]
    if worker == 0:
        calls += [
            callbacks.HistoryFile(RUN_DIR.value, schedule, segments),
            keras.callbacks.TensorBoard(
                storage.join(RUN_DIR.value, 'tensorboard'), write_graph=False, update_freq='epoch'
            ),
        ]
    if workers == 1:
        calls.append(callbacks.SaveCheckpoint(folder, segments))
    return calls


def _begin_stage(model: AccumulatingModel, backbone: Backbone, schedule: Schedule, number: int) -> None:
    """Frees the stage's layers and gives them a fresh optimizer."""
    first_block = schedule.stages[number].first_block
    learning = stages.set_trainable(model.classifier, first_block, backbone.blocks)
    print(f'stage {number + 1} of {len(schedule.stages)}: {first_block}, {learning} layers learn')
    model.compile(keras.optimizers.Adam(schedule.learning_rate))


def _print_plan(shards: Shards, schedule: Schedule, model: AccumulatingModel, *, replicas: int) -> None:
    images, batch = shards.manifest.images('train'), _effective_batch(replicas)
    print(f'{BACKBONE.value}: {model.classifier.count_params():,} parameters, {len(shards.label_map):,} categories')
    print(f'{images:,} pictures a pass, {batch:,} an update on {replicas} device(s), {schedule.total_steps:,} updates')


if __name__ == '__main__':
    program.run(main)
