"""Which rows a stage reads, as its config says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_lines import data
from rlhf_lines.config import from_json, read_fields
from rlhf_lines.data.splits import read_test_size


def sources(*names: str | None) -> list[str]:
    """Those of the names that are a file, a folder or a Hub id: a task is none, whatever folder is called alike."""
    return [name for name in names if name and name not in data.TASKS]


@dataclass
class DataConfig:
    """Where rows come from; docs/data.md has the sources and their columns."""

    dataset_name: str = field(
        metadata={
            "help": "A task (docstrings, docstring_sentences, tldr, hh_rlhf, news), a local JSONL or Parquet file, a "
            "folder of them, or a Hub id."
        }
    )
    dataset_path: str | None = field(
        default=None,
        metadata={"help": "Where the rows of a task are, in place of its Hub id: a file, a folder, or a Hub id."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "How the prompts of a file, a folder or a Hub id are written: plain, hh or summary."},
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave out rows whose prompt has more tokens than this."}
    )

    test_size: float | int | str | None = field(
        default=None,
        metadata={
            "help": "How much of a source without test and validation splits is held out for each of them: a share (of "
            "at most 0.5; 0.1 if nothing is given), a number of prompts, or all: all of it is test.",
            "parse": read_test_size,
        },
    )

    def __post_init__(self) -> None:
        read_fields(self)

    @property
    def sources(self) -> list[str]:
        """What names a file, a folder or a Hub id."""
        return sources(self.dataset_path, self.dataset_name)

    def load(
        self,
        kind: str,
        split: str,
        tokenizer,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        with_turns: bool = False,
    ):
        """The rows that the settings describe; see `rlhf_lines.data.load`."""
        settings = {"chat_template_kwargs": chat_template_kwargs, "with_turns": with_turns, **vars(self)}
        return data.load(kind=kind, split=split, tokenizer=tokenizer, **settings)


def read_settings(value: object) -> dict[str, Any] | None:
    """`chat_template_kwargs` from a mapping, or from the JSON of one.

    Raises:
        ValueError: it is neither.
    """
    value = from_json("chat_template_kwargs", value)
    if not (value is None or isinstance(value, dict)):
        raise ValueError(f"chat_template_kwargs is {value!r}, expected a mapping")
    return value


@dataclass
class ChatTemplateConfig:
    """How the tokenizer's chat template is set, in stages of which TRL has no such setting."""

    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Settings of the tokenizer's chat template, such as '{\"enable_thinking\": false}'; the same in "
            "every stage.",
            "parse": read_settings,
        },
    )


@dataclass
class PromptDataConfig(ChatTemplateConfig, DataConfig):
    """Which prompts a sweep or statistics read."""


@dataclass
class TrainingDataConfig(DataConfig):
    """Which rows a training stage reads."""

    max_samples: int | None = field(default=None, metadata={"help": "Read only the first so many rows."})


@dataclass
class DemonstrationDataConfig(ChatTemplateConfig, TrainingDataConfig):
    """Which demonstrations an SFT model is trained on."""


@dataclass
class PreferenceDataConfig(TrainingDataConfig):
    """Which pairs a reward model is trained on."""

    preference: str | None = field(
        default=None,
        metadata={
            "help": "Which preference of the task, where it has several (docstrings: brief, specific; hh_rlhf: "
            "harmless-base, helpful-base, helpful-online, helpful-rejection-sampled)."
        },
    )
