"""A model that is held steady reads alike in training and in evaluation, and still trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from rlhf_lines.train.steady import distance, hold_steady, tolerance
from tests.tiny import widened


SIZES = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
LLAMA_LIKE = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "num_local_experts": 4}
NOISY = {  # what each draws in training, with values far from 0
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, dropout=0.3, attention_dropout=0.3, layerdrop=0.4)
    ),
    "gpt_bigcode": lambda: GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, attn_pdrop=0.3, resid_pdrop=0.3)
    ),
    "biogpt": lambda: BioGptForCausalLM(
        BioGptConfig(**SIZES, intermediate_size=24, activation_dropout=0.3, layerdrop=0.4)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA_LIKE, router_jitter_noise=0.5)),
    "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(**LLAMA_LIKE, router_jitter_noise=0.5, input_jitter_noise=0.5)),
}
IDS = torch.arange(3, 11).repeat(3, 1)


def logits(model):
    torch.manual_seed(torch.initial_seed() + 1)  # no two passes meet the same noise
    return model(IDS).logits


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", NOISY)
def test_training_mode_reads_what_evaluation_reads(name, checkpointing):
    torch.manual_seed(0)
    model = widened(NOISY[name]())
    for parameter in model.parameters():
        if parameter.ndim == 3:  # experts in one tensor
            nn.init.normal_(parameter, std=0.25)
    expected = model.eval()(IDS).logits.detach()
    model.train()
    assert (logits(model) - expected).abs().max() > 1e-2, "the case has noise"
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    hold_steady(model)
    assert model.training
    for _ in range(3):
        torch.testing.assert_close(logits(model.train()), expected, rtol=0, atol=1e-5)
    assert not model.eval().training
    logits(model.train()).square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_checkpointing_still_computes_again_in_training():
    torch.manual_seed(0)
    model = widened(NOISY["opt"]())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    hold_steady(model)
    calls = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    logits(model.train()).sum().backward()
    assert len(calls) == 2


def test_statistics_of_batches_stand_still():
    class WithStatistics(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x)

    model = WithStatistics()
    hold_steady(model.train())
    x = torch.randn(5, 3) * 7 + 2
    torch.testing.assert_close(model.train()(x), x / (1 + 1e-5) ** 0.5)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))


def test_the_distance_is_over_tokens_that_count():
    total, tokens = distance(
        torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.5, 1.0, 0.0]]), torch.tensor([[1, 1, 0]])
    )
    assert (total.item(), tokens.item()) == (1.5, 2)
    assert tolerance(torch.float32, quantised=False) < tolerance(torch.bfloat16, quantised=False)
    assert tolerance(torch.float32, quantised=True) >= 0.1
