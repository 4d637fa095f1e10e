"""How many completions one batch holds: found from memory and the model's size, and halved where that was too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from rlhf_lines.distributed import count_here


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

S, T = TypeVar("S"), TypeVar("T")
SHARE = 0.6  # of what is free: the rest is for activations, and for reward models on the same device
MOST_ON_CPU, MOST_ON_GPU = 768, 1024  # on two cores larger batches were no faster; a GPU has not been measured
# A batch is shown, and kept for a run that goes on, at its end: that of a large model should come soon. A CPU is no
# slower then: SmolLM2-135M on one core makes 88 tokens/s in batches of 768, 89 of 256, 85 of 64, 72 of 32, 57 of 16.
FEWEST_ON_CPU, WORK_ON_CPU = 64, 10**9
SAMPLING_BYTES = 32  # of one row and token of the vocabulary: logits, their float64 copy, noise, their sum


def rows_in_memory(model: nn.Module, length: int) -> int:
    """How many rows of at most `length` tokens fit beside what is in memory already; see `rows_that_fit`."""
    device = model.device
    return rows_that_fit(
        model.config.get_text_config(), length, model.dtype.itemsize, free=free_bytes(device), device=device.type
    )


def rows_that_fit(text: PreTrainedConfig, length: int, bytes_per_number: int, *, free: int, device: str) -> int:
    """How many rows of at most `length` tokens fit into so many free bytes: one at least.

    A row takes keys and values of every layer and token, and its logits while a token is drawn:

        rows = SHARE free / (2 L h d length bytes + 32 V)

    with L layers, h heads of keys, d numbers each, V tokens of the vocabulary; no more than `most_rows`.

    Args:
        text: config of the language model.
        length: tokens of a row, prompt and completion.
        bytes_per_number: of the model's dtype.
        free: bytes.
        device: `cuda` or `cpu`.
    """
    heads, head_dim = heads_of_keys(text)
    cache = 2 * text.num_hidden_layers * heads * head_dim * length * bytes_per_number
    fitting = int(SHARE * free / (cache + SAMPLING_BYTES * text.vocab_size))
    return max(1, min(fitting, most_rows(text, device)))


def most_rows(text: PreTrainedConfig, device: str) -> int:
    """How many rows a batch has at most, whatever the memory.

    On a GPU `MOST_ON_GPU`; on a CPU, with L layers of width d, whose weights are about 12 d^2 each, within
    `FEWEST_ON_CPU` and `MOST_ON_CPU`

        rows = WORK_ON_CPU / (12 L d^2)
    """
    if device != "cpu":
        return MOST_ON_GPU
    rows = WORK_ON_CPU // (12 * text.num_hidden_layers * text.hidden_size**2)
    return min(max(rows, FEWEST_ON_CPU), MOST_ON_CPU)


def heads_of_keys(text: PreTrainedConfig) -> tuple[int, int]:
    """How many heads of keys a layer has, the most where layers differ, and how many numbers each.

    A model without attention counts as one head of its hidden size: its states are large, and do not grow with texts.
    """
    heads = [getattr(text, name, None) for name in ("num_key_value_heads", "num_attention_heads")]
    keys, queries = (max(count) if isinstance(count, list | tuple) else count for count in heads)
    if not (keys or queries):
        return 1, text.hidden_size
    return keys or queries, getattr(text, "head_dim", None) or text.hidden_size // (queries or keys)


def free_bytes(device: torch.device) -> int:
    """The free memory of a GPU, or of this machine for one of its processes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return min(psutil.virtual_memory().available, _free_in_container()) // count_here()


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    """The bytes that the limit of a container (cgroup v2) leaves, pages of files counted as free; infinite without."""
    try:
        limit, used = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        counted = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or the limit is `max`
        return math.inf
    return max(limit - used + int(counted["file"]), 0)


def in_halves(work: Callable[[Sequence[S]], list[T]], items: Sequence[S]) -> list[T]:
    """`work(items)`, done in halves where a GPU's memory is too small for all of them.

    Raises:
        torch.cuda.OutOfMemoryError: one item alone does not fit.
    """
    try:
        return work(items)
    except torch.cuda.OutOfMemoryError:
        if len(items) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])
