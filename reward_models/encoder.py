"""From a prompt and a completion to the tokens that a classifier reads, cut where they are too many."""

from __future__ import annotations

import inspect
from typing import Any

from reward_models.base import did_you_mean, excerpt
from reward_models.conversation import CHAT, Prompt, Turn, conversation
from reward_models.cut import fitting
from reward_models.format import SPECIAL_TOKENS, Format
from reward_models.positions import first_position


NO_LIMIT = 10**9


class Encoder:
    """Tokenize pairs as a format says it; no weights are needed.

    Attributes:
        tokenizer: the classifier's.
        format: its text format.
        name: what the score is called, for error messages.
        labels: the indices of the one or two outputs that make the score.
        max_length: longest input in tokens, or None for no limit.
        truncated: how many pairs were cut so far.
    """

    def __init__(self, config: Any, tokenizer: Any, format: Format, *, name: str) -> None:
        """Make the encoder of a classifier with this transformers config.

        Raises:
            ValueError: the format reads an output that the classifier has not, or a chat template that its tokenizer
                has not.
        """
        self.tokenizer, self.format, self.name, self.truncated = tokenizer, format, name, 0
        self.max_length = longest_input(config, tokenizer, wanted=format.max_length)
        self.labels = tuple(_index(label, config, name) for label in format.labels())
        if format.template == CHAT and tokenizer.chat_template is None:
            raise ValueError(
                f"the template of reward model {name!r} is chat, but its tokenizer has no chat template; give the text "
                "that it was trained on, as in '{prompt}{completion}'"
            )

    @property
    def reads_turns(self) -> bool:
        """Whether prompts may be conversations."""
        return self.format.template == CHAT

    def encode(self, prompt: Prompt, completion: str) -> dict[str, list[int]]:
        """The tokens of one pair without padding, cut to `max_length` if need be.

        Cutting shortens the prompt as text and tokenizes again, so template, special tokens and completion stay whole.
        A conversation first loses its oldest turns, up to one of the user.

        Raises:
            ValueError: there is no token at all, the template alone exceeds `max_length`, or the chat template refuses
                the conversation.
        """
        row = self._tokenize(prompt, completion)
        if not row["input_ids"]:
            raise ValueError(
                f"reward model {self.name!r} got no tokens for the prompt {excerpt(prompt)} and the completion "
                f"{excerpt(completion)}; expected at least one; let its format add EOS or special tokens"
            )
        if self.max_length is None or len(row["input_ids"]) <= self.max_length:
            return row
        self.truncated += 1
        kept = fitting(prompt, completion, self._fits, side=self.format.cut)
        if kept is None:
            raise ValueError(
                f"the template of reward model {self.name!r} alone is longer than max_length={self.max_length} tokens "
                f"(prompt {excerpt(prompt)}); raise max_length"
            )
        return self._tokenize(*kept)

    def shown(self, prompt: Prompt, completion: str) -> str:
        """What the classifier reads of one pair: its tokens as text, special tokens included."""
        before = self.truncated
        ids = self.encode(prompt, completion)["input_ids"]
        self.truncated = before  # looking is not scoring
        return self.tokenizer.decode(ids)

    def _tokenize(self, prompt: Prompt, completion: str) -> dict[str, list[int]]:
        if self.format.template == CHAT:
            return dict(self._chat(conversation(prompt, completion, self.format.system)))
        special_tokens = {name: getattr(self.tokenizer, name) for name in SPECIAL_TOKENS}
        texts = self.format.render(prompt, completion, special_tokens)
        return dict(self.tokenizer(*texts, add_special_tokens=self.format.add_special_tokens, verbose=False))

    def _chat(self, turns: list[Turn]) -> Any:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        except Exception as error:  # a template is a program: what it raises may be anything
            raise ValueError(
                f"the chat template of reward model {self.name!r} refuses the conversation {excerpt(turns)} "
                f"({' '.join(str(error).split())}); give it another template, or leave out such rows"
            ) from error

    def _fits(self, prompt: Prompt, completion: str) -> bool:
        return len(self._tokenize(prompt, completion)["input_ids"]) <= self.max_length


def guesses(config: Any, tokenizer: Any, *, name: str, template: Any = None, label: Any = None) -> str | None:
    """One line on what is assumed of a classifier that does not say how it reads, or None where nothing is doubtful.

    Args:
        config: of the classifier.
        tokenizer: its tokenizer.
        name: what the score is called.
        template: what was given, or None.
        label: what was given, or None.
    """
    doubts = []
    if template is None and tokenizer.chat_template is not None:
        doubts.append(
            f"it is shown {Format().template!r}, though its tokenizer has a chat template: set template: chat to show "
            "it conversations in that, or template to the text that it was trained on"
        )
    if label is None and config.num_labels > 1:
        doubts.append(f"output 0 of its {config.num_labels} outputs is the score: set label to another, or to 0")
    if not doubts:
        return None
    return f"reward model {name!r} is read by guess, {'; '.join(doubts)}; both are keys of its entry in rewards"


def _index(label: int | str, config: Any, name: str) -> int:
    """The index of an output of a classifier, which a name stands for as its config says."""
    count, names = config.num_labels, {str(key): index for key, index in config.label2id.items()}
    index = names.get(label) if isinstance(label, str) else label
    if index is None:
        raise ValueError(
            f"reward model {name!r} has no output {label!r}; {did_you_mean(label, names)}known: {', '.join(names)}"
        )
    if index >= count:
        raise ValueError(
            f"reward model {name!r} has {count} outputs, and its format reads label {label}; expected an index below "
            f"{count}"
        )
    return index


def input_names(model: Any) -> tuple[str, ...]:
    """What a transformers model reads of a tokenized text: the token ids, and the token types where it has them."""
    types = "token_type_ids"
    return ("input_ids", types) if types in inspect.signature(model.forward).parameters else ("input_ids",)


def longest_input(config: Any, tokenizer: Any, *, wanted: int | None = None) -> int | None:
    """The longest input in tokens that tokenizer and position embeddings allow, or None without a limit.

    Args:
        config: of a transformers model.
        tokenizer: of the same model.
        wanted: a limit of the user's, which can only be lower; None is none.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    if positions < 0:
        # XLNet's way to say that there is no limit.
        positions = NO_LIMIT
    positions -= first_position(config)
    limit = min(tokenizer.model_max_length or NO_LIMIT, positions, NO_LIMIT if wanted is None else wanted)
    return limit if limit < NO_LIMIT else None
