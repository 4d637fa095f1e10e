"""What a user wants to know about a finished merge, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


# The values of vLLM's --max-lora-rank (MaxLoRARanks in vllm/config/lora.py, 0.14 to 0.32).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# The classes of transformers whose models vLLM serves, of those that `Checkpoint.loader` may name; written out, as
# `model_names`, which has them, imports torch, and these sentences do without.
SERVED = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


def loaded_by(record: Mapping[str, Any]) -> str:
    """The class that loads what a merge wrote; older records are of causal language models, or do not know."""
    return record.get("loaded_by", SERVED[0])


def max_lora_rank(rank: int) -> int | None:
    """The smallest value of vLLM's `--max-lora-rank` that holds an adapter of this rank, None if none does.

    >>> max_lora_rank(10)
    16
    """
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def ranks_text(ranks: Sequence[int]) -> str:
    """The ranks of several policies, as people say them.

    >>> ranks_text([16, 4, 4]), ranks_text([8, 8])
    ('ranks 4 to 16', 'rank 8')
    """
    low, high = min(ranks), max(ranks)
    return f"rank {high}" if low == high else f"ranks {low} to {high}"


def vllm_hint(sft_model: str, folder: str, rank: int) -> str:
    """The command that serves a merged adapter with vLLM, or a sentence that says why vLLM will not take it."""
    allowed = max_lora_rank(rank)
    if allowed is None:
        top = VLLM_RANKS[-1]
        return (
            f"vLLM serves ranks up to {top}, this adapter has {rank}: merge with --rank {top} or less, or --save dense"
        )
    return (
        f"vllm serve {shlex.quote(sft_model)} --enable-lora --max-lora-rank {allowed} "
        f"--lora-modules {shlex.quote(f'merged={folder}')}"
    )


def loss_text(dtype: str, lost: Mapping[str, float | None]) -> str:
    """What the last cast cost, in one sentence."""
    text = f"written in {dtype}; the cast changed the merged residual by {lost['relative_l2']:.2%} (relative L2)"
    if lost["unchanged"] is not None:
        text += f"; {lost['unchanged']:.1%} of the changed parameters kept their SFT value"
    return text


def truncation_text(truncation: Mapping[str, Any]) -> str:
    """What truncation to a rank lost, as one sentence."""
    return (
        f"truncated to rank {truncation['rank']}, which lost {truncation['lost']:.2%} of the merged residual (relative "
        f"L2), at most {truncation['worst_lost']:.2%} in {truncation['worst_module']}"
    )


def outcome_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """What was written and what it lost, how to serve an adapter, then every warning, a line each."""
    lines = []
    if record["spec"]["alpha"] == "auto":
        lines.append(f"alpha {record['alpha']:z.4g}, measured on the residuals")
    if record["save"] == "adapter":
        lines.append(f"adapter of rank {record['rank']}")
    if "truncation" in record:
        lines.append(truncation_text(record["truncation"]))
    if record["save"] == "adapter" and loaded_by(record) in SERVED:
        lines.append(f"serve: {vllm_hint(record['sft_model'], folder, record['rank'])}")
    return [
        *lines,
        loss_text(record["dtype"], record["lost_residual"]),
        *(f"warning: {warning}" for warning in record["warnings"]),
    ]
