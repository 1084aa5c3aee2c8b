"""Checks shards, and shows some of their products: `python -m tools.inspect_shards`

Shards are the files that pipeline.convert writes. Everything is checked that it promises: each file's length and
checksum, the checksums of each record, that each record is a whole product with its pictures, in the shard and at the
place that is its own, of the right split and label, and that no product stands twice. Broken rules are told a line
each, and the exit code is 1.
With --grid=FILE.png it also draws some products (needs the extra `demo`); with --noverify it does nothing else:

    python -m tools.inspect_shards --grid=products.png --noverify
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import time

from absl import flags

from pipeline import categories, commands, manifest, split, storage
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from tools import sample_products, shard_checks, shard_grid
from tools.shard_checks import Report

FLAGS = program.flag_values()
program.group(FLAGS, 'Checking')
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
VERIFY = flags.DEFINE_bool('verify', True, 'Check the shards; --noverify: only draw the grid.', flag_values=FLAGS)
program.group(FLAGS, 'Drawing')
GRID = flags.DEFINE_string(
    'grid', None, 'Draw some products with their pictures into this PNG file.', flag_values=FLAGS
)
GRID_PRODUCTS = flags.DEFINE_integer(
    'grid_products', 24, 'How many products the grid shows.', lower_bound=1, upper_bound=1000, flag_values=FLAGS
)
SPLIT = flags.DEFINE_enum(
    'split', 'all', ('all', *split.SPLITS), 'Which products the grid shows; all: some of each.', flag_values=FLAGS
)
SEED = flags.DEFINE_integer('seed', 0, 'Decides which products the grid shows.', lower_bound=0, flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Checks and draws what the flags say."""
    program.parse(FLAGS, argv, doc=__doc__)
    if not (VERIFY.value or GRID.value):
        raise flags.Error('--noverify leaves nothing to do without --grid=FILE.png')
    if GRID.value:
        shard_grid.require_pillow()
    folder = SHARDS_DIR.value
    made = manifest.read(folder, kind='shards', remedy=commands.convert(folder), check_files=not VERIFY.value)
    label_map = categories.read(folder)
    if VERIFY.value:
        verify(folder, made, label_map)
    done = f'checked {folder}: it is sound'
    if GRID.value:
        drawn = draw(folder, made, label_map, path=GRID.value)
        state = 'is sound' if VERIFY.value else 'was not checked'
        done = f'wrote {GRID.value}: {drawn} products of {folder}, which {state}'
    program.last_line(done, then=commands.train(folder, pictures=made.images('train')))


def verify(folder: str, made: Manifest, label_map: Categories) -> None:
    """Checks the dataset and prints what was found.

    Raises:
        InputError: a rule is broken.
    """
    started = time.monotonic()
    megabytes = sum(file.bytes for file in made.files) / 1e6
    print(f'checking {megabytes:,.1f} MB in {len(made.files):,} shards of {folder}', flush=True)
    report = shard_checks.check(folder, made, label_map)
    seconds = time.monotonic() - started
    print('\n'.join(table(report, made)))
    print(f'{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:,.1f} MB/s')
    problems = report.problems
    if problems.total:
        print('\n'.join(problems.first))
        if problems.total > len(problems.first):
            print(f'and {problems.total - len(problems.first):,} more')
        for rule in report.unchecked:
            print(f'not checked, because records are missing: {rule}')
        count = '1 rule is' if problems.total == 1 else f'{problems.total:,} rules are'
        raise InputError(f'{folder}: {count} broken, named above; make the shards again: {commands.convert(folder)}')


def table(report: Report, made: Manifest) -> list[str]:
    """What the splits hold, and how many pictures repeat."""
    lines = [
        f'{"split":6} {"products":>10} {"images":>11} {"categories":>11} {"shards":>7} {"MB":>10}'
        f'   {"products with 1, 2, 3, 4 images":>40}'
    ]
    for name, counts in report.counts.items():
        files = made.of_split(name)
        shares = '  '.join(f'{_percent(number, counts.products):>7}' for number in counts.products_with)
        lines.append(
            f'{name:6} {counts.products:10,} {counts.images:11,} {counts.categories or "unknown":>11} {len(files):7,} '
            f'{sum(file.bytes for file in files) / 1e6:10,.1f}   {shares:>40}'
        )
    for name, counts in report.counts.items():
        copies = f'{counts.copies:,} images ({_percent(counts.copies, counts.images)}) are copies of another in {name}'
        sharing = f'{counts.sharing:,} products ({_percent(counts.sharing, counts.products)}) share an image with train'
        lines.append(f'{name:6} {copies}{"" if name == "train" else f"; {sharing}"}')
    return lines


def _percent(part: int, whole: int) -> str:
    return f'{100 * part / whole:.1f} %' if whole else '0 %'


def draw(folder: str, made: Manifest, label_map: Categories, *, path: str) -> int:
    """Writes the grid into a PNG file; says how many products it shows."""
    splits = split.SPLITS if SPLIT.value == 'all' else (SPLIT.value,)
    places = sample_products.choose(made, splits=splits, products=GRID_PRODUCTS.value, seed=SEED.value)
    if not places:
        raise InputError(f'{folder}: holds no product of {" or ".join(splits)}; give another --split')
    products = sample_products.read(folder, places)
    picture = shard_grid.draw(products, label_map, title=shard_grid.title(made, products, seed=SEED.value))
    with storage.atomic_writer(path) as file:
        file.write(picture)
    return len(products)


if __name__ == '__main__':
    program.run(main)
