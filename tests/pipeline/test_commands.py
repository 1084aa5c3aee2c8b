"""The commands that programs name fit the folder and how much lies in it."""

from __future__ import annotations

import pytest

from pipeline import commands


@pytest.mark.parametrize(
    ('folder', 'more'), [('data/shards', ''), ('elsewhere', ' --output_dir=elsewhere'), ('a b', " '--output_dir=a b'")]
)
def test_shards_are_made_where_they_were_looked_for(folder, more):
    assert commands.convert(folder) == f'python -m pipeline.convert --runner=DirectRunner{more}'


@pytest.mark.parametrize(('folder', 'more'), [('data/shards', ''), ('elsewhere', ' --shards_dir=elsewhere')])
@pytest.mark.parametrize(('pictures', 'name'), [(0, 'demo'), (99_999, 'demo'), (100_000, 'noaug')])
def test_few_pictures_are_for_the_small_network(folder, more, pictures, name):
    assert commands.train(folder, pictures=pictures) == f'python -m model.train --flagfile={name}.flags{more}'
