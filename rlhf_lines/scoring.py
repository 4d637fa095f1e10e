"""What reward models are shown of the rows of a run, and what they say: one way for training, sweeps and `score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from reward_models import FunctionReward, RewardModel
from reward_models.base import checked_scores
from reward_models.conversation import Prompt, Turn


class Asked(NamedTuple):
    """What may be shown of a prompt.

    Attributes:
        text: in the template of the data.
        conversation: its turns, for reward models that read turns; None where the data has none.
        columns: the other columns of its row, for functions that ask for them.
    """

    text: str
    conversation: Sequence[Turn] | None = None
    columns: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Asked:
        """What a row of kind `prompts` says; where it is of another source, its prompt is what is shown."""
        shown = row.get("scored_prompt")
        columns = json.loads(row.get("columns") or "{}")
        return cls(row["prompt"] if shown is None else shown, row.get("conversation"), columns)


def score(
    model: RewardModel,
    asked: Sequence[Asked],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    **of_run: Any,
) -> list[float]:
    """One finite score per completion, in order.

    Args:
        model: the reward model.
        asked: what the completions answer.
        completions: their texts.
        completion_ids: their tokens, which functions may ask for.
        **of_run: what functions may ask for besides, of all rows together.

    Raises:
        ValueError: a score is no finite number, or the model cannot score a row.
    """
    prompts = [shown_prompt(model, one) for one in asked]
    if not isinstance(model, FunctionReward):
        return checked_scores(model.name, model.score(prompts, list(completions)), prompts)
    names = dict.fromkeys(name for one in asked for name in one.columns)
    columns = {name: [one.columns.get(name) for one in asked] for name in names}
    ids = [list(tokens) for tokens in completion_ids]
    # TRL's trainers take notes from functions; where no trainer is, nobody does.
    unheard = {"log_extra": _unheard, "log_metric": _unheard}
    return model.score(prompts, list(completions), {**unheard, **of_run, **columns, "completion_ids": ids})


def shown_prompt(model: Any, asked: Asked) -> Prompt:
    """What a reward model, or its encoder, is given as the prompt: turns where it reads those, else the text."""
    reads_turns = getattr(model, "reads_turns", False)
    return asked.conversation if reads_turns and asked.conversation is not None else asked.text


def _unheard(name: str, value: Any) -> None:
    """Nothing is done with what a function notes."""
