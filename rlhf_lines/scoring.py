"""What reward models are shown of the rows of a run, and what they say: one way for training, sweeps and `score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from reward_models import RULES, Classifier, RemoteReward, RewardModel
from reward_models.base import checked_scores
from reward_models.conversation import Prompt, Turn
from reward_models.encoder import Encoder
from rlhf_lines.data.templates import said, with_blank


# Columns of a row with a meaning of their own; the last two are what TRL itself gives a reward function.
RESERVED = ("prompt", "scored_prompt", "conversation", "blank", "columns", "completion", "completion_ids")


class Asked(NamedTuple):
    """What may be shown of a prompt.

    Attributes:
        text: in the template of the data.
        conversation: its turns, for reward models that read turns; None where the data has none.
        columns: the other columns of its row, for functions that ask for them.
        blank: what a classifier reads between `text` and a completion that begins with none: a chat model's, whose turn
            does not, while the texts do that classifiers are trained on.
    """

    text: str
    conversation: Sequence[Turn] | None = None
    columns: Mapping[str, Any] = MappingProxyType({})
    blank: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Asked:
        """What a row of kind `prompts` says; where it is of another source, its prompt is what is shown.

        Of such a row all columns are shown that have no meaning of their own, as TRL's trainers show them.
        """
        shown = row.get("scored_prompt")
        columns = {name: value for name, value in row.items() if name not in RESERVED}
        columns |= json.loads(row.get("columns") or "{}")
        text = row["prompt"] if shown is None else shown
        return cls(text, row.get("conversation"), columns, row.get("blank") or "")


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
    pairs = [shown(model, one, text) for one, text in zip(asked, completions, strict=True)]
    prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    if not getattr(model, "reads_columns", False):
        return checked_scores(model.name, model.score(prompts, texts), prompts)
    names = dict.fromkeys(name for one in asked for name in one.columns)
    columns = {name: [one.columns.get(name) for one in asked] for name in names}
    ids = [list(tokens) for tokens in completion_ids]
    # TRL's trainers take notes from functions; where no trainer is, nobody does.
    unheard = {"log_extra": _unheard, "log_metric": _unheard}
    return model.score(prompts, texts, {**columns, **unheard, **of_run, "completion_ids": ids})


def shown(model: Any, asked: Asked, completion: str) -> tuple[Prompt, str]:
    """What a reward model, or the encoder of one, is given as prompt and completion.

    The prompt is its turns where the model reads those, else a text: to classifiers and functions that of the data's
    template, to rules what was said in it. What a classifier or a service reads as a completion is one text with the
    prompt.
    """
    if getattr(model, "reads_turns", False):
        return asked.text if asked.conversation is None else asked.conversation, completion
    if isinstance(model, Classifier | Encoder | RemoteReward):
        return asked.text, with_blank(asked.blank, completion)
    if isinstance(model, tuple(RULES.values())):
        return said(asked.text), completion
    return asked.text, completion


def _unheard(name: str, value: Any) -> None:
    """Nothing is done with what a function notes."""
