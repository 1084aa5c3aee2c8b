"""The feed against decoding alone and NVIDIA DALI; what its stages cost, and its memory."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import InputError
from tools.benchmarks import feed_contenders, measure
from tools.benchmarks.measure import Row, Run

PRODUCTS = 60_000  # 0.6 GB, 89,469 training pictures
TARS = 4  # as many as there are training shards
WARM_UP, BATCHES = 30, 400  # half a pass over the training pictures, 3 to 12 s
FEEDS = (
    'ours', 'ours in tf.data', 'rows alone', 'dali', 'plain tf.data', 'webdataset',
    'simplejpeg', 'simplejpeg into batches', 'simplejpeg in one thread',
)  # fmt: skip
# A stage, and the contenders whose difference it is: with it, and without.
STAGES = {
    'decode': ('simplejpeg', None),
    'into the memory of batches': ('simplejpeg into batches', 'simplejpeg'),
    'read, parse, shuffle, batch, beside decoding': ('ours', 'simplejpeg into batches'),
    'read, parse, shuffle, alone on one core': ('rows alone', None),
    'hand over to tf.data': ('ours in tf.data', 'ours'),
}


def check_peers(python: str) -> None:
    """Refuses an environment that isn't there.

    Raises:
        InputError: with the command that makes it.
    """
    if not shutil.which(python):
        raise InputError(f'--peers_python={python}: no such program; make it with: make .venv-peers/installed')


def run(folder: Path, *, runs: int, peers_python: str) -> tuple[list[Row], dict]:
    """Measures the feed.

    Args:
        folder: for catalogue, shards and tars: 2 GB.
        runs: how often each contender is measured.
        peers_python: the Python that has DALI and WebDataset.

    Returns:
        the figures, and details of the runs.
    """
    prepare(folder, products=PRODUCTS)
    contend = functools.partial(contender, folder=folder, peers_python=peers_python)
    measured = measure.interleaved(
        {name: functools.partial(contend, name, warm_up=WARM_UP, batches=BATCHES) for name in FEEDS}, runs=runs
    )
    peak = contend('ours', warm_up=WARM_UP, batches=BATCHES, watch_memory=True).peak_bytes
    print(f'  memory: {peak / 1e6:.0f} MB', flush=True)
    rates = {name: measure.median_rate(runs) for name, runs in measured.items()}
    costs = stages(rates)
    for stage, cost in costs.items():
        print(f'  {cost:6.1f} us a picture: {stage}', flush=True)

    def row(name: str, ours: str, reference: str, limit: float | None) -> Row:
        return Row(name, rates[ours], rates[reference], 'img/s', limit, at_most=False)

    rows = [
        row('feed, against simplejpeg in two threads', 'ours', 'simplejpeg', 0.8),
        row('feed, against DALI', 'ours', 'dali', 1.15),
        row('feed handed to tf.data, against simplejpeg', 'ours in tf.data', 'simplejpeg', None),
        row('feed handed to tf.data, against DALI', 'ours in tf.data', 'dali', None),
        row('feed handed to tf.data, against plain tf.data', 'ours in tf.data', 'plain tf.data', None),
        row('feed, against WebDataset and simplejpeg', 'ours', 'webdataset', None),
    ]
    details = {
        'images_per_second': {name: [one.rate for one in runs] for name, runs in measured.items()},
        'microseconds_a_picture': costs,
        'peak_bytes': peak,
    }
    return rows, details


def prepare(folder: Path, *, products: int) -> None:
    """Makes shards/ of a synthetic catalogue, and tars/ with the training pictures of the shards."""
    shards = measure.make_shards(folder, products=products)
    write_tars(feed_contenders.training_pictures(shards), folder / 'tars')


def write_tars(pictures: Iterable[tuple[bytes, int]], folder: Path) -> None:
    """Writes pictures and labels as WebDataset has them: members 00000000.jpg and 00000000.cls of one sample.

    A label is 8 bytes, little-endian, not the digits that WebDataset itself would read: so DALI gives int64 without
    any work on its side.
    """
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        paths = [folder / f'{number:02d}.tar' for number in range(TARS)]
        tars = [stack.enter_context(tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT)) for path in paths]
        for number, (image, label) in enumerate(pictures):
            for suffix, data in (('jpg', image), ('cls', label.to_bytes(8, 'little', signed=True))):
                member = tarfile.TarInfo(f'{number:08d}.{suffix}')
                member.size = len(data)
                tars[number % TARS].addfile(member, io.BytesIO(data))


def contender(
    name: str, *, folder: Path, peers_python: str, warm_up: int, batches: int, watch_memory: bool = False
) -> Run:
    """Runs a contender in its environment."""
    if name in feed_contenders.PEERS:  # by its path: there the project is not installed
        python, program = peers_python, [feed_contenders.__file__]
    else:
        python, program = sys.executable, ['-m', feed_contenders.__name__]
    command = [*program, name, str(folder), str(warm_up), str(batches)]
    return measure.run(command, python=python, watch_memory=watch_memory)


def stages(rates: dict[str, float]) -> dict[str, float]:
    """Microseconds a picture that each stage takes of all cores together, from the contenders' pictures a second."""
    return {name: 1e6 / rates[full] - (1e6 / rates[less] if less else 0) for name, (full, less) in STAGES.items()}
