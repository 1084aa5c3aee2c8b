"""The train step, accumulating twelve micro batches, against Keras' fit, and with the feed attached."""

from __future__ import annotations

import functools
from pathlib import Path

from tools.benchmarks import measure
from tools.benchmarks.measure import Row, Run

PRODUCTS = 20_000  # 0.2 GB, 30,000 training pictures
PROGRAM = 'tools.benchmarks.train_contenders'  # not imported: it would load TensorFlow here
CONTENDERS = ('step', 'fit', "fit, Keras' accumulation", 'training, fed', 'training, cached')


def run(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    """Measures the train step.

    Args:
        folder: for catalogue and shards: 0.5 GB.
        runs: how often each contender is measured.

    Returns:
        the figures, and details of the runs.
    """
    measure.make_shards(folder, products=PRODUCTS)
    measured = measure.interleaved(
        {name: functools.partial(contender, name, folder=folder) for name in CONTENDERS}, runs=runs
    )
    rates = {name: measure.median_rate(done) for name, done in measured.items()}

    def row(name: str, ours: str, reference: str, limit: float | None) -> Row:
        return Row(name, rates[ours], rates[reference], 'img/s', limit, at_most=False)

    rows = [
        row('train step, 12 micro batches, against Keras fit', 'step', 'fit', 1.0),
        row("train step, against Keras' own accumulation", 'step', "fit, Keras' accumulation", None),
        row('training, feed attached, against a cached batch', 'training, fed', 'training, cached', 0.95),
    ]
    return rows, {'images_per_second': {name: [one.rate for one in done] for name, done in measured.items()}}


def contender(name: str, *, folder: Path) -> Run:
    """Runs a contender."""
    return measure.run(['-m', PROGRAM, name, str(folder)])
