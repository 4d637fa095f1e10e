"""Completions whose noise is placed by position: the same prompt meets the same noise under every spec.

A token is drawn as argmax(logits / temperature + g), which is a sample of the softmax when g is Gumbel noise. Here g is
a function of (seed, prompt, sample, step, token) alone. So two specs differ on a prompt only where their logits differ,
and the completions do not depend on batch size, order, or what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.mixture import Mixture


# The constants of the splitmix64 generator (S. Vigna, 2015), as signed 64-bit integers.
_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
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


def gumbel(seed: int, prompt_keys: Tensor, samples: Tensor, step: int, vocab_size: int) -> Tensor:
    """Return Gumbel noise ``[rows, vocab_size]``, float64, a pure function of its arguments.

    A chain of 64-bit mixes (splitmix64) of seed, prompt, sample and step gives a key per row; mixing it with the token
    gives 53 random bits, u in (0, 1), and g = -log(-log(u)).

    Args:
        prompt_keys: ``[rows]``, int64.
        samples: ``[rows]``, int64.
    """
    key = _mix(torch.full_like(prompt_keys, seed))
    key = _mix(key ^ prompt_keys)
    key = _mix(key ^ samples)
    key = _mix(key ^ step)
    tokens = torch.arange(1, vocab_size + 1, device=key.device) * _GAMMA
    bits = _shift(_mix(key.unsqueeze(1) + tokens), 11)
    # 53 ones and a half round to 2^53: without the bound, u would be 1 and the noise infinite.
    u = ((bits.double() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-53)
    return -torch.log(-torch.log(u))


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
    """Return one completion per request, all in one batch; rows that have finished leave it.

    Args:
        temperature: of the softmax; 0 takes the most likely token.
    """
    device = mixture.model.device
    prompts, attention = _left_pad([request.prompt_ids for request in requests], pad_token_id, device)
    keys, inverse = _unique_keys(requests, device)
    ends = torch.tensor(eos_token_ids, device=device)
    tokens = torch.full((len(requests), max_new_tokens), pad_token_id, device=device)
    logprobs = torch.zeros(tokens.shape, device=device)
    softmax_temperature = temperature or 1.0
    active = torch.arange(len(requests), device=device)
    with mixture.rows([request.spec for request in requests]):
        inputs, mask, cache = prompts, attention, None
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        for step in range(max_new_tokens):
            output = mixture.model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            policy_logits, cache = output.logits[:, -1], output.past_key_values
            perturbed = policy_logits
            if temperature > 0:
                noise = gumbel(seed, keys[:, 0], keys[:, 1], step, policy_logits.shape[1])[inverse[active]]
                perturbed = policy_logits.double() / temperature + noise
            chosen = perturbed.argmax(dim=1)
            tokens[active, step] = chosen
            logprobs[active, step] = _chosen_logprobs(policy_logits, chosen, softmax_temperature)
            running = (~torch.isin(chosen, ends)).nonzero().squeeze(1)
            if len(running) == 0:
                break
            if len(running) < len(active):
                active, chosen = active[running], chosen[running]
                mask, position_ids = mask[running], position_ids[running]
                cache.batch_select_indices(running)
                mixture.select_rows(running)
            inputs = chosen.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            position_ids = position_ids[:, -1:] + 1
    del cache, output, inputs  # before the reference pass: memory for the one or the other, not for both
    lengths = _lengths(tokens, ends)
    token_mask = torch.arange(max_new_tokens, device=device) < lengths.unsqueeze(1)
    reference = _sft_logprobs(mixture, prompts, attention, tokens, token_mask, softmax_temperature)
    kl = ((logprobs - reference) * token_mask).sum(dim=1, dtype=torch.float64)
    return [
        Completion(tuple(row[:length]), value)
        for row, length, value in zip(tokens.tolist(), lengths.tolist(), kl.tolist(), strict=True)
    ]


def _sft_logprobs(mixture, prompts, attention, tokens, token_mask, temperature) -> Tensor:
    """Return the log-probabilities of the sampled tokens under the SFT model, ``[rows, T]``."""
    inputs = torch.cat([prompts, tokens], dim=1)
    mask = torch.cat([attention, token_mask.long()], dim=1)
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
        chunks.append(_chosen_logprobs(logits, tokens[rows], temperature))
    return torch.cat(chunks)


def _chosen_logprobs(logits: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    logits = logits.float() / temperature
    return logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def _left_pad(rows: list[tuple[int, ...]], pad_token_id: int, device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([(pad_token_id,) * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([(0,) * (width - len(row)) + (1,) * len(row) for row in rows], device=device)
    return ids, mask


def _unique_keys(requests: list[Request], device) -> tuple[Tensor, Tensor]:
    """Return the distinct (prompt, sample) pairs and which one each row has: specs share their noise."""
    keys = torch.tensor([(request.prompt_key, request.sample) for request in requests], device=device)
    return torch.unique(keys, dim=0, return_inverse=True)


def _lengths(tokens: Tensor, ends: Tensor) -> Tensor:
    is_end = torch.isin(tokens, ends)
    first_end = is_end.int().argmax(dim=1) + 1
    return torch.where(is_end.any(dim=1), first_end, tokens.shape[1])


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
