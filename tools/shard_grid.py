"""Draws products of a dataset as a grid: split, id, category and pictures of each.

Synopsis:

    places = sample_products.choose(made, splits=('train', 'val'), products=24, seed=0)
    png = shard_grid.draw(sample_products.read('data/shards', places), label_map, title='24 products')
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import split
from pipeline.bson_stream import PICTURE_SIZE
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.records import Product

if TYPE_CHECKING:
    from PIL import Image

# Pixels. Pictures keep their size, so that what is seen is what a model gets.
GAP = 6  # between two pictures
MARGIN = 20  # around the whole
COLUMN_GAP = 48
TEXT_WIDTH = 280
TITLE_HEIGHT = 48
ROW_HEIGHT = PICTURE_SIZE + 2 * GAP + 1  # with the line above
LINE_HEIGHT = 22
FONT_SIZE, TITLE_SIZE = 16, 20
NAME_LINES = 2  # that the name of one level may take

BACKGROUND, RULE = '#eceef1', '#cfd3da'  # not white, as most pictures are: each must show its edges
INK, FAINT = '#1c2430', '#66707f'
SPLIT_COLOURS = {'train': '#2b6cb0', 'val': '#b7590c', 'test': '#4a5568'}


# The first that this machine has: all have the accents of Latin alphabets, which pillow's own font has not.
FONTS = ('LiberationSans-Regular.ttf', 'NotoSans-Regular.ttf', 'DejaVuSans.ttf', 'Arial.ttf', 'arial.ttf')

LIGATURES = str.maketrans({'œ': 'oe', 'Œ': 'OE', 'æ': 'ae', 'Æ': 'AE', 'ß': 'ss', '’': "'", '–': '-'})

Measure = Callable[[str], float]  # the width of a text, pixels


def require_pillow() -> None:
    """Checks that pictures can be drawn.

    Raises:
        InputError: pillow isn't installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise InputError("drawing pictures needs pillow: pip install -c constraints.txt -e '.[demo]'") from None


def title(made: Manifest, products: Sequence[Product], *, seed: int) -> str:
    """How many of how many products are shown."""
    shown = Counter(product.split for product in products)
    parts = [f'{shown[name]} of {made.products(name):,} {name} products' for name in split.SPLITS if shown[name]]
    return f'{", ".join(parts)} (seed {seed})'


def draw(products: Sequence[Product], label_map: Categories, *, title: str) -> bytes:
    """The grid as a PNG file: products down the columns, text left of their pictures.

    Args:
        products: one or more.
        label_map: the categories.
        title: stands above.
    """
    from PIL import Image, ImageDraw

    card_width = TEXT_WIDTH + max(len(product.images) for product in products) * (PICTURE_SIZE + GAP) - GAP
    columns = max(1, round(math.sqrt(len(products) * ROW_HEIGHT / card_width)))  # about a square
    rows = math.ceil(len(products) / columns)
    width = 2 * MARGIN + columns * (card_width + COLUMN_GAP) - COLUMN_GAP
    grid = Image.new('RGB', (width, TITLE_HEIGHT + rows * ROW_HEIGHT + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(grid)
    pen.text((MARGIN, TITLE_HEIGHT / 2), title, fill=INK, font=_font(TITLE_SIZE)[0], anchor='lm')
    font, accents = _font(FONT_SIZE)
    if not accents:
        names = tuple((plain(one), plain(two), plain(three)) for one, two, three in label_map.names)
        label_map = Categories(label_map.ids, names)
    for index, product in enumerate(products):
        column, row = divmod(index, rows)
        left, top = MARGIN + column * (card_width + COLUMN_GAP), TITLE_HEIGHT + row * ROW_HEIGHT
        pen.line((left, top, left + card_width, top), RULE)
        _draw_product(grid, font, product, label_map, left=left, top=top + GAP + 1)
    buffer = io.BytesIO()
    grid.save(buffer, 'PNG')
    return buffer.getvalue()


def _font(size: int) -> tuple[Any, bool]:
    """A font, and whether it has accents."""
    from PIL import ImageFont

    for name in FONTS:
        try:
            return ImageFont.truetype(name, size), True
        except OSError:
            continue
    return ImageFont.load_default(size), False


def plain(text: str) -> str:
    """The text in ASCII: letters without their accents, and question marks for what isn't Latin."""
    letters = unicodedata.normalize('NFKD', text.translate(LIGATURES))
    return (
        ''.join(letter for letter in letters if not unicodedata.combining(letter)).encode('ascii', 'replace').decode()
    )


def _draw_product(
    grid: Image.Image, font: Any, product: Product, label_map: Categories, *, left: int, top: int
) -> None:
    """A product's text and pictures; `left` and `top` are their corner."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(grid)
    badge = pen.textlength(product.split, font) + 16
    box = left, top, left + badge, top + LINE_HEIGHT
    pen.rounded_rectangle(box, 4, SPLIT_COLOURS.get(product.split, INK))
    pen.text((left + 8, top + LINE_HEIGHT / 2), product.split, fill='#ffffff', font=font, anchor='lm')
    pen.text((left + badge + 8, top + LINE_HEIGHT / 2), str(product.product_id), fill=INK, font=font, anchor='lm')
    lines = _category_lines(product, label_map, lambda text: pen.textlength(text, font))
    for number, (text, colour) in enumerate(lines, start=1):
        pen.text((left, top + 4 + (number + 0.5) * LINE_HEIGHT), text, fill=colour, font=font, anchor='lm')
    for number, image in enumerate(product.images):
        corner = left + TEXT_WIDTH + number * (PICTURE_SIZE + GAP), top
        picture = _picture(image)
        if picture:
            grid.paste(picture, corner)
        else:
            pen.text(corner, 'no picture', fill=FAINT, font=font)


def _category_lines(product: Product, label_map: Categories, measure: Measure) -> list[tuple[str, str]]:
    """The category's names from the last level, which says most, to the first, then its numbers: text and colour."""
    if not 0 <= product.label < len(label_map):
        return [('category unknown' if product.label < 0 else f'unknown label {product.label}', FAINT)]
    names = dict.fromkeys(reversed(label_map.names[product.label]))  # levels often repeat one another
    lines = [
        (text, FAINT if number else INK)
        for number, name in enumerate(names)
        for text in wrap(name, width=TEXT_WIDTH - MARGIN, lines=NAME_LINES, measure=measure)
    ]
    return [*lines, (f'{product.category_id}, label {product.label}', FAINT)]


def wrap(text: str, *, width: float, lines: int, measure: Measure) -> list[str]:
    """The text in lines, between words where it can; what doesn't fit is replaced by three dots.

    Args:
        text: any.
        width: pixels a line.
        lines: how many at most.
        measure: the width of a text, pixels.
    """
    rest = ' '.join(text.split())
    wrapped: list[str] = []
    while rest:
        fitting = len(rest)
        while fitting > 1 and measure(rest[:fitting]) > width:
            fitting -= 1
        if fitting < len(rest) and len(wrapped) == lines - 1:
            while fitting > 1 and measure(rest[:fitting].rstrip() + '...') > width:
                fitting -= 1
            return [*wrapped, rest[:fitting].rstrip() + '...']
        space = rest.rfind(' ', 1, fitting + 1)
        if fitting < len(rest) and space > 0:
            fitting = space
        wrapped.append(rest[:fitting].rstrip())
        rest = rest[fitting:].lstrip()
    return wrapped


def _picture(image: bytes) -> Image.Image | None:
    """The picture in its size, at most a place; None if it can't be decoded."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(image)).convert('RGB')
    except (OSError, Image.DecompressionBombError):
        return None
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    return picture
