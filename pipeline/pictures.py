"""Encoded pictures -> pixels: the one decoder of training, validation and prediction.

It is libjpeg-turbo with its accurate options, so that pixels are Pillow's (tests/pipeline/test_pictures.py). What isn't
a sound JPEG of 180x180 pixels has a defined outcome:

    grey, CMYK, progressive, any chroma    converted to RGB
    another size                           resized to 180x180 as Pillow's BICUBIC does; the sides' ratio isn't kept
    cut off or damaged inside              what can be decoded is taken, the rest is as libjpeg leaves it; told
    not decodable at all                   mid-grey; told
    over LARGEST pixels, by its header     mid-grey; told, and no memory is taken for it
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import simplejpeg

from pipeline.augment import interpolation_matrix
from pipeline.bson_stream import PICTURE_SIZE
from pipeline.errors import one_line

SHAPE = (PICTURE_SIZE, PICTURE_SIZE, 3)
LARGEST = 2**24  # pixels; 50 MB decoded
GREY = 128


def decode_into(pixels: np.ndarray, images: Iterable[memoryview | None]) -> list[tuple[int, str]]:
    """Decodes pictures one after the other, without Python's lock for most of the time.

    Args:
        pixels: uint8 [n, 180, 180, 3], which is filled.
        images: n encoded pictures; None is one of zeros. One that is the same object as the one before it is copied,
            not decoded again.

    Returns:
        For each damaged picture its place in `images` and what is wrong with it.
    """
    damaged = []
    before = None
    for place, image in enumerate(images):
        if image is None:
            pixels[place] = 0
            continue
        if image is before:
            pixels[place] = pixels[place - 1]
            continue
        before = image
        try:
            if simplejpeg.decode_jpeg(image, buffer=pixels[place]).shape == SHAPE:
                continue
        except ValueError:
            pass  # damaged, or too large for its place
        if problem := _decode_unusual(pixels[place], image):
            damaged.append((place, problem))
    return damaged


def _decode_unusual(pixels: np.ndarray, image: memoryview) -> str:
    """Decodes what isn't a sound JPEG of the usual size, and says what is wrong with it, '' if nothing is."""
    pixels[:] = GREY
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
        if height * width > LARGEST:
            return f'its header says {width}x{height} pixels, more than {LARGEST:,}: taken as grey'
        problem = ''
        try:
            decoded = simplejpeg.decode_jpeg(image)
        except ValueError as error:
            decoded = simplejpeg.decode_jpeg(image, strict=False)
            problem = f'{one_line(error)}: the rest of it is taken'
    except ValueError as error:
        return f'{one_line(error)}: taken as grey'
    pixels[:] = _resized(decoded)
    return problem


def _resized(picture: np.ndarray) -> np.ndarray:
    """Pillow's BICUBIC resize to the usual size: uint8 [height, width, 3] -> uint8 [180, 180, 3]."""
    if picture.shape == SHAPE:
        return picture
    height, width, _ = picture.shape
    rows, columns = (interpolation_matrix(side, PICTURE_SIZE) for side in (height, width))
    return _levels(np.tensordot(rows, _levels(columns @ picture), axes=1))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
