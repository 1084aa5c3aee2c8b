"""What the programs that make a catalogue share: the numbers of Kaggle's own, its pictures, its files.

Synopsis:

    picture = kaggle.encode(kaggle.Image.new('RGB', (kaggle.SIDE, kaggle.SIDE), 'white'))
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline import program, storage
from pipeline.errors import InputError

try:
    from PIL import Image, ImageChops, ImageDraw
except ImportError:
    raise SystemExit("error: drawing pictures needs pillow: pip install -c constraints.txt -e '.[demo]'") from None

__all__ = ['Image', 'ImageChops', 'ImageDraw']

SIDE = 180  # pixels; every Cdiscount picture is 180x180
QUALITY = 75  # the real pictures carry the standard tables of this quality

TRAIN_PRODUCTS = 7_069_896
TEST_PRODUCTS = 1_768_182
# Train products with 1, 2, 3 and 4 pictures.
PICTURE_COUNTS = (4_369_441, 1_128_588, 542_792, 1_029_075)
# The first and last category ids.
CATEGORY_IDS = range(1_000_000_237, 1_000_022_605)
# Product ids reach 23.6 million for 8.84 million products.
ID_SPACING = 2.67

# A file of this name may be the real one, which nothing here overwrites.
FILES = ('train.bson', 'test.bson', 'category_names.csv', 'sample_submission.csv')


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each draw, so that a change to one leaves the others alone."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def encode(picture: Image.Image, *, optimize: bool = False) -> bytes:
    """A picture as Kaggle's are: baseline JPEG, quality 75, 4:2:0; `optimize` makes Huffman tables of its own."""
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=QUALITY, subsampling='4:2:0', optimize=optimize)
    return buffer.getvalue()


def finished_counts(output_dir: str, wanted: Mapping[str, Any], *, marker_name: str) -> dict[str, Any] | None:
    """The counts of the catalogue in the folder if it is whole and made as wanted now; None if it is to be made.

    Args:
        output_dir: folder of the catalogue.
        wanted: what decides its bytes.
        marker_name: the file in which the program notes what it made; {files: None} while it writes.

    Raises:
        InputError: the folder has a train.bson or another of Kaggle's files that this program didn't make.
    """
    marker_path = storage.join(output_dir, marker_name)
    marker: dict[str, Any] = {'files': {}}
    if storage.exists(marker_path):
        with storage.open_read(marker_path) as file:
            marker = json.loads(file.read())
    sizes = marker['files']
    if sizes is None:  # a run was stopped while it wrote: whatever is there is a part of it
        return None
    present = set(storage.list_names(output_dir))
    for name in FILES:
        path = storage.join(output_dir, name)
        if name in present and storage.size(path) != sizes.get(name):
            raise InputError(f'{path}: not made by this program, so it stays: choose another --output_dir')
    whole = present.issuperset(sizes) and marker.get('wanted') == wanted
    return marker['counts'] if whole else None


def convert_command(output_dir: str) -> str:
    """The command that makes shards of a catalogue; those of one outside data/ lie in its own folder."""
    words = ['--runner=DirectRunner']
    if output_dir.rstrip('/') != 'data':
        words += [f'--input_dir={output_dir}', f'--output_dir={storage.join(output_dir, "shards")}']
    return program.command('pipeline.convert', *words)


def summary(counts: Mapping[str, Any]) -> str:
    """The counts in three lines."""
    train, test = counts['train_products'], counts['test_products']
    sizes = ', '.join(f'{size:,} with {number}' for number, size in counts['products_with_pictures'].items())
    return '\n'.join(
        [
            f'products: {train + test:,} ({train:,} train, {test:,} test)',
            f'pictures: {counts["pictures"]:,} (products: {sizes})',
            f'categories: {counts["categories"]:,}',
        ]
    )
