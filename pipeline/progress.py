"""How far long work has come, on stderr: a bar on a terminal, plain lines elsewhere; nothing of work of a few seconds.

Synopsis:

    with progress.Progress(total=len(files), label='check', unit='files') as bar:
        for file in files:
            check(file)
            bar.update()

A thread looks at the count and shows it, so that counting costs nothing and the first sign comes in time even while
one piece of the work takes long.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from pipeline.errors import InputError

WATCHED_AFTER = 5  # seconds; nobody needs to see how shorter work goes on
BAR_SECONDS = 0.5  # between two looks of a bar
LINE_SECONDS = 10, 60  # between two lines: in the first minute, and at most


class Standing(NamedTuple):
    """How far some work has come.

    Attributes:
        label: what is done at the moment.
        done: how much of it.
        total: of how much; 0 if that isn't known yet.
        unit: the word after numbers, such as images; B stands for bytes, told in megabytes.
        note: what else there is to say.
    """

    label: str
    done: float
    total: float
    unit: str
    note: str = ''


class Progress:
    """Counts work and shows how far it is, between `with` and its end, or as long as it is gone through.

    Attributes:
        label: what is done.
        total: how much there is to do.
        initial: how much was done before; it counts as done, but not for the rate.
        n: how much is done.
        note: what else to say; may be set anew at any time.
    """

    def __init__(
        self,
        items: Iterable[Any] = (),
        *,
        total: float,
        label: str,
        unit: str,
        initial: float = 0,
        leave: bool = True,
        disable: bool = False,
    ) -> None:
        """Makes a count.

        Args:
            items: what is gone through, if it is; else update() counts.
            total: how much there is to do, in units; 0 if that isn't known.
            label: what is done.
            unit: as in Standing.
            initial: how much is done already.
            leave: whether a bar stays when all is done.
            disable: whether nothing is shown.
        """
        self.label, self.total, self.initial, self.n, self.note = label, total, initial, initial, ''
        self._items, self._unit = items, unit.strip()
        self._shown: contextlib.AbstractContextManager = contextlib.nullcontext()
        if not disable:
            self._shown = _shown(self._standing, initial=initial, leave=leave)

    def __enter__(self) -> Progress:
        self._shown.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._shown.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items:
                yield item
                self.update()

    def update(self, count: float = 1) -> None:
        """Counts what was done."""
        self.n += count

    def write(self, text: str) -> None:
        """Prints a line on stdout, above the bar if there is one."""
        tqdm.write(text)
        sys.stdout.flush()

    def _standing(self) -> Standing:
        return Standing(self.label, self.n, self.total, self._unit, self.note)


def watched(look: Callable[[], Standing]) -> contextlib.AbstractContextManager[None]:
    """Shows how far work elsewhere has come: in other processes, or in a function that doesn't count."""
    return _shown(look, initial=0, leave=True)


@contextlib.contextmanager
def _shown(look: Callable[[], Standing], *, initial: float, leave: bool) -> Iterator[None]:
    done = threading.Event()
    made = _Bar if sys.stderr.isatty() else _Lines
    display = made(initial=initial, leave=leave)

    def show() -> None:
        with contextlib.suppress(InputError, OSError):  # it is only a display
            display.show(look())

    def watch() -> None:
        if done.wait(WATCHED_AFTER):
            return
        show()
        while not done.wait(display.interval()):
            show()
        show()
        display.close()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


class _Bar:
    """A bar of tqdm's, moved to where the work is."""

    def __init__(self, *, initial: float, leave: bool) -> None:
        self._started = time.time()
        self._options = {'initial': initial, 'leave': leave}
        self._bar: tqdm | None = None

    def interval(self) -> float:
        return BAR_SECONDS

    def show(self, now: Standing) -> None:
        if self._bar is None:
            # The delay only keeps it from showing itself before it knows when the work began.
            self._bar = tqdm(
                total=now.total, unit_scale=True, mininterval=0, miniters=0, delay=1e-9, **self._options,
            )  # fmt: skip
            self._bar.start_t = self._bar.last_print_t = self._started
        self._bar.ncols, self._bar.unit = _columns(), 'B' if now.unit == 'B' else f' {now.unit}'
        if self._bar.total != now.total:
            self._bar.reset(now.total)
        self._bar.set_description_str(now.label, refresh=False)
        self._bar.set_postfix_str(now.note, refresh=False)
        self._bar.update(now.done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _columns() -> int:
    """The terminal's width; 80 where it tells none."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return 80


class _Lines:
    """A line now and then; when all is done, one."""

    def __init__(self, *, initial: float, leave: bool) -> None:
        self._began = self._part_began = time.monotonic()
        self._last: Standing | None = None
        self._done_before = initial

    def interval(self) -> float:
        shortest, longest = LINE_SECONDS
        return min(longest, max(shortest, (time.monotonic() - self._began) / 6))

    def show(self, now: Standing) -> None:
        if now == self._last and now.done >= now.total > 0:  # later it would only be told at a lower rate
            return
        moment = time.monotonic()
        if self._last and self._last.label != now.label:  # another part of the work, at another rate
            self._part_began, self._done_before = moment, now.done
        self._last = now
        seconds = moment - self._part_began
        print(line(now, seconds=seconds, before=self._done_before), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def line(now: Standing, *, seconds: float, before: float = 0) -> str:
    """What is told of some work where there is no terminal.

    Args:
        now: how far it is.
        seconds: how long it has taken.
        before: how much was done before that.
    """
    scale, unit = (1e6, 'MB') if now.unit == 'B' else (1, now.unit)
    rate = (now.done - before) / seconds if seconds > 0 else 0
    if now.total:
        told = f'{now.done / scale:,.0f} of {now.total / scale:,.0f} {unit} ({int(100 * now.done / now.total)} %)'
    else:
        told = f'{now.done / scale:,.0f} {unit}, {_span(seconds)} so far' if now.done else f'{_span(seconds)} so far'
    if rate > 0:
        told += f', {rate / scale:,.0f} {unit}/s' if rate / scale >= 10 else f', {rate / scale:.2g} {unit}/s'
        told += f', {_span((now.total - now.done) / rate)} left' if now.done < now.total else ''
    return f'{now.label}: {told}{f"; {now.note}" if now.note else ""}'


def _span(seconds: float) -> str:
    """A time, as exact as one needs it."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    if minutes < 100:
        return f'{minutes} min'
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours < 48 else f'{hours // 24} days {hours % 24} h'
