"""Combining and what it is held against: each runs in a process of its own and prints its steady rate.

    python -m tools.benchmarks.combine_contenders 'ours, mean' FOLDER

FOLDER has the same logits in logits/val, a store, and in arrays/, as numpy files: logits_store.py makes both. A rate is
that of the logits' bytes, from the first product to the last prediction, without start-up:
  ours   what a Beam worker does, in warm processes, each on a core of its own with its share of the files: from files
         in the page cache, checksums compared, to files of predictions
  numpy  the paper's way: one product after the other, from arrays in memory to arrays in memory, in one process
numpy needs nothing of this project, so each contender imports what it needs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

LIKELIEST = 5


def main(name: str, folder: str) -> None:
    """Measures one contender."""
    size, seconds = CONTENDERS[name](Path(folder))
    print(json.dumps({'MB/s': round(size / seconds / 1e6, 1)}))


def ours(folder: Path, rule: str, *, cores: Sequence[int]) -> tuple[int, float]:
    """Reduces the files of the store, a process on each of these cores: bytes of logits, seconds."""
    from pipeline import manifest as manifest_lib

    store = str(folder / 'logits' / 'val')
    manifest = manifest_lib.read(store, kind='logits', remedy='python -m tools.benchmarks.logits_store')
    context = multiprocessing.get_context('spawn')
    # Pinned before TensorFlow is imported, which then starts one thread.
    workers = [
        ProcessPoolExecutor(1, mp_context=context, initializer=os.sched_setaffinity, initargs=(0, {core}))
        for core in cores
    ]
    with tempfile.TemporaryDirectory(dir=folder) as parts:

        def reduce(shares: Sequence[Sequence[str]]) -> None:
            tasks = [
                worker.submit(_reduce, store, parts, rule, share) for worker, share in zip(workers, shares, strict=True)
            ]
            for task in tasks:
                task.result()

        names = [file.name for file in manifest.files]
        reduce([names[:1] for _ in cores])  # warms up
        started = time.perf_counter()
        reduce([names[turn :: len(cores)] for turn in range(len(cores))])
        seconds = time.perf_counter() - started
        for worker in workers:
            worker.shutdown()
    return manifest.images('val') * manifest.about['categories'] * np.float16().nbytes, seconds


def _reduce(store: str, parts: str, rule: str, files: Sequence[str]) -> None:
    """What a Beam worker does with its share of the files, by name."""
    from ensemble import reduction
    from ensemble.mixture import Mixture

    job = reduction.Job(reduction.open_stores([store]), [Mixture(rule)], [parts])
    for part in job.stores.parts():
        if part.files[0].name in files:
            reduction.reduce_part(part, job)


def numpy(folder: Path, scores: Callable[[np.ndarray], np.ndarray]) -> tuple[int, float]:
    """Combines the arrays, held in memory, product by product: bytes of logits, seconds."""
    paths = [sorted((folder / 'arrays').glob(f'*-{name}.npy')) for name in ('logits', 'product_id')]
    arrays = [(np.load(logits), np.load(product_id)) for logits, product_id in zip(*paths, strict=True)]
    started = time.perf_counter()
    for logits, product_id in arrays:
        predict(logits, product_id, scores)
    return sum(logits.nbytes for logits, _ in arrays), time.perf_counter() - started


def predict(
    logits: np.ndarray, product_id: np.ndarray, scores: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest labels of each product.

    Args:
        logits: float16 [n, C].
        product_id: int64 [n]; the rows of a product are adjacent.
        scores: of one product: float16 [k, C] -> float32 [C].

    Returns:
        labels int64 [P, LIKELIEST], the likeliest first, and their probabilities float32 [P, LIKELIEST].
    """
    ends = np.append(np.flatnonzero(np.diff(product_id)) + 1, len(product_id)).tolist()
    labels = np.empty((len(ends), LIKELIEST), np.int64)
    probabilities = np.empty((len(ends), LIKELIEST), np.float32)
    start = 0
    for place, end in enumerate(ends):
        score = scores(logits[start:end])
        best = np.argpartition(score, -LIKELIEST)[-LIKELIEST:]
        best = best[np.argsort(-score[best])]
        labels[place] = best
        probabilities[place] = score[best] / score.sum()
        start = end
    return labels, probabilities


def mean(logits: np.ndarray) -> np.ndarray:
    """Sums of the pictures' probabilities."""
    return _softmax(logits).sum(axis=0)


def product(logits: np.ndarray) -> np.ndarray:
    """Products of the pictures' probabilities."""
    return _softmax(logits).prod(axis=0)


def product_of_one_softmax(logits: np.ndarray) -> np.ndarray:
    """The same with a single softmax a product, as our own rule has it: what numpy can do at best."""
    return _softmax(logits.sum(axis=0, dtype=np.float32, keepdims=True))[0]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """float [k, C] -> float32 [k, C]; none of its steps but the first takes new memory for it."""
    values = logits.astype(np.float32)
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return values


def _all_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


CONTENDERS: dict[str, Callable[[Path], tuple[int, float]]] = {
    'ours, mean': lambda folder: ours(folder, 'mean', cores=_all_cores()),
    'ours, product': lambda folder: ours(folder, 'product', cores=_all_cores()),
    'ours on one core, mean': lambda folder: ours(folder, 'mean', cores=_all_cores()[:1]),
    'ours on one core, product': lambda folder: ours(folder, 'product', cores=_all_cores()[:1]),
    'numpy, mean': lambda folder: numpy(folder, mean),
    'numpy, product': lambda folder: numpy(folder, product),
    'numpy, product of one softmax': lambda folder: numpy(folder, product_of_one_softmax),
}

if __name__ == '__main__':
    main(*sys.argv[1:])
