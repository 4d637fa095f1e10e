"""The texts that statistics are taken over: prompts, and one completion of the policy for each."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from rlhf_lines.data.config import DataConfig
from rlhf_lines.models import end_token_ids
from rlhf_lines.progress import Bar
from rlhf_lines.sampling import prompt_key, sample_tokens


class Sample(NamedTuple):
    """Token ids of a prompt and of a completion, the end token included where it ended."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def read_prompts(data_config: DataConfig, split: str, num_prompts: int, tokenizer) -> list[tuple[int, ...]]:
    """The first so many prompts of a split as token ids, the shortest first."""
    rows = data_config.load("prompts", split, tokenizer)
    texts = itertools.islice((row["prompt"] for row in rows), num_prompts)
    return sorted((tuple(tokenizer(text)["input_ids"]) for text in texts), key=len)


def sample_completions(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    description: str,
) -> list[Sample]:
    """One completion of every prompt, y ~ pi(.|x), at temperature 1, in the order of the prompts.

    The noise of a token is placed by prompt and step, so the batch size can change a token only where rounding decides
    between two.
    """
    samples = []
    with Bar(total=len(prompts), desc=description, unit="completions") as bar:
        for batch in batches(prompts, batch_size):
            sampled = sample_tokens(
                model,
                batch,
                [(prompt_key(prompt), 0) for prompt in batch],
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                eos_token_ids=end_token_ids(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                seed=seed,
            )
            rows = zip(batch, sampled.tokens.tolist(), sampled.lengths.tolist(), strict=True)
            samples += [Sample(prompt, tuple(tokens[:length])) for prompt, tokens, length in rows]
            bar.update(len(batch))
    return samples


def samples_sha256(samples: Sequence[Sample]) -> str:
    """A hash of the token ids of all prompts and completions."""
    return hashlib.sha256(repr([tuple(sample) for sample in samples]).encode()).hexdigest()


def batches(rows: Sequence, size: int) -> Iterator[Sequence]:
    """Yield consecutive parts of at most `size` rows."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
