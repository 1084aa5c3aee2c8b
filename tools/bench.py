"""Measures what the project is built for, against references in the same run: `python -m tools.bench convert`

Name one part or more:
  convert   the conversion against a plain loop, and its memory
  feed      batches for training against decoding alone and NVIDIA DALI
  train     the train step against Keras' fit, and with the feed attached
  combine   combining against numpy, product by product, and its memory
  serve     what tools.export writes, against its network alone
All take 45 minutes. Times are medians of interleaved runs, start-up included, rates medians without it; the table
says which figures keep to their limits. Exit code 1 if one doesn't.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import dataclasses
import json
import os
import platform
import tempfile
from pathlib import Path

from absl import flags

from pipeline import storage
from pipeline.errors import InputError
from tools.benchmarks import combine, convert, feed, serve, train
from tools.benchmarks.measure import Row

FLAGS = program.flag_values()
program.group(FLAGS, 'Measuring')
RUNS = flags.DEFINE_integer('runs', 5, 'How many times each command is timed.', lower_bound=1, flag_values=FLAGS)
PEERS_PYTHON = flags.DEFINE_string(
    'peers_python', '.venv-peers/bin/python', 'Python with the packages of constraints-peers.txt, for the part feed.',
    flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Files')
JSON = flags.DEFINE_string('json', None, 'Also write the figures to this file, as JSON.', flag_values=FLAGS)
WORK_DIR = flags.DEFINE_string(
    'work_dir', None, 'Folder for what is measured, 15 GB; if none is named, the one for temporary files.',
    flag_values=FLAGS,
)  # fmt: skip


def _feed(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    return feed.run(folder, runs=runs, peers_python=PEERS_PYTHON.value)


PARTS = {'convert': convert.run, 'feed': _feed, 'train': train.run, 'combine': combine.run, 'serve': serve.run}


def main(argv: list[str]) -> None:
    """Runs the parts named on the command line."""
    parts = program.parse(FLAGS, argv, doc=__doc__, words='PART ...')
    for part in parts or ['']:
        if part not in PARTS:
            raise flags.Error(f'name one or more parts of {", ".join(PARTS)}, not {part!r}')
    if 'feed' in parts:  # known before another part has run for minutes
        feed.check_peers(PEERS_PYTHON.value)
    rows: list[Row] = []
    told = {
        'machine': {'cores': os.cpu_count(), 'processor': platform.processor(), 'python': platform.python_version()}
    }
    with tempfile.TemporaryDirectory(prefix='bench-', dir=WORK_DIR.value) as folder:
        for part in parts:
            made, told[part] = PARTS[part](Path(folder), runs=RUNS.value)
            rows += made
    _print_table(rows)
    if JSON.value:
        figures = [{**dataclasses.asdict(row), 'ratio': row.ratio, 'met': row.met} for row in rows]
        with storage.atomic_writer(JSON.value) as file:
            file.write((json.dumps({'figures': figures, **told}, indent=1) + '\n').encode())
    missed = [row.name for row in rows if not row.met]
    if missed:
        raise InputError(f'{len(missed)} of {len(rows)} figures miss their limit: {"; ".join(missed)}')
    if JSON.value:
        done, then = f'wrote {JSON.value}', 'hold them against those of docs/results.md'
    else:
        done, then = 'measured', program.command('tools.bench', *argv[1:], '--json=bench.json')
    program.last_line(f'{done}: all {len(rows)} figures keep to their limits', then=then)


def _print_table(rows: list[Row]) -> None:
    print(f'{"":50} {"ours":>10}       {"reference":>10}       {"ratio":>6}  limit')
    for row in rows:
        scale, unit = (1e6, 'MB') if row.unit == 'B' else (1, row.unit)
        numbers = f'{row.ours / scale:10,.1f} {unit:5} {row.reference / scale:10,.1f} {unit:5} {row.ratio:6.2f}'
        limit = 'none' if row.limit is None else f'{"<=" if row.at_most else ">="} {row.limit}'
        print(f'{row.name:50} {numbers}  {limit} {"" if row.met else "MISSED"}')


if __name__ == '__main__':
    program.run(main)
