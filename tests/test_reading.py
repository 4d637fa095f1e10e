"""A causal language model is read without doing more than is asked for."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reward_models.padding import left_pad
from rlhf_lines.reading import Reader, last_logits


def test_a_head_reads_whole_states():
    # Of a slice of a batch torch multiplies row by row, and copies a frozen head's weight for each: 500 times as slow.
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval().requires_grad_(False)
    inputs, mask = left_pad([[3, 4, 5, 6], [7, 8], [9, 10, 11]], 0, "cpu")
    read = []
    model.lm_head.register_forward_hook(lambda module, states, output: read.append(states[0]))
    logits = last_logits(model, inputs, mask, 2)
    reader = Reader(model, inputs, mask, room=2)
    torch.testing.assert_close(reader.next_logits(), logits[:, -1])
    reader.append(torch.tensor([1, 2, 3]))
    reader.next_logits()
    assert [states.shape for states in read] == [(3, 2, 16), (3, 1, 16), (3, 1, 16)]
    assert all(states.stride()[0] == states.shape[1] * 16 for states in read)
    assert not model.lm_head._forward_pre_hooks
