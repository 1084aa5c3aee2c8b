"""Pages of one self-contained HTML file: text, sortable tables, plots as inline SVG and small pictures.

Synopsis:

    from tools import page

    figure, axes = page.axes('pictures', 'accuracy')
    axes.plot([1, 2, 3], [0.1, 0.5, 0.6])
    section = page.Section('Training', [
        page.text('It learns.'),
        page.figure(figure, 'Accuracy by pictures seen.'),
        page.table(['run', 'accuracy'], [['noaug', page.number(0.712)]]),
    ])
    page.write('page.html', 'A run', 'Trained today.', [section])

What is given as text is escaped; a block is Markup, which isn't. The page opens from disk without a network (its own
policy forbids it one), on a phone and in the dark: plots take their colours from the page.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import storage
from pipeline.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.6, 3.6)  # inches; a phone shows it at two thirds, where SMALL letters can just be read
SMALL = 8  # points
PICTURE_SIZE = 96  # pixels a side: 2 to 4 kB each
JPEG_QUALITY = 80
SERIES = 6  # colours
FORMS = (('-', 'o'), ('--', 's'), (':', '^'))  # of lines of the same colour: dashes and marker
# Colours that matplotlib writes, which stand for the page's: ink, faint ink, lines, and those of the series.
_INK, FAINT, _LINE = '#000001', '#000002', '#000003'
_COLOURS = {_INK: 'ink', FAINT: 'faint', _LINE: 'line'} | {
    f'#0000{10 + number}': f'series-{number}' for number in range(1, SERIES + 1)
}


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, to which the top of the page leads.

    Attributes:
        title: its heading.
        blocks: what it is made of.
    """

    title: str
    blocks: Sequence[Markup]


@dataclass(frozen=True)
class Cell:
    """A cell of a table that holds a number.

    Attributes:
        text: what is shown.
        value: what it is sorted by; '' stands for none, and comes last.
    """

    text: str
    value: float | str


@dataclass(frozen=True)
class Share:
    """A bar.

    Attributes:
        name: what it is of.
        value: 0..1.
        mark: right or wrong, for its colour, or ''.
    """

    name: str
    value: float
    mark: str = ''


def check_installed() -> None:
    """Checks, before anything long begins, that the packages are there that pages need.

    Raises:
        InputError: one isn't.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"pages need the package {error.name}; install them all: pip install -c constraints.txt -e '.[report]'"
        ) from None


def write(path: str, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes a page, whole or not at all."""
    text = _templates().get_template('page.html').render(title=title, subtitle=subtitle, sections=sections)
    with storage.atomic_writer(path) as file:
        file.write(text.encode())


def text(words: str, *, faint: bool = False) -> Markup:
    """A paragraph."""
    return _block('text', words, faint)


def hint(words: str, more: str) -> Markup:
    """Words, for a block or a table's cell, with more to say when they are pointed at."""
    return _block('hint', words, more)


def note(words: str) -> Markup:
    """A small line under words, within a block."""
    return _block('note', words)


def heading(words: str) -> Markup:
    """A heading within a section."""
    return _block('heading', words)


def side_by_side(blocks: Sequence[Markup]) -> Markup:
    """Blocks beside one another where the page is wide enough, else one under the other."""
    return _block('side_by_side', blocks)


def fold(summary: str, blocks: Sequence[Markup], *, open: bool = False) -> Markup:
    """Blocks that are shown when their summary is clicked; `open`: from the beginning."""
    return _block('fold', summary, blocks, open)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table that its reader sorts by clicking the head of a column.

    Args:
        columns: their titles.
        rows: their cells: text, Markup, or number() and count().
    """
    cells = [[cell if isinstance(cell, Cell) else _TextCell(cell) for cell in row] for row in rows]
    heads = [
        {'title': title, 'number': any(row[place].value is not None for row in cells)}
        for place, title in enumerate(columns)
    ]
    return _block('table', heads, cells)


def number(value: float, digits: int = 3) -> Cell:
    """A cell of a number; empty if it is nan."""
    return Cell('', '') if math.isnan(value) else Cell(f'{value:.{digits}f}', float(value))


def count(value: int) -> Cell:
    """A cell of a whole number."""
    return Cell(f'{value:,}', int(value))


def cards(all_blocks: Iterable[Sequence[Markup]]) -> Markup:
    """Small panels, as many in a row as there is place for."""
    return _block('cards', all_blocks)


def bars(shares: Sequence[Share]) -> Markup:
    """Shares with their names, as bars."""
    return _block('bars', shares)


def pictures(images: Sequence[bytes], alt: str) -> Markup:
    """A product's pictures in a row, small, as the network sees them: what is damaged is grey.

    Args:
        images: encoded.
        alt: what they show, for who can't see them.
    """
    return _block('pictures', [_source(image) for image in images], alt)


def axes(x_label: str, y_label: str, *, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Empty axes of a plot in the page's style; `size` in inches."""
    from matplotlib.figure import Figure

    _set_style()
    made = Figure(figsize=size, layout='constrained')
    drawn = made.add_subplot(xlabel=x_label, ylabel=y_label)
    drawn.spines[['top', 'right']].set_visible(False)
    drawn.set_axisbelow(True)
    return made, drawn


def series(number: int) -> dict[str, Any]:
    """How matplotlib draws the line of this number, 0 or above; where colours repeat, dashes and marker differ."""
    dashes, marker = FORMS[number // SERIES % len(FORMS)]
    return {'color': f'C{number % SERIES}', 'linestyle': dashes, 'marker': marker}


def figure(drawn: Figure, caption: str, *, width: float | None = None) -> Markup:
    """A plot.

    Args:
        drawn: by matplotlib, from axes().
        caption: what it shows; also what it is called for who can't see it.
        width: inches that it takes where there is place; None: as drawn. Its letters grow with it.
    """
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    drawn.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :]  # without what stands before it in a file
    svg = re.sub(r' (?:width|height)="[^"]*"', '', svg, count=2)  # the page says how wide it is
    for colour, name in _COLOURS.items():
        svg = svg.replace(colour, f'var(--{name})')
    svg = re.sub(r'(font: [^;"]*?px) [^;"]*', r'\1 system-ui, sans-serif', svg)
    prefix = f'plot-{zlib.crc32(svg.encode()):08x}-'  # names are the page's, and those of two plots may be alike
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf'\1{prefix}', svg)
    style = f'max-width: {width or drawn.get_figwidth():g}in'
    svg = svg.replace('<svg', f'<svg role="img" aria-label="{escape(caption)}" style="{style}"', 1)
    return _block('figure', Markup(svg), caption)


@dataclass(frozen=True)
class _TextCell:
    text: object
    value: None = None


@functools.cache
def _set_style() -> None:
    """Once for all plots of a program."""
    from cycler import cycler
    from matplotlib import rcParams

    series = [colour for colour, name in _COLOURS.items() if name.startswith('series')]
    rcParams.update({
        'text.color': _INK, 'axes.labelcolor': _INK, 'axes.titlecolor': _INK, 'xtick.color': FAINT,
        'ytick.color': FAINT, 'axes.edgecolor': _LINE, 'grid.color': _LINE, 'axes.prop_cycle': cycler(color=series),
        'axes.grid': True, 'grid.linewidth': 0.5, 'font.size': 9, 'legend.frameon': False, 'svg.fonttype': 'none',
        'svg.hashsalt': 'page', 'lines.linewidth': 1.5,
        'axes.formatter.min_exponent': 7,  # exponents would be too small to read
    })  # fmt: skip


def _source(image: bytes) -> str:
    """The picture as an URL that holds it."""
    from PIL import Image

    from pipeline import pictures as decoder  # it takes TensorFlow's five seconds, which processes that read can save

    pixels = np.empty((1, *decoder.SHAPE), np.uint8)
    decoder.decode_into(pixels, [memoryview(image)])
    small = Image.fromarray(pixels[0]).resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, 'JPEG', quality=JPEG_QUALITY)
    return f'data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}'


@functools.cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader('tools'), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _block(name: str, *values: object) -> Markup:
    template: Template = _templates().get_template('blocks.html')
    return getattr(template.module, name)(*values)
