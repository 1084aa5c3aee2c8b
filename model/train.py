"""Trains a classifier on shards, then writes its logits: `python -m model.train --flagfile=noaug.flags`

Shards are the files that pipeline.convert writes; logits are what the network says of a picture, a number for each
category, and what ensemble.combine makes the submission of. noaug.flags and aug.flags are the paper's two
configurations, demo.flags a small Xception for two CPU cores. Flags after the flagfile override it. SIGTERM and Ctrl-C
save a checkpoint before they end it. The same command goes on with an interrupted run from its last checkpoint, and
leaves a finished one as it is.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import gc
import io
import random
import time
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from model import backbone as backbones
from model import (
    checkpoint,
    classifier,
    devices,
    inference,
    inputs,
    join,
    loop,
    memory,
    run_end,
    runs,
    sizes,
    stages,
    title,
)  # fmt: skip
from model.accumulate import AccumulatingModel, part_dropout
from model.backbone import Backbone
from model.evaluation import Evaluator
from model.inputs import Inputs
from model.stages import Schedule
from pipeline import categories, dataset, split, storage, worklog
from pipeline.augment import Augmentation
from pipeline.dataset import Shards
from pipeline.errors import InputError, UsageError

FLAGS = program.flag_values()
program.group(FLAGS, 'Data and run')
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
RUN_DIR = flags.DEFINE_string(
    'run_dir', 'runs/default', 'Folder for all that the run writes: model, history, logits. A new run needs a new one.',
    flag_values=FLAGS,
)  # fmt: skip
PREDICT = flags.DEFINE_list(
    'predict', ['val', 'test'], 'Splits whose logits are written after training: some of train, val and test.',
    flag_values=FLAGS,
)  # fmt: skip
SEED = flags.DEFINE_integer(
    'seed', 0, 'Decides first weights, order of the pictures, augmentation and dropout.', flag_values=FLAGS
)
program.group(FLAGS, 'Schedule')
EPOCHS = flags.DEFINE_float(
    'epochs', 10, 'How long it trains, in passes over the training pictures.', lower_bound=0.0001, flag_values=FLAGS
)
LEARNING_RATE = flags.DEFINE_float(
    'learning_rate', 5e-3, "Adam's step at the start (paper: 0.005).", lower_bound=0, flag_values=FLAGS
)
DECAY_AT = flags.DEFINE_list(
    'decay_at', [], 'Passes after which the learning rate decays, such as 4,6,8.', flag_values=FLAGS
)
DECAY_FACTOR = flags.DEFINE_float(
    'decay_factor', 0.3, 'What the learning rate is multiplied by then.', 0.0001, 1, flag_values=FLAGS
)
UNFREEZE = flags.DEFINE_string(
    'unfreeze', 'all@0', 'Which layers learn from which pass on: block10@0,all@2.9 is block10, what follows it and the '
    'dense layer at first, and all layers after 2.9 passes; head@0 is all that is not the backbone.',
    flag_values=FLAGS,
)  # fmt: skip
MICRO_BATCH = flags.DEFINE_integer(
    'micro_batch', 64, 'Pictures, or products, that a device takes at a time; fewer need less memory (paper: 64).',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
ACCUMULATE = flags.DEFINE_integer(
    'accumulate', 12, 'Micro batches of each device whose gradients are summed for one update of the weights (paper: '
    '12).', lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Model')
BACKBONE = flags.DEFINE_string(
    'backbone', 'xception', f'The network: {", ".join(backbones.names())}.', flag_values=FLAGS
)
WEIGHTS = flags.DEFINE_string(
    'weights', 'imagenet', 'What it starts from: imagenet (downloaded), none (random), the folder of a finished run, '
    'or a .keras, .weights.h5 or .h5 file of this network, with or without its dense layer. It may be a run of single '
    'pictures, or with fewer features.', flag_values=FLAGS,
)  # fmt: skip
IMAGE_SIZE = flags.DEFINE_integer(
    'image_size', 180, 'Pixels a side to which pictures are resized for the network; fewer are quicker.',
    lower_bound=32, flag_values=FLAGS,
)  # fmt: skip
WIDTH = flags.DEFINE_float(
    'width', 1, "How many times the published network's filters the layers have, from random weights; not for those "
    "of keras.applications. Those of the title's own branch have so many, too.", lower_bound=0.01, flag_values=FLAGS,
)  # fmt: skip
DROPOUT = flags.DEFINE_float(
    'dropout', 0, 'Share of features left out at random before the dense layer (paper, aug: 0.2).', 0, 0.99,
    flag_values=FLAGS,
)  # fmt: skip
FEATURES = flags.DEFINE_integer(
    'features', 0, "How many features the network shall end in: more than its own, by more filters in its last "
    'convolution, which leave what --weights has learned as it is. 0: its own. 4096 doubles those of xception.',
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
HEAD_UNITS = flags.DEFINE_integer(
    'head_units', 0, 'Units of a dense layer between the features and the one that gives the logits; 0: there is none.',
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
HEAD_ACTIVATION = flags.DEFINE_enum(
    'head_activation', 'relu', classifier.ACTIVATIONS, 'Activation of that layer.', flag_values=FLAGS
)
HEAD_DROPOUT = flags.DEFINE_float(
    'head_dropout', 0, "Share of that layer's outputs left out at random.", 0, 0.99, flag_values=FLAGS
)
LABEL_SMOOTHING = flags.DEFINE_float(
    'label_smoothing', 0, 'Share of the target spread evenly over all categories; 0.1 gained another team 0.2 points.',
    0, 0.99, flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Whole products, and their titles')
PICTURES = flags.DEFINE_integer(
    'pictures', 0, '0: learns single pictures. 1 to 4: learns products by so many of their pictures together, which go '
    'through one network; only products with exactly so many are learned and predicted. Best begun with '
    "--weights=FOLDER of a run of single pictures. ensemble.combine joins four such runs' logits by +.",
    lower_bound=0, upper_bound=dataset.PICTURES, flag_values=FLAGS,
)  # fmt: skip
FEWER_PICTURES = flags.DEFINE_bool(
    'fewer_pictures', False, 'With --pictures=4: learn and predict all products, those with fewer pictures too.',
    flag_values=FLAGS,
)  # fmt: skip
JOIN = flags.DEFINE_enum(
    'join', 'gated', join.KINDS, 'With --pictures, how their features become one: concat (one after the other), mean, '
    'max, or gated (the mean by weights that are learned).', flag_values=FLAGS,
)  # fmt: skip
TITLE = flags.DEFINE_enum(
    'title', 'off', inputs.TITLES, 'Whether a crop of where the title of a book or record may stand is a second input: '
    'top (the upper third), text (the band that looks most like text).', flag_values=FLAGS,
)  # fmt: skip
TITLE_WEIGHTS = flags.DEFINE_enum(
    'title_weights', 'own', inputs.TITLE_WEIGHTS, 'Whether the crop goes through a small network of its own, or '
    'through the same as the pictures, which doubles the work.', flag_values=FLAGS,
)  # fmt: skip
TITLE_LEVELS = flags.DEFINE_list(
    'title_levels', [], 'Names of level 1 in category_names.csv, such as LIVRES,MUSIQUE: the title counts for the '
    'categories under them alone; the others get a learned constant. Empty: for all.', flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Augmentation')
CROP_PROBABILITY = flags.DEFINE_float(
    'crop_probability', 0, 'Share of pictures upscaled and cropped at random (paper, aug: 0.75).', 0, 1,
    flag_values=FLAGS,
)  # fmt: skip
CROP_UPSCALE = flags.DEFINE_integer(
    'crop_upscale', 200, 'Pixels a side before the crop back to 180.', lower_bound=180, flag_values=FLAGS
)
FLIP_PROBABILITY = flags.DEFINE_float(
    'flip_probability', 0, 'Share of pictures mirrored, left to right (paper, aug: 0.5).', 0, 1, flag_values=FLAGS
)
SHUFFLE_IMAGES = flags.DEFINE_integer(
    'shuffle_images', dataset.SHUFFLE_IMAGES,
    'Encoded pictures among which the order is random: 5 kB of memory each, 300 MB by default, on every machine.',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Validation, checkpoints, what is shown')
EPOCH_IMAGES = flags.DEFINE_integer(
    'epoch_images', 2_000_000, 'Pictures, or products, in an artificial epoch: how often it validates and saves '
    '(paper: 2 million).', lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
VAL_IMAGES = flags.DEFINE_integer(
    'val_images', 50_000, 'Pictures, or products, of the validation set looked at after an artificial epoch '
    '(paper: 50,000).', lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
SAVE_MINUTES = flags.DEFINE_float(
    'save_minutes', 10, 'Minutes after which a checkpoint is saved within an artificial epoch too.', lower_bound=0,
    flag_values=FLAGS,
)  # fmt: skip
HISTORY_IMAGES = flags.DEFINE_integer(
    'history_images', 20_000, 'Pictures in a row of history.csv, to the nearest update (paper, figure 3: 20,000).',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
TENSORBOARD_GRAPH = flags.DEFINE_bool(
    'tensorboard_graph', False, "Also write the graph of an update to TensorBoard's files: some 20 MB.",
    flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Devices')
PRECISION = flags.DEFINE_enum(
    'precision', 'float32', devices.PRECISIONS,
    'What layers compute in; weights, logits and loss stay float32. mixed_bfloat16 is for GPUs since Ampere, '
    'mixed_float16, which scales the loss, for older ones with tensor cores.',
    flag_values=FLAGS,
)  # fmt: skip
XLA = flags.DEFINE_enum(
    'xla', 'auto', devices.XLA, "Whether XLA compiles a micro batch's forward and backward; auto: on GPUs.",
    flag_values=FLAGS,
)  # fmt: skip
STRATEGY = flags.DEFINE_enum(
    'strategy', 'auto', devices.STRATEGIES,
    'one: one device; mirrored: all GPUs of this machine (or its logical CPUs); auto: mirrored if there are several '
    'GPUs; multiworker: all GPUs of the machines that TF_CONFIG lists (or a CPU of each). Start the same command on '
    'each, with folders that all of them reach. Each reads shards of its own, all of them once a pass. The first '
    'writes the run, and predicts alone, on one device.',
    flag_values=FLAGS,
)  # fmt: skip

# What does not make it another run: where it and its shards lie, what is kept and predicted, how devices do the work.
NOT_SETTINGS = (
    'help', 'h', 'run_dir', 'shards_dir', 'predict', 'history_images', 'save_minutes', 'tensorboard_graph', 'strategy',
    'xla', 'micro_batch', 'accumulate',
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Trains, or goes on training, then predicts."""
    program.parse(FLAGS, argv, doc=__doc__, codes='75 another machine is lost')
    started = time.monotonic()
    shards = dataset.open_shards(SHARDS_DIR.value)
    _check_flags(shards)
    runs.check_folder(RUN_DIR.value)
    devices.set_precision(PRECISION.value)
    # Of a finished run the other machines may have left already, and would be waited for.
    alone = STRATEGY.value == 'multiworker' and runs.is_finished(RUN_DIR.value)
    strategy = devices.strategy('one' if alone else STRATEGY.value)
    worker, workers = devices.place_in_cluster() if alone else devices.place(strategy)
    _stream(shards, strategy, start_step=0)  # refuses too few shards before a run is made
    quiet = contextlib.redirect_stdout(io.StringIO()) if worker else contextlib.nullcontext()
    together = devices.lost_in_one_line() if workers > 1 else contextlib.nullcontext()
    options = _options(shards)
    if not worker and not storage.exists(storage.join(RUN_DIR.value, runs.SETTINGS_NAME)):
        _tell_sizes(options, classes=len(shards.label_map))
    with strategy.scope(), quiet, together:
        random.seed(SEED.value)  # Keras draws the seeds of first weights and dropout from here
        backbone = backbones.build(BACKBONE.value, image_size=IMAGE_SIZE.value, width=WIDTH.value)
        schedule = _schedule(shards, backbone, replicas=strategy.num_replicas_in_sync)
        settings = _settings(shards, strategy)
        if alone:  # how many devices the machines had together, it can't tell
            settings |= {'replicas': runs.read_settings(RUN_DIR.value)['replicas'], 'workers': workers}
        runs.check_settings(RUN_DIR.value, settings)
        if runs.is_finished(RUN_DIR.value):
            print(f'{RUN_DIR.value}: training is finished already; give another --run_dir to train again')
        elif not _train(shards, backbone, options, schedule, settings, strategy, argv=argv):
            return
    if worker:
        print(f'worker {worker} of {workers} is done; the first one predicts')
        return
    if not categories.is_in(shards.label_map, RUN_DIR.value):
        categories.write(shards.label_map, RUN_DIR.value)
    # The other machines don't predict, and the strategy of all would wait for them.
    strategy = strategy if workers == 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = inference.load(RUN_DIR.value, micro_batch=MICRO_BATCH.value)
        batch_size = MICRO_BATCH.value * strategy.num_replicas_in_sync
        for name in PREDICT.value:
            wanted = inference.Options(split=name, batch_size=batch_size)
            inference.predict_split(model, shards, wanted, run_dir=RUN_DIR.value)
    run_end.last_line(
        RUN_DIR.value,
        inputs=_inputs(),
        splits=PREDICT.value,
        shards_dir=SHARDS_DIR.value,
        seconds=time.monotonic() - started,
    )


def _check_flags(shards: Shards) -> None:
    split.check(PREDICT.value, flag='--predict')
    if not shards.manifest.images('train'):
        raise InputError(f'{SHARDS_DIR.value}: holds no training pictures')


def _settings(shards: Shards, strategy: tf.distribute.Strategy) -> dict[str, object]:
    """What makes the run what it is: it goes on only under the same."""
    settings = {name: FLAGS[name].value for name in FLAGS if name not in NOT_SETTINGS}
    _, workers = devices.place(strategy)  # the order hangs on it
    return {
        **settings,
        'micro_batch x accumulate': _effective_batch(1),  # how it is divided may change, where memory is short
        'replicas': strategy.num_replicas_in_sync,  # the effective batch hangs on it
        'workers': workers,
        'dataset_digest': shards.manifest.digest(),
    }


def _schedule(shards: Shards, backbone: Backbone, *, replicas: int) -> Schedule:
    steps_per_pass = dataset.rows(shards, 'train', _inputs().products) / _effective_batch(replicas)
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


def _inputs() -> Inputs:
    return Inputs(PICTURES.value, FEWER_PICTURES.value, TITLE.value, TITLE_WEIGHTS.value)


def _options(shards: Shards) -> classifier.Options:
    if JOIN.present and not PICTURES.value:
        raise UsageError('--join says how the pictures of a product are joined; give --pictures, too')
    if TITLE_WEIGHTS.present and TITLE.value == 'off':
        raise UsageError('--title_weights says what reads the title; give --title=text or top, too')
    if TITLE_LEVELS.value and TITLE.value == 'off':
        raise UsageError('--title_levels says which categories --title counts for; give --title=text or top, too')
    return classifier.Options(
        inputs=_inputs(),
        features=FEATURES.value,
        join=JOIN.value,
        dropout=DROPOUT.value,
        units=HEAD_UNITS.value,
        activation=HEAD_ACTIVATION.value,
        units_dropout=HEAD_DROPOUT.value,
        title_width=WIDTH.value,
        title_uses=title.uses(shards.label_map, TITLE_LEVELS.value),
    )


def _wrap(model: keras.Model) -> AccumulatingModel:
    return AccumulatingModel(
        model,
        micro_batch=MICRO_BATCH.value,
        inputs=_inputs(),
        augmentation=Augmentation(CROP_PROBABILITY.value, CROP_UPSCALE.value, FLIP_PROBABILITY.value),
        label_smoothing=LABEL_SMOOTHING.value,
        xla=devices.xla(XLA.value),
    )


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
            products=_inputs().products,
        )

    return strategy.distribute_datasets_from_function(of_machine)


def _train(
    shards: Shards,
    backbone: Backbone,
    options: classifier.Options,
    schedule: Schedule,
    settings: dict[str, object],
    strategy: tf.distribute.Strategy,
    *,
    argv: list[str],
) -> bool:
    """Trains from the start or the last checkpoint and writes the finished model; False if it was asked to end."""
    started = time.monotonic()
    worker, _ = devices.place(strategy)
    replicas = strategy.num_replicas_in_sync
    model = _wrap(classifier.build(backbone, classes=len(shards.label_map), options=options))
    training = loop.Loop(
        model,
        schedule,
        strategy=strategy,
        evaluator=Evaluator(model, strategy, shards.label_map),
        begin_stage=lambda number: _begin_stage(model, backbone, schedule, number),
        options=loop.Options(
            run_dir=RUN_DIR.value,
            settings=settings,
            batch_images=_effective_batch(replicas),
            history_steps=max(1, round(HISTORY_IMAGES.value / _effective_batch(replicas))),
            save_seconds=60 * SAVE_MINUTES.value,
            val_images=min(VAL_IMAGES.value, dataset.rows(shards, 'val', _inputs().products)),
            show_graph=TENSORBOARD_GRAPH.value,
            command=program.command('model.train', *argv[1:]),
        ),
    )
    _print_plan(shards, backbone, schedule, model, strategy)
    found = checkpoint.read(training.folder)
    # Before anything else: going on makes variables, for which all machines meet.
    devices.check_agreement(strategy, found.state.step if found else 0, what='the same checkpoint')
    if found:
        runs.check_same(RUN_DIR.value, found.state.settings, settings)
        training.resume(found)
        print(f'going on from {found.path}, update {found.state.step:,} of {schedule.total_steps:,}')
    else:
        with devices.first_machine_first(strategy):  # what it downloads, others may find
            print(classifier.load_weights(model.classifier, backbone, WEIGHTS.value, options))
    if worker == 0:
        runs.write_settings(RUN_DIR.value, settings)
    part_dropout(model, strategy)
    validation = _validation(shards, strategy, limit=VAL_IMAGES.value)
    first_step = training.state.step
    stream = iter(_stream(shards, strategy, start_step=first_step))
    with training.listening():
        finished = training.run(stream, validation) and training.finish(
            _validation(shards, strategy, limit=None), rows=dataset.rows(shards, 'val', _inputs().products)
        )
        updates = training.state.step - first_step
        if worker == 0 and (finished or updates):
            _log(updates, seconds=time.monotonic() - started, replicas=replicas)
    return finished and not training.asked


def _log(updates: int, *, seconds: float, replicas: int) -> None:
    """Adds a line on this call's training, finished or ended as asked, to the run's worklog.

    The time is all that training takes: making the network, updates, validations, checkpoints, and the evaluation at
    the end. So the sum over the lines is that of the run, but for calls that were killed or ended before an update.
    """
    counts = {_inputs().unit: updates * _effective_batch(replicas), 'updates': updates}
    worklog.add(RUN_DIR.value, 'train', seconds=seconds, counts=counts, replicas=replicas)


def _validation(shards: Shards, strategy: tf.distribute.Strategy, *, limit: int | None) -> Any:
    """Distributed batches of the validation pictures, or products; None if there are none."""
    products = _inputs().products
    rows = dataset.rows(shards, 'val', products)
    if not rows:
        return None
    batch_size = MICRO_BATCH.value * strategy.num_replicas_in_sync
    batches = dataset.evaluation(shards, 'val', batch_size=batch_size, limit=limit or rows, products=products)
    return strategy.experimental_distribute_dataset(batches)


def _begin_stage(model: AccumulatingModel, backbone: Backbone, schedule: Schedule, number: int) -> None:
    """Frees the stage's layers and gives them a fresh optimizer."""
    first_block = schedule.stages[number].first_block
    learning = stages.set_trainable(model.classifier, first_block, backbone.blocks)
    print(f'stage {number + 1} of {len(schedule.stages)}: {first_block}, {learning} layers learn')
    model.compile(keras.optimizers.Adam(schedule.learning_rate))


def _tell_sizes(options: classifier.Options, *, classes: int) -> None:
    """What the network costs beside the plain one, if it is more than that."""
    if options.plain and WIDTH.value <= 1:
        return
    blocks = backbones.build(BACKBONE.value, image_size=IMAGE_SIZE.value, width=WIDTH.value).blocks
    stages.parse_stages(UNFREEZE.value, blocks)  # a mistake there is told at once
    print('beside the plain network of the same backbone, timed on noise:')
    kinds = (
        ('plain', classifier.Options(dropout=options.dropout), min(1, WIDTH.value)),
        ('this one', options, WIDTH.value),
    )
    for name, one, width in kinds:
        backbone = backbones.build(BACKBONE.value, image_size=IMAGE_SIZE.value, width=width)
        model = AccumulatingModel(
            classifier.build(backbone, classes=classes, options=one),
            micro_batch=MICRO_BATCH.value,
            inputs=one.inputs,
            xla=devices.xla(XLA.value),
        )
        print(sizes.describe(name, model, accumulate=ACCUMULATE.value), flush=True)
        del model, backbone
        gc.collect()  # of a network, its functions hold each other


def _print_plan(
    shards: Shards, backbone: Backbone, schedule: Schedule, model: AccumulatingModel, strategy: tf.distribute.Strategy
) -> None:
    """Says what will be done and what it takes; refuses micro batches that can't fit."""
    replicas = strategy.num_replicas_in_sync
    rows, batch = dataset.rows(shards, 'train', _inputs().products), _effective_batch(replicas)
    device_bytes = memory.of_device(strategy)
    needs = []
    for stage in schedule.stages:
        stages.set_trainable(model.classifier, stage.first_block, backbone.blocks)
        needs.append(
            memory.needed(
                model.classifier,
                micro_batch=MICRO_BATCH.value,
                accumulate=ACCUMULATE.value,
                inputs=model.inputs_of_row,
                replicas=replicas,
            )
        )
    most = max(needs, key=lambda need: need.total)
    memory.check(most, device_bytes, micro_batch=MICRO_BATCH.value, accumulate=ACCUMULATE.value, xla=model.xla)
    print(f'{BACKBONE.value}: {model.classifier.count_params():,} parameters, {len(shards.label_map):,} categories')
    unit = 'products' if PICTURES.value else 'pictures'
    print(
        f'{rows:,} {unit} a pass, {batch:,} an update ({ACCUMULATE.value} micro batches of {MICRO_BATCH.value} on '
        f'each of {replicas} device(s)), {schedule.total_steps:,} updates'
    )
    print(memory.describe(most, device_bytes))


if __name__ == '__main__':
    program.run(main)
