"""Attention in float32 inside a bfloat16 model, against the same model in double precision."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_lines.train.attention import attend_in_float32


CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def model_of(dtype, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation=attention)
    return model.to(torch.bfloat16).to(dtype).eval()  # the same numbers in every dtype


@pytest.fixture
def batch():
    """Return two texts, the first of them padded on the left."""
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outcome(model, batch):
    """Log-probabilities of the texts, and the gradients of all weights as one vector, both in double precision."""
    logprobs = model(**batch).logits.double().log_softmax(-1)[:, :-1]
    chosen = logprobs.gather(-1, batch["input_ids"][:, 1:, None])[batch["attention_mask"][:, :-1].bool()]
    chosen.sum().backward()
    return chosen.detach(), torch.cat([p.grad.double().flatten() for p in model.parameters()])


def error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_as_near_to_double_precision_as_attention_in_bfloat16(batch, autocast):
    exact = outcome(model_of(torch.float64), batch)
    before = outcome(model_of(torch.bfloat16), batch)
    model = model_of(torch.bfloat16)
    attend_in_float32(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = outcome(model, batch)
    for mine, other, true in zip(found, before, exact, strict=True):
        assert 0 < error(mine, true) < 1.25 * error(other, true)


def test_keys_and_values_reach_the_kernel_in_float32_and_single_tokens_do_not(batch, monkeypatch):
    model, seen = model_of(torch.bfloat16), []
    attend_in_float32(model)
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *args, **kwargs: (seen.append(query.dtype), fused(query, *args, **kwargs))[1],
    )
    with torch.no_grad():
        output = model(**batch, use_cache=True)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        model(input_ids=batch["input_ids"][:, :1], attention_mask=mask, past_key_values=output.past_key_values)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_a_model_with_another_attention_is_left_as_it_is():
    model = model_of(torch.bfloat16, "eager")
    attend_in_float32(model)
    assert model.config._attn_implementation == "eager"
