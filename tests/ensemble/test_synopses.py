"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from ensemble import known_images, logits, rules, scores, submission
from tests import shards


@pytest.mark.parametrize(
    ('module', 'printed'),
    [
        (logits, '[5 5 8] (3, 2)\n'),
        # of product 5, log odds 4 + 2 for label 1; of product 8, 3 for label 0: 1 / (1 + exp(-6)), 1 / (1 + exp(-3))
        (rules, '[5 8] [[1 0]\n [1 0]] [[0.9975'),
        (scores, '0.7500 (95 % interval 0.2500 to 1.0000, 4 products)\n0.2500 (95 % interval 0.0000 to 0.7500'),
        (submission, ''),
        (known_images, '0.0% of the products have seen pictures, 0.0% a label\n'),
    ],
)
def test_the_synopsis_runs(
    module: ModuleType,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shards.write(tmp_path / 'data' / 'shards', train=3, val=2)
    found = re.search(r'Synopsis:\n\n((?: {4}.*\n|\n)+)', module.__doc__ or '')
    assert found
    exec(textwrap.dedent(found[1]), {})
    assert ' '.join(capsys.readouterr().out.split()).startswith(' '.join(printed.split()))
