"""Attention in float32 on a CPU whose kernel is slow in bfloat16.

torch's fused attention on a CPU takes about seven times as long for its backward pass in bfloat16 as in float32, more
than all matrix products of a small model together. Queries, keys and values are small beside what the model computes
around them, so that they are written in float32 first; the result is the more exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


NAME = "sdpa_in_float32"


def attend_in_float32(model: PreTrainedModel) -> None:
    """Let a model that uses torch's fused attention compute it in float32, wherever several tokens are read.

    A single token, as of every step of sampling but the first, has its own kernel. Models with another attention are
    left as they are.
    """
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`, `[B, heads, S, size]` to `[B, S, heads, size]` in the dtype of the query."""
    dtype = query.dtype
    if query.shape[2] > 1:
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.to(dtype), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
