"""Runs pytorch_networks.py by a Python that has PyTorch, which needn't be that of the tests.

On PyPI PyTorch for Linux comes with gigabytes of CUDA; Debian's package python3-torch, for /usr/bin/python3, doesn't.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name('pytorch_networks.py')
PYTHONS = (os.environ.get('TORCH_PYTHON', ''), sys.executable, '/usr/bin/python3')
HAS_TORCH = 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("numpy")))'


@dataclass(frozen=True)
class Reference:
    """What a network in PyTorch is and does.

    Attributes:
        name: the backbone's.
        width: times the published filters.
        folder: files of weights; more in tests/tools/pytorch_networks.py.
        pictures: float32 [2, size, size, 3], 0..255.
        features: float32 [2, features], in evaluation mode.
        factors: like features; the gradients are those of sum(features * factors).
    """

    name: str
    width: float
    folder: Path
    pictures: np.ndarray
    features: np.ndarray
    factors: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """tensors or gradients, by PyTorch's names."""
        with np.load(self.folder / f'{name}.npz') as file:
            return dict(file)


def python_or_skip() -> str:
    """The first Python that has PyTorch; where there is none the test is skipped."""
    path = _python()
    if not path:
        pytest.skip('no PyTorch: apt-get install python3-torch, or name a Python that has it in TORCH_PYTHON')
    return path


@functools.cache
def _python() -> str:
    for path in PYTHONS:
        if os.path.exists(path) and subprocess.run([path, '-c', HAS_TORCH], check=False).returncode == 0:
            return path
    return ''


def reference(name: str, *, width: float, size: int, folder: Path) -> Reference:
    """Builds and runs a network, or skips the test where there is no PyTorch."""
    path = python_or_skip()
    folder.mkdir()
    subprocess.run([path, SCRIPT, name, str(width), str(size), folder], check=True)
    return Reference(name, width, folder, *_loaded(folder))


def _loaded(folder: Path) -> Iterator[np.ndarray]:
    return (np.load(folder / f'{name}.npy') for name in ('pictures', 'features', 'factors'))
