"""One of several machines that train, for test_multiworker.py: `python -m tests.model.one_worker RESULT [flags]`

It is model.train, and leaves in RESULT.npz the trained weights (arr_0, ...) and the products that were decoded (seen).
"""

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from model import train
from pipeline import feed


def main(argv: list[str]) -> None:
    program_name, result, *flags = argv
    models: list[Any] = []
    seen: set[int] = set()
    wrap, decoded = train._wrap, feed.decoded

    def keeping_wrap(*args: Any) -> Any:
        models.append(wrap(*args))
        return models[-1]

    def watched_decoded(*args: Any, **options: Any) -> Iterator[feed.Batch]:
        for batch in decoded(*args, **options):
            seen.update(batch.rows.table['product_id'].tolist())
            yield batch

    with mock.patch.object(train, '_wrap', keeping_wrap), mock.patch.object(feed, 'decoded', watched_decoded):
        train.main([program_name, *flags])
    np.savez(result, *models[0].classifier.get_weights(), seen=sorted(seen))


if __name__ == '__main__':
    program.run(main)
