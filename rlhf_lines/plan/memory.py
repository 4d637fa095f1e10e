"""The arithmetic of memory: pure functions from sizes to bytes.

Notation: B sequences of S tokens, V words in the vocabulary, H hidden sizes, N = B S positions; K policies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.tensors.order_statistics import held_values
from rlhf_lines.merge.tensors.spans import ELEMENTS
from rlhf_lines.sweep.engines.batches import heads_of_keys


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOAT32, FLOAT64 = 4, 8  # bytes
LIBRARIES_PART = "Python and libraries"  # of a phase that counts them, as those of a merge do
# TRL's fused head (trl/kernels/chunked_logprob.py) never holds logits of more positions and words than this.
TILE_POSITIONS, TILE_WORDS = 4096, 32768
# bitsandbytes: one float32 per output row (8-bit); one per 64 weights, or one byte and a 256th of it (4-bit).
BLOCK_4BIT, NESTED_BLOCK = 64, 256
# Resident after the imports of a merge, measured on Linux with torch 2.13 for CPUs. PEFT, and transformers with it, is
# imported to write an adapter.
MERGE_LIBRARIES = {"dense": 250 * 10**6, "adapter": 470 * 10**6}
CHUNKS_OF_A_RULE = 3  # that it makes of K residuals, and that the last cast is measured with


@dataclass(frozen=True)
class Phase:
    """One part of a step, and what is in memory during it at the same time.

    Attributes:
        name: what happens.
        parts: what is held, in bytes.
    """

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())


def peak(phases: list[Phase]) -> Phase:
    """The phase with the largest total: phases follow one another, so their memory does not add up."""
    return max(phases, key=lambda phase: phase.total)


def linear_bytes(out_features: int, in_features: int, *, bits: int, dtype_bytes: int = 2, nested: bool = False) -> int:
    """The bytes of the weight of one linear map, without its bias.

        16 or 32 bits   out in dtype_bytes
        8 bits          out in + 4 out                              (LLM.int8, arXiv 2208.07339)
        4 bits          out in / 2 + 4 (out in / 64)                (NF4, arXiv 2305.14314)
        4 bits, nested  out in / 2 + (out in / 64) + 4 (out in / 64 / 256)

    Args:
        out_features: rows.
        in_features: columns.
        bits: 8, 4, or anything else for an unquantised weight.
        dtype_bytes: of an unquantised weight.
        nested: 4-bit with double quantisation.
    """
    size = out_features * in_features
    if bits == 8:
        return size + FLOAT32 * out_features
    if bits == 4:
        blocks = -(-size // BLOCK_4BIT)
        constants = blocks + FLOAT32 * -(-blocks // NESTED_BLOCK) if nested else FLOAT32 * blocks
        return -(-size // 2) + constants
    return size * dtype_bytes


def optimizer_bytes(trainable: int, trainable_bytes: int, optimizer: str) -> int:
    """The bytes of the optimizer's state: two moments per trainable parameter (Adam, arXiv 1412.6980).

    adamw_*            2 of the parameter's own dtype
    *8bit*             2 bytes, one per moment (arXiv 2110.02861)
    sgd, adafactor     0: none, or a row and a column per matrix
    """
    if "8bit" in optimizer:
        return 2 * trainable
    if optimizer in ("sgd", "adafactor"):
        return 0
    return 2 * trainable_bytes


def cache_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """What `kv_cache_bytes` has to know about a model, from the config of its language model."""
    heads, head_dim = heads_of_keys(config)
    return {"layers": config.num_hidden_layers, "kv_heads": heads, "head_dim": head_dim}


def kv_cache_bytes(*, layers: int, kv_heads: int, head_dim: int, length: int, batch: int, dtype_bytes: int) -> int:
    """The bytes of keys and values of all positions: 2 layers kv_heads head_dim length batch dtype_bytes."""
    return 2 * layers * kv_heads * head_dim * length * batch * dtype_bytes


def head_bytes(positions: int, vocab: int, hidden: int, *, compute_bytes: int, kernel: bool, backward: bool) -> int:
    """What the output head adds while logits exist: TRL computes them in tiles and keeps none.

        n = min(N, 4096),  v = min(V, 32768)
        tile        32768 n compute_bytes
        forward     3 float32 copies [n, v] where no Triton kernel reads the tile in place
        backward    7 float32 copies [n, v] likewise, and the float32 gradient of the hidden states [N, H]

    Args:
        positions: N.
        vocab: V.
        hidden: H.
        compute_bytes: of a number of the tile.
        kernel: a GPU with Triton, where the tile is read and overwritten in place.
        backward: the pass that trains; it dominates its own forward pass.
    """
    rows = min(positions, TILE_POSITIONS)
    tile = rows * TILE_WORDS * compute_bytes
    copies = 0 if kernel else (7 if backward else 3)
    gradient = positions * hidden * FLOAT32 if backward else 0
    return tile + copies * rows * min(vocab, TILE_WORDS) * FLOAT32 + gradient


def gumbel_bytes(batch: int, vocab: int) -> int:
    """The bytes around one sampled token: its noise, scores and their 64-bit integers, `[rows, V]`.

    Six at a time: of `rlhf_lines.sampling.gumbel` (key, shifted key, bits, u, noise) and the perturbed logits.
    """
    return 6 * batch * vocab * 8


def chunk_bytes(policies: int, stored: int, threads: int, elements: int = ELEMENTS) -> int:
    """The bytes of the chunks that all threads of a merge hold: K policies, the SFT model, and what is made of them.

        threads elements [r + 4 (K + 3)]

    with r for what is read: K + 1 times 4 bytes, or those of a wider dtype, and once those of a narrower one.

    Args:
        policies: K.
        stored: bytes of an element in the files.
        threads: that work at a time.
        elements: of a chunk.
    """
    return threads * elements * (_read_bytes(policies, stored) + (policies + CHUNKS_OF_A_RULE) * FLOAT32)


def search_bytes(policies: int, ranks: int, sizes: Sequence[int], stored: int) -> int:
    """The bytes that searches for quantiles hold, one after the other: (K q + 1) h r, of the one that holds most.

    h are the values that are looked at closely (`held_values`, (5 n)^(2/3) of many), for each of the q ranks of each
    policy; of one at a time there is a copy in another order. r is 4, or 8 for float64.

    Args:
        policies: K.
        ranks: q, that are looked for at once.
        sizes: n, of each search.
        stored: bytes of an element in the files.
    """
    return (policies * ranks + 1) * max(map(held_values, sizes), default=0) * max(stored, FLOAT32)


def whole_bytes(
    whole: tuple[int, int] | None, shapes: Mapping[str, tuple[int, ...]], policies: int, stored: int
) -> int:
    """The bytes of the largest linear map of a rule that takes them whole, 0 for other rules.

    n (r + 8 a) + 8 b in^2     for a weight [out, in] of n elements; a and b are `whole` of the rule, r as for chunks
    """
    if whole is None:
        return 0
    tensors, squares = whole

    def size(shape: tuple[int, ...]) -> int:
        elements = math.prod(shape) * (_read_bytes(policies, stored) + tensors * FLOAT64)
        return elements + squares * FLOAT64 * shape[1] ** 2

    return max((size(shape) for name, shape in shapes.items() if is_linear_map(name, shape)), default=0)


def module_bytes(shape: tuple[int, ...]) -> int:
    """The bytes of one merged module while it is factorised: 4 n + 3 (8 n) + 4 (8 m^2), m its shorter side."""
    elements = math.prod(shape)
    return elements * (FLOAT32 + 3 * FLOAT64) + 4 * FLOAT64 * min(shape) ** 2


def basis_numbers(rank: int, policies: int, components: int) -> int:
    """The numbers of a basis at one position: p (R + N) + R."""
    return components * (rank + policies) + rank


def fit_bytes(sides: tuple[int, int], policies: int, rank: int, components: int) -> int:
    """The bytes of one module while its basis is fitted, in float64, m the smaller of N and R.

    8 N R (out + in) for the vectors, and of the longer side n: 8 n [N R + N R + R m + m N], which are the centred
    vectors, their copy in the singular value decomposition, and both of its sides.

    Args:
        sides: out and in.
        policies: N.
        rank: R.
        components: p.
    """
    least = min(policies, rank)
    at_a_position = 2 * policies * rank + least * (rank + policies)
    return FLOAT64 * (policies * rank * sum(sides) + max(sides) * at_a_position)


def _read_bytes(policies: int, stored: int) -> int:
    return (policies + 1) * max(stored, FLOAT32) + (stored if stored < FLOAT32 else 0)
