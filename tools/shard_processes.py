"""Something done to every shard of a dataset, in several processes, with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from pipeline import progress
from pipeline.manifest import FileInfo

PROCESS_BYTES = 64 * 10**6  # data for which one more process pays: it takes as long to start as to read so much


def map_shards(
    function: Callable[[tuple[int, FileInfo]], Any], files: Sequence[FileInfo], *, label: str, processes: int | None
) -> Iterator[Any]:
    """What a function makes of each file, in order.

    Args:
        function: of the file's number and the file; it and what it makes must be picklable.
        files: of a manifest.
        label: what is done, for the progress bar.
        processes: how many do it; None: one a core, but fewer for little data.
    """
    total = sum(file.bytes for file in files)
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        processes = min(cores, len(files), 1 + total // PROCESS_BYTES)
    with (
        progress.Progress(total=total, label=label, unit='B') as bar,
        contextlib.closing(_map(function, list(enumerate(files)), processes)) as found,
    ):
        for file, made in zip(files, found, strict=True):
            yield made
            bar.update(file.bytes)


def _map(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Generator[Any, None, None]:
    """As map; closing it ends the processes."""
    if processes <= 1:
        yield from map(function, items)
        return
    # New processes instead of forks, which aren't safe once other threads run nor to be had everywhere; and no threads,
    # because most of the work is Python's.
    # They get the function once, not with every item: what waits in a pipe for a process can block the end.
    with multiprocessing.get_context('spawn').Pool(processes, _begin, (function,)) as pool:
        yield from pool.imap(_apply, items)


_function: Callable[[Any], Any]  # of this process


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it and ends the workers


def _apply(item: Any) -> Any:
    return _function(item)
