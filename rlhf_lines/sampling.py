"""Sampling of completions, for rollouts and sweeps: noise placed by position, rows that leave the batch when they end.

A token is drawn as argmax(logits / temperature + g), which is a sample of the softmax when g is Gumbel noise. Here g is
a function of (seed, prompt, sample, step, token) alone. So completions do not depend on batch size, order, number of
processes, or what else is in the batch; and two models that see the same noise differ only where their logits differ.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reward_models.padding import left_pad
from rlhf_lines.noise import GAMMA, mix, shift
from rlhf_lines.progress import beat
from rlhf_lines.reading import Reader, masks_padding, of_one_length


REPEATED = 2**40  # more than there are samples of any other kind
MOST_NOISE = 40.0  # -log of the smallest -log(u), see `gumbel`, is 36.7 or a little more


class Sampled(NamedTuple):
    """N completions of at most T tokens.

    Attributes:
        tokens: `[N, T]`, the end token included, padding after it.
        lengths: `[N]`, the number of tokens of each.
        logprobs: `[N, T]`, of the tokens under softmax(logits / temperature) over all tokens (under softmax(logits) for
            greedy sampling), zero on padding.
    """

    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor


def prompt_key(token_ids: Sequence[int]) -> int:
    """A signed 64-bit number that names a prompt: the start of the SHA-256 of its tokens."""
    digest = hashlib.sha256(" ".join(map(str, token_ids)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def sample_numbers(keys: Sequence[int], seen: Counter[int], *, count: int, first: int) -> list[int]:
    """Which sample of its prompt each row is: from `first` on, in the order of the rows.

    A prompt that the data holds once is asked for `count` completions, and these are its first samples. Where it comes
    again, its further samples are numbered apart from those of all other rollouts.

    Args:
        keys: of the prompts, as `prompt_key` gives them.
        seen: how often each has come before; it goes on counting.
        count: the completions of one row of the data.
        first: the number of the first of them.

    >>> sample_numbers([7, 7, 8, 8, 7], Counter(), count=2, first=10) == [10, 11, 10, 11, 10 + REPEATED]
    True
    """
    numbers = []
    for key in keys:
        repeats, copy = divmod(seen[key], count)
        numbers.append(first + copy + repeats * REPEATED)
        seen[key] += 1
    return numbers


def gumbel(seed: int, prompt_keys: Tensor, samples: Tensor, step: int, vocab_size: int) -> Tensor:
    """Gumbel noise `[rows, vocab_size]`, float64, a pure function of its arguments.

    A chain of 64-bit mixes (splitmix64) of seed, prompt, sample and step gives a key per row; mixing it with the token
    gives 53 random bits, u in (0, 1), and g = -log(-log(u)).

    Args:
        seed: of the run.
        prompt_keys: `[rows]`, int64, as `prompt_key` gives them.
        samples: `[rows]`, int64; which completion of its prompt a row is.
        step: the position of the token in the completion, from 0.
        vocab_size: the number of tokens.
    """
    key = mix(torch.full_like(prompt_keys, seed))
    key = mix(key ^ prompt_keys)
    key = mix(key ^ samples)
    key = mix(key ^ step)
    tokens = torch.arange(1, vocab_size + 1, device=key.device) * GAMMA
    bits = shift(mix(key.unsqueeze(1) + tokens), 11)
    # 53 ones and a half round to 2^53: without the bound, u would be 1 and the noise infinite.
    u = ((bits.double() + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-53)
    return -torch.log(-torch.log(u))


@torch.no_grad()
def sample_tokens(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[int, int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
    has_ended: Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[bool]] | None = None,
    choose_rows: Callable[[Tensor], None] = lambda rows: None,
    watch: Callable[[Tensor, int, Tensor], None] = lambda rows, step, logits: None,
) -> Sampled:
    """One completion per prompt, all in one batch where padding is masked; rows that have ended leave it.

    Args:
        model: a causal language model.
        prompts: n lists of token ids.
        keys: (prompt, sample) of every row, which place its noise; rows with equal keys meet equal noise.
        max_new_tokens: of the longest completion.
        temperature: of the softmax; 0 takes the most likely token.
        eos_token_ids: the tokens that end a completion.
        pad_token_id: what fills the rows of shorter prompts and completions.
        seed: of the noise.
        top_k: draw among so many of the most likely tokens; None is all.
        top_p: draw among the most likely tokens that together have this probability; None is all. See `truncated`.
        has_ended: called after each token with the indices of prompts and the tokens that each has got, says which
            completions end with that token, whatever it is.
        choose_rows: called before every pass with the indices of the prompts that it reads, in their order.
        watch: called after every pass with the indices of its prompts, the number of the token that comes next, from 0,
            and its logits `[rows, V]`.
    """
    device = next(model.parameters()).device
    distinct, inverse = torch.unique(torch.tensor(keys, device=device), dim=0, return_inverse=True)
    ends = torch.tensor(eos_token_ids, device=device)
    tokens = torch.full((len(prompts), max_new_tokens), pad_token_id, device=device)
    logprobs = torch.zeros(tokens.shape, device=device)
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)
    parts = [range(len(prompts))] if masks_padding(model) else of_one_length([len(prompt) for prompt in prompts])
    for part in parts:
        active = torch.tensor(part, device=device)
        beat(f"reading {len(part)} prompts")
        prefix = left_pad([prompts[row] for row in part], pad_token_id, device)
        reader = Reader(model, *prefix, room=max_new_tokens - 1)
        for step in range(max_new_tokens):
            beat(f"token {step + 1} of at most {max_new_tokens}")
            logits = reader.next_logits(
                lambda rows, active=active: choose_rows(active[rows]),
                lambda rows, logits, active=active, step=step: watch(active[rows], step, logits),
            )
            if temperature > 0:
                places, of_row = torch.unique(inverse[active], return_inverse=True)
                noise = gumbel(seed, *distinct[places].T, step, logits.shape[1])
                kept, divisor = logits, temperature
                if top_k is not None or top_p is not None:
                    kept, divisor = truncated(logits.double() / temperature, top_k=top_k, top_p=top_p), 1.0
                chosen = draw(kept, divisor, noise, of_row)
            else:
                chosen = logits.argmax(dim=1)
            tokens[active, step] = chosen
            logprobs[active, step] = chosen_logprobs(logits, chosen, temperature or 1.0)
            ended = torch.isin(chosen, ends)
            if has_ended is not None:
                so_far = tokens[active, : step + 1].tolist()
                ended |= torch.tensor(has_ended(active.tolist(), so_far), device=device)
            lengths[active[ended]] = step + 1
            if ended.all():
                break
            reader.append(chosen)
            if ended.any():
                running = without(ended)
                active = active[running]
                reader.keep(running)
    return Sampled(tokens, lengths, logprobs)


def draw(logits: Tensor, temperature: float, noise: Tensor, of_row: Tensor) -> Tensor:
    """The token `[rows]` for which logits / temperature + noise, in float64, is largest.

    Sums in float32 leave a token or two per row, and only those are added in float64.

    Args:
        logits: `[rows, V]`.
        temperature: of the softmax.
        noise: `[n, V]`, float64, within `MOST_NOISE` of 0.
        of_row: `[rows]`, which noise is a row's.
    """
    sums = noise.float()[of_row].add_(logits, alpha=1 / temperature)
    best = sums.amax(dim=1, keepdim=True)
    # A sum is off by less than 2^-22 (|best| + 2 MOST_NOISE): three roundings, of logit, noise and sum.
    rows, tokens = (sums >= best - 2.0**-20 * (best.abs() + MOST_NOISE)).nonzero(as_tuple=True)
    exact = logits[rows, tokens].double() / temperature + noise[of_row[rows], tokens]
    most = exact.new_full((len(logits),), -torch.inf).scatter_reduce(0, rows, exact, "amax")
    is_most = exact == most[rows]
    chosen = torch.zeros_like(of_row)
    chosen[rows[is_most]] = tokens[is_most]
    return chosen


def without(ended: Tensor) -> Tensor:
    """The indices of rows that go on, those at the end in the places of rows that have ended: few are moved."""
    going = (~ended).nonzero().squeeze(1)
    places = torch.arange(len(going), device=ended.device)
    places[ended[: len(going)]] = going[going >= len(going)]
    return places


def truncated(logits: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits `[rows, V]` with minus infinity for what is not drawn: first by `top_k`, of the rest by `top_p`.

    `top_p` keeps the fewest of the most likely tokens whose probabilities sum to it or more. Noise is added to what is
    kept: a token that two models both keep meets the same noise, and the argmax is a draw from the rest.

    Source: arXiv 1805.04833 (top-k); arXiv 1904.09751 (top-p); as transformers and vLLM have them.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    if top_k is not None:
        logits = TopKLogitsWarper(top_k)(None, logits)
    if top_p is not None:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits


def chosen_logprobs(logits: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """Log softmax(logits / temperature) of the chosen tokens: `[..., V]` and `[...]` to `[...]`."""
    logits = logits.float() / temperature
    return logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
