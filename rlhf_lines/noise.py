"""Random numbers that are placed, not drawn: each is a function of where it stands, so order and sharding are free.

A chain of 64-bit mixes of what names a place (a seed, a prompt, a parameter) gives a key; the i-th number under a key
is `mix(key + (i + 1) GAMMA)`, which is the i-th output of a splitmix64 generator that starts at the key.

Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; constants of
S. Vigna's splitmix64 (2015).
"""

from __future__ import annotations

from torch import Tensor


# As signed 64-bit integers, which is what torch has.
GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64, element by element: a bijection of 64-bit integers."""
    x = (x ^ shift(x, 30)) * _MIX_1
    x = (x ^ shift(x, 27)) * _MIX_2
    return x ^ shift(x, 31)


def shift(x: Tensor, bits: int) -> Tensor:
    """The logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
