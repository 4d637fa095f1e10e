"""The formulas, against arithmetic written out here, and against what the real code allocates."""

from __future__ import annotations

import pytest
import torch
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rlhf_lines.plan.memory import (
    Phase,
    head_bytes,
    kv_cache_bytes,
    linear_bytes,
    optimizer_bytes,
    peak,
)
from rlhf_lines.plan.rehearsal import LiveBytes


def test_the_peak_is_the_largest_phase_not_their_sum():
    phases = [Phase("a", {"weights": 10, "cache": 7}), Phase("b", {"weights": 10, "gradients": 8})]
    assert (peak(phases).name, peak(phases).total) == ("b", 18)


@pytest.mark.parametrize(
    ("bits", "nested", "expected"),
    [
        (16, False, 300 * 200 * 2),
        (8, False, 300 * 200 + 4 * 300),
        (4, False, 300 * 200 // 2 + 4 * 938),  # 60000 / 64 = 937.5 blocks
        (4, True, 300 * 200 // 2 + 938 + 4 * 4),  # 938 / 256 = 3.7
    ],
)
def test_quantised_weights(bits, nested, expected):
    assert linear_bytes(300, 200, bits=bits, nested=nested) == expected


def test_bitsandbytes_allocates_what_the_formula_says():
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(torch.randn(128, 192), quant_type="nf4", compress_statistics=False)
    assert packed.nbytes + state.absmax.nbytes == linear_bytes(128, 192, bits=4)


def test_adam_holds_two_moments():
    parameters = [torch.nn.Parameter(torch.randn(5, 7)), torch.nn.Parameter(torch.randn(3).bfloat16())]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    size = sum(parameter.nbytes for parameter in parameters)
    assert optimizer_bytes(38, size, "adamw_torch_fused") == sum(m.nbytes for m in moments) == 2 * (35 * 4 + 3 * 2)
    assert optimizer_bytes(38, size, "adamw_bnb_8bit") == 2 * 38
    assert optimizer_bytes(38, size, "sgd") == 0


def test_the_cache_is_as_large_as_that_of_transformers(llama):
    from transformers import LlamaForCausalLM

    cache = LlamaForCausalLM(llama)(torch.zeros(3, 11, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(layers=2, kv_heads=2, head_dim=4, length=11, batch=3, dtype_bytes=4) == held


@pytest.mark.parametrize("positions", [40, 300])
def test_the_head_takes_what_trls_fused_head_takes(positions):
    """Within 5 %: the formula leaves out vectors of N numbers."""
    hidden = torch.randn(positions, 16, requires_grad=True)
    weight, targets = torch.randn(5000, 16), torch.zeros(positions, dtype=torch.long)
    live = LiveBytes()
    with live:
        logprobs, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs", "entropy")
        )
    size = {"vocab": 5000, "hidden": 16, "compute_bytes": 4, "kernel": False}
    assert live.peak == pytest.approx(head_bytes(positions, backward=False, **size), rel=0.05)
    live = LiveBytes()
    with live:
        logprobs.sum().backward()
    assert live.peak == pytest.approx(head_bytes(positions, backward=True, **size), rel=0.05)
    # With a kernel: the tile of 32,768 words, and on the way back the gradient of the hidden states.
    assert head_bytes(40, 5000, 16, compute_bytes=2, kernel=True, backward=False) == 40 * 32768 * 2
    assert head_bytes(40, 5000, 16, compute_bytes=2, kernel=True, backward=True) == 40 * 32768 * 2 + 40 * 16 * 4
