"""The feed and what it is held against: each runs in a process of its own and prints its steady rate.

    python tools/benchmarks/feed_contenders.py ours FOLDER 30 700

FOLDER has the same training pictures in shards/ and in tars/. After 30 batches, which fill buffers and caches, the
clock runs for 700. Those in PEERS run in an environment without this project and TensorFlow, so each contender imports
what it needs.
"""

from __future__ import annotations

import collections
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BATCH = 128
SHUFFLE_IMAGES = 10_000  # of the references: more than a window of ours, 60,000 / 9
THREADS = 2


def main(name: str, folder: str, warm_up: str, batches: str) -> None:
    """Measures one contender."""
    stream = CONTENDERS[name](Path(folder))
    _drop(stream, int(warm_up))
    started = time.perf_counter()
    _drop(stream, int(batches))
    rate = BATCH * int(batches) / (time.perf_counter() - started)
    print(json.dumps({'img/s': round(rate, 1)}))


def _drop(stream: Iterator[Any], count: int) -> None:
    collections.deque(itertools.islice(stream, count), maxlen=0)


def ours(folder: Path) -> Iterator[Any]:
    """The feed: images, draws, labels, in memory of the process, as DALI's are."""
    from pipeline import dataset

    return dataset.training_batches(dataset.open_shards(str(folder / 'shards')), seed=0, batch_size=BATCH)


def ours_in_tensorflow(folder: Path) -> Iterator[Any]:
    """The feed as Keras takes it, from within a graph: by numbers of pictures."""
    import tensorflow as tf

    from pipeline import dataset

    stream = iter(dataset.train(dataset.open_shards(str(folder / 'shards')), seed=0, batch_size=BATCH))

    @tf.function
    def step(stream: Any) -> Any:
        images, _, _ = next(stream)
        return tf.shape(images)[0]

    while True:
        yield step(stream)


def plain_tf_data(folder: Path) -> Iterator[Any]:
    """The same shards the way TensorFlow's guides have it, picture by picture: images, labels."""
    import tensorflow as tf

    features = {
        'label': tf.io.FixedLenFeature([], tf.int64),
        'images': tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    }

    def pictures(record: Any) -> Any:
        product = tf.io.parse_single_example(record, features)
        return product['images'], tf.repeat(product['label'], tf.size(product['images']))

    stream = tf.data.TFRecordDataset(_training_shards(folder / 'shards'), num_parallel_reads=tf.data.AUTOTUNE)
    stream = stream.map(pictures, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    stream = stream.shuffle(SHUFFLE_IMAGES, seed=0).repeat()
    stream = stream.map(
        lambda image, label: (tf.io.decode_jpeg(image, channels=3), label), num_parallel_calls=tf.data.AUTOTUNE
    )
    yield from stream.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def simplejpeg(folder: Path, *, threads: int = THREADS) -> Iterator[None]:
    """Nothing but decoding: pictures in memory, whose pixels are dropped at once."""
    from simplejpeg import decode_jpeg

    pictures = [image for image, _ in training_pictures(folder / 'shards')]

    def decode(number: int) -> None:
        for place in range(number * BATCH, (number + 1) * BATCH):
            decode_jpeg(pictures[place % len(pictures)])

    return _in_threads(decode, threads)


def simplejpeg_into_batches(folder: Path) -> Iterator[None]:
    """The same, but the pixels are written where batches are: into memory that no cache holds."""
    import numpy as np
    from simplejpeg import decode_jpeg

    pictures = [image for image, _ in training_pictures(folder / 'shards')]
    memory = [np.zeros((BATCH, 180, 180, 3), np.uint8) for _ in range(THREADS + 2)]

    def decode(number: int) -> None:
        for place, pixels in enumerate(memory[number % len(memory)], start=number * BATCH):
            decode_jpeg(pictures[place % len(pictures)], buffer=pixels)

    return _in_threads(decode, THREADS)


def _in_threads(work: Callable[[int], None], threads: int) -> Iterator[None]:
    """Does work 0, 1, 2 and so on, some ahead of the one that is waited for, so that no thread waits for this loop."""
    numbers = itertools.count()
    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque(pool.submit(work, next(numbers)) for _ in range(threads + 1))
        while True:
            waiting.popleft().result()
            waiting.append(pool.submit(work, next(numbers)))
            yield


def rows_alone(folder: Path) -> Iterator[None]:
    """Reading, parsing and shuffling without decoding, a batch at a time."""
    from pipeline import dataset, feed

    shards = dataset.open_shards(str(folder / 'shards'))
    chunks = feed.chunks_of(shards.folder, shards.manifest.of_split('train'))
    left = 0
    for rows in feed.shuffled(chunks, seed=0, start_row=0, shuffle_rows=dataset.SHUFFLE_IMAGES):
        left += len(rows)
        while left >= BATCH:
            left -= BATCH
            yield


def dali(folder: Path) -> Iterator[Any]:
    """NVIDIA DALI on the CPU: images, labels.

    Four batches are prefetched, not two, and four by its reader, not one. Nothing else tried (executor, mmap, affinity,
    a third thread, fast IDCT) was clearly faster. Its upsampling of colour is the fast one, simplejpeg's the fancy one.
    """
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=4, seed=0)
    with pipeline:
        encoded, labels = fn.readers.webdataset(
            paths=_tars(folder),
            ext=['jpg', 'cls'],
            dtypes=[types.UINT8, types.INT64],
            random_shuffle=True,
            initial_fill=SHUFFLE_IMAGES,
            prefetch_queue_depth=4,
        )
        pipeline.set_outputs(fn.decoders.image(encoded, device='cpu', output_type=types.RGB), labels)
    pipeline.build()
    while True:
        yield pipeline.run()


def webdataset(folder: Path) -> Iterator[Any]:
    """WebDataset's reading and shuffling with simplejpeg in two threads: images, labels."""
    import numpy as np
    import webdataset as wds
    from simplejpeg import decode_jpeg

    def decode(sample: dict[str, Any]) -> Any:
        return decode_jpeg(sample['jpg'])

    tars = _tars(folder)
    samples = iter(wds.WebDataset(tars, shardshuffle=len(tars), seed=0).repeat().shuffle(SHUFFLE_IMAGES))
    with ThreadPoolExecutor(THREADS) as pool:

        def begun() -> Any:
            batch = list(itertools.islice(samples, BATCH))
            return [pool.submit(decode, sample) for sample in batch], [sample['cls'] for sample in batch]

        waiting = collections.deque(begun() for _ in range(2))
        while True:
            images, labels = waiting.popleft()
            waiting.append(begun())
            yield np.stack([image.result() for image in images]), np.frombuffer(b''.join(labels), '<i8')


def training_pictures(shards: Path) -> Iterator[tuple[bytes, int]]:
    """Each encoded picture and its label, in the shards' order."""
    from pipeline import records

    for path in _training_shards(shards):
        with open(path, 'rb') as file:
            for frame in records.frames(file):
                product = records.decode(frame.record)
                for image in product.images:
                    yield image, product.label


def _training_shards(shards: Path) -> list[str]:
    return sorted(str(path) for path in shards.glob('train-*.tfrecord'))


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / 'tars').iterdir())


CONTENDERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    'ours': ours,
    'ours in tf.data': ours_in_tensorflow,
    'plain tf.data': plain_tf_data,
    'simplejpeg': simplejpeg,
    'simplejpeg in one thread': lambda folder: simplejpeg(folder, threads=1),
    'simplejpeg into batches': simplejpeg_into_batches,
    'rows alone': rows_alone,
    'dali': dali,
    'webdataset': webdataset,
}
PEERS = ('dali', 'webdataset')

if __name__ == '__main__':
    main(*sys.argv[1:])
