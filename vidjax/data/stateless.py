"""TensorFlow's stateless random numbers in NumPy, so that crops can be drawn where TensorFlow is not imported.

Seeds are pairs of int64, and the numbers equal those of `tf.random.stateless_uniform` and `tf.random.split` on a CPU:
Philox 4x32 with ten rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), whose key and counter
are themselves drawn from the seed.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Seed = Sequence[int] | Int[np.ndarray, "2"]
_MASK = 2**32 - 1


def _philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Four words."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k, second & _MASK, (first >> 32) ^ d ^ m, first & _MASK
        k, m = (k + 0x9E3779B9) & _MASK, (m + 0xBB67AE85) & _MASK
    return [a, b, c, d]


def words(seed: Seed, count: int) -> list[int]:
    """The first `count` random words of 32 bits."""
    first, second = (int(part) & (2**64 - 1) for part in seed)
    halves = [first & _MASK, first >> 32, second & _MASK, second >> 32]
    mixed = _philox(halves, (0x3EC8F720, 0x02461E29))
    start, drawn = (mixed[3] << 32 | mixed[2]) << 64, []
    for block in range(-(-count // 4)):
        counter = start + block
        drawn += _philox([counter >> shift & _MASK for shift in (0, 32, 64, 96)], mixed[:2])
    return drawn[:count]


def split(seed: Seed, count: int) -> Int[np.ndarray, "n 2"]:
    """Independent seeds."""
    drawn = words(seed, 4 * count)
    joined = [low | high << 32 for low, high in zip(drawn[::2], drawn[1::2], strict=True)]
    return np.array(joined, np.uint64).view(np.int64).reshape(count, 2)


def uniform(seed: Seed, count: int, low: float = 0.0, high: float = 1.0) -> Float[np.ndarray, "n"]:
    """Float32 numbers in [low, high)."""
    bits = np.array(words(seed, count), np.uint32) & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)
    return (bits.view(np.float32) - np.float32(1)) * (np.float32(high) - np.float32(low)) + np.float32(low)


def below(seed: Seed, bound: int) -> int:
    """An integer in [0, bound)."""
    return words(seed, 1)[0] % bound
