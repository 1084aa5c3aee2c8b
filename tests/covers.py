"""A catalogue of book covers on which only the printed title tells the category, for the tests of the title branch.

Synopsis:

    covers.write_catalogue('data', products=1000)

Everything else of a cover (fonts, sizes, colours, background, author, other lines) is drawn without regard to its
category. Two categories more, under another name of level 1, are told by shape and colour, as in tests/catalogue.py.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests import catalogue

SIDE = catalogue.SIDE
TITLES = ('HORIZON', 'CYCLONE', 'MIRAGES', 'GALAXIE')
SHAPES = 2  # categories that shape and colour tell
BOOKS, OTHERS = 'LIVRES', 'MAISON'
FONTS = (
    'DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-BoldOblique', 'DejaVuSans-Oblique', 'DejaVuSansMono-Bold',
    'DejaVuSerif', 'DejaVuSerif-Bold', 'DejaVuSerif-Italic', 'STIXGeneral', 'STIXGeneralBol', 'STIXGeneralBolIta',
)  # fmt: skip
TITLE_SIZES = (19, 28)  # points, which are pixels here: capitals of 13 to 20 pixels
SMALL_SIZES = (8, 12)
AT_TOP = 0.8  # share of the covers whose title lies in the upper third
AUTHORS = ('Anne Morel', 'Paul Vidal', 'L. Fabre', 'Jeanne Roux', 'B. Lambert', 'Marc Olivier', 'Claire Petit')
SMALL_LINES = ('roman', 'tome 2', 'le grand succes', 'edition de poche', 'traduit de l anglais', 'prix du public')


@dataclass(frozen=True)
class Cover:
    """A drawn cover.

    Attributes:
        image: 180x180 pixels.
        rows: the first row of the title's letters, and the one after its last.
    """

    image: Image.Image
    rows: tuple[int, int]


def jpeg(seed: int, category: int) -> bytes:
    """A picture of a category: those of TITLES first, then SHAPES others."""
    if category >= len(TITLES):
        return catalogue.jpeg(seed, category)
    return catalogue.encode(draw(seed, TITLES[category]).image)


def write_catalogue(folder: str | Path, *, products: int, seed: int = 0) -> None:
    """Writes a catalogue as catalogue.write_catalogue does, products of all categories in turn."""
    names = [(BOOKS, 'ROMANS', title) for title in TITLES] + [(OTHERS, 'DECO', f'FORME {n}') for n in range(SHAPES)]
    catalogue.write_catalogue(folder, products=products, categories=len(names), seed=seed, picture=jpeg, names=names)


def draw(seed: int, title: str) -> Cover:
    """A cover with this title; all else hangs on the seed alone."""
    random = np.random.default_rng(seed)
    image = _background(random)
    size = int(random.integers(*TITLE_SIZES, endpoint=True))
    if random.random() < AT_TOP:
        middle = random.uniform(size * 0.7, SIDE / 3 - size * 0.7)
    else:
        middle = random.uniform(SIDE / 3 + size * 0.7, SIDE - size * 0.7)
    text = title if random.random() < 0.75 else title.capitalize()
    rows = _print(image, random, text, size=size, middle=middle)
    free = [place for place in range(8, SIDE - 7, 12) if abs(place - middle) > size / 2 + 10]
    lines = [random.choice(AUTHORS), *random.choice(SMALL_LINES, random.integers(0, 3), replace=False)]
    for line, place in zip(lines, random.choice(free, len(lines), replace=False), strict=True):
        size = int(random.integers(*SMALL_SIZES, endpoint=True))
        _print(image, random, line, size=size, middle=float(place))
    return Cover(image, rows)


def _print(image: Image.Image, random: np.random.Generator, text: str, *, size: int, middle: float) -> tuple[int, int]:
    """Prints a line in a random font and colour, somewhere along its row; gives the rows it takes."""
    font = _font(str(random.choice(FONTS)), size)
    left, top, right, bottom = (round(side) for side in font.getbbox(text))
    x = random.uniform(4, max(5, SIDE - 4 - (right - left))) - left
    y = round(middle - (top + bottom) / 2)
    around = np.asarray(image)[max(0, y + top - 2) : y + bottom + 2].mean()
    either, tint = random.random() < 0.5, random.integers(0, 50, 3)  # whatever is around: all covers draw as often
    light = around < 110 if abs(around - 128) > 50 else either
    colour = tuple((tint + 205 if light else tint).tolist())
    edge = (0, 0, 0) if light else (255, 255, 255)
    outline = 1 if abs(around - 128) <= 60 else 0  # where neither light nor dark letters stand out by themselves
    ImageDraw.Draw(image).text((x, y), text, fill=colour, font=font, stroke_width=outline, stroke_fill=edge)
    return max(0, y + top), min(SIDE, y + bottom)


def _background(random: np.random.Generator) -> Image.Image:
    """Plain, a gradient, shapes, or what looks like a photo."""
    kind = random.choice(['plain', 'gradient', 'shapes', 'photo'])
    first, second = random.integers(0, 256, (2, 3))
    if kind == 'plain':
        second = first
    slope = np.linspace(0, 1, SIDE)[:, None, None]
    pixels = np.broadcast_to(first + slope * (second - first), (SIDE, SIDE, 3))
    if random.random() < 0.5:
        pixels = pixels.transpose(1, 0, 2)
    if kind == 'photo':
        pixels = pixels * 0.5 + 64 + np.roll(_photo(random.integers(8)), random.integers(SIDE, size=2), axis=(0, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if kind == 'shapes':
        for _ in range(random.integers(2, 6)):
            x, y = random.uniform(-40, SIDE - 20, 2)
            width, height = random.uniform(20, 120, 2)
            brush = ImageDraw.Draw(image)
            shape = (brush.ellipse, brush.rectangle)[random.integers(2)]
            shape((x, y, x + width, y + height), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


@functools.cache
def _photo(seed: int) -> np.ndarray:
    """Noise with the spectrum of photographs, amplitude 1/f, mostly grey: float64 [SIDE, SIDE, 3], deviation 25."""
    random = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) * SIDE
    white = random.normal(size=(SIDE, SIDE, 3)) + 2 * random.normal(size=(SIDE, SIDE, 1))
    spectrum = np.fft.rfft2(white, axes=(0, 1)) / np.maximum(frequencies, 1)[..., None]
    noise = np.fft.irfft2(spectrum, s=(SIDE, SIDE), axes=(0, 1))
    return noise * (25 / noise.std())


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf', size)
