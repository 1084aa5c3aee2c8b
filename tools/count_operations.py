"""Counts what networks compute, for plans of time: `python -m tools.count_operations xception resnet50 densenet169`

Names of backbones follow the flags; none means all. The table has each network's parameters and the multiply-adds of a
forward pass of one picture, counted layer by layer; a training step is three times as many where all layers learn. With
--images and --teraflops also the hours that so many pictures take, a multiply-add being two operations.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import keras
from absl import flags

from model import backbone, classifier, operations
from model.classifier import Options

FLAGS = program.flag_values()
program.group(FLAGS, 'The network')
IMAGE_SIZE = flags.DEFINE_integer(
    'image_size', 180, 'Pixels a side to which pictures are resized for the network.', lower_bound=32, flag_values=FLAGS
)
CATEGORIES = flags.DEFINE_integer('categories', 5270, 'Number of categories.', lower_bound=1, flag_values=FLAGS)
FEATURES = flags.DEFINE_integer(
    'features', 0, 'Features of a picture that the network shall end in, as in model.train. 0: its own.', lower_bound=0,
    flag_values=FLAGS,
)  # fmt: skip
HEAD_UNITS = flags.DEFINE_integer(
    'head_units', 0, 'Units of a second dense layer for a picture, as in model.train. 0: there is none.',
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Time')
IMAGES = flags.DEFINE_float(
    'images', 111.6e6, 'Pictures that are learned, each counted as often as it is (paper: ten passes over 11.16 '
    'million).', lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
TERAFLOPS = flags.DEFINE_float(
    'teraflops', 0, 'Operations a second that a device is taken to do, in millions of millions (10^12), or 0: no hours '
    'are told. A share of its peak: docs/winner.md says which.', lower_bound=0, flag_values=FLAGS,
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Counts the networks named on the command line."""
    names = program.parse(FLAGS, argv, doc=__doc__, words='[BACKBONE ...]') or backbone.names()
    hours = f' {"hours":>8}' if TERAFLOPS.value else ''
    print(f'{"backbone":20} {"parameters":>12} {"multiply-adds":>15}{hours}')
    for name in names:
        size = IMAGE_SIZE.value
        network = classifier.build(
            backbone.build(name, image_size=size, width=1),
            classes=CATEGORIES.value,
            options=Options(features=FEATURES.value, units=HEAD_UNITS.value),
        )
        count = operations.multiply_adds(network)
        seconds = 3 * 2 * count * IMAGES.value / (TERAFLOPS.value * 1e12) if TERAFLOPS.value else 0
        told = f' {seconds / 3600:8.1f}' if TERAFLOPS.value else ''
        print(f'{name:20} {network.count_params():12,} {count:15,}{told}', flush=True)
        keras.backend.clear_session()
    then = program.command('model.train', '--flagfile=noaug.flags')
    program.last_line(f'counted {len(names)} network{"s" if len(names) > 1 else ""}', then=then)


if __name__ == '__main__':
    program.run(main)
