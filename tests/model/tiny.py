"""Makes --backbone=tiny known to this process: for tests that start many runs."""

from pathlib import Path
from typing import Any

from model import backbones

# A package's path as Python has it at run time.
PATHS: Any = backbones.__path__


def add() -> None:
    """Adds tests/model/backbones to the folders in which backbones are found."""
    PATHS.append(str(Path(__file__).with_name('backbones')))


def remove() -> None:
    """Takes it away again."""
    PATHS.pop()
