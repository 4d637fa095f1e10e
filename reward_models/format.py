"""How prompt and completion become the text that a classifier reads, and which of its outputs is the score."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from reward_models.conversation import CHAT


SETTINGS_FILE = "reward_model.json"
SETTINGS_FORMAT = 1
SPECIAL_TOKENS = ("bos_token", "eos_token", "sep_token")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Format:
    """Text format and label of a classifier that is used as a reward model.

    Attributes:
        template: one text, or two texts (text, text_pair) that the tokenizer joins in its own way. `{prompt}` and
            `{completion}` stand for the texts; `{bos_token}`, `{eos_token}` and `{sep_token}` are the
            tokenizer's. Or `chat`: the conversation as the tokenizer's chat template writes it, with all its special
            tokens and without others.
        append_eos: add the tokenizer's EOS to the end of the text unless it ends with it, as TRL's RewardTrainer does
            in training.
        add_special_tokens: let the tokenizer add its special tokens, such as BOS or [CLS].
        label: the output that is the score, by its index or the name that the model's config has for it, or two of
            them (a, b) for `output[a] - output[b]`. Outputs are taken before any softmax or sigmoid.
        sign: 1, or -1 for an output that is a cost.
        system: the system prompt that a chat template begins with, in place of one in the data; None is the data's.
        max_length: longest input in tokens, where tokenizer and model allow more; None is the longest they allow.
        cut: which end of the prompt is cut when the input is too long. The completion is cut, at its end, only when
            nothing is left of the prompt.
    """

    template: str | tuple[str, str] = "{prompt}{completion}"
    append_eos: bool = False
    add_special_tokens: bool = True
    label: int | str | tuple[int, int] | tuple[str, str] = 0
    sign: int = 1
    max_length: int | None = None
    cut: str = "left"
    system: str | None = None

    def __post_init__(self) -> None:
        # JSON has no tuples.
        for name in ("template", "label"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.template == CHAT:
            if self.append_eos:
                raise ValueError(
                    "append_eos is true and the template is chat, which ends its text itself; leave it out"
                )
        else:
            self._check_texts()
            if self.system is not None:
                raise ValueError(
                    f"the system prompt is {self.system!r}, and the template {self.template!r} has no place for it; "
                    "write it into the template, or take template: chat"
                )
        if self.system is not None and not isinstance(self.system, str):
            raise ValueError(f"the system prompt is {self.system!r}; expected a text")
        labels = self.labels()
        if not 1 <= len(labels) <= 2 or not (all(map(_is_index, labels)) or all(map(_is_name, labels))):
            raise ValueError(
                f"the label is {self.label!r}; expected the index of an output, from 0, or its name, or two of them "
                "for a difference"
            )
        if self.sign not in (1, -1):
            raise ValueError(f"the sign is {self.sign!r}; expected 1, or -1 for an output that is a cost")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; expected a positive number of tokens, or None")
        if self.cut not in ("left", "right"):
            raise ValueError(f"cut is {self.cut!r}; expected 'left' or 'right', the end of the prompt that is cut")

    def _check_texts(self) -> None:
        if not all(isinstance(text, str) for text in self.texts()):
            raise ValueError(f"the template is {self.template!r}; expected chat, a text, or two texts")
        names = [name for text in self.texts() for name in _PLACEHOLDER.findall(text)]
        known = {"prompt", "completion", *SPECIAL_TOKENS}
        unknown = sorted(set(names) - known)
        if unknown:
            raise ValueError(
                f"the template {self.template!r} has the placeholders {unknown}; known are {sorted(known)}"
            )
        if "completion" not in names:
            raise ValueError(
                f"the template {self.template!r} has no {{completion}}; add it, it is what is scored, or write chat "
                "for the chat template of the reward model's tokenizer"
            )
        if isinstance(self.template, tuple) and len(self.template) != 2:
            raise ValueError(f"the template {self.template!r} has {len(self.template)} texts; expected one text or two")

    def texts(self) -> tuple[str, ...]:
        """The template as one or two texts."""
        return self.template if isinstance(self.template, tuple) else (self.template,)

    def with_changes(self, template: Any = None, label: Any = None, system: Any = None) -> Format:
        """The format with another template, label or system prompt, where one is given.

        A chat template ends its text itself; another one has no system prompt.
        """
        changes = {key: value for key, value in (("label", label), ("system", system)) if value is not None}
        if template is not None:
            kept = {
                "append_eos": self.append_eos and template != CHAT,
                "system": self.system if template == CHAT else None,
            }
            changes = {"template": template, **kept, **changes}
        return replace(self, **changes)

    def labels(self) -> tuple[int, ...] | tuple[str, ...]:
        """The label as one or two."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def render(self, prompt: str, completion: str, special_tokens: Mapping[str, str | None]) -> tuple[str, ...]:
        """The one or two texts to tokenize.

        The template is filled in one pass, so braces inside the texts are just characters.

        >>> Format("Q: {prompt} A: {completion}").render("{completion}", "x", {})
        ('Q: {completion} A: x',)

        Args:
            prompt: any text.
            completion: any text.
            special_tokens: the tokenizer's tokens by the names in `SPECIAL_TOKENS`; None where it has none.

        Raises:
            ValueError: the format needs a special token that the tokenizer does not have.
        """
        values = {**special_tokens, "prompt": prompt, "completion": completion}
        texts = [_PLACEHOLDER.sub(lambda match: _required(values, match[1]), text) for text in self.texts()]
        if self.append_eos and not texts[-1].endswith(eos := _required(values, "eos_token")):
            texts[-1] += eos
        return tuple(texts)


def write_settings(folder: str | Path, settings: Format) -> Path:
    """Write `reward_model.json` beside a model, so that it is scored as it was trained; returns the file's path."""
    path = Path(folder) / SETTINGS_FILE
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: {folder} is not a folder; save the model there first")
    said = {key: value for key, value in asdict(settings).items() if key != "system" or value is not None}
    path.write_text(json.dumps({"format": SETTINGS_FORMAT, **said}, indent=2) + "\n", encoding="utf-8")
    return path


def read_settings(folder: str | Path) -> Format | None:
    """What `reward_model.json` in `folder` says, or None if there is no such file.

    Raises:
        ValueError: the file is not JSON, of another format, or has unknown keys or bad values.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        return None
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); repair it or train the reward model again") from None
    if not isinstance(settings, dict) or settings.pop("format", None) != SETTINGS_FORMAT:
        raise ValueError(
            f"{path} is not of format {SETTINGS_FORMAT}; it was written by another version of this package"
        )
    unknown = sorted(set(settings) - {field.name for field in fields(Format)})
    if unknown:
        raise ValueError(f"{path} has the unknown keys {unknown}; known are {[field.name for field in fields(Format)]}")
    try:
        return Format(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _is_index(label: object) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and label >= 0


def _is_name(label: object) -> bool:
    return isinstance(label, str) and label != ""


def _required(values: Mapping[str, str | None], name: str) -> str:
    value = values.get(name)
    if value is None:
        raise ValueError(f"the text format needs the tokenizer's {name}, and this tokenizer has none; set {name} in it")
    return value
