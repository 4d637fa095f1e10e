"""The oracle of the sampling noise: splitmix64 on Python's unsigned integers."""

from __future__ import annotations

import math


MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finalizer of splitmix64 on unsigned integers, as in Vigna's splitmix64.c."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def unmix(x: int) -> int:
    """The inverse of `mix`: every step of it is a bijection."""
    x ^= (x >> 31) ^ (x >> 62)
    x = (x * pow(0x94D049BB133111EB, -1, 2**64)) & MASK
    x ^= (x >> 27) ^ (x >> 54)
    x = (x * pow(0xBF58476D1CE4E5B9, -1, 2**64)) & MASK
    return x ^ (x >> 30) ^ (x >> 60)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def noise_by_hand(seed: int, prompt: int, number: int, step: int, token: int) -> float:
    key = mix(seed & MASK)
    for part in (prompt, number, step):
        key = mix(key ^ (part & MASK))
    bits = mix((key + (token + 1) * GAMMA) & MASK) >> 11
    return -math.log(-math.log((bits + 0.5) / 2**53))
