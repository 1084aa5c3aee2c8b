"""Writes a finished run's logits again: `python -m model.predict --run_dir=runs/latest --split=test --tta=5`

Logits are what a network says of a picture: a number for each category, the higher the likelier. model.train has
written those of val and test at its end. With --tta=N (test-time augmentation) each picture is seen in N views, the
first of them as it is; the logits go to the run's folder logits/SPLIT-ttaN. --top_k=K stores only the K highest logits
of each row, into logits/SPLIT-topK. The same command goes on where it was interrupted:
finished shards are checked and kept. Of a finished store it makes again what is damaged.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
from absl import flags

from model import devices, inference
from pipeline import dataset, split

FLAGS = program.flag_values()
program.group(FLAGS, 'What is predicted')
RUN_DIR = flags.DEFINE_string('run_dir', 'runs/latest', 'Folder of a finished run of model.train.', flag_values=FLAGS)
SPLIT = flags.DEFINE_enum('split', 'test', split.SPLITS, 'Which pictures are predicted.', flag_values=FLAGS)
TTA = flags.DEFINE_integer(
    'tta', 1, 'Views of each picture; the time taken grows with them (paper: 5).', lower_bound=1, flag_values=FLAGS
)
BEST = flags.DEFINE_bool(
    'best', False, 'Take the weights with the best validation accuracy, not the last ones; logits go to SPLIT-best.',
    flag_values=FLAGS,
)  # fmt: skip
TOP_K = flags.DEFINE_integer(
    'top_k', 0, 'How many logits of each picture and view are stored, the highest; 0: all. The 100 highest of 5,270 '
    'take 0.44 kB, not 10.6.',
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
SEED = flags.DEFINE_integer('seed', 0, 'Decides how the views after the first differ.', flag_values=FLAGS)
program.group(FLAGS, 'Devices')
MICRO_BATCH = flags.DEFINE_integer(
    'micro_batch', 64, 'Views that a device takes at a time; fewer need less memory.', lower_bound=1, flag_values=FLAGS
)
STRATEGY = flags.DEFINE_enum(
    'strategy', 'auto', devices.ONE_MACHINE,
    'one: one device; mirrored: all GPUs of this machine; auto: mirrored if there are several GPUs.', flag_values=FLAGS,
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Predicts one split."""
    program.parse(FLAGS, argv, doc=__doc__)
    shards = dataset.open_shards(SHARDS_DIR.value)
    strategy = devices.strategy(STRATEGY.value)
    with strategy.scope():
        model = inference.load(RUN_DIR.value, best=BEST.value, micro_batch=MICRO_BATCH.value)
        options = inference.Options(
            split=SPLIT.value,
            batch_size=MICRO_BATCH.value * strategy.num_replicas_in_sync,
            tta=TTA.value,
            seed=SEED.value,
            top_k=TOP_K.value,
            best=BEST.value,
        )
        folder = inference.predict_split(model, shards, options, run_dir=RUN_DIR.value)
    rule = 'product' if SPLIT.value == 'test' else 'all'
    program.last_line(
        f'wrote {folder}: the logits of {SPLIT.value}',
        then=program.command('ensemble.combine', '--rule', rule, f'--logits={folder}'),
    )


if __name__ == '__main__':
    program.run(main)
