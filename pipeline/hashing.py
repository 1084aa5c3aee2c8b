"""Random-looking numbers as pure functions of whole numbers: the same on every machine and version, in any order.

They are splitmix64's (Steele, Lea and Flood 2014), chained: the number of (seed, a, b) is mix(mix(mix(seed) ^ a) ^ b).
"""

from __future__ import annotations

import numpy as np


def hashes(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """A number for each set of keys.

    Args:
        seed: any whole number.
        keys: whole numbers or arrays of them, which are broadcast against each other.

    Returns:
        uint64, spread evenly; for one key no two are alike.
    """
    value = mix(np.array([seed % 2**64], np.uint64))
    for key in keys:
        value = mix(value ^ np.asarray(key).astype(np.uint64))
    return value


def permutation(count: int, seed: int, *keys: int) -> np.ndarray:
    """The numbers 0..count-1 in a random order fixed by seed and keys, int64 [count]."""
    return np.argsort(hashes(seed, *keys, np.arange(count)))


def uniform(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """Numbers of [0, 1) for each set of keys, float32: the hashes' first 24 bits, all that a float32 holds."""
    return (hashes(seed, *keys) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def mix(values: np.ndarray) -> np.ndarray:
    """One step of splitmix64 on uint64, a one-to-one map."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
