"""How runs were trained, as a page tells it: what is drawn, said and compared."""

from __future__ import annotations

import json
import os
import re

import pytest
from matplotlib.axes import Axes

from model import runs
from pipeline import manifest, worklog
from pipeline.errors import InputError
from tests import shards
from tests.tools import browser
from tests.tools.reports.trained import SETTINGS, write_run
from tools import page
from tools.reports import training


def html(folders: list[str], shards_dir: str) -> str:
    found = training.sections(folders, shards_dir=shards_dir)
    return '\n'.join(str(block) for section in (found.curves, *found.others) for block in section.blocks)


def text(markup: str) -> str:
    return ' '.join(re.sub(r'<[^>]+>', ' ', markup).split())


def test_decays_and_stages_are_told_as_far_as_it_was_trained(tmp_path):
    run = training.read(write_run(tmp_path / 'one', rows=6), 'one')
    assert run.passes == 3
    assert run.decays() == [1, 3]
    assert run.stages() == [(0, 'block2'), (1.5, 'all')]
    assert training.read(write_run(tmp_path / 'two', rows=1, decay_at=[]), 'two').decays() == []
    assert training.read(write_run(tmp_path / 'two', rows=1, decay_at=['']), 'two').decays() == []


def test_a_run_is_told_in_a_sentence(tmp_path):
    folder = write_run(tmp_path / 'one')
    assert 'one: tiny, not finished, 3.00 of 4 passes; validation accuracy 0.5500, at best 0.5500 after 3.00' in html(
        [folder], str(tmp_path)
    )
    (tmp_path / 'one' / runs.MODEL_NAME).touch()
    assert 'one: tiny, finished,' in html([folder], str(tmp_path))


def test_figure_3_marks_each_change_once_where_runs_have_the_same_plan_and_for_each_run_where_not(tmp_path):
    same = [write_run(tmp_path / name) for name in ('one', 'two')]
    other = write_run(tmp_path / 'three', decay_at=['2'])
    drawn = training.sections(same, shards_dir='').curves.blocks[2]
    assert text(drawn).count('learning rate x 0.3') == 2
    assert text(drawn).count('all layers') == 1
    for name in ('one', 'two'):
        assert f'{name}, training' in drawn and f'{name}, validation' in drawn
    drawn = training.sections([same[0], other], shards_dir='').curves.blocks[2]
    assert text(drawn).count('learning rate x 0.3') == 3
    assert text(drawn).count('all layers') == 2


def plots(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The plots of the sections: accuracy, loss, levels, speed."""
    with monkeypatch.context() as patched:
        found: list[Axes] = []
        patched.setattr(page, 'figure', lambda drawn, *_, **__: found.append(drawn.axes[0]))
        patched.setattr(page, 'side_by_side', lambda _: None)
        training.sections(folders, shards_dir='')
    return found


def test_a_line_of_too_few_rows_has_its_rows_marked(tmp_path, monkeypatch):
    """A line of one point can't be seen."""
    for rows, marker in ((1, 'x'), (2, 'x'), (3, '')):
        accuracy, loss, _, speed = plots([write_run(tmp_path / str(rows), rows=rows)], monkeypatch)
        assert [axes.lines[0].get_marker() for axes in (accuracy, loss, speed)] == [marker] * 3


def test_more_runs_than_colours_can_be_told_apart(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / f'run{number}', rows=3, decay_at=[]) for number in range(8)]
    for axes in plots(folders, monkeypatch)[:2]:
        for form in ('get_linestyle', 'get_marker'):
            some = [line for line in axes.lines if getattr(line, form)() not in ('None', '')]
            looks = {
                (line.get_color(), getattr(line, form)()) for line in some if str(line.get_label()).startswith('run')
            }
            assert len(looks) == 8


def test_what_all_runs_have_in_common_is_drawn_in_no_runs_colour(tmp_path, monkeypatch):
    drawn = plots([write_run(tmp_path / 'one')], monkeypatch)[0]
    assert {line.get_color() for line in drawn.lines if line.get_linestyle() == '--'} == {page.FAINT}


def test_a_run_that_has_just_begun_has_nothing_to_draw(tmp_path):
    folder = str(tmp_path / 'new')
    runs.write_settings(folder, SETTINGS)
    assert 'history.csv has no row yet' in html([folder], str(tmp_path))
    assert '<svg' not in html([folder], str(tmp_path))


def test_settings_that_differ_are_marked(tmp_path):
    folders = [write_run(tmp_path / 'one'), write_run(tmp_path / 'two', dropout=0)]
    rows = re.findall(r'<tr><td>(\w+)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>', html(folders, ''))
    assert ('dropout', '0.2', '0', 'differs') in rows
    assert ('decay_at', '1, 3, 3.5', '1, 3, 3.5', '') in rows
    assert ('weights', '&lt;none&gt;', '&lt;none&gt;', '') in rows
    assert [row[0] for row in rows if row[3]] == ['dropout']


def test_the_dataset_is_counted_and_another_one_than_the_runs_is_told(tmp_path):
    made = shards.write(tmp_path / 'shards', train=14, val=7, shards=2)
    own = write_run(tmp_path / 'own', dataset_digest=made.manifest.digest())
    found = html([own, write_run(tmp_path / 'other')], str(tmp_path / 'shards'))
    assert re.search(r'<td>train</td><td[^>]*>14</td><td[^>]*>28</td><td[^>]*>2</td>', found)
    assert 'Trained on another dataset than this one: other.' in found
    assert made.manifest.digest() in found
    assert manifest.NAME in html([own], str(tmp_path / 'nothing')), 'what is missing is told'


def test_what_a_run_for_products_learns_is_not_called_pictures(tmp_path):
    products, pictures = write_run(tmp_path / 'whole', pictures=2), write_run(tmp_path / 'one')
    assert 'The updates of whole took 12 s: 50 products a second' in html([products], '')
    both = html([products, pictures], '')
    assert 'lines are means over the training products or pictures of each row' in both
    assert 'whole: validation products whose category' in both


def test_updates_take_as_long_as_their_rates_say(tmp_path):
    """600 pictures at 50 a second."""
    assert 'The updates of one took 12 s: 50 pictures a second' in html([write_run(tmp_path / 'one')], '')


def test_the_worklogs_of_shards_and_run_are_told_with_rates_and_versions(tmp_path):
    folder = write_run(tmp_path / 'one')
    assert f'{worklog.NAME} is not there' in html([folder], str(tmp_path / 'shards'))
    (tmp_path / 'shards').mkdir()
    worklog.add(str(tmp_path / 'shards'), 'convert', seconds=2, counts={'products': 3000, 'bytes': 5})
    worklog.add(folder, 'again', seconds=2, counts={'products': 3000, 'kept_shards': 1})
    assert f'3,000 products, 1 kept_shards {os.cpu_count()} cores' in text(html([folder], '')), (
        'no rate: not all of it was done then'
    )
    (tmp_path / 'one' / worklog.NAME).unlink()
    worklog.add(folder, 'train', seconds=0.5, counts={'images': 20}, replicas=2)
    line = json.loads((tmp_path / 'one' / worklog.NAME).read_text())
    line['versions']['tensorflow'] = '0.1'
    (tmp_path / 'one' / worklog.NAME).write_text(json.dumps(line) + '\n')
    found = text(html([folder], str(tmp_path / 'shards')))
    assert '3,000 products, 5 bytes 1,500 products' in found
    assert '20 images 40 images' in found
    assert '2 replicas' in found
    assert re.search(r'tensorflow\s+0\.1\s+train', found)
    assert re.search(r'python\s+3\.\S+\s+all', found)


@pytest.mark.parametrize(
    ('seconds', 'words'),
    [(0.4, '0 s'), (59.4, '59 s'), (60, '1 min'), (61, '1 min 1 s'), (3600, '1 h'), (3660.0, '1 h 1 min')],
)
def test_times_are_told_in_words(seconds, words):
    assert training._duration(seconds) == words


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match='is no run; train one'):
        training.sections([str(tmp_path)], shards_dir='')


@browser.needed
@pytest.mark.parametrize('width', [browser.PHONE, browser.DESK])
def test_the_page_is_whole_at_every_width(tmp_path, width):
    folders = [write_run(tmp_path / 'one'), write_run(tmp_path / 'two', decay_at=['2'], dropout=0)]
    worklog.add(folders[0], 'train', seconds=0.5, counts={'images': 20})
    found = training.sections(folders, shards_dir='')
    page.write(str(tmp_path / 'page.html'), 'one', '', [found.curves, *found.others])
    with browser.started() as chromium:
        seen = browser.look(chromium, tmp_path / 'page.html', width=width, dark=True, shot=tmp_path / 'shot.png')
        assert seen.problems == []
        assert seen.page.locator('svg').count() == 4
