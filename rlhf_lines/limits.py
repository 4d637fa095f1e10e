"""What a model can be given, read from its config: how long a text may be, and which tokens it knows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from reward_models.checkpoint import reads_later
from reward_models.positions import first_position


if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

AT_ONCE = 1024  # texts whose tokens are held at a time: a token takes some 100 bytes until it is counted
LENGTHS = ("max_position_embeddings", "max_seq_len")
_POSITION_TABLE = re.compile(r"(^|[._])(wpe|pos\w*_(enc|emb)\w*|embed_pos\w*|positions?_embed\w*)\b")


class Limit(NamedTuple):
    """How many tokens a text may have, and why."""

    tokens: int
    reason: str


def longest_text(config: PreTrainedConfig) -> Limit | None:
    """The most tokens that a text may have so that a model reads it as it would alone; None without a limit.

    A model has so many positions; and beyond so many, some rotary embeddings change for all rows of a batch with its
    longest row.
    """
    text = config.get_text_config()
    limits = []
    for name in LENGTHS:
        positions = getattr(text, name, None)
        if isinstance(positions, int) and positions > 0:
            positions -= first_position(text)
            limits.append(Limit(positions, f"the model has {positions} positions"))
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(each for each in ropes.values() if isinstance(each, dict))]:
        before = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        if rope.get("rope_type") == "longrope" and before:
            limits.append(Limit(before, f"beyond {before} tokens the factors of its longrope depend on the batch"))
    return min(limits, default=None)


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the token ids of each text; those of `AT_ONCE` texts are in memory, however many there are."""
    left = iter(texts)
    while part := list(itertools.islice(left, AT_ONCE)):
        yield from tokenizer(part, verbose=False)["input_ids"]


def check_length(config: PreTrainedConfig, longest_prompt: int, **completion: int) -> None:
    """Stop where a prompt and its completion may be longer than the model reads.

    Args:
        config: of the model.
        longest_prompt: its tokens.
        **completion: the setting that bounds the tokens of a completion, and its value.

    Raises:
        ValueError: they may.
    """
    limit, ((setting, most),) = longest_text(config), completion.items()
    if limit is not None and longest_prompt + most > limit.tokens:
        raise ValueError(
            f"the longest prompt has {longest_prompt} tokens and {setting} is {most}, but {limit.reason}: set "
            f"max_prompt_length, or a smaller {setting}"
        )


def check_prompts(
    config: PreTrainedConfig, prompts: Iterable[Sequence[int]], *, dataset: str, **completion: int
) -> None:
    """Stop where the model cannot read a prompt, or cannot complete it.

    Args:
        config: of the model.
        prompts: token ids of each.
        dataset: where they come from.
        **completion: the setting that bounds the tokens of a completion, and its value.

    Raises:
        ValueError: a prompt has no token, one that the model does not know, or too many.
    """
    size, longest = config.get_text_config().vocab_size, 0
    for ids in prompts:
        if not len(ids):
            raise ValueError(without_tokens(dataset))
        if max(ids) >= size:
            raise ValueError(
                f"dataset {dataset} has a prompt with the token {max(ids)}, but the model knows {size} tokens: its "
                "tokenizer has more, so resize the embeddings of the model and train them, or take its own tokenizer"
            )
        longest = max(longest, len(ids))
    check_length(config, longest, **completion)


def without_tokens(dataset: str, row: str | None = None) -> str:
    """The sentence on a prompt without tokens.

    >>> without_tokens("words", "row 2").partition(", and")[0]
    'dataset words has a prompt without tokens (row 2)'
    """
    place = f" ({row})" if row else ""
    return (
        f"dataset {dataset} has a prompt without tokens{place}, and the first word of a completion needs one before "
        "it: fill it in, or leave out the row"
    )


def check_writes(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stop where a model cannot write token by token, or no token that it knows ends a text or fills up its row.

    And where its tokenizer ends every text: a prompt would end before its completion. It is not switched off here,
    because whoever else reads the folder (a server, an evaluation) would go on with it.

    Raises:
        ValueError: so it is.
    """
    text = config.get_text_config()
    if reads_later(config):
        raise ValueError(
            f"{text.model_type} models read the tokens that come later, so they write no completions: take a causal "
            "model, or set is_decoder in the config of one that was trained so"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no end token, and the model's configs declare none, so no "
            "completion could end: give the tokenizer an eos_token (tokenizer.eos_token = ...) and save it"
        )
    alone, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    if alone and whole[-1] != alone[-1]:
        begins = whole[0] == tokenizer.bos_token_id != alone[0]  # a tokenizer forgets it when the other one is set
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} puts {tokenizer.convert_ids_to_tokens(whole[-1])!r} behind "
            "every text, so completions would be written behind the end of their prompt: set tokenizer.add_bos_token = "
            f"{begins} and tokenizer.add_eos_token = False and save it, or take the token out of post_processor in its "
            "tokenizer.json"
        )
    size = config.get_text_config().vocab_size
    for what, token, i in (
        ("padding", tokenizer.pad_token, tokenizer.pad_token_id),
        ("end", tokenizer.eos_token, tokenizer.eos_token_id),
    ):
        if i is not None and i >= size:
            raise ValueError(
                f"the {what} token {token!r} of the tokenizer has the id {i}, but the model knows {size} tokens: set "
                f"another {'pad' if what == 'padding' else 'eos'}_token, or resize the embeddings of the model"
            )


def position_table(model: nn.Module) -> int | None:
    """How many positions a model has a row of a table for, so that one more is an error; None without a table."""
    reader = model.get_decoder()  # of text: the positions of a model's eyes are patches of an image
    tables = [
        tensor.shape[0]
        for name, tensor in (*reader.named_parameters(), *reader.named_buffers())
        if tensor.ndim == 2 and _POSITION_TABLE.search(name)
    ]
    limit = longest_text(model.config)
    return min(tables + ([limit.tokens] if limit else [])) if tables else None
