"""From the tokens of a completion to its text, in one place for all stages.

A completion is what the policy wrote behind its prompt, so it is decoded there. Alone, some tokenizers (Llama 2's, T5's
or BERT's) drop the blank of its first token: the tokens that read ` Yes` behind `Assistant:` would read `Yes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


def completion_texts(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[Ids], completion_ids: Sequence[Ids]
) -> list[str]:
    """The text of every completion: what its tokens add to the text of its prompt. Special tokens have no text.

    Args:
        tokenizer: the policy's.
        prompt_ids: token ids of the prompts, without padding.
        completion_ids: of their completions, without padding.
    """
    before: dict[tuple[int, ...], str] = {}  # completions often share their prompt
    texts = []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        key = tuple(prompt)
        if key not in before:
            before[key] = _decoded(tokenizer, prompt)
        whole = _decoded(tokenizer, [*prompt, *completion])
        texts.append(_added(before[key], whole, lambda ids=completion: _decoded(tokenizer, ids)))
    return texts


def _added(before: str, whole: str, alone: Callable[[], str]) -> str:
    """What `whole` says beyond `before`.

    The two differ earlier where bytes at the border belong together. Bytes that the completion leaves broken are its
    own, as in its text alone, whatever they do to those before them; so is a character that it completes.
    """
    if whole.startswith(before):
        return whole[len(before) :]
    text = alone()
    if whole.endswith(text):
        return text
    shared = next((i for i, (a, b) in enumerate(zip(before, f"{whole}\0", strict=False)) if a != b), len(whole))
    return whole[shared:]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)
