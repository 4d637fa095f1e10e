"""What a server needs to know about a merged adapter."""

from __future__ import annotations

import shlex


# The values of vLLM's --max-lora-rank (MaxLoRARanks in vllm/config/lora.py, 0.14 to 0.32).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def max_lora_rank(rank: int) -> int | None:
    """The smallest value of vLLM's `--max-lora-rank` that holds an adapter of this rank, None if none does.

    >>> max_lora_rank(10)
    16
    """
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


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
