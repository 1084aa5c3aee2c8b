"""Commands that several programs name, in their last lines and as remedies.

Synopsis:

    commands.convert('data/shards')  # 'python -m pipeline.convert --runner=DirectRunner'
    commands.train('data/shards', pictures=4800)  # 'python -m model.train --flagfile=demo.flags'
"""

from __future__ import annotations

from pipeline import program

SHARDS_DIR = 'data/shards'  # the programs' default
# With fewer training pictures demo.flags is named: noaug.flags, the paper's Xception, takes hours on a CPU even for the
# demo's few thousand, and learns little from so few updates.
FEW_PICTURES = 100_000


def convert(folder: str) -> str:
    """What makes the shards of a folder."""
    elsewhere = () if folder == SHARDS_DIR else (f'--output_dir={folder}',)
    return program.command('pipeline.convert', '--runner=DirectRunner', *elsewhere)


def of_shards(folder: str) -> tuple[str, ...]:
    """The flag by which a program finds the shards of a folder, unless it looks there anyway."""
    return () if folder == SHARDS_DIR else (f'--shards_dir={folder}',)


def train(folder: str, *, pictures: int) -> str:
    """What trains on the shards of a folder, of which so many pictures are for training."""
    name = 'demo.flags' if pictures < FEW_PICTURES else 'noaug.flags'
    return program.command('model.train', f'--flagfile={name}', *of_shards(folder))
