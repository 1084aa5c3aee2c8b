"""A process that sends itself a signal at a given moment, for the tests of runs that are stopped.

`model 0` is before the model is made (of several machines each has met the others), `update 5` before the sixth update,
`save 2` in the middle of writing the third checkpoint, `validation 1` before the second batch of one, `end 0` after the
last evaluation, `block 2` in the middle of writing the logits of the third shard, if it is a small one.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from ensemble import logits
from model import evaluation, train
from model.loop import Loop
from pipeline import dataset


@contextlib.contextmanager
def signal_at(moment: str, name: str) -> Iterator[None]:
    """Has training or prediction in this process send itself a signal (KILL, TERM, INT) at a moment."""
    counts = {'model': 0, 'update': 0, 'save': 0, 'validation': 0, 'end': 0, 'block': 0}

    def passing(what: str) -> None:
        if f'{what} {counts[what]}' == moment:
            os.kill(os.getpid(), getattr(signal, f'SIG{name}'))
        counts[what] += 1

    def wrap(*args: Any, original: Callable[..., Any] = train._wrap) -> Any:
        passing('model')
        return original(*args)

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

    def write_by_category(*args: Any, original: Callable[..., Any] = evaluation.write_by_category) -> None:
        passing('end')
        original(*args)

    def encode(*args: Any, original: Callable[..., Any] = logits._encode) -> Any:
        passing('block')
        return original(*args)

    with (
        mock.patch.object(logits, '_encode', encode),
        mock.patch.object(train, '_wrap', wrap),
        mock.patch.object(Loop, '_step', step),
        mock.patch.object(np, 'savez', savez),
        mock.patch.object(dataset, '_filled', filled),
        mock.patch.object(evaluation, 'write_by_category', write_by_category),
    ):
        yield
