"""The README's commands, typed as they stand, one after the other, in a folder with a small catalogue.

Only what would take hours is made small, by flags put after those of the README.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import catalogue
from tests.documents import ROOT, commands

README = (ROOT / 'README.md').read_text()
WHOLE = '--backbone=xception_small --width=0.1 --image_size=32 --micro_batch=32 --accumulate=2 --epochs=0.2'
TINY = f'{WHOLE} --weights=none --unfreeze=all@0'
# In an order in which each finds what it needs; after the command what makes it small.
TYPED = [
    ('tools.synthetic_catalogue --products=250000', '--products=600 --categories=110 --output_dir=data'),
    ('pipeline.convert --runner=DirectRunner --plan_only', ''),
    ('pipeline.convert --runner=DirectRunner', ''),
    ('tools.inspect_shards --grid=products.png', ''),
    ('tools.browse_shards', ''),
    ('model.train --flagfile=noaug.flags', TINY),
    ('model.features --run_dir=runs/noaug --split=test', ''),
    ('model.train_head --from_run=runs/noaug --run_dir=runs/head', '--micro_batch=32 --accumulate=1 --epochs=0.2'),
    ('model.train --flagfile=aug.flags', TINY),
    (
        'model.train --flagfile=aug.flags --run_dir=runs/p2 --weights=runs/aug --pictures=2 --epochs=2 '
        '--unfreeze=all@0 --learning_rate=1e-3',
        WHOLE,
    ),
    (
        'model.train --flagfile=aug.flags --run_dir=runs/all --weights=runs/aug --pictures=4 --fewer_pictures '
        '--epochs=2 --unfreeze=all@0 --learning_rate=1e-3',
        WHOLE,
    ),
    ('model.train --flagfile=demo.flags --run_dir=runs/other --seed=1', TINY),
    ('model.train --flagfile=demo.flags', TINY),
    ('model.predict --run_dir=runs/aug --split=val --tta=5', ''),
    ('model.predict --run_dir=runs/aug --split=test --tta=5 --top_k=100', ''),
    ('model.predict --run_dir=runs/latest --split=test --tta=5', ''),
    ('ensemble.combine --rule product', ''),
    ('ensemble.combine --rule product --logits=runs/noaug/logits/test', ''),
    ('ensemble.combine --rule product --logits=runs/aug/logits/test-tta5-top100 --known_images', ''),
    (
        'ensemble.combine --fit=val --across=geometric --logits=runs/noaug/logits/test,runs/aug/logits/test',
        '',
    ),
    ('ensemble.combine --rule all --logits=runs/latest/logits/test --solution=data/solution.csv', ''),
    ('ensemble.combine --rule all --logits=runs/latest/logits/val', ''),
    ('ensemble.combine --fit=val --logits=runs/a/logits/test,runs/b/logits/test', ''),
    ('tools.report --table runs/noaug runs/aug', ''),
    ('tools.report --run_dir=runs/latest', ''),
    ('tools.report --run_dir=runs/noaug runs/aug', ''),
    ('tools.report --run_dir=runs/latest --split=test --solution=data/solution.csv', ''),
    ('tools.classify --run_dir=runs/demo front.jpg back.jpg', ''),
    ('tools.classify --run_dir=runs/latest front.jpg back.jpg', ''),
    ('tools.export --run_dir=runs/latest --rule=product', ''),
    ('tools.count_operations xception', ''),
]
ELSEWHERE = {
    'tools.import_weights --backbone=dpn92 --input=model.safetensors': (
        'the file is downloaded; tests/tools/test_import_weights.py'
    ),
    'tools.demo_catalogue --output_dir=data': 'make demo, which downloads; tests/tools/test_demo_catalogue.py',
    'tools.experiments --plan=winner': '44 trainings; tests/tools/test_experiments.py runs a smaller plan',
    'tools.bench train': 'make bench; tests/tools/test_bench.py',
    'pipeline.convert --input_dir=s3://bucket/data --output_dir=s3://bucket/shards --runner=DirectRunner': (
        "tests/pipeline/test_remote.py, on this machine's S3 server"
    ),
    **{
        f'ensemble.combine --logits={names}': 'tests/ensemble/test_combine_groups.py'
        for names in (
            'runs/a/logits/test+runs/p2/logits/test',
            'runs/p1/logits/test+runs/p2/logits/test+runs/p3/logits/test+runs/p4/logits/test',
        )
    },
    'model.train --flagfile=noaug.flags --strategy=multiworker': (
        'tests/model/test_multiworker.py, and the Slurm script in tests/test_flagfiles.py'
    ),
}
DATAFLOW = 'pipeline.convert --runner=DataflowRunner '  # nobody here can run it


def test_every_command_of_the_readme_is_typed_here_or_elsewhere():
    known = {command for command, _ in TYPED} | set(ELSEWHERE)
    assert [command for command in commands('README.md') if not command.startswith(DATAFLOW)] == [
        command for command in commands('README.md') if command in known
    ]
    assert known <= set(commands('README.md')), 'none is listed that the README has no more'


@pytest.fixture
def folder(tmp_path):
    """Where a reader types: with the flagfiles, two pictures of a product, and names for two runs."""
    for flagfile in ROOT.glob('*.flags'):
        (tmp_path / flagfile.name).symlink_to(flagfile)
    for number, name in enumerate(('front.jpg', 'back.jpg')):
        (tmp_path / name).write_bytes(catalogue.jpeg(number, 1))
    (tmp_path / 'runs').mkdir()
    for name, run in (('a', 'noaug'), ('b', 'aug')):
        (tmp_path / 'runs' / name).symlink_to(run)
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_they_are_typed(folder):
    for command, smaller in TYPED:
        module, *flags = shlex.split(f'{command} {smaller}')
        done = subprocess.run(
            [sys.executable, '-m', module, *flags], cwd=folder, capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f'python -m {command}\n{done.stdout}{done.stderr}'
        assert 'Traceback' not in done.stderr, f'python -m {command}\n{done.stderr}'
        last = done.stdout.rstrip().rsplit('\n', 1)[-1]
        assert 'next: ' in last or module == 'tools.classify', f'python -m {command} ends with {last!r}'
    made = {
        'products.png', 'data/shards/browse.html', 'runs/noaug/report-val.html', 'runs/noaug/table-val.md',
        'runs/demo/report-val.html', 'runs/demo/report-test.html', 'runs/demo/submission.csv.gz',
        'runs/demo/serving/1/saved_model.pb', 'runs/aug/predictions/test-tta5-top100/manifest.json',
        'runs/ensemble/mixture.json',
    }  # fmt: skip
    assert {name for name in made if not (folder / name).exists()} == set()


def test_every_make_target_of_the_documents_is_there():
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    named = re.findall(
        r'(?:^    |`)make (?:PYTHON=\S+ )?([\w-]+)', README + (ROOT / 'BUILD.md').read_text(), re.MULTILINE
    )
    assert {'demo', 'test', 'setup'} <= set(named) <= targets


def test_what_troubleshooting_quotes_is_what_programs_say():
    """Between the dots of a quotation stands text of the source, where messages are."""
    rows = re.findall(r'^\| (`.*?) \|', README[README.index('| the line says |') :].split('\n\n')[0], re.MULTILINE)
    assert len(rows) > 10
    source = ''.join(
        path.read_text() for folder in ('pipeline', 'model', 'ensemble') for path in ROOT.glob(f'{folder}/**/*.py')
    )
    source = re.sub(r"'\n\s*f?'", '', source + (ROOT / 'Makefile').read_text())  # strings that go on in the next line
    fragments = [
        part.strip()
        for row in rows
        for quoted in re.findall('`([^`]+)`', row)
        for part in quoted.split('...')
        if part.strip()
    ]
    assert [part for part in fragments if part not in source] == []


@pytest.mark.parametrize('name', ['README.md', 'BUILD.md', 'docs/results.md', 'docs/scale.md'])
def test_every_link_leads_somewhere(name):
    text = (ROOT / name).read_text()
    headings = {
        re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.+)', text, re.MULTILINE)
    }
    links = re.findall(r'\]\(([^)]+)\)', text)
    broken = [
        link for link in links if not link.startswith('https://')
        and not (link[1:] in headings if link.startswith('#') else (Path(ROOT / name).parent / link).exists())
    ]  # fmt: skip
    assert broken == []
