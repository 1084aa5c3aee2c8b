"""Makes --backbone=tiny known to this process: for tests that start many runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import backbones

# A package's path as Python has it at run time.
PATHS: Any = backbones.__path__


@contextlib.contextmanager
def known() -> Iterator[None]:
    """Adds tests/model/backbones to the folders in which backbones are found, for a while."""
    PATHS.append(str(Path(__file__).with_name('backbones')))
    yield
    PATHS.pop()
