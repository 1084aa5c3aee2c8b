"""The last line of each program that writes something says what, and names a command, which runs as it stands."""

import importlib
import shlex
import shutil
from pathlib import Path

import pytest

from tests.commands import following
from tests.model import tiny

ROOT = Path(__file__).parents[1]
SMALL = (
    '--backbone=tiny', '--width=1', '--weights=none', '--image_size=32', '--micro_batch=8', '--accumulate=2',
    '--epochs=1', '--epoch_images=64', '--decay_at=', '--unfreeze=all@0', '--strategy=one',
)  # fmt: skip


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """Runs a command, with flags added that only make it quicker; gives the command that its last line names."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / 'demo.flags', tmp_path)
    with tiny.known():

        def run(command: str, *more: str) -> str:
            _, _, module, *words = shlex.split(command)
            importlib.import_module(module).main([module, *words, *more])
            return following(capsys.readouterr().out)

        yield run


@pytest.mark.slow
def test_the_last_lines_lead_from_a_catalogue_to_a_submission(follow, tmp_path):
    made = follow('python -m tools.synthetic_catalogue --products=80 --categories=2 --output_dir=data')
    assert made == 'python -m pipeline.convert --runner=DirectRunner'
    assert follow(f'{made} --plan_only', '--runner=FnApiRunner') == f'{made} --runner=FnApiRunner --noplan_only'
    converted = follow(made, '--runner=FnApiRunner')
    assert converted == 'python -m model.train --flagfile=demo.flags'
    assert follow('python -m tools.inspect_shards') == converted
    assert follow('python -m tools.browse_shards').startswith('python -m ')
    trained = follow(converted, *SMALL)
    assert trained == 'python -m ensemble.combine --rule product'
    assert follow(trained, '--runner=FnApiRunner').startswith('upload it to https://www.kaggle.com/')
    assert (tmp_path / 'runs' / 'latest' / 'submission.csv.gz').exists()

    served = follow('python -m tools.export')
    folder = (tmp_path / 'runs' / 'latest').resolve()
    words = ['--rest_api_port=8501', f'--model_name={folder.name}', f'--model_base_path={folder}/serving']
    assert shlex.split(served) == ['tensorflow_model_server', *words]

    predicted = follow('python -m model.predict --split=val --tta=2')
    assert predicted == 'python -m ensemble.combine --rule all --logits=runs/latest/logits/val-tta2'
    compared = follow(predicted, '--runner=FnApiRunner')
    assert compared == 'python -m model.predict --run_dir=runs/latest --split=test --tta=2', 'which there is not yet'
    assert follow(compared) == 'python -m ensemble.combine --rule product --logits=runs/latest/logits/test-tta2'

    combine = 'python -m ensemble.combine --rule product --logits=runs/latest/logits/test'
    assert follow('python -m tools.report', '--runner=FnApiRunner') == combine

    cached = follow('python -m model.features')
    assert cached == 'python -m model.train_head --from_run=runs/demo', 'runs/latest is another one afterwards'
    head = follow(cached, '--micro_batch=8', '--epochs=1', '--strategy=one')
    assert head == 'python -m ensemble.combine --rule product'
    assert (tmp_path / 'runs' / 'latest').resolve() == tmp_path / 'runs' / 'head'
    assert follow(head, '--runner=FnApiRunner').startswith('upload it to https://www.kaggle.com/')
