"""Completions of many specs in one batch, their KL to the SFT model, and how well specs predict given texts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from reward_models.padding import left_pad
from rlhf_lines.completions import StopTexts
from rlhf_lines.merge import MergeSpec
from rlhf_lines.reading import last_logits, masks_padding
from rlhf_lines.sampling import chosen_logprobs, sample_tokens
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.prefix_tree import takes_trees, tree_logprobs, trees_of
from rlhf_lines.sweep.engines.protocol import Completion, Pair, Request


MOST_LOGITS = 1 << 27  # of one forward pass over given tokens: 512 MiB in float32
MOST_TOKENS = 1 << 15  # of one such pass, prompts and padding included: few logits may follow long prompts
# What a CPU's cache takes, and the rows that are faster together even where it takes fewer.
LOGITS_ON_CPU, LEAST_ROWS = 1 << 21, 8
TREE_TOKENS = 1 << 12  # of one pass over trees


@torch.no_grad()
def sample(
    multi_lora: MultiLoRA,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: StopTexts | None = None,
    policy: contextlib.AbstractContextManager | None = None,
) -> list[Completion]:
    """One completion per request, all in one batch. Specs share their noise, prompt by prompt.

    Args:
        multi_lora: the SFT model with all policies.
        requests: of any linear specs, or all of the spec whose policy is given.
        max_new_tokens: longest completion.
        temperature: of the softmax; 0 takes the most likely token.
        eos_token_ids: any of them ends a completion.
        pad_token_id: fills up the rows.
        seed: of the noise.
        top_k: draw among so many tokens; see `truncated`. Log-probabilities are those among all.
        top_p: draw among tokens that have this probability.
        stop: texts that end a completion.
        policy: inside it the model is the merged policy of all requests; None: every row follows its spec.
    """
    prompts = [request.prompt_ids for request in requests]
    by_spec = policy is None
    with multi_lora.rows([request.spec for request in requests]) if by_spec else policy:
        tokens, lengths, logprobs = sample_tokens(
            multi_lora.model,
            prompts,
            [(request.prompt_key, request.sample) for request in requests],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            has_ended=(lambda rows, so_far: stop.ended([prompts[row] for row in rows], so_far)) if stop else None,
            choose_rows=multi_lora.select_rows if by_spec else lambda rows: None,
        )
    completions = [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    if stop:
        completions = [ids[: stop.kept(prompt, ids)] for prompt, ids in zip(prompts, completions, strict=True)]
    in_order = zip(logprobs.double(), completions, strict=True)
    own = torch.stack([row[: len(ids)].sum() for row, ids in in_order]).tolist()
    reference = sft_logprobs(multi_lora, list(zip(prompts, completions, strict=True)), pad_token_id, temperature or 1.0)
    return [
        Completion(completion, ours - theirs)
        for completion, ours, theirs in zip(completions, own, reference, strict=True)
    ]


def sft_logprobs(multi_lora: MultiLoRA, pairs: Sequence[Pair], pad_token_id: int, temperature: float) -> list[float]:
    """The log-probability of each completion after its prompt under the SFT model.

    Each pair is read once, and, where the architecture allows, each prefix.
    """
    distinct = list(dict.fromkeys(pairs))
    if takes_trees(multi_lora.model):
        known = _logprobs_by_tree(multi_lora, distinct, pad_token_id, temperature)
    else:
        known = dict(zip(distinct, _logprobs(multi_lora, None, distinct, pad_token_id, temperature), strict=True))
    return [known[pair] for pair in pairs]


@torch.no_grad()
def text_nll(
    multi_lora: MultiLoRA, specs: Sequence[MergeSpec] | None, rows: Sequence[Sequence[int]], pad_token_id: int
) -> list[float]:
    """-sum_t log p(token_t | those before), t >= 1, of each row of token ids, in nats.

    Args:
        multi_lora: the SFT model with all policies.
        specs: of the rows; None reads all of them with the model as it is.
        rows: token ids of the texts.
        pad_token_id: fills up the rows.
    """
    pairs = [(tuple(row[:1]), tuple(row[1:])) for row in rows]
    return [-value for value in _logprobs(multi_lora, specs, pairs, pad_token_id, temperature=1.0)]


def _logprobs_by_tree(
    multi_lora: MultiLoRA, pairs: Sequence[Pair], pad_token_id: int, temperature: float
) -> dict[Pair, float]:
    """By pair, the log-probability of the completion under the SFT model.

    Trees of one size are read together, of at most so many tokens, padding included.
    """
    known, batch, roots = {}, [], 0
    for tree in sorted(trees_of(pairs), key=lambda tree: len(tree.tokens)):
        rows, nodes, roots = len(batch) + 1, len(tree.tokens), max(roots, len(tree.prompt))
        if batch and rows * (roots + nodes) > TREE_TOKENS:
            known |= tree_logprobs(multi_lora.model, batch, pad_token_id, temperature)
            batch, roots = [], len(tree.prompt)
        batch.append(tree)
    return known | tree_logprobs(multi_lora.model, batch, pad_token_id, temperature)


def _logprobs(
    multi_lora: MultiLoRA,
    specs: Sequence[MergeSpec] | None,
    pairs: Sequence[Pair],
    pad_token_id: int,
    temperature: float,
) -> list[float]:
    """The summed log-probabilities of the second parts after the first, under specs or the SFT model."""
    model = multi_lora.model
    vocab_size, padded = model.config.get_text_config().vocab_size, masks_padding(model)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found = [0.0] * len(pairs)
    while order:
        # The longest first: what does not fit into memory fails at once. Equal lengths need little padding.
        before, after = pairs[order[-1]]
        length = len(before) + len(after)
        rows = rows_of_pass(vocab_size, model.device.type, length, len(after))
        if not padded:
            rows = min(rows, sum(len(pairs[i][0]) + len(pairs[i][1]) == length for i in order[-rows:]))
        chunk, order = order[-rows:], order[:-rows]
        of_rows = None if specs is None else [specs[i] for i in chunk]
        values = _logprobs_of_batch(multi_lora, of_rows, [pairs[i] for i in chunk], pad_token_id, temperature)
        for i, value in zip(chunk, values, strict=True):
            found[i] = value
    return found


def rows_of_pass(vocab_size: int, device: str, length: int, judged: int) -> int:
    """How many rows one forward pass reads: one at least, however long.

    Args:
        vocab_size: tokens of the vocabulary.
        device: `cuda` or `cpu`.
        length: tokens of a row.
        judged: how many of them, at the end, get a log-probability.
    """
    logits = vocab_size * (judged + 1)
    rows = min(MOST_LOGITS // logits, MOST_TOKENS // length)
    if device == "cpu":
        rows = min(rows, max(LOGITS_ON_CPU // logits, LEAST_ROWS))
    return max(rows, 1)


def _logprobs_of_batch(
    multi_lora: MultiLoRA,
    specs: Sequence[MergeSpec] | None,
    pairs: Sequence[Pair],
    pad_token_id: int,
    temperature: float,
) -> list[float]:
    device = multi_lora.model.device
    inputs, mask = left_pad([before + after for before, after in pairs], pad_token_id, device)
    width = max(len(after) for _, after in pairs)
    with contextlib.nullcontext() if specs is None else multi_lora.rows(specs):
        logits = last_logits(multi_lora.model, inputs, mask, width + 1)[:, :-1]
    lengths = torch.tensor([len(after) for _, after in pairs], device=device)
    is_after = torch.arange(width, 0, -1, device=device) <= lengths.unsqueeze(1)
    logprobs = chosen_logprobs(logits, inputs[:, inputs.shape[1] - width :], temperature)
    return (logprobs.double() * is_after).sum(dim=1).tolist()
