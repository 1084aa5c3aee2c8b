"""Pixels are Pillow's, whatever the JPEG; and what is no sound one gives the same pixels every time, and is told."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline import pictures

NO_JPEG = "taken as grey: no JPEG picture, or its header is damaged (libjpeg: '"
DAMAGED = "cut off or damaged, taken as far as it can be decoded (libjpeg: '"


def jpeg(*, size: tuple[int, int] = (180, 180), mode: str = 'RGB', **options: Any) -> bytes:
    """A picture of waves and noise: every coefficient of the JPEG is in use."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = [127 + 127 * np.sin(x / 7 + y / 11), 127 + 127 * np.cos(x / 5 - y / 13), (x * 3 + y * 5) % 256]
    noisy = np.stack(waves, -1) + np.random.default_rng(0).normal(0, 20, (height, width, 3))
    buffer = io.BytesIO()
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)
    picture.save(buffer, 'JPEG', **({'quality': 75} | options))
    return buffer.getvalue()


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """The pixels, and what is said; none beside the picture's place are touched."""
    pixels = np.full((3, *pictures.SHAPE), 77, np.uint8)
    damaged = pictures.decode_into(pixels[1:2], [memoryview(data)])
    assert (pixels[[0, 2]] == 77).all()
    assert [place for place, _ in damaged] == [0] * len(damaged)
    return pixels[1], damaged[0][1] if damaged else ''


def pillows(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert('RGB')
    if picture.size != (180, 180):
        picture = picture.resize((180, 180), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def header_of(width: int, height: int, data: bytes) -> bytes:
    """The same JPEG, with other sides in its header."""
    start = data.index(b'\xff\xc0') + 5
    return data[:start] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + data[start + 4 :]


# Sound pictures.

USUAL: dict[str, dict[str, Any]] = {
    '4:2:0': {'subsampling': '4:2:0'},
    '4:2:2': {'subsampling': '4:2:2'},
    '4:4:4': {'subsampling': '4:4:4'},
    '4:1:1': {'subsampling': '4:1:1'},
    'RGB': {'keep_rgb': True},
    'grey': {'mode': 'L'},
    'progressive': {'progressive': True},
    'progressive grey': {'progressive': True, 'mode': 'L'},
    'restarts': {'restart_marker_blocks': 4},
    'best': {'quality': 100},
    'worst': {'quality': 1},
}


@pytest.mark.parametrize('options', USUAL.values(), ids=USUAL)
def test_pixels_are_pillows(options):
    data = jpeg(**options)
    pixels, said = decode(data)
    assert (pixels == pillows(data)).all()
    assert said == ''


@pytest.mark.parametrize('progressive', [False, True])
def test_cmyk_is_pillows_within_a_level(progressive):
    """The two turn CMYK into RGB each in its own way."""
    data = jpeg(mode='CMYK', progressive=progressive)
    pixels, said = decode(data)
    assert difference(pixels, pillows(data)) <= 1
    assert said == ''


def test_bytes_after_the_end_change_nothing():
    data = jpeg()
    pixels, said = decode(data + b'and more')
    assert (pixels == pillows(data)).all() and said == ''


SIZES = [
    *[(1, 1), (1, 180), (180, 1), (179, 180), (181, 180), (180, 181)],
    *[(90, 60), (60, 90), (400, 300), (360, 90)],
]


@pytest.mark.parametrize(
    ('size', 'mode'),
    [
        *((size, mode) for size in SIZES for mode in ('RGB', 'L', 'CMYK')),
        *((size, 'RGB') for size in [(2000, 1500), (11, 1000), (1000, 7)]),
    ],
    ids=lambda value: value if isinstance(value, str) else f'{value[0]}x{value[1]}',
)
def test_another_size_is_resized_as_pillow_does(size, mode):
    data = jpeg(size=size, mode=mode)
    pixels, said = decode(data)
    # CMYK is a level off before it is resized.
    assert difference(pixels, pillows(data)) <= (2 if mode == 'CMYK' else 0)
    assert said == ''


@pytest.mark.parametrize('strip', [1, 1000, 2**30])
def test_a_picture_is_resized_the_same_whatever_the_strips(monkeypatch, strip):
    data = jpeg(size=(250, 190))
    expected, _ = decode(data)
    monkeypatch.setattr(pictures, 'STRIP', strip)
    assert (decode(data)[0] == expected).all()


# A batch.


def test_each_picture_is_in_its_place():
    one, other = jpeg(), jpeg(mode='L')
    pixels = np.full((5, *pictures.SHAPE), 77, np.uint8)
    images = [memoryview(one), None, memoryview(other), memoryview(b''), memoryview(one)]
    ((place, _),) = pictures.decode_into(pixels, images)
    assert place == 3
    expected = [pillows(one), np.zeros(pictures.SHAPE), pillows(other), np.full(pictures.SHAPE, 128), pillows(one)]
    assert (pixels == np.array(expected)).all()


def test_none_gives_zeros_and_is_no_picture_to_copy():
    image = memoryview(jpeg())
    expected = pillows(jpeg())
    pixels = np.full((6, *pictures.SHAPE), 77, np.uint8)
    assert pictures.decode_into(pixels, [None, image, None, image, None, None]) == []
    for place, found in enumerate(pixels):
        assert (found == (expected if place in (1, 3) else 0)).all()


def test_the_same_object_twice_in_a_row_is_copied(monkeypatch):
    decoded: list[memoryview] = []
    once = pictures._decode

    def counted(pixels: np.ndarray, image: memoryview) -> str:
        decoded.append(image)
        return once(pixels, image)

    monkeypatch.setattr(pictures, '_decode', counted)
    image, twin, broken = memoryview(jpeg()), memoryview(jpeg()), memoryview(jpeg()[:2000])
    pixels = np.zeros((8, *pictures.SHAPE), np.uint8)
    damaged = pictures.decode_into(pixels, [image, image, image, twin, broken, broken, image, image])
    assert [id(one) for one in decoded] == [id(one) for one in (image, twin, broken, image)]
    assert (pixels[[0, 1, 2, 3, 6, 7]] == pillows(jpeg())).all()
    assert (pixels[4] == pixels[5]).all()
    assert [place for place, _ in damaged] == [4], 'a copy is not told again'


def test_of_rows_of_several_the_same_object_in_the_row_before_is_copied(monkeypatch):
    decoded: list[memoryview] = []

    def noted(_: np.ndarray, image: memoryview) -> str:
        decoded.append(image)
        return ''

    monkeypatch.setattr(pictures, '_decode', noted)
    one, two, other = (memoryview(bytes([number])) for number in range(3))
    pixels = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones(pictures.SHAPE, np.uint8)
    pictures.decode_into(pixels, [one, two, one, two, one, None, other, one, two, one], each=2)
    assert [id(image) for image in decoded] == [id(image) for image in (one, two, other, one, two)]
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0, 0, 6, 7, 8, 7]


def test_no_pictures_are_no_pixels():
    assert pictures.decode_into(np.zeros((0, *pictures.SHAPE), np.uint8), []) == []


# Damaged pictures.


@pytest.mark.parametrize('percent', [10, 25, 50, 75, 99])
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'subsampling': '4:4:4'}, {'mode': 'L'}], ids=str)
def test_a_picture_cut_off_is_pillows_as_far_as_it_goes_and_told(monkeypatch, percent, options):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = jpeg(**options)
    data = whole[: len(whole) * percent // 100]
    pixels, said = decode(data)
    assert said == DAMAGED + "Premature end of JPEG file')"
    assert (pixels == pillows(data)).all()
    if 'progressive' not in options:
        # A row of blocks is 16 pixels high, and its last row of pixels is mixed with the next one's.
        sure = max(0, (180 * percent // 100) // 16 * 16 - 32)
        assert (pixels[:sure] == pillows(whole)[:sure]).all()


@pytest.mark.parametrize('size', [(90, 60), (400, 300)])
def test_a_picture_of_another_size_cut_off_is_pillows_as_well(monkeypatch, size):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    data = jpeg(size=size)
    data = data[: len(data) // 2]
    pixels, said = decode(data)
    assert said == DAMAGED + "Premature end of JPEG file')"
    assert (pixels == pillows(data)).all()


def test_a_picture_cut_off_anywhere_raises_nothing():
    whole = jpeg(quality=10)
    scan = whole.index(b'\xff\xda')
    for length in range(0, len(whole) - 1, 5):
        pixels, said = decode(whole[:length])
        if length < scan:
            assert said.startswith(NO_JPEG) and (pixels == 128).all()
        else:
            assert said.startswith((NO_JPEG, DAMAGED))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (180, 180)).save(buffer, 'PNG')
    return buffer.getvalue()


NO_PICTURES = {
    'nothing': b'',
    'a byte': b'\xff',
    'a text': b'<html><head><title>404 Not Found</title></head></html>',
    'zeros': bytes(5000),
    'random bytes': random.Random(0).randbytes(5000),
    'a PNG': png(),
    'a start': jpeg()[:2],
    'a start and random bytes': jpeg()[:2] + random.Random(1).randbytes(5000),
    'only a header': jpeg()[: jpeg().index(b'\xff\xda')],
    'no width': header_of(0, 180, jpeg()),
    'no height': header_of(180, 0, jpeg()),
    'bytes inside the header': jpeg()[:2] + b'damaged' + jpeg()[2:],
}


@pytest.mark.parametrize('data', NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_jpeg_is_grey_and_told(data):
    pixels, said = decode(data)
    assert (pixels == 128).all()
    assert said.startswith(NO_JPEG) and said.endswith("')")
    assert '\n' not in said


def test_a_jpeg_of_a_kind_that_is_not_decoded_is_grey_and_told():
    data, start = jpeg(), jpeg().index(b'\xff\xc0') + 4
    pixels, said = decode(data[:start] + b'\x0c' + data[start + 1 :])
    assert (pixels == 128).all()
    assert said == "taken as grey: it can't be decoded (libjpeg: 'Unsupported JPEG data precision 12')"


@pytest.mark.parametrize('width, height', [(30_000, 30_000), (4097, 4096), (8193, 1), (1, 8193), (65_500, 1)])
def test_a_header_that_claims_too_much_is_grey_and_told(width, height):
    pixels, said = decode(header_of(width, height, jpeg()))
    assert (pixels == 128).all()
    allowed = 'at most 16,777,216 pixels and 8,192 a side are decoded'
    assert said == f'taken as grey: its header says {width}x{height} pixels; {allowed}'


@pytest.mark.parametrize('size', [(8192, 1), (1, 8192)])
def test_the_longest_pictures_are_decoded(size):
    data = jpeg(size=size)
    pixels, said = decode(data)
    if size[1] == 1:  # of so high ones Pillow takes the rows first
        assert (pixels == pillows(data)).all()
    assert said == ''


def test_no_memory_is_taken_for_what_only_a_header_claims():
    """And for the largest pictures that are decoded, what they need and not much more; in a process of its own."""
    code = """
        import resource
        import numpy as np
        from pipeline import pictures
        from tests.pipeline.test_pictures import header_of, jpeg

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        pixels = np.zeros((1, *pictures.SHAPE), np.uint8)
        usual = [jpeg(), jpeg(progressive=True), jpeg(size=(200, 300)), jpeg(size=(200, 300))[:2000]]
        for data in usual:
            pictures.decode_into(pixels, [memoryview(data)])
        before = peak()
        for sides in [(30_000, 30_000), (65_500, 65_500), (65_500, 257), (257, 65_500), (65_500, 1)]:
            data = header_of(*sides, jpeg())
            (_,) = pictures.decode_into(pixels, [memoryview(data)])
        claimed = peak()
        for sides in [(4096, 4096), (8192, 2048), (2048, 8192)]:
            (_,) = pictures.decode_into(pixels, [memoryview(header_of(*sides, jpeg()))])
        print(claimed - before, peak() - before)
    """
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, check=True)
    claimed, decoded = (int(number) for number in done.stdout.split())
    assert claimed < 20, 'MB'
    assert decoded < 250, 'MB: 50 for the picture, and some for its resizing'


def mutated(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 3, 30])):
        place = draw.randrange(min(len(data), draw.choice([30, 700, 10**9])))
        kind = draw.randrange(4)
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place + 1 : place + draw.randrange(40)]
        elif kind == 2:
            data[place:place] = draw.randbytes(draw.randrange(40))
        elif len(data) > 600:
            del data[draw.randrange(600, len(data)) :]
    return bytes(data)


def test_damaged_pictures_give_the_same_pixels_every_time():
    """Whatever was in memory before: where libjpeg gives up, new memory would show through."""
    draw = random.Random(0)
    wholes = [jpeg(), jpeg(progressive=True), jpeg(size=(60, 90), restart_marker_blocks=4), jpeg(mode='CMYK')]
    pixels = np.zeros((2, *pictures.SHAPE), np.uint8)
    outcomes = []
    for _ in range(1500):
        image = memoryview(mutated(draw.choice(wholes), draw))
        found = []
        for place, before in enumerate((0, 255)):
            pixels[place] = before
            del [np.full(pictures.SHAPE, before, np.uint8) for _ in range(3)][:]
            found.append(pictures.decode_into(pixels[place : place + 1], [image]))
        assert found[0] == found[1]
        assert (pixels[0] == pixels[1]).all()
        outcomes.append(found[0][0][1][:10] if found[0] else '')
    assert min(outcomes.count(said) for said in ('', DAMAGED[:10], NO_JPEG[:10])) > 100
