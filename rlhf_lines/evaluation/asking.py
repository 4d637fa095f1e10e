"""What is asked, and how: values that processes hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rlhf_lines.evaluation.models import Described
from rlhf_lines.merge import MergeSpec


@dataclass(frozen=True)
class Asking:
    """How tasks are asked.

    Attributes:
        limit: how many documents of each task, the first; None is all.
        num_fewshot: examples before each question; None is what the task says.
        apply_chat_template: whether questions are put into the tokenizer's chat template.
        system_instruction: what comes before everything else; in the chat template the system's turn. None is nothing.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None


class Preparation(NamedTuple):
    """What comes before questions: the models are opened, and these tasks loaded."""

    models: Described
    tasks: list[str]


class Question(NamedTuple):
    """One task for the merged policy of one spec."""

    spec: MergeSpec
    task: str
