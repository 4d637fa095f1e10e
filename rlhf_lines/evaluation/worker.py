"""What every process does while points are asked: one point and one task at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from rlhf_lines.evaluation import harness
from rlhf_lines.evaluation.asking import Asking, Preparation, Question
from rlhf_lines.evaluation.models import open_models
from rlhf_lines.sweep.engines.local import LocalEngine


if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict
    from transformers import PreTrainedTokenizerBase


class Worker:
    """Asks, on the one loaded base of its process; a context manager, which closes the models.

    Args:
        asking: how tasks are asked.
        include_path: a folder of further task configs.
        batch_size: texts in one pass; None is what fits.
    """

    def __init__(self, asking: Asking, include_path: str | Path | None, batch_size: int | None) -> None:
        self._asking, self._include_path, self._batch_size = asking, include_path, batch_size
        self._open = contextlib.ExitStack()
        self._engine: LocalEngine | None = None
        self._model: harness.LoadedModel | None = None
        self._tasks: Mapping[str, TaskDict] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, job: Preparation | Question) -> dict[str, Any] | None:
        """What `ask` finds; None of a preparation, which is the first job.

        Raises:
            FileNotFoundError, ValueError: as `open_models`, `load_tasks` and `ask`.
        """
        if isinstance(job, Preparation):
            return self._prepare(job)
        with self._engine.following(job.spec):
            return harness.ask(self._model, job.task, self._tasks[job.task], self._asking)

    def _prepare(self, job: Preparation) -> None:
        self._engine = self._open.enter_context(open_models(job.models))
        self._check_template()
        self._tasks = harness.load_tasks(job.tasks, self._asking, self._include_path)
        self._model = harness.LoadedModel(self._engine.multi_lora.model, self._engine.tokenizer, self._batch_size)

    def _check_template(self) -> None:
        if not self._asking.apply_chat_template:
            return
        if self._engine.tokenizer.chat_template is None:
            raise ValueError(
                "apply_chat_template is given, but the SFT model's tokenizer has no chat template: leave it out"
            )
        instruction = self._asking.system_instruction
        if instruction is not None and not _shows_system(self._engine.tokenizer, instruction):
            raise ValueError(
                "system_instruction is given, but the chat template of the SFT model's tokenizer has no turn of the "
                "system: leave it out, or apply_chat_template"
            )


def _shows_system(tokenizer: PreTrainedTokenizerBase, instruction: str) -> bool:
    """Whether a conversation in the tokenizer's template has what the system says."""
    turns = [{"role": "system", "content": instruction}, {"role": "user", "content": "x"}]
    try:
        return instruction.strip() in tokenizer.apply_chat_template(turns, tokenize=False)
    except jinja2.TemplateError:  # as templates refuse a role
        return False
