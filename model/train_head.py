"""Trains on cached features to see whole products: `python -m model.train_head --from_run=runs/default`

Of a finished run of single pictures it keeps the network as it is and learns, within minutes, how the features of a
product's one to four pictures are joined, and its dense layers. What model.features hasn't cached of train and val it
caches first. It ends with a run as of model.train --pictures=4 --fewer_pictures, logits of val and test included, which
all other programs take; model.train --weights=FOLDER can go on with all layers. SIGTERM and Ctrl-C save a checkpoint
before they end it. The same command goes on with an interrupted run, and leaves a finished one as it is.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os
import random
import time
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from ensemble import logits, logits_folder
from model import (
    cached_features,
    checkpoint,
    classifier,
    devices,
    inference,
    join,
    loop,
    product_head,
    run_end,
    runs,
    stages,
)  # fmt: skip
from model.accumulate import AccumulatingModel, part_dropout
from model.cached_features import Cached
from model.evaluation import Evaluator
from model.product_head import INPUTS, HeadModel
from model.stages import Schedule, Stage
from pipeline import categories, dataset, split, worklog
from pipeline.dataset import Shards
from pipeline.errors import InputError, UsageError

FLAGS = program.flag_values()
program.group(FLAGS, 'Data and run')
FROM_RUN = flags.DEFINE_string(
    'from_run', 'runs/default', 'Folder of a finished run of model.train, of single pictures: whose network it is.',
    flag_values=FLAGS,
)  # fmt: skip
RUN_DIR = flags.DEFINE_string(
    'run_dir', 'runs/head', 'Folder for all that the run writes: model, history, logits. A new run needs a new one.',
    flag_values=FLAGS,
)  # fmt: skip
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
PREDICT = flags.DEFINE_list(
    'predict', ['val', 'test'], 'Splits whose logits are written after training: some of train, val and test. They are '
    'made of features where model.features has cached them, which is quick, and of pictures elsewhere.',
    flag_values=FLAGS,
)  # fmt: skip
SEED = flags.DEFINE_integer('seed', 0, 'Decides first weights, order of the products and dropout.', flag_values=FLAGS)
program.group(FLAGS, 'Schedule')
EPOCHS = flags.DEFINE_float(
    'epochs', 10, 'How long it trains, in passes over the training products.', lower_bound=0.0001, flag_values=FLAGS
)
LEARNING_RATE = flags.DEFINE_float(
    'learning_rate', 1e-3, "Adam's step at the start.", lower_bound=0, flag_values=FLAGS
)  # fmt: skip
DECAY_AT = flags.DEFINE_list(
    'decay_at', ['5', '8'], 'Passes after which the learning rate decays, such as 4,6,8.', flag_values=FLAGS
)
DECAY_FACTOR = flags.DEFINE_float(
    'decay_factor', 0.3, 'What the learning rate is multiplied by then.', 0.0001, 1, flag_values=FLAGS
)
MICRO_BATCH = flags.DEFINE_integer(
    'micro_batch', 256, 'Products that a device takes at a time; fewer need less memory. Of pictures, where there are '
    'no features, a quarter as many.', lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
ACCUMULATE = flags.DEFINE_integer(
    'accumulate', 4, 'Micro batches of each device whose gradients are summed for one update of the weights.',
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Model')
JOIN = flags.DEFINE_enum(
    'join', 'gated', join.KINDS, "How the features of a product's pictures become one: concat (one after the other), "
    'mean, max, or gated (the mean by weights that are learned).', flag_values=FLAGS,
)  # fmt: skip
KEEP_DENSE = flags.DEFINE_bool(
    'keep_dense', True, "Begin with the run's dense layers where they fit, so that at first it says of a product what "
    "they say of its pictures' mean; no: with random ones.", flag_values=FLAGS,
)  # fmt: skip
DROPOUT = flags.DEFINE_float(
    'dropout', 0, 'Share of features left out at random before the dense layers.', 0, 0.99, flag_values=FLAGS
)
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
    'label_smoothing', 0, 'Share of the target spread evenly over all categories.', 0, 0.99, flag_values=FLAGS
)
program.group(FLAGS, 'Validation, checkpoints')
EPOCH_PRODUCTS = flags.DEFINE_integer(
    'epoch_products', 0, 'Products in an artificial epoch: how often it validates and saves; 0: all, a pass.',
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
VAL_PRODUCTS = flags.DEFINE_integer(
    'val_products', 50_000, 'Products of the validation set looked at after an artificial epoch.', lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
SAVE_MINUTES = flags.DEFINE_float(
    'save_minutes', 10, 'Minutes after which a checkpoint is saved within an artificial epoch too.', lower_bound=0,
    flag_values=FLAGS,
)  # fmt: skip
HISTORY_PRODUCTS = flags.DEFINE_integer(
    'history_products', 20_000, 'Products in a row of history.csv, to the nearest update.', lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Devices')
STRATEGY = flags.DEFINE_enum(
    'strategy', 'auto', devices.ONE_MACHINE,
    'one: one device; mirrored: all GPUs of this machine; auto: mirrored if there are several GPUs.', flag_values=FLAGS,
)  # fmt: skip

# What does not make it another run; of --from_run the weights count, not the folder.
NOT_SETTINGS = (
    'help', 'h', 'run_dir', 'from_run', 'shards_dir', 'predict', 'history_products', 'save_minutes', 'strategy',
    'micro_batch', 'accumulate',
)  # fmt: skip
# What is the run's whose network it is.
OF_BASE = ('backbone', 'width', 'image_size', 'features', 'precision')


def main(argv: list[str]) -> None:
    """Trains, or goes on training, then predicts."""
    program.parse(FLAGS, argv, doc=__doc__)
    started = time.monotonic()
    shards = dataset.open_shards(SHARDS_DIR.value)
    _check_flags()
    runs.check_folder(RUN_DIR.value)
    base = product_head.check_base(FROM_RUN.value, flag='--from_run')
    strategy = devices.strategy(STRATEGY.value)
    with strategy.scope():
        one = inference.load(FROM_RUN.value, micro_batch=_pictures_at_a_time())
        settings = _settings(base, one, shards, strategy)
        runs.check_settings(RUN_DIR.value, settings)
        if runs.is_finished(RUN_DIR.value):
            print(f'{RUN_DIR.value}: training is finished already; give another --run_dir to train again')
        elif not _train(one, shards, settings, strategy, argv=argv):
            return
        if not categories.is_in(shards.label_map, RUN_DIR.value):
            categories.write(shards.label_map, RUN_DIR.value)
        for name in PREDICT.value:
            _predict(shards, name, strategy, weights_digest=settings['from_weights'])
    run_end.last_line(
        RUN_DIR.value,
        inputs=INPUTS,
        splits=PREDICT.value,
        shards_dir=SHARDS_DIR.value,
        seconds=time.monotonic() - started,
    )


def _check_flags() -> None:
    split.check(PREDICT.value, flag='--predict')
    stages.parse_points(DECAY_AT.value, flag='--decay_at')  # before the features are cached
    if os.path.realpath(FROM_RUN.value) == os.path.realpath(RUN_DIR.value):
        raise UsageError(f'--run_dir={RUN_DIR.value}: is --from_run; the new run needs a folder of its own')


def _settings(
    base: dict[str, Any], one: AccumulatingModel, shards: Shards, strategy: tf.distribute.Strategy
) -> dict[str, Any]:
    """What makes the run what it is, under the names that model.train has for it."""
    return {
        **{name: base[name] for name in OF_BASE if name in base},
        **{name: FLAGS[name].value for name in FLAGS if name not in NOT_SETTINGS},
        'pictures': INPUTS.pictures,
        'fewer_pictures': INPUTS.fewer,
        'title': INPUTS.title,
        'title_weights': INPUTS.title_weights,
        'unfreeze': 'head@0',
        'micro_batch x accumulate': _effective_batch(1),
        'replicas': strategy.num_replicas_in_sync,
        'workers': 1,
        'dataset_digest': shards.manifest.digest(),
        'from_weights': inference.weights_digest(one.classifier),
    }


def _effective_batch(replicas: int) -> int:
    return MICRO_BATCH.value * ACCUMULATE.value * replicas


def _pictures_at_a_time() -> int:
    """Single pictures that the network takes on a device: by default as many as model.features takes."""
    return max(1, MICRO_BATCH.value // INPUTS.pictures)


def _schedule(products: int, *, replicas: int) -> Schedule:
    steps_per_pass = products / _effective_batch(replicas)
    epoch_products = EPOCH_PRODUCTS.value or products
    return Schedule(
        steps_per_pass=steps_per_pass,
        epoch_steps=max(1, round(epoch_products / _effective_batch(replicas))),
        total_steps=max(1, round(EPOCHS.value * steps_per_pass)),
        stages=(Stage('head', 0),),
        learning_rate=LEARNING_RATE.value,
        decay_at=stages.parse_points(DECAY_AT.value, flag='--decay_at'),
        decay_factor=DECAY_FACTOR.value,
    )


def _cached(
    one: AccumulatingModel, shards: Shards, strategy: tf.distribute.Strategy, *, weights_digest: str
) -> dict[str, Cached]:
    """The features of train, and of val if it has products, cached now if they weren't."""
    if not shards.manifest.images('train'):
        raise InputError(f'{SHARDS_DIR.value}: holds no training pictures')
    found = {}
    for name in ('train', 'val'):
        if shards.manifest.images(name):
            batch_size = one.micro_batch * strategy.num_replicas_in_sync
            folder = cached_features.make(one, shards, name, run_dir=FROM_RUN.value, batch_size=batch_size)
            found[name] = Cached(folder, weights_digest=weights_digest, dataset_digest=shards.manifest.digest())
    return found


def _build(one: AccumulatingModel) -> HeadModel:
    """The model at the run's beginning."""
    random.seed(SEED.value)  # Keras draws the seeds of first weights and dropout from here
    options = classifier.Options(
        inputs=INPUTS,
        join=JOIN.value,
        dropout=DROPOUT.value,
        units=HEAD_UNITS.value,
        activation=HEAD_ACTIVATION.value,
        units_dropout=HEAD_DROPOUT.value,
    )
    backbone = product_head.backbone(one.classifier)
    whole = classifier.build(backbone, classes=one.classifier.output_shape[-1], options=options)
    if KEEP_DENSE.value:
        print(classifier.load_weights(whole, backbone, FROM_RUN.value, options))
    return HeadModel(whole, micro_batch=MICRO_BATCH.value, label_smoothing=LABEL_SMOOTHING.value)


def _train(
    one: AccumulatingModel,
    shards: Shards,
    settings: dict[str, Any],
    strategy: tf.distribute.Strategy,
    *,
    argv: list[str],
) -> bool:
    """Trains from the start or the last checkpoint and writes the finished model; False if it was asked to end."""
    started = time.monotonic()
    found = _cached(one, shards, strategy, weights_digest=settings['from_weights'])
    replicas = strategy.num_replicas_in_sync
    products = len(found['train'])
    schedule = _schedule(products, replicas=replicas)
    model = _build(one)
    training = loop.Loop(
        model,
        schedule,
        strategy=strategy,
        evaluator=Evaluator(model, strategy, shards.label_map),
        begin_stage=lambda number: model.compile(keras.optimizers.Adam(schedule.learning_rate)),
        options=loop.Options(
            run_dir=RUN_DIR.value,
            settings=settings,
            batch_images=_effective_batch(replicas),
            history_steps=max(1, round(HISTORY_PRODUCTS.value / _effective_batch(replicas))),
            save_seconds=60 * SAVE_MINUTES.value,
            val_images=min(VAL_PRODUCTS.value, len(found.get('val', ()))),
            show_pictures=False,
            command=program.command('model.train_head', *argv[1:]),
        ),
    )
    learning = sum(variable.shape.num_elements() for variable in model.classifier.trainable_variables)
    print(f'{learning:,} parameters learn, on {found["train"].features:,} features a picture')
    print(f'{products:,} products a pass, {_effective_batch(replicas):,} an update, {schedule.total_steps:,} updates')
    kept = checkpoint.read(training.folder)
    if kept:
        runs.check_same(RUN_DIR.value, kept.state.settings, settings)
        training.resume(kept)
        print(f'going on from {kept.path}, update {kept.state.step:,} of {schedule.total_steps:,}')
    runs.write_settings(RUN_DIR.value, settings)
    part_dropout(model, strategy)
    first_step = training.state.step
    stream = iter(_stream(found['train'], strategy, start_step=first_step))
    validation = _validation(found, strategy, limit=VAL_PRODUCTS.value)
    with training.listening():
        finished = training.run(stream, validation) and training.finish(
            _validation(found, strategy, limit=None), rows=len(found.get('val', ()))
        )
        updates = training.state.step - first_step
        if finished or updates:
            counts = {INPUTS.unit: updates * _effective_batch(replicas), 'updates': updates}
            worklog.add(
                RUN_DIR.value, 'train head', seconds=time.monotonic() - started, counts=counts, replicas=replicas
            )
    return finished and not training.asked


def _stream(found: Cached, strategy: tf.distribute.Strategy, *, start_step: int) -> Any:
    """The training batches from an update on, one for each replica; none is divided or copied."""
    replicas = strategy.num_replicas_in_sync
    return strategy.distribute_datasets_from_function(
        lambda context: found.train(seed=SEED.value, batch_size=_effective_batch(1), start_step=start_step * replicas)
    )


def _validation(found: dict[str, Cached], strategy: tf.distribute.Strategy, *, limit: int | None) -> Any:
    """Distributed batches of the validation products; None if there are none."""
    if 'val' not in found:
        return None
    batch_size = MICRO_BATCH.value * strategy.num_replicas_in_sync
    batches = found['val'].evaluation(batch_size=batch_size, limit=limit or len(found['val']))
    return strategy.experimental_distribute_dataset(batches)


def _predict(shards: Shards, name: str, strategy: tf.distribute.Strategy, *, weights_digest: str) -> None:
    """Writes the logits of a split, of features if they are cached."""
    model = inference.load(RUN_DIR.value, micro_batch=_pictures_at_a_time())
    wanted = inference.Options(split=name, batch_size=_pictures_at_a_time() * strategy.num_replicas_in_sync)
    rows_of = None
    if cached_features.are_there(FROM_RUN.value, name):
        folder = logits_folder.folder(FROM_RUN.value, name, kind=logits.FEATURES)
        made = cached_features.read_manifest(
            folder, weights_digest=weights_digest, dataset_digest=shards.manifest.digest()
        )
        head = HeadModel(model.classifier, micro_batch=MICRO_BATCH.value)
        rows_of = product_head.rows_of(head, folder, made)
    inference.predict_split(model, shards, wanted, run_dir=RUN_DIR.value, rows_of=rows_of)


if __name__ == '__main__':
    program.run(main)
