"""From packages of drawings to a submission, through `main` of every program."""

import csv
import gzip
import os

import pytest

from ensemble import combine
from model import predict, train
from pipeline import convert, dataset
from tests import packages
from tools import demo_catalogue, emoji_sources

COLOURS = ('red', 'green', 'blue', 'orange')


@pytest.fixture
def sources(tmp_path):
    """Drawings of 200 emoji in 4 subgroups; a subgroup has its colour, an emoji its size and place."""
    (tmp_path / 'cache').mkdir()
    codes = [f'{0x1F000 + number:X}' for number in range(200)]
    groups = [(f'group{number % 2}', f'sort-{COLOURS[number % 4]}') for number in range(200)]
    circle = '<circle cx="{}" cy="{}" r="{}" fill="{}"/>'
    bodies = {
        code: circle.format(12 + number % 12, 14 + number % 8, 6 + number % 7, COLOURS[number % 4])
        for number, code in enumerate(codes)
    }
    return packages.write_packages(
        tmp_path / 'cache',
        [packages.row(*group, code) for group, code in zip(groups, codes, strict=True)],
        bodies=bodies,
        colours={code: COLOURS[number % 4] for number, code in enumerate(codes)},
    )


@pytest.mark.slow
def test_the_programs_lead_from_drawings_to_a_submission(tmp_path, monkeypatch, capsys, sources):
    monkeypatch.setattr(emoji_sources, 'SOURCES', sources)
    flagfile = os.path.abspath('demo.flags')
    monkeypatch.chdir(tmp_path)

    demo_catalogue.main(['demo_catalogue', '--output_dir=data', '--cache_dir=cache'])
    convert.main(['convert', '--runner=DirectRunner'])
    train.main(
        ['train', f'--flagfile={flagfile}', '--width=0.05', '--image_size=32', '--epochs=15', '--decay_at=10,13',
         '--micro_batch=4', '--epoch_images=1000', '--run_dir=runs/chain']
    )  # fmt: skip
    capsys.readouterr()
    combine.main(['combine', '--rule', 'product'])
    said = capsys.readouterr().out

    manifest = dataset.open_shards('data/shards').manifest
    assert sum(manifest.products(name) for name in ('train', 'val', 'test')) == 200
    with gzip.open('runs/latest/submission.csv.gz', 'rt', newline='') as file:
        submission = list(csv.DictReader(file))
    with open('data/solution.csv', newline='') as file:
        solution = {row['_id']: row['category_id'] for row in csv.DictReader(file)}
    assert [int(row['_id']) for row in submission] == sorted(map(int, solution))
    assert 'accuracy' not in said, 'nothing in the shards tells the categories of the test set'

    combine.main(['combine', '--rule', 'product', '--solution=data/solution.csv', '--runner=FnApiRunner'])
    right = sum(solution[row['_id']] == row['category_id'] for row in submission) / len(solution)
    assert f'product: accuracy {right:.4f}' in capsys.readouterr().out
    assert right > 0.8, 'the four colours are easy to tell; chance is 0.25'

    predict.main(['predict', '--split=val', '--tta=2'])
    combine.main(['combine', '--rule', 'all', '--logits=runs/latest/logits/val-tta2', '--runner=FnApiRunner'])
    with open('runs/latest/rules-val-tta2.csv', newline='') as file:
        table = {row['rule']: row for row in csv.DictReader(file)}
    assert set(table) == {'mean', 'product', 'rms', 'median', 'power', 'max', 'first'}
    assert {int(row['products']) for row in table.values()} == {manifest.products('val')}
