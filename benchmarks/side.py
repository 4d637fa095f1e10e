"""What the sides of search_cost.py and of sweep.py share: models, completions by transformers, flags.

A side is a process of its own, which has the root of the repository on its path (see `peer.call`).
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from reward_models.padding import left_pad
from rlhf_lines.models import end_token_ids


Tokens = tuple[int, ...]


@dataclass(frozen=True)
class SideTask:
    """What every side is given.

    Attributes:
        sft_model: folder.
        policies: folders of adapters.
        num_prompts: how many.
        max_new_tokens: of a completion.
        dtype: of the model.
        batch_size: of ours; None is its own choice.
    """

    sft_model: str
    policies: list[str]
    num_prompts: int
    max_new_tokens: int
    dtype: str
    batch_size: int | None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The task in a file."""
        return cls(**json.loads(Path(path).read_text()))


@torch.no_grad()
def generated(model, tokenizer, prompts: Sequence[Sequence[int]], task: SideTask, **settings: object) -> list[Tokens]:
    """Completions of all prompts in one batch by transformers' `generate`, each with its end token."""
    ends = end_token_ids(model, tokenizer)
    ids, mask = left_pad(prompts, tokenizer.pad_token_id, model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=task.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    completions = output[:, ids.shape[1] :].tolist()
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in completions]
    return [tuple(row[:stop]) for row, stop in zip(completions, stops, strict=True)]


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def arguments(benchmark: str, *more: str) -> argparse.Namespace:
    """The flags of a side: the task, where the result goes, and whole numbers of its own."""
    parser = argparse.ArgumentParser(description=f"One side of {benchmark}, which calls it.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--output", required=True)
    for name in more:
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()
