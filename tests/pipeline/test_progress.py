"""How far work has come: a bar on a terminal, plain lines elsewhere, nothing of short work."""

import contextlib
import os
import re
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.errors import InputError
from pipeline.progress import Standing

ROOT = Path(__file__).parents[2]
# Four pieces of work, each of so many seconds; a tenth of a second is long here.
WORK = """
import sys, time
from pipeline import progress
progress.WATCHED_AFTER, progress.LINE_SECONDS, progress.BAR_SECONDS = 0.1, (0.1, 0.1), 0.05
with progress.Progress(total=4000, label='check', unit='files') as bar:
    for _ in range(4):
        time.sleep(float(sys.argv[1]))
        bar.update(1000)
    bar.write('checked')
"""


def work(seconds: float) -> list[str]:
    return [sys.executable, '-c', WORK, str(seconds)]


@pytest.fixture
def quick(monkeypatch):
    """Everything that takes seconds takes hundredths of them."""
    monkeypatch.setattr(progress, 'WATCHED_AFTER', 0.02)
    monkeypatch.setattr(progress, 'LINE_SECONDS', (0.02, 0.02))


def on_terminal(command: list[str], *, columns: int = 100) -> tuple[str, str]:
    """What a command says on stdout, and on a terminal that is its stderr."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, columns))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=its, text=True) as process:
        os.close(its)
        shown = b''
        with contextlib.suppress(OSError):  # what the terminal says when the last who holds it has gone
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        said, _ = process.communicate()
    assert process.returncode == 0
    return said, shown.decode()


@pytest.mark.parametrize(('columns', 'width'), [(100, 100), (0, 80)])
def test_on_a_terminal_there_is_a_bar(columns, width):
    said, shown = on_terminal(work(0.2), columns=columns)
    assert said == 'checked\n'
    frames = [frame for frame in re.split('[\r\n]+', shown) if frame.strip()]
    assert len(frames) > 4 and '\r' in shown
    assert {len(frame) for frame in frames} == {width}
    assert re.match(r'check: +(0|25)%\|', frames[0])
    assert re.match(r'check: 100%\|.*\| 4.00k/4.00k \[00:0\d<00:00, .* files/s\]', frames[-1])
    assert shown.count('\n') <= 2, 'it stays in its line, but for what is written above it'


def test_on_a_pipe_there_are_whole_lines():
    done = subprocess.run(work(0.2), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'checked\n')
    assert '\r' not in done.stderr and done.stderr.endswith('\n')
    lines = done.stderr.splitlines()
    pattern = r'check: ([\d,]+) of 4,000 files \((\d+) %\)(, [\d,.e+]+ files/s(, \d+ s left)?)?'
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    shares = [int(one[2]) for one in found if one]
    assert shares == sorted(shares) and shares[-1] == 100 and len(shares) > 4


def test_on_a_pipe_work_that_is_done_is_told_once():
    waiting = WORK + '    time.sleep(0.5)\n'
    done = subprocess.run([sys.executable, '-c', waiting, '0.1'], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'checked\n')
    assert [line for line in done.stderr.splitlines() if '(100 %)' in line] == done.stderr.splitlines()[-1:]


def test_short_work_is_shown_on_neither():
    at_once = [sys.executable, '-c', WORK.replace('BAR_SECONDS = 0.1', 'BAR_SECONDS = 5'), '0']
    assert on_terminal(at_once) == ('checked\n', '')
    done = subprocess.run(at_once, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('checked\n', '')


@pytest.mark.parametrize(
    ('now', 'seconds', 'before', 'said'),
    [
        (('predict', 1200, 3400, 'images'), 5, 150, 'predict: 1,200 of 3,400 images (35 %), 210 images/s, 10 s left'),
        (('write', 64, 64, 'shards'), 320, 0, 'write: 64 of 64 shards (100 %), 0.2 shards/s'),
        (('write', 0, 64, 'shards'), 7, 0, 'write: 0 of 64 shards (0 %)'),
        (('check', 2_500_000_000, 10**10, 'B'), 10, 0, 'check: 2,500 of 10,000 MB (25 %), 250 MB/s, 30 s left'),
        (('read', 0, 0, 'shards'), 12, 0, 'read: 12 s so far'),
        (('read', 300, 0, 'rows'), 10, 0, 'read: 300 rows, 10 s so far, 30 rows/s'),
        (('train', 99, 100, 'rows', 'loss 2.5'), 9.9, 0, 'train: 99 of 100 rows (99 %), 10 rows/s, 0 s left; loss 2.5'),
        (('train', 1, 100, 'images'), 60, 0, 'train: 1 of 100 images (1 %), 0.017 images/s, 99 min left'),
        (('train', 1, 241, 'images'), 30, 0, 'train: 1 of 241 images (0 %), 0.033 images/s, 2 h 0 min left'),
        (('train', 1, 1001, 'images'), 864, 0, 'train: 1 of 1,001 images (0 %), 0.0012 images/s, 10 days 0 h left'),
    ],
)  # fmt: skip
def test_a_line_says_how_much_of_how_much_how_fast_and_how_long_yet(now, seconds, before, said):
    assert progress.line(Standing(*now), seconds=seconds, before=before) == said


def test_lines_come_every_ten_seconds_at_first_and_every_minute_at_last(monkeypatch):
    moment = 0.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: moment)
    lines, moments = progress._Lines(initial=0, leave=True), []
    while moment < 700:
        moments.append(moment)
        moment += lines.interval()
    assert moments[:8] == pytest.approx([0, 10, 20, 30, 40, 50, 60, 70])
    assert moments[-1] - moments[-2] == 60
    assert len(moments) < 30


def test_it_goes_through_items_and_counts_them(quick, capsys):
    bar = progress.Progress(iter('abc'), total=3, label='letters', unit='letters')
    seen = []
    for letter in bar:
        seen.append(letter)
        time.sleep(0.06)
    assert (seen, bar.n) == (['a', 'b', 'c'], 3)
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err.splitlines()[0].startswith('letters: 0 of 3 letters (0 %)')
    assert said.err.splitlines()[-1].startswith('letters: 3 of 3 letters (100 %), ')


def test_what_was_done_before_counts_but_not_for_the_rate(quick, capsys):
    with progress.Progress(total=100, initial=60, label='predict', unit='images'):
        time.sleep(0.1)
    assert set(capsys.readouterr().err.splitlines()) == {'predict: 60 of 100 images (60 %)'}


def test_what_is_disabled_is_not_shown(quick, capsys):
    with progress.Progress(total=1, label='validate', unit='images', disable=True) as bar:
        time.sleep(0.1)
        bar.update()
    assert (bar.n, capsys.readouterr().err) == (1, '')


def test_an_error_passes_and_ends_the_display(quick):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), progress.Progress(total=2, label='check', unit='files'):
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_work_elsewhere_is_watched(quick, capsys):
    told = iter([InputError('not there yet'), Standing('plan', 0, 0, ''), Standing('write', 2, 3, 'shards')])
    last = threading.Event()

    def look():
        one = next(told, None)
        if one is None:
            last.set()
            return Standing('write', 3, 3, 'shards')
        if isinstance(one, Exception):
            raise one
        return one

    with progress.watched(look):
        assert last.wait(10)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r'plan: \d+ s so far', lines[0])
    assert lines[1].startswith('write: 2 of 3 shards (66 %)')
    assert lines[-1].startswith('write: 3 of 3 shards (100 %), ')
