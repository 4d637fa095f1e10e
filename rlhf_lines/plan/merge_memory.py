"""What a merge holds in memory: pieces of every thread, whole parameters that a rule needs, factors of adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.tensors.order_statistics import AT_ONCE, DIGIT
from rlhf_lines.merge.tensors.residuals import ELEMENTS
from rlhf_lines.plan.memory import FLOAT32


FLOAT64 = 8
# Resident after the imports of a merge, measured on Linux with torch 2.13 for CPUs. PEFT, and transformers with it, is
# imported to write an adapter.
LIBRARIES = {"dense": 250 * 10**6, "adapter": 450 * 10**6}
_OF_A_RULE = 3  # pieces that a rule makes of K residuals, and that the last cast is measured with


def piece_bytes(policies: int, stored: int, threads: int, elements: int = ELEMENTS) -> int:
    """The bytes of the pieces that all threads hold: K policies and the SFT model, and what is made of them.

        threads elements [(K + 1) r + 4 (K + 3)],   r = stored bytes, and 4 more where those are not float32

    Args:
        policies: K.
        stored: bytes of an element in the files.
    """
    return threads * elements * ((policies + 1) * _read_bytes(stored) + (policies + _OF_A_RULE) * FLOAT32)


def count_bytes(policies: int, threads: int) -> int:
    """The bytes in which the digits of K policies wait to be counted, in a search for quantiles.

    Two digits, whose tables follow one another, are in memory at a time: 2 threads K (4 2^18 + 8 2^16).
    """
    return 2 * threads * policies * (FLOAT32 * AT_ONCE + 8 * 2**DIGIT)


def whole_bytes(
    whole: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]], policies: int, stored: int
) -> int:
    """The bytes of the largest linear map of a rule that takes them whole, 0 for other rules.

    n [(K + 1) r + 8 a] + 8 b in^2     for a weight [out, in] of n elements; a and b are `whole` of the rule
    """
    if whole is None:
        return 0
    tensors, squares = whole

    def size(shape: tuple[int, ...]) -> int:
        elements = math.prod(shape) * ((policies + 1) * _read_bytes(stored) + tensors * FLOAT64)
        return elements + squares * FLOAT64 * shape[1] ** 2

    return max((size(shape) for name, shape in shapes.items() if is_linear_map(name, shape)), default=0)


def module_bytes(shape: tuple[int, ...]) -> int:
    """The bytes of one merged module while it is factorised: 4 n + 3 (8 n) + 4 (8 m^2), m its shorter side."""
    elements = math.prod(shape)
    return elements * (FLOAT32 + 3 * FLOAT64) + 4 * FLOAT64 * min(shape) ** 2


def _read_bytes(stored: int) -> int:
    return stored if stored >= FLOAT32 else stored + FLOAT32
