"""A sequence classification model as a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models.base import check_batch_size, check_lengths, checked_scores
from reward_models.checkpoint import open_checkpoint, torch_device, torch_dtype
from reward_models.conversation import Prompt
from reward_models.encoder import Encoder, guesses, input_names
from reward_models.format import Format, read_settings


class Pass:
    """What a model said of the texts that it read last, for scores that are made of the same outputs.

    Attributes:
        rows: the tokens of the texts.
        outputs: of the model.
    """

    rows: list[dict[str, list[int]]] | None = None
    outputs: Any = None


class Classifier:
    """Score text with any `AutoModelForSequenceClassification`: decoder, encoder or encoder-decoder.

        score = sign * output[label]    or    sign * (output[a] - output[b])

    The outputs are those of the model's own forward of the one unpadded text; they do not depend on batch size or
    neighbours (up to rounding) and are neither rounded nor squashed.

    Attributes:
        name: what the score is called.
        format: text format and label.
        encoder: makes the tokens.
        reads_turns: whether prompts may be conversations, of which the tokenizer's chat template makes the text.
        guessed: what is assumed of a model that does not say how it reads, in one line, or None.
        max_length: longest input in tokens, or None for no limit.
        truncated: how many pairs were cut so far.
    """

    guessed: str | None = None

    def __init__(
        self, model: Any, tokenizer: Any, format: Format | None = None, *, name: str, batch_size: int = 32
    ) -> None:
        """Make a reward model of a loaded classifier, which is put into evaluation mode.

        Raises:
            ValueError: as `Encoder`, or the batch size is none.
        """
        self.model = model.eval()
        self.encoder = Encoder(model.config, tokenizer, format or Format(), name=name)
        self.name = name
        self.batch_size = batch_size
        self._pass: Pass | None = None
        self._inputs = input_names(model)
        check_batch_size(name, batch_size)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self.encoder.tokenizer

    @property
    def format(self) -> Format:
        """Text format and label."""
        return self.encoder.format

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens, or None for no limit."""
        return self.encoder.max_length

    @property
    def truncated(self) -> int:
        """How many pairs were cut so far."""
        return self.encoder.truncated

    @property
    def reads_turns(self) -> bool:
        """Whether prompts may be conversations."""
        return self.encoder.reads_turns

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        format: Format | None = None,
        *,
        name: str | None = None,
        template: str | Sequence[str] | None = None,
        label: int | str | Sequence[int] | Sequence[str] | None = None,
        system: str | None = None,
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
            template: in place of the format's.
            label: in place of the format's.
            system: in place of the format's.
            device: torch device; None is the current CUDA device, or the CPU if there is none.
            dtype: torch dtype or its name; None is float32.
            batch_size: most texts in one forward pass.
            trust_remote_code: whether code from the source may run.

        Raises:
            FileNotFoundError: as `open_checkpoint`.
            ValueError: as `open_checkpoint` and `read_settings`; or torch has no such floating-point dtype.
        """
        placed = {"dtype": torch_dtype(dtype, source), "device": torch_device(device)}
        model, tokenizer = open_checkpoint(str(source), **placed, trust_remote_code=trust_remote_code)
        stated, name = format or read_settings(source), name or Path(source).name
        format = (stated or Format()).with_changes(template, label, system)
        made = cls(model, tokenizer, format, name=name, batch_size=batch_size)
        if stated is None:
            made.guessed = guesses(model.config, tokenizer, name=name, template=template, label=label)
        return made

    def score(self, prompts: Sequence[Prompt], completions: list[str]) -> list[float]:
        """One score per pair, in order.

        Raises:
            ValueError: the lists differ in length, a score is not finite (names the prompt), or the template and
                special tokens alone exceed `max_length`.
        """
        check_lengths(self.name, prompts, completions, turns=self.reads_turns)
        rows = [self.encode(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        outputs = self._outputs(rows)
        labels = self.encoder.labels
        scores = outputs[:, labels[0]]
        if len(labels) == 2:
            scores = scores - outputs[:, labels[1]]
        return checked_scores(self.name, (self.format.sign * scores).tolist(), prompts)

    def beside(self, *, name: str, label: int | str | Sequence[int] | Sequence[str]) -> Classifier:
        """Another score of the same model, of other outputs: of what both are asked in turn, one pass is made.

        Args:
            name: what that score is called.
            label: the output that it is, or two for their difference.

        Raises:
            ValueError: there is no such output.
        """
        self._pass = self._pass or Pass()
        format = self.format.with_changes(label=label)
        other = Classifier(self.model, self.tokenizer, format, name=name, batch_size=self.batch_size)
        other._pass = self._pass
        return other

    def _outputs(self, rows: list[dict[str, list[int]]]) -> Any:
        from reward_models import forward

        settings = {"pad_token_id": self.tokenizer.pad_token_id, "batch_size": self.batch_size}
        if self._pass is None:
            return forward.logits(self.model, rows, **settings)
        if self._pass.rows != rows:
            self._pass.outputs = forward.logits(self.model, rows, **settings)
            self._pass.rows = rows
        return self._pass.outputs

    def encode(self, prompt: Prompt, completion: str) -> dict[str, list[int]]:
        """The tokens that the model reads of one pair; see `Encoder.encode`."""
        row = self.encoder.encode(prompt, completion)
        return {name: list(row[name]) for name in self._inputs if name in row}
