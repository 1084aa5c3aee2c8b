"""What tools.export writes, from JPEG files to categories, against the network alone on decoded pictures."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.benchmarks import measure
from tools.benchmarks.measure import Row, Run

PRODUCTS = 2_000  # 20 MB; a tenth of them are val
PROGRAM = 'tools.benchmarks.serve_contenders'  # not imported: it would load TensorFlow here
NETWORKS = ('small', 'xception')
LEAST = {'small': 0.8, 'xception': 0.9}  # of the network's own rate


def run(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    """Measures the served model.

    Args:
        folder: for catalogue and shards: 50 MB.
        runs: how often each network is measured.

    Returns:
        the figures, and details of the runs.
    """
    measure.make_shards(folder, products=PRODUCTS)
    measured = measure.interleaved(
        {name: functools.partial(contender, name, folder=folder) for name in NETWORKS}, runs=runs
    )
    return rows(measured), {name: [_rates(one) for one in done] for name, done in measured.items()}


def rows(measured: Mapping[str, Sequence[Run]]) -> list[Row]:
    """The figures: medians of what the runs of each network say."""
    made = []
    for name, done in measured.items():
        all_rates = [_rates(one) for one in done]
        rates = {key: statistics.median(one[key] for one in all_rates) for key in all_rates[0]}
        many, alone = rates['products/s, 32 at a time'], rates['products/s, network alone']
        made.append(Row(f'served, {name}, against the network alone', many, alone, '/s', LEAST[name], at_most=False))
        for size in (8, 1):
            few = rates[f'products/s, {size} at a time']
            made.append(Row(f'served, {name}, {size} at a time against 32', few, many, '/s', None))
    return made


def _rates(one: Run) -> dict[str, float]:
    """What a process said last."""
    return json.loads(one.output.strip().splitlines()[-1])


def contender(name: str, *, folder: Path) -> Run:
    """Measures a network."""
    return measure.run(['-m', PROGRAM, name, str(folder)])
