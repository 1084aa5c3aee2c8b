"""Measures commands as processes: interleaved wall times or rates, and the memory that is theirs alone."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import progress
from pipeline.errors import InputError


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    Attributes:
        name: what was measured.
        ours: the figure.
        reference: what it is held against, in the same unit; from the same run.
        unit: of both.
        limit: what `ours / reference` must keep to; None if it is only told.
        at_most: whether the limit is the largest ratio allowed, or the smallest.
    """

    name: str
    ours: float
    reference: float
    unit: str
    limit: float | None
    at_most: bool = True

    @property
    def ratio(self) -> float:
        """Ours as a part of the reference."""
        return self.ours / self.reference

    @property
    def met(self) -> bool:
        """Whether the ratio keeps to the limit."""
        if self.limit is None:
            return True
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit


@dataclass(frozen=True)
class Run:
    """One run of a command.

    Attributes:
        seconds: wall time, start-up included.
        peak_bytes: the most private memory that all its processes held together; 0 if it wasn't watched.
        output: what it printed on stdout.
    """

    seconds: float
    peak_bytes: int
    output: str

    @property
    def rate(self) -> float | None:
        """The rate that it measured itself, start-up left out, if its last line says so in JSON: {unit: rate}."""
        return next(iter(self._said.values()), None)

    @property
    def figure(self) -> str:
        """Its rate with the unit, or its seconds if it says none."""
        return f'{self.seconds:.1f} s' if self.rate is None else f'{self.rate:,.0f} {next(iter(self._said))}'

    @property
    def _said(self) -> dict[str, float]:
        last = self.output.strip().rpartition('\n')[2]
        return json.loads(last) if last.startswith('{') else {}


def run(command: Sequence[str], *, python: str = sys.executable, watch_memory: bool = False) -> Run:
    """Runs a Python command (`-m module ...`) to its end, with the Python of some environment.

    Raises:
        InputError: it failed; with the last line it said.
    """
    os.sync()  # what an earlier run has left to be written must not slow this one down
    started = time.perf_counter()
    process = subprocess.Popen(
        [python, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    peak = 0
    while watch_memory and process.poll() is None:
        peak = max(peak, _private_bytes(process.pid))
        time.sleep(0.02)
    output, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise InputError(f'{" ".join(command)} failed: {errors.strip().splitlines()[-1:]}')
    return Run(seconds, peak, output)


def make_shards(folder: Path, *, products: int) -> Path:
    """Makes shards/ of a synthetic catalogue, in place of an earlier part's."""
    catalogue, shards = folder / 'catalogue', folder / 'shards'
    print(f'making shards of {products:,} products', flush=True)
    run(['-m', 'tools.synthetic_catalogue', f'--products={products}', f'--output_dir={catalogue}'])
    run(['-m', 'pipeline.convert', '--runner=DirectRunner', f'--input_dir={catalogue}', f'--output_dir={shards}'])
    shutil.rmtree(catalogue)
    return shards


def interleaved(commands: dict[str, Callable[[], Run]], *, runs: int) -> dict[str, list[Run]]:
    """Runs commands in turn, so that a machine that gets slower or faster does so for all of them."""
    done: dict[str, list[Run]] = {name: [] for name in commands}
    with progress.Progress(total=runs * len(commands), label='measure', unit='runs', leave=False) as bar:
        for number in range(runs):
            for name in list(commands)[:: 1 if number % 2 else -1]:
                one = commands[name]()
                done[name].append(one)
                bar.write(f'  run {number + 1} of {runs}: {name} {one.figure}')
                bar.update()
    return done


def median_seconds(runs: Sequence[Run]) -> float:
    """The median wall time."""
    return statistics.median(one.seconds for one in runs)


def median_rate(runs: Sequence[Run]) -> float:
    """The median of the rates, for runs that say theirs."""
    return statistics.median(one.rate for one in runs if one.rate is not None)


def _private_bytes(session: int) -> int:
    """Anonymous memory of all processes of a session; mapped files are the page cache's and don't count."""
    total = 0
    for folder in Path('/proc').iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) == session:
                status = (folder / 'status').read_text()
                total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if _is_private(line))
        except (ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            continue
    return total


def _is_private(line: str) -> bool:
    return line.startswith(('RssAnon:', 'RssShmem:'))
