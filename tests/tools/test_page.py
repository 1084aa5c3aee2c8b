"""Pages as their readers see them: whole, escaped, sorted by a click, without a network."""

from __future__ import annotations

import math
import re

import pytest

from tests import catalogue
from tests.tools import browser
from tools import page


@pytest.fixture
def path(tmp_path):
    """A page with all kinds of blocks."""
    drawings = []
    for power in (1, 2):
        drawn, axes = page.axes('pictures', 'accuracy')
        axes.plot([0, 1, 2], [0, 1, 2**power], label=f'run {power}')
        axes.legend()
        drawings.append(page.figure(drawn, f'Figure <{power}> & more'))
    blocks = [
        page.text('a < b & "c" ' + 64 * '0'),
        page.text('pale', faint=True),
        page.heading('Numbers'),
        page.side_by_side(drawings),
        page.table(
            ['name', 'accuracy', 'products'],
            [
                ['b', page.number(0.5), page.count(1000)],
                ['<i>a</i>', page.number(math.nan), page.count(20)],
                [page.hint('c', 'third & <last>'), page.number(0.25), page.count(3)],
                ['d', page.number(0.125), page.count(40)],
            ],
        ),
        page.fold('more', [page.text('hidden at first')]),
        page.cards(
            [
                [
                    page.pictures([catalogue.jpeg(1, 2), b'no picture'], 'a shoe'),
                    page.bars([page.Share('<b>', 0.25, 'right')]),
                ]
            ]
        ),
    ]
    written = str(tmp_path / 'page.html')
    page.write(
        written, 'A <title>', 'and what is under it', [page.Section('First', blocks), page.Section('Second', [])]
    )
    return written


@browser.needed
@pytest.mark.parametrize('width', [browser.PHONE, browser.DESK])
@pytest.mark.parametrize('dark', [False, True])
def test_a_page_is_whole_at_every_width_and_in_the_dark(path, width, dark, tmp_path):
    with browser.started() as chromium:
        seen = browser.look(chromium, path, width=width, dark=dark, shot=tmp_path / 'shot.png')
        assert seen.problems == []
        assert seen.page.title() == 'A <title>'
        assert seen.page.locator('h2').all_inner_texts() == ['First', 'Second']
        assert 'a < b & "c"' in seen.page.inner_text('main')
        assert seen.page.locator('img').count() == 2
        assert seen.page.get_by_text('c', exact=True).get_attribute('title') == 'third & <last>'
        ink = seen.page.evaluate('getComputedStyle(document.querySelector("svg text")).fill')
        paper = seen.page.evaluate('getComputedStyle(document.body).backgroundColor')
    light, deep = (sum(map(int, re.findall(r'\d+', colour)[:3])) for colour in (ink, paper))
    assert (light > 450 and deep < 120) if dark else (light < 400 and deep > 700)


@browser.needed
def test_a_click_sorts_a_table_and_another_click_turns_it_round(path):
    with browser.started() as chromium:
        shown = browser.look(chromium, path).page

        def column(title: str) -> list[str]:
            shown.get_by_role('button', name=title).click()
            return shown.locator('tbody tr td:first-child').all_inner_texts()

        assert column('products') == ['b', 'd', '<i>a</i>', 'c'], 'numbers begin with the largest'
        assert column('products') == ['c', '<i>a</i>', 'd', 'b']
        assert column('accuracy') == ['b', 'c', 'd', '<i>a</i>']
        assert column('accuracy') == ['d', 'c', 'b', '<i>a</i>'], 'what is missing stays last'
        assert column('name') == ['<i>a</i>', 'b', 'c', 'd']
        assert shown.locator('th[aria-sort]').all_inner_texts() == ['name']


@browser.needed
def test_the_head_of_a_long_table_stays_in_sight(tmp_path):
    rows = [[str(number), page.count(number)] for number in range(100)]
    page.write(str(tmp_path / 'page.html'), '', '', [page.Section('Long', [page.table(['name', 'count'], rows)])])
    with browser.started() as chromium:
        shown = browser.look(chromium, tmp_path / 'page.html').page
        shown.get_by_text('99', exact=True).first.scroll_into_view_if_needed()
        head, window = (shown.locator(name).first.bounding_box() for name in ('th', '.scroll'))
    assert head['y'] == pytest.approx(window['y'], abs=1)
    assert 0 <= head['y'] < 800


@browser.needed
def test_letters_too_small_to_read_are_noticed(tmp_path):
    drawn, axes = page.axes('x', 'y')
    axes.annotate('tiny', (0.5, 0.5), fontsize=page.SMALL - 1)
    page.write(str(tmp_path / 'page.html'), '', '', [page.Section('Plot', [page.figure(drawn, 'one')])])
    with browser.started() as chromium:
        assert browser.look(chromium, tmp_path / 'page.html', width=browser.DESK).problems == []
        (problem,) = browser.look(chromium, tmp_path / 'page.html', width=browser.PHONE).problems
    assert problem == 'letters of 6.2 pixels in a plot'


def test_lines_of_the_same_colour_have_other_dashes_and_markers():
    found = [tuple(page.series(number).values()) for number in range(3 * page.SERIES)]
    assert len(set(found)) == len(found)
    for part in (1, 2):
        assert found[0][part] != found[page.SERIES][part]


def test_no_two_plots_of_a_page_share_a_name(path):
    with open(path) as file:
        names = re.findall(r'\bid="([^"]+)"', file.read())
    assert len(names) > 20
    assert len(set(names)) == len(names)


def test_the_same_page_has_the_same_bytes(path, tmp_path):
    drawn, axes = page.axes('x', 'y')
    axes.plot([0, 1], [0, 1])
    assert page.figure(drawn, 'one') == page.figure(drawn, 'one')
