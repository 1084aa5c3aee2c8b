"""Pixels of the served model are those of the chain; what is no sound JPEG is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from pipeline import graph_pictures
from tests import catalogue
from tests.pipeline.test_pictures import SIZES, USUAL, decode, difference, header_of, jpeg

run = tf.function(graph_pictures.decode, input_signature=[tf.TensorSpec([None], tf.string)])


def decoded(*pictures: bytes) -> np.ndarray:
    return run(tf.constant(pictures)).numpy()


@pytest.mark.parametrize('options', USUAL.values(), ids=USUAL)
def test_pixels_are_the_chains(options):
    data = jpeg(**options)
    np.testing.assert_array_equal(decoded(data), decode(data)[0][None])


@pytest.mark.parametrize('size', [*SIZES, (2000, 1500), (11, 1000), (1000, 7), (8192, 3)])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_another_size_is_resized_as_in_the_chain(size, mode):
    data = jpeg(size=size, mode=mode)
    np.testing.assert_array_equal(decoded(data), decode(data)[0][None])


@pytest.mark.parametrize('size', [(180, 180), (90, 60), (400, 300)])
def test_cmyk_is_the_chains_within_two_levels(size):
    """The two turn CMYK into RGB each in its own way."""
    data = jpeg(mode='CMYK', size=size)
    assert difference(decoded(data)[0], decode(data)[0]) <= 2


def test_pictures_stay_in_their_order():
    data = [catalogue.jpeg(number, number) for number in range(40)] + [jpeg(size=(90, 60))]
    np.testing.assert_array_equal(decoded(*data), [decode(one)[0] for one in data])


DAMAGED = {
    'cut off': (jpeg()[:3000], 'Invalid JPEG data'),
    'no JPEG': (b'\x89PNG\r\n\x1a\n' + bytes(100), 'Invalid JPEG data'),
    'empty': (b'', 'Invalid JPEG data'),
    'too many pixels': (header_of(5000, 5000, jpeg()), r'16,777,216 pixels.*\[5000\] \[5000\]'),
    'too long a side': (header_of(8193, 1, jpeg()), r'8,192 a side.*\[8193\] \[1\]'),
    'more pixels than an int32 counts': (header_of(65500, 65500, jpeg()), r'8,192 a side.*\[65500\] \[65500\]'),
}


@pytest.mark.parametrize(('data', 'message'), DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_sound_jpeg_is_refused(data, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decoded(catalogue.jpeg(1), data)
