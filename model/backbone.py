"""What a backbone is, and how one is found by name.

To add one, add a file to model/backbones/ with a function `build(*, image_size, width) -> Backbone`, without `width` if
the network has one width only, and MIN_IMAGE_SIZE, the smallest pictures it takes; BUILD.md has the checklist.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import keras

from model import backbones
from pipeline import program
from pipeline.errors import InputError, UsageError


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
        UsageError: there is none of this name, width or size of pictures.
    """
    if name not in names():
        raise UsageError(f'--backbone={name}: no such backbone; known are {", ".join(names())}')
    module = _module(name)
    if image_size < module.MIN_IMAGE_SIZE:
        raise UsageError(f'--image_size={image_size}: {name} takes {module.MIN_IMAGE_SIZE} pixels a side or more')
    if _takes_width(module):
        return module.build(image_size=image_size, width=width)
    if width != 1:
        others = ', '.join(other for other in names() if _takes_width(_module(other)))
        raise UsageError(f'--width={width:g}: {name} has only its published width, --width=1; any is taken by {others}')
    return module.build(image_size=image_size)


def from_keras(application: Callable[..., Any], image: Any, scaled_image: Any, *, blocks: tuple[str, ...]) -> Backbone:
    """A network of keras.applications without its dense layer.

    Args:
        application: such as keras.applications.ResNet50.
        image: the Keras input, values 0..255.
        scaled_image: what was made of it for the network.
        blocks: as in Backbone; the caller renames layers that don't begin with a block's name.
    """
    network = application(weights=None, include_top=False, pooling='avg', input_tensor=scaled_image)

    def imagenet() -> Any:
        return application(weights='imagenet', include_top=False, pooling='avg').get_weights()

    # A model of our own, for the network's expects its one input in a list.
    return Backbone(keras.Model(image, network.output), blocks, imagenet)


def from_pytorch(name: str) -> Callable[[], Any]:
    """Backbone.imagenet of a backbone whose ImageNet weights are published for PyTorch alone: says how to get them."""

    def imagenet() -> Any:
        importing = program.command('tools.import_weights', f'--backbone={name}')
        raise InputError(f"for Keras there are none of {name}, but `{importing} --help` says how to import PyTorch's")

    return imagenet


def scaled(filters: int, width: float) -> int:
    """So many filters times `width`, as a multiple of 8 (which kernels like), at least 8."""
    return max(8, int(filters * width / 8 + 0.5) * 8)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f'model.backbones.{name}')


def _takes_width(module: ModuleType) -> bool:
    return 'width' in inspect.signature(module.build).parameters
