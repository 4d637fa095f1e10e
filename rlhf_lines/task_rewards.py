"""The reward models of a run, shown what its task shows them."""

from __future__ import annotations

from collections.abc import Sequence

import reward_models
from reward_models import RewardModel
from rlhf_lines import data


class TaskReward:
    """A reward model that reads the task's version of a prompt: of a TL;DR prompt, for instance, the post alone."""

    def __init__(self, reward_model: RewardModel, dataset_name: str) -> None:
        self.name = reward_model.name
        self._reward_model, self._dataset_name = reward_model, dataset_name

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Return one score per pair; higher is better."""
        return self._reward_model.score(data.scored_prompts(self._dataset_name, prompts), completions)


def load_reward_models(sources: Sequence[str], dataset_name: str, *, batch_size: int = 32) -> list[TaskReward]:
    """Return the reward models that the sources name, in their order.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a source is nothing that can be loaded, or two have one name.
    """
    models = [TaskReward(reward_models.load(source, batch_size=batch_size), dataset_name) for source in sources]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"reward_models have the names {', '.join(names)}: two are equal, so rename a folder")
    return models
