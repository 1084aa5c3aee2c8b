"""The machinery under the stream: buffers that are used again, chunks read by threads, batches decoded by others."""

from __future__ import annotations

import ctypes
import gc
import itertools
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipeline import feed, order, records, shard_chunks
from pipeline.errors import InputError
from pipeline.feed import Products, Rows
from pipeline.manifest import FileInfo
from pipeline.records import Product
from pipeline.shard_chunks import Chunk
from tests import catalogue

COUNTS = (1, 3, 2, 4, 1, 1, 2)  # pictures a product, unevenly
REMEDY = re.escape(shard_chunks.REMEDY)
# What a row may be.
KINDS = {'pictures': None, 'products': Products(2, fewer=True), 'products with exactly 2 pictures': Products(2)}


def product(number: int, *, images: Sequence[bytes] | None = None) -> Product:
    """Product number n has the id 3n + 1, and pictures that tell whose they are."""
    if images is None:
        images = [f'picture {k} of product {number}'.encode() for k in range(COUNTS[number % 7])]
    return Product(3 * number + 1, 1000 + number % 7, number % 7, 'train', tuple(images))


def write(
    folder: Path,
    products: Sequence[Product],
    *,
    chunk_products: int = 4,
    files: int = 1,
    kind: Products | None = None,
) -> list[Chunk]:
    """Shards of these products, and their chunks that have rows of this kind."""
    chunks = []
    for number, some in enumerate(np.array_split(np.arange(len(products)), files)):
        path, offset = folder / f'train-{number:05d}-of-{files:05d}.tfrecord', 0
        with open(path, 'wb') as file:
            for first in range(0, len(some), chunk_products):
                these = [products[place] for place in some[first : first + chunk_products]]
                data = records.frame([records.encode(one) for one in these])
                if rows := len(expected_rows(these, kind)):
                    chunks.append(Chunk(str(path), offset, len(data), rows))
                offset += file.write(data)
    return chunks


def contents(rows: Rows) -> list[tuple[int, int, int, list[bytes | None]]]:
    """Product id, number of the picture, label and encoded pictures of each row."""
    images = [None if image is None else bytes(image) for image in rows.images()]
    each = rows.table['start'].shape[1]
    numbers = [rows.table[name].tolist() for name in ('product_id', 'image_index', 'label')]
    return [(*row, images[place * each : (place + 1) * each]) for place, row in enumerate(zip(*numbers, strict=True))]


def expected_pictures(products: Sequence[Product]) -> list[tuple[int, int, int, list[bytes | None]]]:
    return [(one.product_id, number, one.label, [image]) for one in products for number, image in enumerate(one.images)]


def expected_rows(products: Sequence[Product], kind: Products | None) -> list[tuple[int, int, int, list[bytes | None]]]:
    if kind is None:
        return expected_pictures(products)
    each = kind.pictures
    return [
        (one.product_id, 0, one.label, [*one.images[:each], *[None] * (each - len(one.images))])
        for one in products
        if kind.fewer or len(one.images) == each
    ]


def take(pieces: Iterator[Rows], count: int) -> list[tuple[int, int, int, list[bytes | None]]]:
    """The first rows of an endless stream, which is closed then."""
    found: list[tuple[int, int, int, list[bytes | None]]] = []
    while len(found) < count:
        found += contents(next(pieces))
    pieces.close()  # type: ignore[attr-defined]
    return found[:count]


def sizes_mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the buffers that are taken from the system from now on."""
    sizes: list[int] = []
    new = feed.mmap.mmap

    def noted(number: int, size: int) -> Any:
        sizes.append(size)
        return new(number, size)

    monkeypatch.setattr(feed.mmap, 'mmap', noted)
    return sizes


def feed_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(('read', 'parse', 'decode'))]


def ended(what: Callable[[], Any]) -> bool:
    """Whether nothing of it is left within two seconds."""
    if what():
        gc.collect()
    for _ in range(200):
        if not what():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope='module', autouse=True)
def _collect_only_what_these_tests_make() -> Iterator[None]:
    """A collection looks through every object that is not frozen: over a million, with TensorFlow and Beam."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_threads_stay() -> Iterator[None]:
    yield
    assert ended(feed_threads), feed_threads()


# Buffers.

VIEWS: dict[str, Callable[[np.ndarray], Any]] = {
    'the array': lambda array: array,
    'a slice': lambda array: array[5:10],
    'every second': lambda array: array[::2],
    'a byte': lambda array: array[999:],
    'another shape': lambda array: array.reshape(10, 10, 10)[3].T,
    'another type': lambda array: array.view(np.int32),
    'a memoryview': lambda array: array.data,
    'a slice of a memoryview': lambda array: array.data[7:9],
    'an array of a memoryview': lambda array: np.frombuffer(array.data[100:200], np.uint8)[3:],
    'a list of pieces': lambda array: [array[:1], array.data[5:6]],
    'a tensor': lambda array: tensor_of(array),
}


def tensor_of(array: np.ndarray) -> tf.Tensor:
    """What TensorFlow makes of an array that a generator yields."""
    signature = tf.TensorSpec(array.shape, tf.uint8)
    return next(iter(tf.data.Dataset.from_generator(lambda: iter([array]), output_signature=signature)))


def bytes_of(view: Any) -> set[int]:
    return (
        set(np.concatenate([np.asarray(part).ravel().view(np.uint8) for part in view]))
        if isinstance(view, list)
        else set(np.ascontiguousarray(np.asarray(view)).ravel().view(np.uint8))
    )


@pytest.mark.parametrize('view_of', VIEWS.values(), ids=VIEWS)
def test_a_buffer_is_not_used_again_while_anything_looks_at_it(view_of):
    memory = feed._Memory()
    array = memory.take(1000)
    array[:] = 1
    view = view_of(array)
    del array
    gc.collect()
    others = [memory.take(1000) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert bytes_of(view) == {1}
    del view, others, other
    assert ended(lambda: len(memory.free) < 3)


def test_a_buffer_is_used_again_once_nothing_looks_at_it():
    memory = feed._Memory()
    array = memory.take(1000)
    place = array.ctypes.data
    view = array[3:].data
    del array
    gc.collect()
    assert memory.free == []
    del view
    assert len(memory.free) == 1
    again = memory.take(1000)
    assert again.ctypes.data == place and memory.free == []


def test_buffers_begin_at_a_page():
    memory = feed._Memory()
    assert [memory.take(size).ctypes.data % 4096 for size in (1, 100, 5000)] == [0, 0, 0]


def test_a_buffer_that_is_too_small_is_given_up():
    memory = feed._Memory()
    for size in (1, 10, 4096, 4097, 10**6, 2 * 10**6, 5, 10**6):
        array = memory.take(size)
        assert array.shape == (size,) and array.dtype == np.uint8
        array[:] = 255
        assert memory.free == []
        del array
        assert len(memory.free) == 1


def test_a_buffer_has_room_for_one_that_is_a_little_larger():
    memory = feed._Memory()
    place = memory.take(16_000).ctypes.data
    assert memory.take(17_000).ctypes.data == place


def test_tensors_of_batches_stay_as_they_were_and_few_buffers_do_for_many(monkeypatch):
    made = sizes_mapped(monkeypatch)
    memory = feed._Memory()

    def generate() -> Iterator[np.ndarray]:
        for step in range(100):
            array = memory.take(10_000).reshape(100, 100)
            array[:] = step
            yield array

    stream = tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec((100, 100), tf.uint8))
    kept = []
    for step, batch in enumerate(stream.prefetch(1)):
        assert (batch.numpy() == step).all()
        if step % 10 == 0:
            kept.append(batch)
    del batch
    assert [set(batch.numpy().ravel()) for batch in kept] == [{step} for step in range(0, 100, 10)]
    # Ten that are kept, and those on their way.
    assert len(made) <= 10 + 6


# Rows.


@pytest.mark.parametrize('chunk_products', [1, 3, 4, 50])
@pytest.mark.parametrize('files', [1, 3])
def test_rows_in_order_are_the_pictures_of_the_shards(tmp_path, chunk_products, files):
    products = [product(number) for number in range(40)]
    chunks = write(tmp_path, products, chunk_products=chunk_products, files=files)
    found = list(feed.in_order(chunks))
    assert contents(Rows.joined(found)) == [row for rows in found for row in contents(rows)]
    assert contents(Rows.joined(found)) == expected_pictures(products)


@pytest.mark.parametrize('each', [1, 2, 3, 4])
@pytest.mark.parametrize('fewer', [False, True])
def test_rows_may_be_products_with_their_first_pictures(tmp_path, each, fewer):
    """All of them, or those that have exactly so many: 17, 11, 6 and 6 of these."""
    products, kind = [product(number) for number in range(40)], Products(each, fewer=fewer)
    chunks = write(tmp_path, products, kind=kind)
    found = contents(Rows.joined(list(feed.in_order(chunks, products=kind))))
    assert found == expected_rows(products, kind)
    assert len(found) == (40 if fewer else (17, 11, 6, 6)[each - 1])


@pytest.mark.parametrize('pictures', [-1, 0, 5])
def test_rows_of_as_many_pictures_as_no_product_has_are_refused(pictures):
    with pytest.raises(ValueError, match=f'^pictures must be 1 to 4, not {pictures}$'):
        Products(pictures)


@pytest.mark.parametrize(
    ('kind', 'rows'), [(None, [16, 0, 3]), (Products(4, fewer=True), [9, 0, 1]), (Products(2), [2, 0, 0])]
)
def test_chunks_without_rows_are_left_out_and_the_others_stay_where_they_are(kind, rows):
    table = ((100, 5, 2, 1, 1), (70, 0, 0, 0, 0), (30, 0, 0, 1, 0))
    listed = FileInfo('train-00000-of-00001.tfrecord', 'train', 10, 19, 200, 'unchecked', table)
    path = f'folder/{listed.name}'
    expected = [Chunk(path, *place, count) for place, count in zip([(0, 100), (100, 70), (170, 30)], rows, strict=True)]
    assert feed.chunks_of('folder', [listed], products=kind) == [chunk for chunk in expected if chunk.rows]


def test_empty_pictures_are_pictures_and_a_product_may_have_none(tmp_path):
    products = [product(0, images=[b'', b'x', b'']), product(1, images=[]), product(2, images=[b'', b''])]
    pictures = Rows.joined(list(feed.in_order(write(tmp_path, products))))
    assert contents(pictures) == expected_pictures(products)
    for kind, expected in (
        (Products(2, fewer=True), [[b'', b'x'], [None, None], [b'', b'']]),
        (Products(2), [[b'', b'']]),
    ):
        rows = Rows.joined(list(feed.in_order(write(tmp_path, products, kind=kind), products=kind)))
        assert [images for *_, images in contents(rows)] == expected


@pytest.mark.parametrize('limit', [0, 1, 7, 8, 9, 79, 80, 81, 1000])
def test_a_limit_takes_the_first_rows(tmp_path, limit):
    products = [product(number) for number in range(40)]
    chunks = write(tmp_path, products)
    found = [row for rows in feed.in_order(chunks, limit=limit) for row in contents(rows)]
    assert found == expected_pictures(products)[:limit]


def test_a_limit_reads_no_more_than_it_needs(tmp_path):
    chunks = write(tmp_path, [product(number) for number in range(40)])
    Path(chunks[0].path).write_bytes(Path(chunks[0].path).read_bytes()[: chunks[1].offset + chunks[1].bytes])
    assert sum(len(rows) for rows in feed.in_order(chunks, limit=chunks[0].rows + 1)) == chunks[0].rows + 1


def test_no_chunks_have_no_rows():
    assert list(feed.in_order([])) == []
    assert list(feed.decoded(feed.in_order([]), batch_size=3)) == []


@pytest.mark.parametrize('shuffle_rows', [1, 60, 10_000])
@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_shuffled_rows_are_the_same_for_any_number_of_readers(tmp_path, shuffle_rows, kind):
    products = [product(number) for number in range(140)]
    chunks = write(tmp_path, products, files=3, kind=kind)
    options: dict[str, Any] = {'seed': 3, 'shuffle_rows': shuffle_rows, 'products': kind}
    count = sum(chunk.rows for chunk in chunks)
    found = take(feed.shuffled(chunks, start_row=0, readers=8, **options), 2 * count + 50)
    for readers in (1, 3):
        assert take(feed.shuffled(chunks, start_row=0, readers=readers, **options), 2 * count + 50) == found
    rows = [row for some in feed.in_order(chunks, products=kind) for row in contents(some)]
    assert rows == expected_rows(products, kind)
    for one in (found[:count], found[count : 2 * count]):
        assert sorted(one, key=str) == sorted(rows, key=str), 'each row once a pass'
    for start in (1, 17, count - 1, count, count + 1, 2 * count + 3):
        resumed = feed.shuffled(chunks, start_row=start, readers=2, **options)
        assert take(resumed, 40) == found[start : start + 40]


def test_rows_of_one_chunk_are_shuffled_as_well(tmp_path):
    chunks = write(tmp_path, [product(0)])
    assert take(feed.shuffled(chunks, seed=0, start_row=0, shuffle_rows=10), 5) == expected_pictures([product(0)]) * 5


def test_an_image_that_comes_several_times_in_a_row_is_one_object(tmp_path):
    (rows,) = feed.in_order(write(tmp_path, [product(1), product(2)]))
    images = list(rows[np.array([0, 0, 0, 1, 0, 4, 4])].images())
    numbers = {id(image): place for place, image in reversed(list(enumerate(images)))}
    assert [numbers[id(image)] for image in images] == [0, 0, 0, 3, 4, 5, 5]


def test_the_images_of_a_product_that_comes_several_times_in_a_row_are_the_same_objects(tmp_path):
    kind = Products(2, fewer=True)
    (rows,) = feed.in_order(write(tmp_path, [product(1), product(0), product(2)], kind=kind), products=kind)
    images = list(rows[np.array([0, 0, 1, 1, 2, 2])].images())
    assert images[5] is None and images[7] is None
    for row in (0, 2, 4):
        first, second, *again = images[2 * row : 2 * row + 4]
        assert again[0] is first and again[1] is second


def test_equal_places_in_two_memories_are_two_images(tmp_path):
    (first,) = feed.in_order(write(tmp_path, [product(0)]))
    (tmp_path / 'other').mkdir()
    (second,) = feed.in_order(write(tmp_path / 'other', [product(7)]))
    assert first.table['start'].tolist() == second.table['start'].tolist()
    assert [bytes(image or b'') for image in Rows.joined([first, second]).images()] == [
        b'picture 0 of product 0',
        b'picture 0 of product 7',
    ]


# What is in memory.


class Held:
    """Counts the rows of groups that are still in memory: the most there were at any time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self.groups: list[tuple[weakref.ref[Any], int]] = []
        self.lock = threading.Lock()
        read = feed._Loader._read

        def counted(loader: Any, chunks: Sequence[Chunk]) -> Rows:
            rows = read(loader, chunks)
            exporter = np.frombuffer(rows.memory[0], np.uint8).base.obj.base.obj  # type: ignore[union-attr]
            assert isinstance(exporter, ctypes.Array)
            with self.lock:
                self.groups.append((weakref.ref(exporter), len(rows)))
                self.most = max(self.most, self.now())
            return rows

        monkeypatch.setattr(feed._Loader, '_read', counted)

    def now(self) -> int:
        return sum(rows for exporter, rows in self.groups if exporter() is not None)


@pytest.mark.parametrize('shuffle_rows', [1, 90, 180, 360])
@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_no_more_rows_are_in_memory_than_allowed_but_for_a_few_chunks(tmp_path, monkeypatch, shuffle_rows, kind):
    held = Held(monkeypatch)
    products = [product(number) for number in range(420)]  # 840 pictures
    chunks = write(tmp_path, products, kind=kind)
    largest = max(chunk.rows for chunk in chunks)
    rows = feed.shuffled(chunks, seed=0, start_row=5, shuffle_rows=shuffle_rows, products=kind)
    passes = 0
    for piece in feed._batches(rows, 7):  # to the third pass
        passes += len(piece)
        if passes > 2.5 * sum(chunk.rows for chunk in chunks):
            break
    # A group is a ninth of what is allowed, and ends with a whole chunk.
    assert held.most <= max(shuffle_rows, order.GROUPS_HELD) + order.GROUPS_HELD * largest
    del rows, piece
    assert ended(held.now)


def test_in_order_two_runs_of_chunks_are_in_memory(tmp_path, monkeypatch):
    held = Held(monkeypatch)
    monkeypatch.setattr(feed, 'AHEAD', 5)
    chunks = write(tmp_path, [product(0)] * 200)
    assert sum(len(rows) for rows in feed.in_order(chunks)) == 200
    # The run that is taken, the next, and the one before until it is let go.
    assert held.most <= 3 * 5 * 4
    assert ended(held.now)


# Batches.


@pytest.fixture(scope='module')
def pictures_in_order(tmp_path_factory) -> Rows:
    """Real pictures: 45 of 23 products."""
    products = [
        product(number, images=[catalogue.jpeg(4 * number + k) for k in range(COUNTS[number % 7])])
        for number in range(23)
    ]
    return Rows.joined(list(feed.in_order(write(tmp_path_factory.mktemp('shards'), products))))[:45]


def decoded_by_tensorflow(image: bytes) -> np.ndarray:
    return tf.io.decode_jpeg(image, channels=3, dct_method='INTEGER_ACCURATE').numpy()


def pixels_of(rows: Rows) -> np.ndarray:
    return np.array([decoded_by_tensorflow(bytes(image or b'')) for image in rows.images()])[:, None]


def cut(rows: Rows, places: Sequence[int]) -> list[Rows]:
    return [rows[first:end] for first, end in itertools.pairwise([0, *places, len(rows)])]


CUTS: dict[str, list[int]] = {
    'whole': [],
    'one by one': list(range(45)),
    'an empty piece first': [0],
    'an empty piece last': [45],
    'empty pieces between': [8, 8, 8, 16, 16, 40],
    'in two': [22],
    'at the end of a batch': [8, 40],
}


@pytest.mark.parametrize('places', CUTS.values(), ids=CUTS)
@pytest.mark.parametrize('batch_size', [1, 8, 44, 45, 46])
def test_batches_are_the_same_however_the_stream_is_cut(pictures_in_order, places, batch_size):
    expected = pixels_of(pictures_in_order)
    batches = list(feed.decoded(cut(pictures_in_order, places), batch_size=batch_size))
    assert [len(batch.rows) for batch in batches[:-1]] == [batch_size] * (45 // batch_size - (45 % batch_size == 0))
    assert contents(Rows.joined([batch.rows for batch in batches])) == contents(pictures_in_order)
    for number, batch in enumerate(batches):
        these = expected[number * batch_size : (number + 1) * batch_size]
        assert batch.pixels.shape == (batch_size, 1, 180, 180, 3) and batch.pixels.dtype == np.uint8
        assert (batch.pixels[: len(these)] == these).all()
        assert not batch.pixels[len(these) :].any()


def test_the_rest_of_the_last_batch_is_zeros_in_a_buffer_used_before(pictures_in_order):
    stream = feed.decoded([pictures_in_order] * 3, batch_size=20)
    sums = [(len(batch.rows), int(batch.pixels[len(batch.rows) :].sum())) for batch in stream]
    assert sums == [(20, 0)] * 6 + [(15, 0)]


@pytest.mark.parametrize('threads', [1, 2, 5])
@pytest.mark.parametrize('piece', [1, 3, 32, 1000])
def test_batches_are_the_same_for_any_number_of_threads(pictures_in_order, monkeypatch, threads, piece):
    monkeypatch.setattr(feed, 'PIECE', piece)
    expected = pixels_of(pictures_in_order)
    batches = list(feed.decoded([pictures_in_order], batch_size=10, threads=threads))
    assert (np.concatenate([batch.pixels for batch in batches])[:45] == expected).all()


@pytest.mark.parametrize('fewer', [False, True])
@pytest.mark.parametrize(('each', 'piece'), [(1, 64), (3, 64), (4, 64), (4, 3)])
def test_products_are_decoded_with_zeros_where_they_have_no_picture(tmp_path, monkeypatch, each, piece, fewer):
    monkeypatch.setattr(feed, 'PIECE', piece)
    products = [
        product(number, images=[catalogue.jpeg(4 * number + k) for k in range(COUNTS[number % 7])])
        for number in range(8)
    ]
    kind = Products(each, fewer=fewer)
    chunks = write(tmp_path, products, kind=kind)
    (batch,) = feed.decoded(feed.in_order(chunks, products=kind), batch_size=9)
    assert batch.pixels.shape == (9, each, 180, 180, 3)
    rows = expected_rows(products, kind)
    for (*_, images), pixels in zip(rows, batch.pixels[: len(rows)], strict=True):
        for image, found in zip(images, pixels, strict=True):
            assert (found == (0 if image is None else decoded_by_tensorflow(image))).all()
    assert not batch.pixels[len(rows) :].any()


def test_pictures_of_products_that_are_left_out_are_not_decoded(tmp_path, monkeypatch):
    decoded: list[bytes] = []

    def noted(_: np.ndarray, image: memoryview) -> str:
        decoded.append(bytes(image))
        return ''

    monkeypatch.setattr(feed.pictures, '_decode', noted)
    products, kind = [product(number) for number in range(40)], Products(3)
    for _ in feed.decoded(feed.in_order(write(tmp_path, products, kind=kind), products=kind), batch_size=5):
        pass
    assert sorted(decoded) == sorted(image for one in products if len(one.images) == 3 for image in one.images)


def test_views_of_a_product_are_decoded_once(tmp_path, monkeypatch):
    decoded: list[bytes] = []
    once = feed.pictures._decode

    def counted(pixels: np.ndarray, image: memoryview) -> str:
        decoded.append(bytes(image))
        return once(pixels, image)

    monkeypatch.setattr(feed.pictures, '_decode', counted)
    images = [catalogue.jpeg(place) for place in range(6)]
    products, kind = [product(number, images=images[3 * number : 3 * number + 3]) for number in range(2)], Products(3)
    (rows,) = feed.in_order(write(tmp_path, products, kind=kind), products=kind)
    (batch,) = feed.decoded([rows[np.repeat(np.arange(2), 4)]], batch_size=8)
    assert decoded == images
    expected = np.array([decoded_by_tensorflow(image) for image in images]).reshape(2, 3, 180, 180, 3)
    assert (batch.pixels == expected.repeat(4, axis=0)).all()


def test_a_batch_that_is_kept_stays_as_it_was(pictures_in_order):
    batches = list(feed.decoded([pictures_in_order] * 4, batch_size=9, threads=2))
    expected = np.concatenate([pixels_of(pictures_in_order)] * 4)
    assert (np.concatenate([batch.pixels for batch in batches]) == expected).all()


def test_batches_that_are_let_go_take_few_buffers(pictures_in_order, monkeypatch):
    made = sizes_mapped(monkeypatch)
    assert sum(1 for _ in feed.decoded([pictures_in_order] * 20, batch_size=9, threads=2)) == 100
    assert len(made) <= 8


# Ends and errors.


def test_a_stream_that_is_closed_early_leaves_no_threads(tmp_path):
    jpeg = catalogue.jpeg(0)
    chunks = write(tmp_path, [product(number, images=[jpeg]) for number in range(100)])
    for close in (True, False):
        stream = feed.decoded(feed.shuffled(chunks, seed=0, start_row=0, shuffle_rows=50), batch_size=10)
        for _ in range(3):
            next(stream)
        assert {name.split('_')[0] for name in feed_threads()} == {'read', 'parse', 'decode'}
        if close:
            stream.close()  # type: ignore[attr-defined]
        del stream
        assert ended(feed_threads)


def test_a_stream_that_ended_leaves_no_threads(pictures_in_order):
    assert len(list(feed.decoded([pictures_in_order], batch_size=10))) == 5
    assert ended(feed_threads)


class OfTheStreamError(Exception):
    pass


@pytest.mark.parametrize('after', [0, 1, 2])
def test_an_error_of_the_stream_comes_out_as_it_is(pictures_in_order, after):
    error = OfTheStreamError('why')

    def rows() -> Iterator[Rows]:
        yield from [pictures_in_order] * after
        raise error

    with pytest.raises(OfTheStreamError) as caught:
        list(feed.decoded(rows(), batch_size=10))
    assert caught.value is error


def test_an_error_of_a_thread_that_decodes_comes_out_as_it_is(pictures_in_order, monkeypatch):
    error = MemoryError('none left')

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(feed.pictures, 'decode_into', fail)
    with pytest.raises(MemoryError) as caught:
        list(feed.decoded([pictures_in_order], batch_size=10))
    assert caught.value is error


def damage(chunk: Chunk, place: int, data: bytes) -> None:
    """Overwrites bytes of a chunk."""
    with open(chunk.path, 'r+b') as file:
        file.seek(chunk.offset + place)
        file.write(data)


def read_all(chunks: Sequence[Chunk], how: str, *, kind: Products | None) -> None:
    """Reads all of them: in order, shuffled, or decoded batches of either."""
    rows: Iterator[Rows]
    if 'in order' in how:
        rows = feed.in_order(chunks, products=kind)
    else:
        shuffled = feed.shuffled(chunks, seed=0, start_row=0, shuffle_rows=20, products=kind)
        rows = itertools.islice(shuffled, 2 * len(chunks))
    for _ in feed.decoded(rows, batch_size=5) if 'decoded' in how else rows:
        pass


@pytest.fixture(params=['in order', 'shuffled', 'in order, decoded', 'shuffled, decoded'])
def how(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Products | None:
    return request.param


@pytest.fixture
def chunks(tmp_path: Path, kind: Products | None) -> list[Chunk]:
    return write(tmp_path, [product(number) for number in range(40)], files=3, kind=kind)


def test_a_flipped_byte_is_told_with_file_byte_and_remedy(chunks, how, kind):
    third = chunks[2]
    second = len(records.frame([records.encode(product(8))]))
    damage(third, second + 50, b'\xff')
    place = third.offset + second
    expected = f"{re.escape(third.path)}: the record at byte {place} doesn't fit its checksum; {REMEDY}"
    with pytest.raises(InputError, match=f'^{expected}$'):
        read_all(chunks, how, kind=kind)


def test_a_damaged_length_is_told(chunks, how, kind):
    damage(chunks[1], 0, b'\xff' * 8)
    place = chunks[1].offset
    expected = f'{re.escape(chunks[1].path)}: the record at byte {place} is cut off, or its length is damaged; {REMEDY}'
    with pytest.raises(InputError, match=f'^{expected}$'):
        read_all(chunks, how, kind=kind)


@pytest.mark.parametrize('left', [0, 1, 500])
def test_a_file_that_is_cut_off_is_told(chunks, how, kind, left):
    path = chunks[0].path
    Path(path).write_bytes(Path(path).read_bytes()[:left])
    end = next(chunk.offset + chunk.bytes for chunk in chunks if chunk.offset + chunk.bytes > left)
    expected = rf'{re.escape(path)}: is cut off: ends before byte \d+, which the manifest tells of; {REMEDY}'
    with pytest.raises(InputError, match=f'^{expected}$') as caught:
        read_all(chunks, how, kind=kind)
    assert 'in order' not in how or f'before byte {end},' in str(caught.value)


def test_a_file_that_is_not_there_is_told(chunks, how, kind):
    Path(chunks[-1].path).unlink()
    with pytest.raises(InputError, match=f'^{re.escape(chunks[-1].path)}: no such file$'):
        read_all(chunks, how, kind=kind)


@pytest.mark.parametrize(
    ('record', 'rule'),
    [
        (b'x' * 100, 'is no tf.train.Example'),
        (b'', 'has not one product_id'),
        (tf.train.Example().SerializeToString(), 'has not one product_id'),
    ],
    ids=['bytes', 'nothing', 'an Example without features'],
)
def test_a_sound_record_that_is_no_product_is_told(tmp_path, how, kind, record, rule):
    frames = [records.frame([records.encode(product(number))]) for number in range(12)]
    frames[6] = records.frame([record])
    chunks, path = [], tmp_path / 'train-00000-of-00001.tfrecord'
    path.write_bytes(b''.join(frames))
    for first in range(0, 12, 4):
        rows = expected_rows([product(number) for number in range(first, first + 4)], kind)
        sizes = [len(b''.join(some)) for some in (frames[:first], frames[first : first + 4])]
        chunks.append(Chunk(str(path), sizes[0], sizes[1], len(rows)))
    place = len(b''.join(frames[:6]))
    with pytest.raises(InputError, match=f'^{re.escape(str(path))}: the record at byte {place} {rule}; {REMEDY}$'):
        read_all(chunks, how, kind=kind)


def test_a_shard_of_another_conversion_is_told(chunks, how, kind):
    """Sound, but with other products than the manifest tells of: an order made for those would be another one."""
    chunks[4] = Chunk(chunks[4].path, chunks[4].offset, chunks[4].bytes, chunks[4].rows + 1)
    (name,) = (name for name, one in KINDS.items() if one == kind)
    said = f'from byte {chunks[4].offset} on are {chunks[4].rows - 1} {name}, not the {chunks[4].rows} that'
    with pytest.raises(InputError, match=f'^{re.escape(chunks[4].path)}: {said} the manifest tells of; {REMEDY}$'):
        read_all(chunks, how, kind=kind)


# Damaged pictures.


def with_damage(folder: Path, damaged: dict[int, bytes], *, products: int, kind: Products | None = None) -> list[Chunk]:
    """Products of two pictures, of which the second is damaged in some."""
    sound = catalogue.jpeg(0)
    made = [product(number, images=[sound, damaged.get(number, sound)]) for number in range(products)]
    return write(folder, made, kind=kind)


@pytest.mark.parametrize('kind', [None, *(Products(each, fewer=True) for each in (1, 2, 3)), Products(2)])
def test_each_damaged_picture_is_told_once_with_product_and_picture(tmp_path, capsys, kind):
    broken = {2: catalogue.jpeg(0)[:1000], 3: b'', 17: b'no picture'}
    chunks = with_damage(tmp_path, broken, products=20, kind=kind)
    batches = list(feed.decoded(feed.in_order(chunks, products=kind), batch_size=6, threads=3))
    assert sum(len(batch.rows) for batch in batches) == (40 if kind is None else 20)
    output, told = capsys.readouterr()
    assert output == ''
    no_jpeg = (
        "taken as grey: no JPEG picture, or its header is damaged (libjpeg: 'tjDecompressHeader3(): "
        "Could not determine subsampling level of JPEG image')"
    )
    expected = [
        "product 7, picture 1: cut off or damaged, taken as far as it can be decoded (libjpeg: 'Premature end of JPEG "
        "file')",
        f'product 10, picture 1: {no_jpeg}',
        f'product 52, picture 1: {no_jpeg}',
    ]
    assert told.splitlines() == ([] if kind and kind.pictures == 1 else [f'warning: {line}' for line in expected])


def test_of_many_damaged_pictures_ten_are_told_and_then_their_number(tmp_path, capsys):
    chunks = with_damage(tmp_path, dict.fromkeys(range(120), b'no picture'), products=120)
    rows = list(feed.in_order(chunks))
    for count, lines in ((9, 9), (10, 10), (11, 10), (99, 10), (100, 11), (101, 11), (120, 11)):
        assert sum(len(batch.rows) for batch in feed.decoded(cut_at(rows, 2 * count), batch_size=7)) == 2 * count
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
        assert [line.split(',')[0] for line in told[:10]] == [
            f'warning: product {3 * number + 1}' for number in range(min(count, 10))
        ]
        assert told[10:] == ['warning: 100 damaged pictures so far'] * (lines - 10)


def cut_at(rows: Sequence[Rows], count: int) -> list[Rows]:
    return [Rows.joined(rows)[:count]]


def test_damaged_pictures_change_nothing_of_those_beside_them(tmp_path, capsys):
    broken = {number: catalogue.jpeg(0)[: 300 + 40 * number] for number in range(0, 30, 2)}
    (sound,) = feed.decoded(feed.in_order(with_damage(tmp_path, {}, products=30)), batch_size=60)
    expected = sound.pixels.copy()
    (found,) = feed.decoded(feed.in_order(with_damage(tmp_path, broken, products=30)), batch_size=60)
    places = [2 * number + 1 for number in broken]
    assert (np.delete(found.pixels, places, axis=0) == np.delete(expected, places, axis=0)).all()
    assert len(capsys.readouterr().err.splitlines()) == feed.TOLD
