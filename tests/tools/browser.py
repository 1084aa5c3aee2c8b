"""Pages in headless Chromium, as their readers see them.

Synopsis:

    with browser.started() as chromium:
        seen = browser.look(chromium, 'page.html', width=390)
    assert not seen.problems
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
PHONE, DESK = 390, 1280  # pixels wide
READABLE = 7  # pixels
# The sizes of the letters in plots, as they are shown.
LETTERS = """() => [...document.querySelectorAll('svg text, svg tspan')].filter((node) => node.textContent.trim()).map(
  (node) => { const shown = (node.closest('text')).getScreenCTM();
    return parseFloat(getComputedStyle(node).fontSize) * Math.hypot(shown.a, shown.b); })"""
needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: Debian's package chromium")
# It starts as root too, and asks nobody for updates.
OPTIONS = (
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A page as it is shown.

    Attributes:
        problems: console messages, errors of scripts, pictures without pixels, requests for anything but the page,
            whether it is wider than the window, and whether a plot's letters are too small to read.
        page: playwright's page, to click on.
    """

    problems: list[str]
    page: Any


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


def look(
    browser: Browser, path: Path | str, *, width: int = DESK, dark: bool = False, shot: Path | None = None
) -> Seen:
    """Opens a page from disk and reads it to its end.

    Args:
        browser: from started().
        path: the page.
        width: pixels.
        dark: whether its reader likes it dark.
        shot: where to put a screenshot of all of it, to look at by eye.
    """
    problems: list[str] = []
    page = browser.new_page(viewport={'width': width, 'height': 800}, color_scheme='dark' if dark else 'light')
    page.on('console', lambda message: problems.append(f'{message.type}: {message.text}'))
    page.on('pageerror', lambda error: problems.append(f'script: {error}'))
    page.on('request', lambda request: _note_request(problems, request.url))
    page.goto(Path(path).resolve().as_uri())
    for details in page.locator('details').all():
        details.evaluate('(node) => { node.open = true }')
    page.evaluate('document.querySelectorAll("img").forEach((picture) => { picture.loading = "eager" })')
    page.wait_for_function('[...document.images].every((picture) => picture.complete)')
    broken = page.evaluate('[...document.images].filter((picture) => !picture.naturalWidth).length')
    if broken:
        problems.append(f'{broken} broken pictures')
    wide = page.evaluate('document.documentElement.scrollWidth')
    if wide > width:
        problems.append(f'{wide} pixels wide in a window of {width}')
    letters = min(page.evaluate(LETTERS), default=READABLE)
    if letters < READABLE:
        problems.append(f'letters of {letters:.1f} pixels in a plot')
    if shot:
        page.screenshot(path=shot, full_page=True)
    return Seen(problems, page)


def _note_request(problems: list[str], url: str) -> None:
    if not url.startswith(('file:', 'data:')):
        problems.append(f'asks for {url}')
