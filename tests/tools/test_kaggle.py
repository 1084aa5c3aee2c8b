"""What the programs that make a catalogue share; most of it is tested through them."""

from __future__ import annotations

import runpy
import sys

import pytest

from tools import kaggle


def test_without_pillow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    with pytest.raises(SystemExit, match=r"^error: drawing pictures needs pillow: pip install -c .* '\.\[demo\]'$"):
        runpy.run_path(kaggle.__file__)
