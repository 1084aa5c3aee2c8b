"""What tools.export writes, from JPEG files to categories, against the network alone on decoded pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.benchmarks import measure
from tools.benchmarks.measure import Row, Run

PRODUCTS = 2_000  # 20 MB; 177 of them are val
PROGRAM = 'tools.benchmarks.serve_contenders'  # not imported: it would load TensorFlow here
CONTENDERS = (
    'small, 32 products', 'small, 8 products', 'small, 1 products', 'small, network alone',
    'xception, 32 products', 'xception, network alone',
)  # fmt: skip


def run(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    """Measures the served model.

    Args:
        folder: for catalogue and shards: 50 MB.
        runs: how often each contender is measured.

    Returns:
        the figures, and details of the runs.
    """
    measure.make_shards(folder, products=PRODUCTS)
    commands = {name: functools.partial(contender, name, folder=folder) for name in CONTENDERS}
    measured = measure.interleaved(commands, runs=runs)
    return rows(measured), {'products_per_second': {name: [one.rate for one in measured[name]] for name in CONTENDERS}}


def rows(measured: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The figures, from the runs of each contender."""
    rates = {name: measure.median_rate(done) for name, done in measured.items()}

    def row(name: str, ours: str, reference: str, limit: float | None) -> Row:
        return Row(name, rates[ours], rates[reference], '/s', limit, at_most=False)

    return [
        row('served, small network, against the network alone', 'small, 32 products', 'small, network alone', None),
        row('served, Xception, against the network alone', 'xception, 32 products', 'xception, network alone', None),
        row('served, small network, 8 products against 32', 'small, 8 products', 'small, 32 products', None),
        row('served, small network, 1 product against 32', 'small, 1 products', 'small, 32 products', None),
    ]


def contender(name: str, *, folder: Path) -> Run:
    """Runs a contender."""
    return measure.run(['-m', PROGRAM, name, str(folder)])
