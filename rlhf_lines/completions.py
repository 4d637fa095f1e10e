"""From the tokens of a completion to its text, in one place for all stages.

A completion is what the policy wrote behind its prompt, so it is decoded there. Alone, some tokenizers (Llama 2's, T5's
or BERT's) drop the blank of its first token: the tokens that read ` Yes` behind `Assistant:` would read `Yes`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
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
    behind: dict[tuple[int, ...], Callable[[Ids], str]] = {}  # completions often share their prompt
    texts = []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        key = tuple(prompt)
        if key not in behind:
            behind[key] = _behind(tokenizer, prompt)
        texts.append(behind[key](completion))
    return texts


def stop_problems(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[str]:
    """What is wrong with texts that are to end a completion: special tokens have no text in it."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}  # named or not
    special = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
    for text in texts:
        if token := next((token for token in special if token in text), None):
            yield (
                f"stop holds {text!r}, but {token!r} is a special token, which has no text in a completion: leave it "
                "out if it ends completions anyway, or else name it in eos_token_id of the SFT model's "
                "generation_config.json"
            )


def samples_policy(temperature: float, top_k: int | None, top_p: float | None) -> bool:
    """Whether completions are drawn from pi, softmax(logits / temperature), so that their log-ratios estimate a KL.

    log pi - log pi_SFT is no estimate of it where they are greedy, or drawn among the most likely tokens only.
    """
    return temperature > 0 and top_k is None and top_p in (None, 1.0)


class StopTexts:
    """Texts that end a completion: it is written up to the token that completes one, and read up to where that begins.

    Args:
        tokenizer: the policy's.
        texts: any of them ends a completion; none, where there are none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, tuple(texts)
        # A token of such a text has a byte of it at least, unless it has no text at all. One more goes before, because
        # the first that is decoded may lose its blank.
        self._window = 1 + max((len(text.encode()) for text in texts), default=0)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def cut(self, text: str) -> str:
        """What comes before the first of the texts."""
        return text[: min((at for stop in self._texts if (at := text.find(stop)) >= 0), default=len(text))]

    def kept(self, prompt: Ids, completion: Ids) -> int:
        """How many tokens of a completion are written: those up to the one that completes one of the texts."""
        text_of = _behind(self._tokenizer, prompt)
        if not self._holds(text_of(completion)):
            return len(completion)
        return bisect.bisect_left(
            range(len(completion)), True, key=lambda count: self._holds(text_of(completion[:count]))
        )

    def ended(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[bool]:
        """Which completions hold one of the texts, of those that held none before their last token.

        The last tokens are looked at, and all of a completion only where those hold one. What that misses (tokens
        without text lie between) `kept` finds.
        """
        ends = [
            _decoded(self._tokenizer, [*prompt[-self._window :], *completion[-self._window :]][-self._window :])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [
            self._holds(end) and self._holds(_behind(self._tokenizer, prompt)(completion))
            for prompt, completion, end in zip(prompts, completions, ends, strict=True)
        ]

    def _holds(self, text: str) -> bool:
        return any(stop in text for stop in self._texts)


def _behind(tokenizer: PreTrainedTokenizerBase, prompt: Ids) -> Callable[[Ids], str]:
    """From a completion of the prompt to its text."""
    before = _decoded(tokenizer, prompt)

    def text_of(completion: Ids) -> str:
        whole = _decoded(tokenizer, [*prompt, *completion])
        return _added(before, whole, lambda: _decoded(tokenizer, completion))

    return text_of


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
