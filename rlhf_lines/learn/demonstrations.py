"""Demonstrations as tokens: prompts with the completions that a method is to make likely."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.sweep.engines.protocol import Pair, Tokens


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_demonstrations(
    data_config: PromptDataConfig, count: int, max_new_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> list[Pair]:
    """The first so many demonstrations of the train split, completions cut to `max_new_tokens`.

    A completion that is not cut ends with the end token, as in supervised fine-tuning.

    Raises:
        ValueError: the data has none.
    """
    settings = data_config.chat_template_kwargs
    rows = itertools.islice(
        data_config.load("demonstrations", "train", tokenizer, chat_template_kwargs=settings), count
    )
    return [_pair(row, max_new_tokens, tokenizer, settings or {}) for row in rows]


def _pair(row: dict, most: int, tokenizer: PreTrainedTokenizerBase, settings: dict) -> Pair:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        before = tokenizer(prompt)["input_ids"]
        after = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return tuple(before), tuple(after[:most])

    def written(messages: list, *, opened: bool) -> Tokens:
        return tuple(
            tokenizer.apply_chat_template(messages, add_generation_prompt=opened, return_dict=False, **settings)
        )

    before, whole = written(prompt, opened=True), written([*prompt, *completion], opened=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
    return before[:shared], whole[shared:][:most]
