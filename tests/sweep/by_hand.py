"""Completions, KL and cross entropy of single models, one sequence at a time, without cache, batch or padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_lines.sampling import gumbel


def complete_by_hand(model, request, *, eos: int, max_new_tokens: int, temperature: float, seed: int) -> tuple:
    """The tokens that argmax(logits / temperature + noise) gives one by one; temperature 0 is greedy."""
    ids = list(request.prompt_ids)
    for step in range(max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        if temperature > 0:
            keys = torch.tensor([request.prompt_key]), torch.tensor([request.sample])
            logits = logits / temperature + gumbel(seed, *keys, step, len(logits))[0]
        ids.append(int(logits.argmax()))
        if ids[-1] == eos:
            break
    return tuple(ids[len(request.prompt_ids) :])


def kl_by_hand(policy, sft, request, token_ids: tuple[int, ...], temperature: float) -> float:
    """sum_t log pi(a_t|s_t) - log pi_SFT(a_t|s_t) of one unpadded sequence, softmax in float64."""
    ids = torch.tensor([[*request.prompt_ids, *token_ids]])
    start, total = len(request.prompt_ids), 0.0
    for sign, model in ((1, policy), (-1, sft)):
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double() / temperature
        for t, token in enumerate(token_ids):
            row = logits[start + t - 1]
            total += sign * (row[token] - row.exp().sum().log()).item()
    return total


def cross_entropy(model, ids: Sequence[int]) -> float:
    """-sum_t log p(token_t | those before) of the tokens but the first, alone in its batch, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0].double()
    return -sum(float(logits[t - 1, ids[t]] - logits[t - 1].logsumexp(0)) for t in range(1, len(ids)))
