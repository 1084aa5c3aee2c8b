"""Reports on runs: `python -m tools.report --table runs/noaug runs/aug`

--table holds all rules against each other and against the paper's Table I: for each run, with each number of views of a
picture of which it has logits (model.predict --tta=5). Accuracy has a 95 % bootstrap interval, its difference to the
rule mean an interval and McNemar's exact test; then top 5, the levels of the categories, and the accuracy over products
with 1 to 4 pictures, and with or without a picture that stands in the training set too. It is printed, and written as
table-val.md and table-val.csv; with --split=test --solution=data/solution.csv it is that of the test set (table-test).
Beam's flags pass through: --runner=DirectRunner (the default: one process a core), FlinkRunner and others.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os

from absl import flags

from ensemble import known_images, reduction, submission
from ensemble.known_images import Known
from ensemble.reduction import Stores
from ensemble.submission import Solution
from pipeline import beam_job, storage
from pipeline.beam_job import Engine
from pipeline.errors import InputError
from tools import table
from tools.table import Row, Store

FLAGS = program.flag_values()
FLAGS.set_gnu_getopt()  # flags may stand after the runs
TABLE = flags.DEFINE_bool('table', False, 'Compare all rules on the runs whose folders are named.', flag_values=FLAGS)
SPLIT = flags.DEFINE_enum('split', 'val', ('val', 'test'), 'On which products.', flag_values=FLAGS)
SOLUTION = flags.DEFINE_string(
    'solution', '', "A solution.csv with the test products' categories, for --split=test.", flag_values=FLAGS
)
SHARDS_DIR = flags.DEFINE_string(
    'shards_dir', 'data/shards', 'Folder of the shards, where pictures that the training set has too are looked for.',
    flag_values=FLAGS,
)  # fmt: skip
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', '', "Folder for what is written; if empty, the first run's folder.", flag_values=FLAGS
)
VIEWS = 5  # the paper's


def main(argv: list[str]) -> None:
    """Reports on the runs named on the command line."""
    rest = program.parse(FLAGS, argv, doc=__doc__, pass_through=True)
    folders = list(dict.fromkeys(word.rstrip('/') for word in rest if not word.startswith('-')))
    if not TABLE.value or not folders:
        raise flags.Error('say what to report on: --table and the folders of one run or more')
    if SPLIT.value == 'test' and not SOLUTION.value:
        raise InputError("--split=test needs the products' categories: give --solution=data/solution.csv")
    if SPLIT.value != 'test' and SOLUTION.value:
        raise InputError(f'--solution={SOLUTION.value} is for the test set; give --split=test, or leave it out')
    engine = beam_job.engine([word for word in rest if word.startswith('-')], known=FLAGS)
    _make_table(engine, folders, output_dir=OUTPUT_DIR.value or folders[0])


def _make_table(engine: Engine, folders: list[str], *, output_dir: str) -> None:
    """Writes and prints the table of runs."""
    stores = table.find_stores(folders, SPLIT.value)
    opened = reduction.open_stores([store.folder for store in stores])
    table.check_same_weights(stores, opened)
    solution = submission.read_solution(SOLUTION.value, opened.label_map) if SOLUTION.value else None
    path = storage.join(output_dir, f'table-{SPLIT.value}')
    for older in (f'{path}.md', f'{path}.csv'):
        if storage.exists(older):
            storage.remove(older)
    _tell_missing(folders)
    known = _find_known(engine, opened, output_dir=output_dir)
    rows = _measure(engine, stores, solution, known, output_dir=output_dir)
    text = table.markdown(rows, SPLIT.value)
    with storage.atomic_writer(f'{path}.md') as file:
        file.write(text.encode())
    table.write_csv(rows, f'{path}.csv')
    print(f'\n{text}')
    best = max(rows, key=lambda row: row.accuracy.value)
    parent, name = os.path.split(best.store.folder)
    logits = storage.join(parent, f'test{name.removeprefix(SPLIT.value)}')
    views = '' if best.views == 'pooled' else f' --views={best.views}'
    print(
        f'wrote {path}.md and {path}.csv; next, the submission of the best here: '
        f'python -m ensemble.combine --rule {best.rule}{views} --logits={logits}'
    )


def _tell_missing(folders: list[str]) -> None:
    """Says which logits with several views some runs have and others lack, and how to make them."""
    made = {folder: table.views_made(folder, SPLIT.value) for folder in folders}
    for tta in sorted({VIEWS}.union(*made.values())):
        for folder in folders:
            if tta not in made[folder]:
                command = f'python -m model.predict --run_dir={folder} --split={SPLIT.value} --tta={tta}'
                print(f'{folder}: has no logits of {tta} views; to have them in the table: {command}')


def _find_known(engine: Engine, opened: Stores, *, output_dir: str) -> Known | None:
    """Which pictures of the products are in the training set, too; None if it can't be known."""
    try:
        known_images.check(SHARDS_DIR.value, digest=opened.dataset_digest)
    except InputError as error:
        print(f'left out, which pictures the training set has too: {error}')
        return None
    return known_images.find(engine, SHARDS_DIR.value, SPLIT.value, output_dir=output_dir)


def _measure(
    engine: Engine, stores: list[Store], solution: Solution | None, known: Known | None, *, output_dir: str
) -> list[Row]:
    rows: list[Row] = []
    with storage.scratch(output_dir, 'table') as scratch:
        for store in stores:
            print(f'combining {store.folder} by all rules', flush=True)
            rows += table.measure(engine, store, scratch=scratch, solution=solution, known=known)
    return rows


if __name__ == '__main__':
    program.run(main)
