"""Runs a plan of experiments and writes what each idea gains: `python -m tools.experiments --plan=winner`

The plan is a file: which networks are trained, how they are combined, what each is held against, and what the winner
of the challenge says it gained. Each training is a process of its own (model.train), one after the other, for each
seed. The same command goes on where it was interrupted and leaves out what is done; SIGTERM and Ctrl-C have the
training at work save and end, and give its exit code.

At the end stands a table, as text and in RUNS_DIR/PLAN.md and .csv: accuracy over products in the mean over seeds, and
the gain over the base with a 95 % interval by a paired bootstrap over products and seeds. With --solution it is of the
test products, too.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import sys

from absl import flags

from ensemble import submission
from ensemble.submission import Solution
from pipeline import dataset, storage
from pipeline.dataset import Shards
from pipeline.errors import InputError, UsageError
from tools import experiment_plan, experiment_runs, experiment_table
from tools.experiment_plan import Plan
from tools.experiment_runs import Training

FLAGS = program.flag_values()
program.group(FLAGS, 'What is run')
PLAN = flags.DEFINE_string(
    'plan', 'winner', f'One of {", ".join(experiment_plan.known())}, or the path of a .toml file like them.',
    flag_values=FLAGS,
)  # fmt: skip
SEEDS = flags.DEFINE_list(
    'seeds', [], 'Seeds of the trainings, such as 1,2,3; if none are given, those of the plan.', flag_values=FLAGS
)
ONLY = flags.DEFINE_list(
    'only', [], 'Names of experiments: only these are run, and what they begin with. If none are given, all.',
    flag_values=FLAGS,
)  # fmt: skip
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Only check the plan and print the commands.', flag_values=FLAGS)
program.group(FLAGS, 'Input and output')
SHARDS_DIR = flags.DEFINE_string('shards_dir', 'data/shards', 'Folder of the shards.', flag_values=FLAGS)
RUNS_DIR = flags.DEFINE_string(
    'runs_dir', '', 'Folder for the runs and the table; if empty, runs/ and the name of the plan.', flag_values=FLAGS
)
SOLUTION = flags.DEFINE_string(
    'solution', '', "A solution.csv with the test products' categories: the table is of them, too.", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Runs what isn't done of a plan, and writes the table."""
    program.parse(FLAGS, argv, doc=__doc__)
    shards = dataset.open_shards(SHARDS_DIR.value)
    plan = _plan()
    solution = submission.read_solution(SOLUTION.value, shards.label_map) if SOLUTION.value else None
    runs_dir = RUNS_DIR.value or storage.join('runs', plan.name)
    options = _options(shards, runs_dir)
    every = experiment_runs.trainings(plan, options)
    wanted = {(one.experiment.name, one.seed) for one in experiment_runs.trainings(plan, options, only=ONLY.value)}
    todo = [one for one in every if (one.experiment.name, one.seed) in wanted and not one.finished()]
    print(f'{len(wanted) - len(todo)} of {len(wanted)} trainings are done')
    if todo:
        experiment_runs.check_flags(plan, plan.needed(ONLY.value))
    for one in every:
        one.finished()  # refuses what is of another plan before anything is run
    again = program.command('tools.experiments', *argv[1:])
    if DRY_RUN.value:
        print(*(one.command for one in todo), sep='\n')
        then = program.command('tools.experiments', *argv[1:], '--nodry_run')
        program.last_line(f'wrote nothing: {len(todo)} trainings are to be run', then=then)
        return
    _run(todo, again=again)
    _write_table(plan, every, solution, path=storage.join(runs_dir, plan.name))


def _plan() -> Plan:
    """The plan, with the seeds and experiments that were asked for."""
    try:
        seeds = tuple(map(int, SEEDS.value))
    except ValueError:
        raise UsageError(f'--seeds={",".join(SEEDS.value)}: must be whole numbers with commas between') from None
    plan = experiment_plan.read(PLAN.value)
    names = [one.name for one in plan.experiments]
    for name in ONLY.value:
        if name not in names:
            raise UsageError(f'--only={name}: no such experiment in {plan.path}; there are {", ".join(names)}')
    return plan.with_seeds(seeds) if seeds else plan


def _options(shards: Shards, runs_dir: str) -> experiment_runs.Options:
    splits = ('val', 'test') if SOLUTION.value else ('val',)
    for split in splits:
        if not shards.manifest.products(split):
            raise InputError(f'{SHARDS_DIR.value}: holds no products of {split}; convert a catalogue that has some')
    return experiment_runs.Options(SHARDS_DIR.value, shards.manifest.digest(), runs_dir, splits)


def _run(todo: list[Training], *, again: str) -> None:
    """Runs trainings until all are done, one fails or it is asked to end."""
    runner = experiment_runs.Runner()
    with runner.listening():
        for number, training in enumerate(todo, start=1):
            print(f'training {number} of {len(todo)}: {training.command}', flush=True)
            code = runner.run(training)
            if runner.asked:
                program.last_line(f'wrote {training.run_dir}: ended as asked', then=again)
            elif code:
                print(f'{training.run_dir}: ended with exit code {code}; next: {again}', file=sys.stderr)
            if code or runner.asked:
                raise SystemExit(code)


def _write_table(plan: Plan, every: list[Training], solution: Solution | None, *, path: str) -> None:
    """Scores what is done, prints the table and writes it."""
    done = {(one.experiment.name, one.seed): one for one in every if one.finished()}
    print('scoring what was run', flush=True)
    results = {'val': experiment_table.measure(plan, done, split='val')}
    if solution:
        results['test'] = experiment_table.measure(plan, done, split='test', solution=solution)
    if not results['val']:
        raise InputError(f'{path}.md: no experiment is of all products, so there is no table; run more with --only')
    table = experiment_table.lines(plan, done, results)
    text = experiment_table.markdown(plan, table, lacking=experiment_table.missing(plan, done))
    with storage.atomic_writer(f'{path}.md') as file:
        file.write(text.encode())
    experiment_table.write_csv(table, f'{path}.csv')
    print(f'\n{text}')
    best = max(table, key=lambda line: line.gains['val'].accuracy.value)
    stores = experiment_table.stores(best.experiment, best.seeds[0], done, split='test' if solution else 'val')
    combine = program.command('ensemble.combine', '--rule', plan.rule, f'--logits={",".join(stores)}')
    program.last_line(f'wrote {path}.md and {path}.csv', then=combine)


if __name__ == '__main__':
    program.run(main)
