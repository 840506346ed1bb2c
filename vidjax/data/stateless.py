"""TensorFlow's stateless random numbers in NumPy, so that clips can be augmented where TensorFlow is not imported.

Seeds are pairs of int64, and the numbers equal those of `tf.random.stateless_uniform` and `tf.random.split` on a CPU
(those of `tf.random.stateless_normal` to rounding): Philox 4x32 with ten rounds (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", 2011), whose key and counter are themselves drawn from the seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

Seed = Sequence[int] | Int[np.ndarray, "2"]
_MASK = 2**32 - 1
_SCALARS = 32
"""Up to so many words Python's integers are faster than arrays."""


def _philox(counter: Sequence[Any], key: Sequence[int]) -> list[Any]:
    """Four words, each an integer or an array of uint64."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (second >> 32) ^ b ^ k, second & _MASK, (first >> 32) ^ d ^ m, first & _MASK
        k, m = (k + 0x9E3779B9) & _MASK, (m + 0xBB67AE85) & _MASK
    return [a, b, c, d]


def words(seed: Seed, count: int) -> UInt32[np.ndarray, "n"]:
    """The first `count` random words of 32 bits."""
    first, second = (int(part) & (2**64 - 1) for part in seed)
    halves = [first & _MASK, first >> 32, second & _MASK, second >> 32]
    *key, low, high = _philox(halves, (0x3EC8F720, 0x02461E29))
    blocks = -(-count // 4)
    if count <= _SCALARS:
        drawn = [_philox([block, 0, low, high], key) for block in range(blocks)]
    else:
        one = np.ones(blocks, np.uint64)
        drawn = np.stack(_philox([np.arange(blocks, dtype=np.uint64), 0 * one, low * one, high * one], key), axis=1)
    return np.array(drawn, np.uint32).ravel()[:count]


def split(seed: Seed, count: int) -> Int[np.ndarray, "n 2"]:
    """Independent seeds."""
    return words(seed, 4 * count).view(np.int64).reshape(count, 2)


def uniform(seed: Seed, count: int, low: float = 0.0, high: float = 1.0) -> Float[np.ndarray, "n"]:
    """Float32 numbers in [low, high)."""
    return _unit(words(seed, count)) * (np.float32(high) - np.float32(low)) + np.float32(low)


def below(seed: Seed, bound: int) -> int:
    """An integer in [0, bound)."""
    return int(words(seed, 1)[0]) % bound


def normal(seed: Seed, count: int, mean: float = 0.0, std: float = 1.0) -> Float[np.ndarray, "n"]:
    """Normally distributed float32 numbers (Box and Muller 1958)."""
    first, second = _unit(words(seed, count + count % 2)).reshape(-1, 2).T
    length = np.sqrt(np.float32(-2) * np.log(np.maximum(first, np.float32(1e-7))))
    angle = np.float32(2 * np.pi) * second
    pairs = np.stack([np.sin(angle) * length, np.cos(angle) * length], axis=1)
    return pairs.ravel()[:count] * np.float32(std) + np.float32(mean)


def _unit(bits: UInt32[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return (bits & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
