"""The conversion against the plain loop, and its memory as the catalogue grows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tools.benchmarks import measure
from tools.benchmarks.measure import Row

SPEED_PRODUCTS = 200_000  # 2.1 GB with test.bson
SMALL_PRODUCTS, LARGE_PRODUCTS = 48_000, 384_000  # 0.5 GB and 4 GB
KAGGLE_PRODUCTS = 7_069_896
MEMORY_LIMIT = 2e9  # bytes, all processes together


def run(folder: Path, *, runs: int) -> tuple[list[Row], dict]:
    """Measures the conversion.

    Args:
        folder: for catalogues and shards: up to 15 GB; what is made is removed again.
        runs: how often each command is timed.

    Returns:
        the figures, and details of the runs.
    """
    catalogue = _catalogue(folder, SPEED_PRODUCTS)
    commands = {
        'plain loop': lambda: _timed(catalogue, ['-m', 'tools.benchmarks.plain_convert', str(catalogue)], folder),
        'pipeline.convert': lambda: _timed(catalogue, _convert(catalogue), folder),
    }
    timed = measure.interleaved(commands, runs=runs)
    size = _bytes(catalogue)
    shutil.rmtree(catalogue)
    peaks = {}
    for products in (SMALL_PRODUCTS, LARGE_PRODUCTS):
        catalogue = _catalogue(folder, products)
        peaks[products] = _timed(catalogue, _convert(catalogue), folder, watch_memory=True).peak_bytes
        print(f'  memory: {_bytes(catalogue) / 1e9:.1f} GB of input, {peaks[products] / 1e6:.0f} MB', flush=True)
        shutil.rmtree(catalogue)
    catalogue = _catalogue(folder, KAGGLE_PRODUCTS, '--blank')
    planned = _timed(catalogue, [*_convert(catalogue), '--plan_only'], folder, watch_memory=True)
    shutil.rmtree(catalogue)
    seconds = {name: measure.median_seconds(runs) for name, runs in timed.items()}
    rows = [
        Row(f'convert {size / 1e9:.1f} GB, against the plain loop', *_pair(seconds), 's', 0.5),
        Row('convert 4 GB, memory, against that of 0.5 GB', peaks[LARGE_PRODUCTS], peaks[SMALL_PRODUCTS], 'B', 1.15),
        Row('convert 4 GB, memory, against 2 GB', peaks[LARGE_PRODUCTS], MEMORY_LIMIT, 'B', 1),
        Row('plan 7 million products, memory, against 2 GB', planned.peak_bytes, MEMORY_LIMIT, 'B', 1),
    ]
    details = {
        'input_bytes': size,
        'seconds': {name: [round(one.seconds, 2) for one in runs] for name, runs in timed.items()},
        'megabytes_per_second': {name: round(size / value / 1e6, 1) for name, value in seconds.items()},
        'phases': [_phases(one.output) for one in timed['pipeline.convert']],
        'plan_of_7_million': {'seconds': round(planned.seconds, 1), 'phases': _phases(planned.output)},
    }
    return rows, details


def _pair(seconds: dict[str, float]) -> tuple[float, float]:
    return seconds['pipeline.convert'], seconds['plain loop']


def _convert(catalogue: Path) -> list[str]:
    return ['-m', 'pipeline.convert', '--runner=DirectRunner', f'--input_dir={catalogue}']


def _timed(catalogue: Path, command: list[str], folder: Path, *, watch_memory: bool = False) -> measure.Run:
    """Runs a conversion into a folder of its own, which is removed; the catalogue is in the page cache before."""
    for name in ('train.bson', 'test.bson'):
        with open(catalogue / name, 'rb') as file:
            while file.read(2**24):
                pass
    output = folder / 'out'
    last = f'--output_dir={output}' if 'pipeline.convert' in command else str(output)
    try:
        return measure.run([*command, last], watch_memory=watch_memory)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _catalogue(folder: Path, products: int, *words: str) -> Path:
    path = folder / f'catalogue-{products}'
    print(f'making a catalogue of {products:,} products', flush=True)
    measure.run(['-m', 'tools.synthetic_catalogue', f'--products={products}', f'--output_dir={path}', *words])
    return path


def _bytes(catalogue: Path) -> int:
    return sum((catalogue / name).stat().st_size for name in ('train.bson', 'test.bson'))


def _phases(output: str) -> dict[str, float]:
    """Seconds of each phase, from the conversion's last lines."""
    return {name: float(value) for name, value in re.findall(r'(read|plan|write) ([\d.]+) s', output)}
