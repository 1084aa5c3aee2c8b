"""Reports on a run, as a page: `python -m tools.report --run_dir=runs/latest`

The page is one file, report-val.html in the run's folder, which opens anywhere without a network: how the run was
trained (the paper's Figure 3), all rules with intervals (its Table I), calibration, accuracy by category, number of
pictures and level, the categories most often mistaken for one another, the most confident mistakes and the least
certain products with their pictures, and what took how long. Runs whose folders follow are compared with it.

--table makes only Table I, printed and as table-val.md and table-val.csv: for each run, with each number of views of a
picture of which it has logits (model.predict --tta=5), accuracy with a 95 % bootstrap interval, its difference to the
rule mean with an interval and McNemar's exact test; then top 5, the levels of the categories, and the accuracy over
products with 1 to 4 pictures, and with or without a picture that stands in the training set too.
With --split=test --solution=data/solution.csv both are of the test set.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os

from absl import flags

from ensemble import logits_folder, rules
from model import runs
from pipeline import beam_job, manifest, storage
from pipeline.beam_job import Engine
from pipeline.errors import UsageError
from tools import page, table
from tools.reports import grids, predicted, training

FLAGS = program.flag_values()
program.group(FLAGS, 'What is reported')
RUN_DIR = flags.DEFINE_string(
    'run_dir', 'runs/latest', "The run's folder; the folders of others to compare it with may follow, without a flag. "
    'Four runs, each for products with another number of pictures, are one with + between: runs/p1+runs/p2+...',
    flag_values=FLAGS,
)  # fmt: skip
TABLE = flags.DEFINE_bool('table', False, 'Make only the table of all rules, no page.', flag_values=FLAGS)
SPLIT = flags.DEFINE_enum('split', 'val', ('val', 'test'), 'On which products.', flag_values=FLAGS)
RULE = flags.DEFINE_enum(
    'rule', 'product', rules.names(), 'The rule whose predictions the page shows product by product.', flag_values=FLAGS
)
program.group(FLAGS, 'Input and output')
SOLUTION = flags.DEFINE_string(
    'solution', '', "A solution.csv with the test products' categories, for --split=test.", flag_values=FLAGS
)
SHARDS_DIR = flags.DEFINE_string(
    'shards_dir', 'data/shards', 'Folder of the shards: their pictures are shown, and those that the training set has '
    'too are looked for.', flag_values=FLAGS,
)  # fmt: skip
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', '', "Folder for what is written; if empty, the first run's folder.", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Reports on a run, or on the runs named on the command line."""
    rest = program.parse(FLAGS, argv, doc=__doc__, pass_through=True, words='[RUN ...]')
    folders = _folders([word for word in rest if not word.startswith('-')])
    if SPLIT.value == 'test' and TABLE.value and not SOLUTION.value:
        raise UsageError("--split=test needs the products' categories: give --solution=data/solution.csv")
    if SPLIT.value != 'test' and SOLUTION.value:
        raise UsageError(f'--solution={SOLUTION.value} is for the test set; give --split=test, or leave it out')
    engine = beam_job.engine([word for word in rest if word.startswith('-')], known=FLAGS)
    output_dir = OUTPUT_DIR.value or table.members(folders[0])[0]
    if TABLE.value:
        _make_table(engine, folders, output_dir=output_dir)
    else:
        _make_page(engine, folders, output_dir=output_dir)


def _folders(words: list[str]) -> list[str]:
    """The runs, each once: --run_dir first, unless only others are named."""
    named = [RUN_DIR.value] if FLAGS['run_dir'].present or not words else []
    found: dict[tuple[str, ...], str] = {}
    for word in [*named, *words]:
        found.setdefault(tuple(map(os.path.realpath, table.members(word))), word.rstrip('/'))
    return list(found.values())


def _make_page(engine: Engine, folders: list[str], *, output_dir: str) -> None:
    """Writes the page of the first run."""
    page.check_installed()
    trained = training.sections(table.all_members(folders), shards_dir=SHARDS_DIR.value)
    found = predicted.sections(
        engine,
        folders,
        split=SPLIT.value,
        rule=RULE.value,
        solution=SOLUTION.value,
        shards_dir=SHARDS_DIR.value,
        output_dir=output_dir,
    )
    path = storage.join(output_dir, f'report-{SPLIT.value}.html')
    name, *others = table.names(folders)
    products = 'the test products' if SPLIT.value == 'test' else 'the products held out from training (val)'
    subtitle = f'On {products}' + (f', compared with {", ".join(others)}' if others else '')
    page.write(path, f'Run {name}', subtitle, [trained.curves, *found, *trained.others])
    program.last_line(
        f'wrote {path} ({storage.size(path) / 1e6:.1f} MB), a page to open in a browser',
        then=_combine(table.logits_of(folders[0], 'test'), RULE.value),
    )


def _make_table(engine: Engine, folders: list[str], *, output_dir: str) -> None:
    """Writes and prints the table of runs."""
    compared = table.open_runs(folders, SPLIT.value, solution=SOLUTION.value)
    path = storage.join(output_dir, f'table-{SPLIT.value}')
    for older in (f'{path}.md', f'{path}.csv'):
        if storage.exists(older):
            storage.remove(older)
    with storage.scratch(output_dir, 'table') as scratch:
        rows = table.measure_all(engine, compared, shards_dir=SHARDS_DIR.value, scratch=scratch)
    text = grids.markdown(rows, compared.products)
    with storage.atomic_writer(f'{path}.md') as file:
        file.write(text.encode())
    table.write_csv(rows, f'{path}.csv')
    print(f'\n{text}')
    best = max(rows, key=lambda row: row.accuracy.value)
    views = [] if best.views == rules.VIEWS[0] else [f'--views={best.views}']
    logits = logits_folder.of_split(best.store.folder, 'test')
    program.last_line(f'wrote {path}.md and {path}.csv', then=_combine(logits, best.rule, *views))


def _combine(logits: str, rule: str, *more: str) -> str:
    """The command that combines test logits, or what comes before it while there are none."""
    missing = [one for one in table.members(logits) if not storage.exists(storage.join(one, manifest.NAME))]
    if not missing:
        return program.command('ensemble.combine', '--rule', rule, *more, f'--logits={logits}')
    run = os.path.dirname(os.path.dirname(missing[0]))
    if storage.exists(storage.join(run, runs.SETTINGS_NAME)) and not runs.is_finished(run):
        return f'the same model.train command goes on with {run}, whose training is not finished'
    return logits_folder.command(missing[0])


if __name__ == '__main__':
    program.run(main)
