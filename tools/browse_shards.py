"""A page to look through a dataset: `python -m tools.browse_shards`

One HTML file that opens from disk, on a phone too: how much there is and what it was made from, all categories and
their sizes, samples by category and split, how many pictures products have and how large they are, pictures that repeat
(byte for byte, by their MD5s) within products, between splits and under several categories, and the documents that the
conversion left out. Pictures are shown small, as the network sees them.

    python -m tools.browse_shards --categories=100 --per_category=2
    python -m tools.browse_shards --category_id=1000000010 --category_id=1000000020 --per_category=8

All shards are read once, and checked record by record. Cdiscount's 73 GB take a few minutes and 2 GB of memory.
Needs the extra `report` (pip install -c constraints.txt -e '.[report]').
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os

import numpy as np
from absl import flags

from pipeline import categories, commands, manifest, storage
from pipeline.errors import InputError
from pipeline.progress import Standing, watched
from tools import page
from tools.browse import repeat_section, repeats, scan, shard_sections
from tools.browse.shard_sections import Dataset

FLAGS = program.flag_values()
program.group(FLAGS, 'Input and output')
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
OUTPUT = flags.DEFINE_string(
    'output', '', 'The page, a file that ends in .html; if empty, browse.html beside the shards.', flag_values=FLAGS
)
program.group(FLAGS, 'Products shown')
PER_CATEGORY = flags.DEFINE_integer(
    'per_category', 4, 'Products shown of each shown category, from each of train and val; four times as many of test.',
    lower_bound=0, upper_bound=1000, flag_values=FLAGS,
)  # fmt: skip
CATEGORIES = flags.DEFINE_integer(
    'categories', 30, 'Categories whose products are shown: the largest, the smallest and random ones, a third each. '
    'A picture takes 3 kB of the page.',
    lower_bound=0, upper_bound=100_000, flag_values=FLAGS,
)  # fmt: skip
CATEGORY_ID = flags.DEFINE_multi_integer(
    'category_id', [], 'Show products of this category instead; may be given several times.', flag_values=FLAGS
)
SEED = flags.DEFINE_integer(
    'seed', 0, 'Decides which products and categories are shown.', lower_bound=0, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Writes the page that the flags ask for."""
    program.parse(FLAGS, argv, doc=__doc__)
    path = OUTPUT.value or storage.join(SHARDS_DIR.value, 'browse.html')
    if not path.endswith('.html'):
        raise flags.Error(f'--output={path} must end in .html')
    page.check_installed()
    dataset = _read(SHARDS_DIR.value)
    chosen = _chosen(dataset)
    with watched(lambda: Standing('compare pictures', 0, 0, 'pictures')):
        found = repeats.find(dataset.scan)
    sections = [
        shard_sections.summary(dataset),
        shard_sections.categories(dataset),
        shard_sections.samples(dataset, chosen, per_category=PER_CATEGORY.value, seed=SEED.value),
        shard_sections.distributions(dataset),
        repeat_section.section(dataset, found, seed=SEED.value),
        shard_sections.rejected(dataset),
    ]
    products, pictures = len(dataset.scan.product_id), len(dataset.scan.md5)
    said = f'{products:,} products, {pictures:,} pictures, {len(dataset.label_map):,} categories'
    page.write(path, f'Shards in {dataset.folder}', said, sections)
    program.last_line(
        f'wrote {path} ({storage.size(path) / 1e6:.1f} MB): {said}, a page to open in a browser',
        then=commands.train(dataset.folder, pictures=dataset.made.images('train')),
    )


def _read(folder: str) -> Dataset:
    """Reads the dataset, once it is certain that what the flags ask for can be shown."""
    made = manifest.read(folder, kind='shards', remedy=commands.convert(folder))
    if not any(file.images for file in made.files):
        raise InputError(f'{folder}: holds no picture; convert a catalogue that has some: {commands.convert(folder)}')
    label_map = categories.read(folder)
    unknown = [number for number in CATEGORY_ID.value if number not in label_map.ids]
    if unknown:
        raise InputError(f'--category_id={unknown[0]}: {storage.join(folder, categories.NAME)} has no such category')
    if directory := os.path.dirname(OUTPUT.value):
        storage.make_folder(directory)
    return Dataset(folder, made, label_map, scan.read(folder, made, categories=len(label_map)))


def _chosen(dataset: Dataset) -> dict[str, list[int]]:
    """The labels of the categories that are shown, under headings."""
    if CATEGORY_ID.value:
        return {'The categories asked for': dataset.label_map.labels(np.array(CATEGORY_ID.value)).tolist()}
    total = dataset.counts('train') + dataset.counts('val')
    return shard_sections.choose_categories(total, categories=CATEGORIES.value, seed=SEED.value)


if __name__ == '__main__':
    program.run(main)
