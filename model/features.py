"""Caches a network's features of every picture: `python -m model.features --run_dir=runs/latest --split=val`

Features are what the network gives its dense layers. On those of a run of single pictures model.train_head learns whole
products within minutes, as no picture is decoded any more. A picture takes 2 bytes a feature: Xception's 2,048 of the
12.4 million pictures of train and val take 51 GB, in the run's folder features/SPLIT. The same command goes on where it
was interrupted: finished shards are checked and kept. Of finished features it makes again what is damaged.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os

from absl import flags

from model import cached_features, devices, inference, product_head
from pipeline import commands, dataset, split

FLAGS = program.flag_values()
program.group(FLAGS, 'What is cached')
RUN_DIR = flags.DEFINE_string(
    'run_dir', 'runs/latest', 'Folder of a finished run of model.train, of single pictures.', flag_values=FLAGS
)
SPLIT = flags.DEFINE_enum('split', 'train', split.SPLITS, 'Of which pictures.', flag_values=FLAGS)
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
program.group(FLAGS, 'Devices')
MICRO_BATCH = flags.DEFINE_integer(
    'micro_batch', 64, 'Pictures that a device takes at a time; fewer need less memory.', lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
STRATEGY = flags.DEFINE_enum(
    'strategy', 'auto', devices.ONE_MACHINE,
    'one: one device; mirrored: all GPUs of this machine; auto: mirrored if there are several GPUs.', flag_values=FLAGS,
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Caches one split."""
    program.parse(FLAGS, argv, doc=__doc__)
    shards = dataset.open_shards(SHARDS_DIR.value)
    product_head.check_base(RUN_DIR.value, flag='--run_dir')
    strategy = devices.strategy(STRATEGY.value)
    with strategy.scope():
        model = inference.load(RUN_DIR.value, micro_batch=MICRO_BATCH.value)
        batch_size = MICRO_BATCH.value * strategy.num_replicas_in_sync
        folder = cached_features.make(model, shards, SPLIT.value, run_dir=RUN_DIR.value, batch_size=batch_size)
    run_dir = RUN_DIR.value.rstrip('/')
    if os.path.islink(run_dir):  # model.train_head moves runs/latest, and must find the run again when it goes on
        run_dir = os.path.join(os.path.dirname(run_dir), os.readlink(run_dir))
    program.last_line(
        f'wrote {folder}: the features of {SPLIT.value}',
        then=program.command('model.train_head', f'--from_run={run_dir}', *commands.of_shards(SHARDS_DIR.value)),
    )


if __name__ == '__main__':
    program.run(main)
