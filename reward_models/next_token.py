"""What a causal language model says next of many texts: probabilities of some tokens, or its own next tokens, greedily.

The definition is the model's own forward of one unpadded text. Padding stands to the left, masked, and positions are
counted without it; a model that counts or remembers otherwise (a recurrence runs over padding, too) is given texts of
one length together, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from reward_models.forward import by_length
from reward_models.padding import count_positions, left_pad, masks_padding, takes


@torch.no_grad()
def log_probabilities(
    model: Any, rows: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], *, pad_token_id: int, batch_size: int
) -> torch.Tensor:
    """The log-probabilities of some tokens as the next one of each text: `[N, K]`, float64, on the CPU.

        log softmax(logits after the text)[token], over the whole vocabulary

    Args:
        model: a causal language model in evaluation mode.
        rows: token ids of N texts.
        tokens: of each text, the K tokens that are asked for.
        pad_token_id: what padding is filled with, which is masked.
        batch_size: most texts in one forward pass.
    """
    result = torch.empty(len(rows), len(tokens[0]) if tokens else 0, dtype=torch.float64)
    for batch in _batches(model, rows, batch_size):
        ids, mask = left_pad([rows[i] for i in batch], pad_token_id, model.device)
        arguments: dict[str, Any] = {"use_cache": False} if takes(model, "use_cache") else {}
        if masks_padding(model):  # others number their tokens themselves
            arguments["position_ids"] = count_positions(mask)
        if takes(model, "logits_to_keep"):
            arguments["logits_to_keep"] = 1
        logits = model(input_ids=ids, attention_mask=mask, **arguments).logits[:, -1]
        asked = torch.tensor([tokens[i] for i in batch], device=logits.device)
        result[batch] = logits.double().log_softmax(dim=1).gather(1, asked).cpu()
    return result


@torch.no_grad()
def continuations(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    most: int,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    batch_size: int,
) -> list[list[int]]:
    """The tokens that the model writes after each text, the most likely one at every step, its end token left out.

    Keys and values are kept from step to step. Rounding depends on a batch, so where two tokens are as likely up to
    rounding, the text may depend on the batch, too.

    Args:
        model: a causal language model in evaluation mode; of its own settings of generation none counts.
        rows: token ids of N texts.
        most: tokens that are written.
        eos_token_ids: what ends a text.
        pad_token_id: what padding is filled with, which is masked.
        batch_size: most texts at once.
    """
    from transformers import GenerationConfig

    own, ends = model.generation_config, list(eos_token_ids)
    result: list[list[int]] = [[] for _ in rows]
    # generate() fills in what a model brings, such as a repetition penalty.
    model.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=pad_token_id)
    try:
        for batch in _batches(model, rows, batch_size):
            ids, mask = left_pad([rows[i] for i in batch], pad_token_id, model.device)
            written = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=most)
            for i, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(row) if token in ends), len(row))
                result[i] = row[:end]
    finally:
        model.generation_config = own
    return result


def _batches(model: Any, rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    alike = masks_padding(model)
    for i, row in enumerate(rows):
        groups.setdefault(0 if alike else len(row), []).append(i)
    return [batch for group in groups.values() for batch in by_length(group, rows, batch_size)]
