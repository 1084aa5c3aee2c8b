"""One of several machines that train: `python -m tests.model.one_worker RESULT SIGNAL MOMENT [flags]`, for a test.

It is model.train, and leaves in RESULT.npz the trained weights (arr_0, ...), the products that were decoded (seen) and
the updates of the last stage (updates).
At a moment, told as in moments.py, it sends itself a signal; but once only, as the file 'RESULT MOMENT' shows.
"""

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from model import train
from pipeline import feed
from tests.model import moments, tiny


def main(argv: list[str]) -> None:
    program_name, result, name, moment, *flags = argv
    models: list[Any] = []
    seen: set[int] = set()
    wrap, decoded, kill = train._wrap, feed.decoded, os.kill

    def keeping_wrap(*args: Any) -> Any:
        models.append(wrap(*args))
        return models[-1]

    def watched_decoded(*args: Any, **options: Any) -> Iterator[feed.Batch]:
        for batch in decoded(*args, **options):
            seen.update(batch.rows.table['product_id'].tolist())
            yield batch

    def once(process: int, number: int) -> None:
        with contextlib.suppress(FileExistsError), open(f'{result} {moment}', 'x'):
            kill(process, number)

    with (
        tiny.known(),
        mock.patch.object(train, '_wrap', keeping_wrap),
        mock.patch.object(feed, 'decoded', watched_decoded),
        mock.patch.object(os, 'kill', once),
        moments.signal_at(moment, name),
    ):
        train.main([program_name, *flags])
    if models:
        np.savez(result, *models[0].classifier.get_weights(), seen=sorted(seen), updates=models[0].optimizer.iterations)


if __name__ == '__main__':
    program.run(main)
