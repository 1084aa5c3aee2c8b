"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ensemble import fit, known_images, likelihood, logits, predictions, reduction, routing, rules, scores, submission
from ensemble.logits import Rows
from ensemble.mixture import Mixture, Models
from ensemble.rules import Products
from pipeline.categories import Categories
from tests import shards
from tests.ensemble import stores


def make_runs(rows: Rows, label_map: Categories) -> None:
    """What the examples read: two models' logits, and the predictions by one of them."""
    for run in ('a', 'b'):
        stores.write(Path('runs') / run / 'logits' / 'val', [rows], label_map)
    about = {'pictures': 2, 'dataset_products': len(rows.starts())}
    stores.write(Path('runs/p2/logits/val'), [None], label_map, **about)  # no product has two pictures
    folder = 'runs/latest/predictions/test'
    found = predictions.predict(Models([Products(rows)]), Mixture(), category_ids=label_map.ids)
    predictions.finish(folder, [predictions.write_file(folder, 'test.parquet', found, split='test')], {})


@pytest.mark.parametrize(
    ('module', 'printed'),
    [
        # 0.8 w + 0.2 (1 - w) is 2/3, the share of the products that the first model knows
        (likelihood, '[0.78 0.22]\n'),
        (fit, 'fitted on 2 products: log-likelihood '),
        (logits, '[5 5 8] (3, 2)\n'),
        # of product 5, log odds 4 + 2 for label 1; of product 8, 3 for label 0: 1 / (1 + exp(-6)), 1 / (1 + exp(-3))
        (rules, '[[1, 0], [0, 1]] [[0.9975'),
        (predictions, '[5 8] [1020 1000] [0.'),
        (reduction, '[1020 1000] [1020 1000]\n'),
        (routing, '[5, 8] [0, 0]\n'),
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
    make_rows: Callable[..., Rows],
    label_map: Categories,
) -> None:
    monkeypatch.chdir(tmp_path)
    shards.write(tmp_path / 'data' / 'shards', train=3, val=2)
    make_runs(make_rows([(5, 1, [(1, 3, 4)]), (8, 0, [(2, 1, 1)])]), label_map)
    found = re.search(r'Synopsis:\n\n((?: {4}.*\n|\n)+)', module.__doc__ or '')
    assert found
    exec(textwrap.dedent(found[1]), {})
    assert ' '.join(capsys.readouterr().out.split()).startswith(' '.join(printed.split()))
