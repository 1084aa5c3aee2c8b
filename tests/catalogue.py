"""Tiny catalogues in Kaggle's layout, drawn here, for the tests of every package.

Synopsis:

    catalogue.write_catalogue('data', products=200, categories=4)
"""

from __future__ import annotations

import colorsys
import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import bson
import numpy as np
from PIL import Image, ImageDraw

SIDE = 180  # pixels, as every picture of the challenge
FIRST_CATEGORY = 1_000_000_010
TEST_SHARE = 0.2  # Kaggle's


def jpeg(seed: int, category: int = 0, *, size: tuple[int, int] = (SIDE, SIDE)) -> bytes:
    """A picture as Kaggle has them: JPEG of quality 75 and 4:2:0 chroma, 180x180 pixels, about 2 kB.

    Args:
        seed: decides place, size and background.
        category: decides shape (4 of them) and colour: what a model can learn.
        size: width and height in pixels.
    """
    draw = np.random.default_rng(seed)
    image = Image.new('RGB', size, tuple(draw.integers(200, 256, 3).tolist()))
    radius = draw.uniform(0.2, 0.35) * min(size)
    x, y = (draw.uniform(radius, side - radius) for side in size)
    red, green, blue = colorsys.hsv_to_rgb(category * 0.618 % 1, 1, 0.8)  # the golden ratio: hues far apart
    corners = (0, 3, 4, 12)[category % 4]  # disc, triangle, square, star
    angles = [2 * math.pi * corner / (corners or 60) for corner in range(corners or 60)]
    radii = [radius * (0.4 if corners == 12 and corner % 2 else 1) for corner in range(len(angles))]
    outline = [(x + far * math.cos(a), y + far * math.sin(a)) for far, a in zip(radii, angles, strict=True)]
    ImageDraw.Draw(image).polygon(outline, fill=(int(red * 255), int(green * 255), int(blue * 255)))
    return encode(image)


def encode(image: Image.Image) -> bytes:
    """A picture as Kaggle's are: JPEG, quality 75, 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=75, subsampling='4:2:0')
    return buffer.getvalue()


def document(product_id: int, images: Sequence[bytes], category_id: int | None = None) -> bytes:
    """One BSON document as Kaggle writes them; a test document has no category."""
    fields = {'_id': product_id, 'imgs': [{'picture': image} for image in images]}
    return bson.encode(fields if category_id is None else {**fields, 'category_id': category_id})


def write_catalogue(
    folder: str | Path,
    *,
    products: int = 200,
    categories: int = 4,
    seed: int = 0,
    picture: Callable[[int, int], bytes] = jpeg,
    names: Sequence[tuple[str, str, str]] | None = None,
) -> None:
    """Writes train.bson, test.bson (the last fifth of the products), category_names.csv and solution.csv.

    Product number n has the id 3n + 1, 1 to 4 pictures and the category FIRST_CATEGORY + 10 * (n % categories).

    Args:
        folder: where to.
        products: how many.
        categories: how many.
        seed: decides the pictures.
        picture: draws one, by a seed and the number of its category.
        names: of each category, levels 1 to 3.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    test_from = products - round(products * TEST_SHARE)
    draw = np.random.default_rng([seed, products])
    train, test, solution = [], [], []
    for number in range(products):
        category = number % categories
        images = [picture(int(draw.integers(2**32)), category) for _ in range(draw.integers(1, 5))]
        product_id, category_id = 3 * number + 1, FIRST_CATEGORY + 10 * category
        if number < test_from:
            train.append(document(product_id, images, category_id))
        else:
            test.append(document(product_id, images))
            solution.append((product_id, category_id))
    (folder / 'train.bson').write_bytes(b''.join(train))
    (folder / 'test.bson').write_bytes(b''.join(test))
    write_names(folder, [FIRST_CATEGORY + 10 * category for category in range(categories)], names)
    _write_csv(folder / 'solution.csv', [('_id', 'category_id'), *solution])


def write_names(folder: Path, category_ids: Iterable[int], names: Sequence[tuple[str, str, str]] | None = None) -> None:
    """Writes category_names.csv; the names of levels 1 to 3 are HOUSE, ROOM and THING ID if not given."""
    ids = list(category_ids)
    names = names or [('HOUSE', 'ROOM', f'THING {category_id}') for category_id in ids]
    rows = [(category_id, *name) for category_id, name in zip(ids, names, strict=True)]
    header = ('category_id', 'category_level1', 'category_level2', 'category_level3')
    _write_csv(folder / 'category_names.csv', [header, *rows])


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with open(path, 'w', encoding='utf-8', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)
