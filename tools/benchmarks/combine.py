"""Combining against numpy, product by product; and its memory as the store grows."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.benchmarks import measure
from tools.benchmarks.measure import Row, Run

IMAGES, MANY_IMAGES = 100_000, 400_000  # 1.05 GB and 4.2 GB of logits of 5,270 categories
RULES = ('mean', 'product')
# Programs, not imported: they would load TensorFlow here.
CONTENDERS_PROGRAM, STORE_PROGRAM = 'tools.benchmarks.combine_contenders', 'tools.benchmarks.logits_store'
CONTENDERS = (
    'ours, mean', 'ours, product', 'ours on one core, mean', 'ours on one core, product',
    'numpy, mean', 'numpy, product', 'numpy, product of one softmax',
)  # fmt: skip
NUMPY_RATIO = 10  # all cores of the machine against the one process that numpy's loop is
CORE_RATE = 500.0  # MB of float16 logits a second that a core must reduce
MEMORY_GROWTH = 1.15


def run(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    """Measures combining.

    Args:
        folder: for logits: 6.5 GB; what is made is removed again.
        runs: how often each contender is measured.

    Returns:
        the figures, and details of the runs.
    """
    small, large = folder / 'logits-small', folder / 'logits-large'
    make(small, images=IMAGES, arrays=True)
    commands: dict[str, Callable[[], Run]] = {
        **{name: functools.partial(contender, name, folder=small) for name in CONTENDERS},
        **{f'ensemble.combine, {rule}': functools.partial(combine, rule, folder=small) for rule in RULES},
    }
    measured = measure.interleaved(commands, runs=runs)
    make(large, images=MANY_IMAGES)
    peaks = {}
    for images, where in ((IMAGES, small), (MANY_IMAGES, large)):
        peaks[images] = combine('product', folder=where, watch_memory=True).peak_bytes
        print(f'  memory: {images:,} pictures, {peaks[images] / 1e6:.0f} MB', flush=True)
        shutil.rmtree(where)
    details = {
        'megabytes_per_second': {name: [one.rate for one in measured[name]] for name in CONTENDERS},
        'seconds': {name: [round(one.seconds, 2) for one in done] for name, done in measured.items()},
    }
    memory = Row(
        'combine 4.2 GB, memory, against that of 1.05 GB', peaks[MANY_IMAGES], peaks[IMAGES], 'B', MEMORY_GROWTH
    )
    return [*rows(measured), memory], details


def rows(measured: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The figures of speed, from the runs of each contender and of the whole commands."""
    rates = {name: measure.median_rate(measured[name]) for name in CONTENDERS}
    seconds = {name: measure.median_seconds(done) for name, done in measured.items()}

    def rate(name: str, ours: str, reference: float, limit: float | None) -> Row:
        return Row(name, rates[ours], reference, 'MB/s', limit, at_most=False)

    made = []
    for rule in RULES:
        command, numpy = f'ensemble.combine, {rule}', f'numpy, {rule}'
        made += [
            rate(f'combine, {rule}, all cores, against numpy', f'ours, {rule}', rates[numpy], NUMPY_RATIO),
            rate(f'combine, {rule}, a core, against 500 MB/s', f'ours on one core, {rule}', CORE_RATE, 1),
            rate(f'combine, {rule}, a core, against numpy', f'ours on one core, {rule}', rates[numpy], None),
            Row(f'combine, {rule}, the command, against numpy', seconds[command], seconds[numpy], 's', None),
        ]
    one_softmax = rates['numpy, product of one softmax']
    return [*made, rate('combine, product, against numpy with one softmax', 'ours, product', one_softmax, None)]


def make(folder: Path, *, images: int, arrays: bool = False) -> None:
    """Makes logits/val, and arrays/ with the same logits."""
    print(f'making logits of {images:,} pictures', flush=True)
    measure.run(['-m', STORE_PROGRAM, str(folder), str(images), *(['arrays'] if arrays else [])])


def contender(name: str, *, folder: Path) -> Run:
    """Runs a contender."""
    return measure.run(['-m', CONTENDERS_PROGRAM, name, str(folder)])


def combine(rule: str, *, folder: Path, watch_memory: bool = False) -> Run:
    """Runs the program as its user does, with a process a core, into a folder of its own, which is removed."""
    output = folder / 'out'
    try:
        return measure.run(
            ['-m', 'ensemble.combine', '--runner=DirectRunner', f'--rule={rule}', f'--logits={folder}/logits/val',
             f'--output_dir={output}'],
            watch_memory=watch_memory,
        )  # fmt: skip
    finally:
        shutil.rmtree(output, ignore_errors=True)
