"""Completions of many specs in one batch, and their KL to the SFT model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sampling import chosen_logprobs, left_pad, sample_tokens
from rlhf_lines.sweep.mixture import Mixture


KL_ROWS = 32


@dataclass(frozen=True)
class Request:
    """One completion to be sampled: which spec, which prompt (a number that names it), which sample of it."""

    spec: MergeSpec
    prompt_ids: tuple[int, ...]
    prompt_key: int
    sample: int = 0


@dataclass(frozen=True)
class Completion:
    """The tokens of a completion, the end token included, and its KL to the SFT model.

    ``kl`` is sum_t log pi(a_t|s_t) - log pi_SFT(a_t|s_t), in nats: an unbiased estimate from one sample.
    """

    token_ids: tuple[int, ...]
    kl: float


@torch.no_grad()
def sample(
    mixture: Mixture,
    requests: list[Request],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: list[int],
    pad_token_id: int,
    seed: int,
) -> list[Completion]:
    """Return one completion per request, all in one batch. Specs share their noise, prompt by prompt.

    Args:
        temperature: of the softmax; 0 takes the most likely token.
    """
    prompts = [request.prompt_ids for request in requests]
    with mixture.rows([request.spec for request in requests]):
        tokens, lengths, logprobs = sample_tokens(
            mixture.model,
            prompts,
            [(request.prompt_key, request.sample) for request in requests],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            seed=seed,
            keep_rows=mixture.select_rows,
        )
    token_mask = torch.arange(max_new_tokens, device=tokens.device) < lengths.unsqueeze(1)
    reference = _sft_logprobs(mixture, prompts, tokens, token_mask, pad_token_id, temperature or 1.0)
    kl = ((logprobs - reference) * token_mask).sum(dim=1, dtype=torch.float64)
    return [
        Completion(tuple(row[:length]), value)
        for row, length, value in zip(tokens.tolist(), lengths.tolist(), kl.tolist(), strict=True)
    ]


def _sft_logprobs(mixture, prompts, tokens, token_mask, pad_token_id, temperature) -> Tensor:
    """Return the log-probabilities of the sampled tokens under the SFT model, ``[rows, T]``."""
    prompt_ids, prompt_mask = left_pad(prompts, pad_token_id, tokens.device)
    inputs = torch.cat([prompt_ids, tokens], dim=1)
    mask = torch.cat([prompt_mask, token_mask.long()], dim=1)
    chunks = []
    # A few rows at a time: logits of all rows, tokens and words at once are memory that nothing else here needs.
    for rows in torch.arange(len(tokens), device=tokens.device).split(KL_ROWS):
        logits = mixture.model(
            input_ids=inputs[rows],
            attention_mask=mask[rows],
            position_ids=(mask[rows].cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=tokens.shape[1] + 1,
        ).logits[:, :-1]
        chunks.append(chosen_logprobs(logits, tokens[rows], temperature))
    return torch.cat(chunks)
