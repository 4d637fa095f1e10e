"""A sequence classification model as a reward model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reward_models.base import check_lengths, checked_scores, excerpt
from reward_models.checkpoint import open_checkpoint
from reward_models.format import SPECIAL_TOKENS, Format, read_settings


NO_LIMIT = 10**9
# These count positions from pad_token_id + 1, so that many of the position embeddings are never reached.
OFFSET_POSITIONS = frozenset({"camembert", "roberta", "xlm-roberta"})


class Classifier:
    """Score text with any `AutoModelForSequenceClassification`: decoder, encoder or encoder-decoder.

        score = sign * output[label]    or    sign * (output[a] - output[b])

    The outputs are those of the model's own forward of the one unpadded text; they do not depend on batch size or
    neighbours (up to rounding) and are neither rounded nor squashed.

    Attributes:
        name: what the score is called.
        format: text format and label.
        max_length: longest input in tokens, or None for no limit.
        truncated: how many pairs were cut so far.
    """

    def __init__(
        self, model: Any, tokenizer: Any, format: Format | None = None, *, name: str, batch_size: int = 32
    ) -> None:
        """Make a reward model of a loaded classifier, which is put into evaluation mode.

        Raises:
            ValueError: the model has fewer outputs than the format's label needs.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.format = format or Format()
        self.name = name
        self.batch_size = batch_size
        self.truncated = 0
        self.max_length = longest_input(model.config, tokenizer, wanted=self.format.max_length)
        types = "token_type_ids"
        self._inputs = ("input_ids", types) if types in inspect.signature(model.forward).parameters else ("input_ids",)
        outputs = model.config.num_labels
        if max(self.format.labels()) >= outputs:
            raise ValueError(
                f"reward model {name!r} has {outputs} outputs, and its format reads label {self.format.label}; "
                f"expected an index below {outputs}"
            )
        if batch_size < 1:
            raise ValueError(f"the batch size of reward model {name!r} is {batch_size}; expected at least 1")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        format: Format | None = None,
        *,
        name: str | None = None,
        device: Any = None,
        dtype: Any = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> Classifier:
        """The classifier in a folder, in a PEFT adapter folder or on the Hub.

        Args:
            source: folder or Hub id.
            format: text format; None is what `reward_model.json` in the folder says, or else the default `Format`.
            name: what the score is called; None is the last part of `source`.
            device: torch device; None is the current CUDA device, or the CPU if there is none.
            dtype: torch dtype or its name; None is float32.
            batch_size: most texts in one forward pass.
            trust_remote_code: whether code from the source may run.

        Raises:
            FileNotFoundError: as `open_checkpoint`.
            ValueError: as `open_checkpoint` and `read_settings`; or torch has no such floating-point dtype.
        """
        import torch

        if dtype is None or isinstance(dtype, str):
            named = getattr(torch, dtype or "float32", None)
            if not isinstance(named, torch.dtype) or not named.is_floating_point:
                raise ValueError(
                    f"the dtype of reward model {str(source)!r} is {dtype!r}; expected float32, bfloat16 or float16"
                )
            dtype = named
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = open_checkpoint(str(source), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        format = format or read_settings(source)
        return cls(model, tokenizer, format, name=name or Path(source).name, batch_size=batch_size)

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One score per pair, in order.

        Raises:
            ValueError: the lists differ in length, a score is not finite (names the prompt), or the template and
                special tokens alone exceed `max_length`.
        """
        from reward_models import forward

        check_lengths(self.name, prompts, completions)
        rows = [self.encode(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        outputs = forward.logits(self.model, rows, pad_token_id=self.tokenizer.pad_token_id, batch_size=self.batch_size)
        labels = self.format.labels()
        scores = outputs[:, labels[0]]
        if len(labels) == 2:
            scores = scores - outputs[:, labels[1]]
        return checked_scores(self.name, (self.format.sign * scores).tolist(), prompts)

    def encode(self, prompt: str, completion: str) -> dict[str, list[int]]:
        """The tokens of one pair without padding, cut to `max_length` if need be.

        Cutting shortens the prompt as text and tokenizes again, so template, special tokens and completion stay whole.

        Raises:
            ValueError: there is no token at all, or the template alone exceeds `max_length`.
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

        def part(size: int) -> str:
            return prompt[len(prompt) - size :] if self.format.cut == "left" else prompt[:size]

        if self._fits("", completion):
            kept = _longest(len(prompt), lambda size: self._fits(part(size), completion))
            return self._tokenize(part(kept), completion)
        if not self._fits("", ""):
            raise ValueError(
                f"the template of reward model {self.name!r} alone is longer than max_length={self.max_length} tokens "
                f"(prompt {excerpt(prompt)}); raise max_length"
            )
        kept = _longest(len(completion), lambda size: self._fits("", completion[:size]))
        return self._tokenize("", completion[:kept])

    def _tokenize(self, prompt: str, completion: str) -> dict[str, list[int]]:
        special_tokens = {name: getattr(self.tokenizer, name) for name in SPECIAL_TOKENS}
        texts = self.format.render(prompt, completion, special_tokens)
        encoding = self.tokenizer(*texts, add_special_tokens=self.format.add_special_tokens, verbose=False)
        return {name: list(encoding[name]) for name in self._inputs if name in encoding}

    def _fits(self, prompt: str, completion: str) -> bool:
        return len(self._tokenize(prompt, completion)["input_ids"]) <= self.max_length


def _longest(size: int, fits: Callable[[int], bool]) -> int:
    """A size up to `size` that fits while one more does not, by bisection; 0 is known to fit."""
    fitting, too_long = 0, size
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if fits(middle):
            fitting = middle
        else:
            too_long = middle
    return fitting


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
    if config.model_type in OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    limit = min(tokenizer.model_max_length or NO_LIMIT, positions, NO_LIMIT if wanted is None else wanted)
    return limit if limit < NO_LIMIT else None
