"""Encoded pictures -> pixels: the one decoder of training, validation and prediction.

It is libjpeg-turbo with its accurate options, so that pixels are Pillow's (tests/pipeline/test_pictures.py). What isn't
a sound JPEG of 180x180 pixels has a defined outcome:

    grey, CMYK, progressive, any chroma    converted to RGB
    another size                           resized to 180x180 as Pillow's BICUBIC does; the sides' ratio isn't kept
    cut off or damaged inside              what can be decoded is taken, the rest is as libjpeg leaves it, or mid-grey
                                           where it gives up; told
    damaged in its header, not a JPEG      mid-grey; told
    over LARGEST pixels or a side over     mid-grey; told, and no memory is taken for it
    LONGEST, by its header
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import simplejpeg

from pipeline.augment import WEIGHT_BITS, interpolation_matrix
from pipeline.bson_stream import PICTURE_SIZE
from pipeline.errors import one_line

SHAPE = (PICTURE_SIZE, PICTURE_SIZE, 3)
LARGEST = 2**24  # pixels; 50 MB decoded
LONGEST = 2**13  # pixels a side; 12 MB of weights to resize one
STRIP = 2**20  # values resized at a time; 8 MB each
GREY = 128
JPEG = b'\xff\xd8\xff'  # how such a file begins
AS_GREY = 'taken as grey: '  # what is said of a picture of which nothing can be decoded begins so


def decode_into(pixels: np.ndarray, images: Iterable[memoryview | None], *, each: int = 1) -> list[tuple[int, str]]:
    """Decodes pictures one after the other, without Python's lock for most of the time.

    Args:
        pixels: uint8 [n, 180, 180, 3], which is filled.
        images: n encoded pictures; None is one of zeros. One that is the same object as the one `each` places before
            it is copied, not decoded again.
        each: pictures of a row, if rows have several.

    Returns:
        For each damaged picture its place in `images` and what is wrong with it.
    """
    damaged = []
    before: list[memoryview | None] = [None] * each
    for place, image in enumerate(images):
        if image is None:
            pixels[place] = 0
        elif image is before[place % each]:
            pixels[place] = pixels[place - each]
        elif problem := _decode(pixels[place], image):
            damaged.append((place, problem))
        before[place % each] = image
    return damaged


def _decode(pixels: np.ndarray, image: memoryview) -> str:
    """Decodes a picture, and says what is wrong with it, '' if nothing is."""
    try:
        if simplejpeg.decode_jpeg(image, buffer=pixels).shape == SHAPE:
            return ''
    except ValueError:
        pass  # damaged, or too large for its place
    return _decode_unusual(pixels, image)


def _decode_unusual(pixels: np.ndarray, image: memoryview) -> str:
    """Decodes what isn't a sound JPEG of the usual size."""
    pixels[:] = GREY
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
    except ValueError as error:
        return f"{AS_GREY}no JPEG picture, or its header is damaged (libjpeg: '{one_line(error)}')"
    if height * width > LARGEST or max(height, width) > LONGEST:
        allowed = f'at most {LARGEST:,} pixels and {LONGEST:,} a side'
        return f'{AS_GREY}its header says {width}x{height} pixels; {allowed} are decoded'
    problem = ''
    try:
        decoded = simplejpeg.decode_jpeg(image)
    except ValueError as error:
        said = f"libjpeg: '{one_line(error)}'"
        decoded = np.full((height, width, 3), GREY, np.uint8)  # for where it stops; new memory may have anything in it
        try:
            simplejpeg.decode_jpeg(image, strict=False, buffer=decoded)
        except ValueError:
            return f"{AS_GREY}it can't be decoded ({said})"
        problem = f'cut off or damaged, taken as far as it can be decoded ({said})'
    pixels[:] = resized(decoded)
    return problem


def resized(picture: np.ndarray) -> np.ndarray:
    """Pillow's BICUBIC resize to the usual size, exactly: uint8 [height, width, 3] -> uint8 [180, 180, 3].

    But for pictures over 100 times as high as wide, of which Pillow takes the rows first.
    """
    if picture.shape == SHAPE:
        return picture
    return _resized_rows(_resized_rows(picture.swapaxes(0, 1)).swapaxes(0, 1))


def _resized_rows(picture: np.ndarray) -> np.ndarray:
    """As many rows as usual: uint8 [height, width, 3] -> uint8 [180, width, 3]."""
    height, width, _ = picture.shape
    scale = 2.0**WEIGHT_BITS
    weights = np.round(interpolation_matrix(height, PICTURE_SIZE) * scale)  # Pillow's whole numbers: sums are exact
    step = max(1, STRIP // (3 * height))
    strips = [picture[:, first : first + step] for first in range(0, width, step)]
    rows = [
        np.floor(np.tensordot(weights, strip, axes=1) / scale + 0.5).clip(0, 255).astype(np.uint8) for strip in strips
    ]
    return np.concatenate(rows, axis=1)
