"""Completions of many specs in one batch, their KL to the SFT model, and how well specs predict given texts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sampling import chosen_logprobs, left_pad, sample_tokens
from rlhf_lines.sweep.engines.multi_lora import Mixture
from rlhf_lines.sweep.engines.prefix_tree import takes_trees, tree_logprobs, trees_of
from rlhf_lines.sweep.engines.protocol import Completion, Request


# Of one forward pass over given tokens: what a CPU's cache takes, and 512 MiB in float32 on a GPU; 8 rows at least.
LOGITS_ON_CPU, LOGITS_ON_GPU, LEAST_ROWS = 1 << 21, 1 << 27, 8
MOST_TOKENS = 1 << 15  # of one such pass, prompts and padding included: few logits may follow long prompts


@torch.no_grad()
def sample(
    mixture: Mixture,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seed: int,
    policy: contextlib.AbstractContextManager | None = None,
) -> list[Completion]:
    """One completion per request, all in one batch. Specs share their noise, prompt by prompt.

    Args:
        temperature: of the softmax; 0 takes the most likely token.
        policy: inside it the model is the merged policy of all requests; None: every row follows its spec.
    """
    prompts = [request.prompt_ids for request in requests]
    by_spec = policy is None
    with mixture.rows([request.spec for request in requests]) if by_spec else policy:
        tokens, lengths, logprobs = sample_tokens(
            mixture.model,
            prompts,
            [(request.prompt_key, request.sample) for request in requests],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            seed=seed,
            keep_rows=mixture.select_rows if by_spec else lambda rows: None,
        )
    completions = [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    own = logprobs.double().sum(dim=1).tolist()
    reference = sft_logprobs(mixture, list(zip(prompts, completions, strict=True)), pad_token_id, temperature or 1.0)
    return [
        Completion(completion, ours - theirs)
        for completion, ours, theirs in zip(completions, own, reference, strict=True)
    ]


def sft_logprobs(
    mixture: Mixture, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], pad_token_id: int, temperature: float
) -> list[float]:
    """The log-probability of each completion after its prompt under the SFT model.

    Each pair is read once, and, where the architecture allows, each prefix.
    """
    distinct = list(dict.fromkeys(pairs))
    if not takes_trees(mixture.model):
        values = _logprobs(mixture, None, distinct, pad_token_id, temperature)
        known = dict(zip(distinct, values, strict=True))
        return [known[pair] for pair in pairs]
    known, batch, roots = {}, [], 0
    most = _positions(mixture)
    # Trees of one size together; a batch is as large as its logits and its tokens, padding included, may be.
    for tree in sorted(trees_of(distinct), key=lambda tree: len(tree.tokens)):
        rows, nodes, roots = len(batch) + 1, len(tree.tokens), max(roots, len(tree.prompt))
        if batch and (rows * (nodes + 1) > most or rows * (roots + nodes) > MOST_TOKENS):
            known |= tree_logprobs(mixture.model, batch, pad_token_id, temperature)
            batch, roots = [], len(tree.prompt)
        batch.append(tree)
    known |= tree_logprobs(mixture.model, batch, pad_token_id, temperature)
    return [known[pair] for pair in pairs]


@torch.no_grad()
def text_nats(
    mixture: Mixture, specs: Sequence[MergeSpec] | None, rows: Sequence[Sequence[int]], pad_token_id: int
) -> list[float]:
    """-sum_t log p(token_t | those before), t >= 1, of each row of token ids, in nats.

    Args:
        specs: of the rows; None reads all of them with the model as it is.
    """
    pairs = [(tuple(row[:1]), tuple(row[1:])) for row in rows]
    return [-value for value in _logprobs(mixture, specs, pairs, pad_token_id, temperature=1.0)]


def _logprobs(
    mixture: Mixture,
    specs: Sequence[MergeSpec] | None,
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    pad_token_id: int,
    temperature: float,
) -> list[float]:
    """The summed log-probabilities of the second parts after the first, under specs or the SFT model."""
    most = _positions(mixture)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found = [0.0] * len(pairs)
    while order:
        # The longest first: what does not fit into memory fails at once. Equal lengths need little padding.
        before, after = pairs[order[-1]]
        rows = rows_of_pass(most, len(before) + len(after), len(after))
        chunk, order = order[-rows:], order[:-rows]
        of_rows = None if specs is None else [specs[i] for i in chunk]
        values = _logprobs_of_batch(mixture, of_rows, [pairs[i] for i in chunk], pad_token_id, temperature)
        for i, value in zip(chunk, values, strict=True):
            found[i] = value
    return found


def rows_of_pass(most: int, length: int, judged: int) -> int:
    """How many rows of so many tokens one forward pass reads, of which the last so many are judged.

    Args:
        most: positions that may have logits; see `most_positions`.
    """
    return max(LEAST_ROWS, min(most // (judged + 1), MOST_TOKENS // length))


def most_positions(vocab_size: int, device: str) -> int:
    """How many positions of one forward pass may have logits."""
    return (LOGITS_ON_CPU if device == "cpu" else LOGITS_ON_GPU) // vocab_size


def _positions(mixture: Mixture) -> int:
    return most_positions(mixture.model.config.get_text_config().vocab_size, mixture.model.device.type)


def _logprobs_of_batch(mixture, specs, pairs, pad_token_id, temperature) -> list[float]:
    device = mixture.model.device
    inputs, mask = left_pad([before + after for before, after in pairs], pad_token_id, device)
    width = max(len(after) for _, after in pairs)
    with contextlib.nullcontext() if specs is None else mixture.rows(specs):
        logits = mixture.model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=width + 1,
        ).logits[:, :-1]
    lengths = torch.tensor([len(after) for _, after in pairs], device=device)
    is_after = torch.arange(width, 0, -1, device=device) <= lengths.unsqueeze(1)
    logprobs = chosen_logprobs(logits, inputs[:, inputs.shape[1] - width :], temperature)
    return (logprobs.double() * is_after).sum(dim=1).tolist()
