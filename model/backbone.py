"""What a backbone is, and how one is found by name.

To add one, add a file to model/backbones/ with a function `build(*, image_size, width) -> Backbone`; BUILD.md has the
checklist.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model import backbones
from pipeline.errors import InputError


@dataclass(frozen=True)
class Backbone:
    """A network that turns pictures into features.

    Attributes:
        model: a Keras model: float32 [n, size, size, 3], values 0..255 -> [n, features]; it scales its input itself.
        blocks: names of its blocks from the input on; a layer belongs to the block that its name starts with, layers
            of no block have no weights.
        imagenet: gives its ImageNet weights in the order of model.get_weights(), downloading them at need; None if
            there are none for this shape.
    """

    model: Any
    blocks: tuple[str, ...]
    imagenet: Callable[[], Any] | None


def names() -> list[str]:
    """All known backbones."""
    return sorted(module.name for module in pkgutil.iter_modules(backbones.__path__))


def build(name: str, *, image_size: int, width: float) -> Backbone:
    """The backbone in model/backbones/NAME.py.

    Raises:
        InputError: there is none of this name.
    """
    if name not in names():
        raise InputError(f'--backbone={name}: no such backbone; known are {", ".join(names())}')
    return importlib.import_module(f'model.backbones.{name}').build(image_size=image_size, width=width)


def scaled(filters: int, width: float) -> int:
    """So many filters times `width`, as a multiple of 8 (which kernels like), at least 8."""
    return max(8, int(filters * width / 8 + 0.5) * 8)
