"""A training run that is stopped at a given moment: `python -m tests.model.stopped_run SIGNAL MOMENT [flags]`

It is model.train on two logical CPUs, and sends itself a signal (KILL, TERM, INT) at a moment: `update 5` is before the
sixth update, `save 2` in the middle of writing the third checkpoint, `validation 1` before the second batch of one.
"""

from tests import conftest  # first: it sets the number of devices

# isort: split
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from model import train
from model.loop import Loop
from pipeline import dataset, program

assert conftest


def main(argv: list[str]) -> None:
    program_name, name, moment, *flags = argv
    counts = {'update': 0, 'save': 0, 'validation': 0}

    def passing(what: str) -> None:
        if f'{what} {counts[what]}' == moment:
            os.kill(os.getpid(), getattr(signal, f'SIG{name}'))
        counts[what] += 1

    def step(loop: Loop, stream: Iterator[Any], original: Callable[..., Any] = Loop._step) -> Any:
        passing('update')
        return original(loop, stream)

    def savez(file: Any, original: Callable[..., Any] = np.savez, **arrays: Any) -> None:
        original(file, **arrays)
        file.seek(file.tell() // 2)
        file.truncate()
        file.flush()
        passing('save')
        file.seek(0)
        original(file, **arrays)

    def filled(*args: Any, original: Callable[..., Any] = dataset._filled, **options: Any) -> Any:
        passing('validation')
        return original(*args, **options)

    with (
        mock.patch.object(Loop, '_step', step),
        mock.patch.object(np, 'savez', savez),
        mock.patch.object(dataset, '_filled', filled),
    ):
        train.main([program_name, *flags])


if __name__ == '__main__':
    program.run(main)
