"""The flags that a server needs."""

from __future__ import annotations

import pytest

from rlhf_lines.merge.output.summary import VLLM_RANKS, max_lora_rank, vllm_hint


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (320, 320), (321, 512), (512, 512), (513, None)]
)
def test_the_smallest_value_that_holds_the_rank(rank, expected):
    assert max_lora_rank(rank) == expected


def test_vllm_accepts_these_values():
    config = pytest.importorskip("vllm.config.lora")
    from typing import get_args

    assert get_args(config.MaxLoRARanks) == VLLM_RANKS


def test_the_command_is_quoted():
    assert vllm_hint("./sft", "out dir", 10) == (
        "vllm serve ./sft --enable-lora --max-lora-rank 16 --lora-modules 'merged=out dir'"
    )
    assert vllm_hint("./sft", "out", 600) == (
        "vLLM serves ranks up to 512, this adapter has 600: merge with --rank 512 or less, or --save dense"
    )
