"""Which rows a stage reads, as its config says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lines import data


@dataclass
class DataConfig:
    """Where rows come from; docs/data.md has the sources and their columns."""

    dataset_name: str = field(
        metadata={
            "help": "A task (docstrings, tldr, hh_rlhf, news), a local JSONL or Parquet file, a folder of them, "
            "or a Hub id."
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

    def load(self, kind: str, split: str, tokenizer):
        """The rows that the settings describe; see `rlhf_lines.data.load`."""
        return data.load(kind=kind, split=split, tokenizer=tokenizer, **vars(self))


@dataclass
class TrainingDataConfig(DataConfig):
    """Which rows a training stage reads."""

    max_samples: int | None = field(default=None, metadata={"help": "Read only the first so many rows."})


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
