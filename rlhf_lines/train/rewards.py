"""The rewards that `PPOTrainer` is given: read, checked, and in the form in which TRL calls them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from reward_models import RULES, Classifier, FunctionReward, RewardModel
from reward_models.base import excerpt
from rlhf_lines.errors import about
from rlhf_lines.scoring import Asked, score
from rlhf_lines.task_rewards import RewardEntry, check_names, check_some, check_weights, load_reward_models
from rlhf_lines.train.ppo_config import PPOConfig


Reward = RewardModel | Callable[..., Any] | str | os.PathLike


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_turns(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in value
    )


def _is_prompt(value: object) -> bool:
    return _is_text(value) or _is_turns(value)


# What the columns that have a meaning of their own hold, where they hold something.
_EXPECTED = {
    "prompt": ("a text or turns (mappings with role and content)", _is_prompt),
    "scored_prompt": ("a text or turns (mappings with role and content)", _is_prompt),
    "conversation": ("turns (mappings with role and content)", _is_turns),
    "blank": ("a text", _is_text),
}
# What TRL gives a reward function beside the columns of the data.
_OF_RUN = ("completion_ids", "trainer_state", "log_extra", "log_metric")


def given_rewards(given: object, args: PPOConfig, sets: Sequence[str] = ()) -> list[RewardModel]:
    """The reward models that stand for what a user gives: such models, functions, and texts of a config or paths.

    Args:
        given: one, or a list of them.
        args: settings of the run.
        sets: the names of the data sets of an evaluation, where there are several.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is none, one cannot be taken, two have one name, or `reward_weights` or
            `metric_for_best_model` does not fit them.
    """
    items = list(given) if isinstance(given, list | tuple) else [given]
    check_some(items)
    found = [_reward(item, trust_remote_code=args.trust_remote_code) for item in items]
    names = [model.name for model in found]
    try:
        check_names(names)
    except ValueError as error:
        equal = any(isinstance(model, FunctionReward) and names.count(model.name) > 1 for model in found)
        raise ValueError(f"{error}{', as FunctionReward(function, name=...) does' * equal}") from error
    args.check_metric(names, sets)
    if args.reward_weights is not None:
        check_weights(args.reward_weights, len(found))
    return found


def check_shown(models: Sequence[RewardModel], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Stop where a reward model cannot read what it would be shown of rows.

    Args:
        models: the reward models.
        rows: of the data, by what the data set is called.

    Raises:
        ValueError: a row has no prompt, a column has a name that is taken or holds another type, a model reads texts
            and the prompt is a conversation, or a function asks for what the data has not.
    """
    for name, row in rows.items():
        try:
            _check_row(models, row)
        except ValueError as error:
            raise ValueError(f"the first row of {name}: {error}") from error


def _check_row(models: Sequence[RewardModel], row: Mapping[str, Any]) -> None:
    if "prompt" not in row:
        raise ValueError(f"the data has the columns {', '.join(sorted(row))}, expected a column prompt: rename one")
    taken = [name for name in ("prompts", "completions", *_OF_RUN) if name in row]
    if taken:
        raise ValueError(
            f"the data has the column {taken[0]}, a name by which functions are given what is of the rollout: rename it"
        )
    for name, (what, fits) in _EXPECTED.items():
        value = row.get(name)
        if not fits(value) and (value is not None or name == "prompt"):
            raise ValueError(
                f"the column {name} of the data holds {excerpt(value)}, expected {what}: mend it"
                f"{', or rename it' * (name != 'prompt')}"
            )
    with about("the column columns of the data, which is a JSON text of further columns, cannot be read"):
        asked = Asked.of(row)
    for model in models:
        if not isinstance(asked.text, str) and not getattr(model, "reads_turns", False):
            raise ValueError(
                f"reward {model.name!r} reads texts, but the data has the prompt {excerpt(asked.text)}: "
                f"{_way_to_turns(model)}add a column scored_prompt of texts"
            )
        if isinstance(model, FunctionReward):
            model.check_form([*asked.columns, *_OF_RUN])


def _way_to_turns(model: RewardModel) -> str:
    """How a reward model that reads texts comes to read turns, if it can."""
    ways = {
        FunctionReward: "make it FunctionReward(function, template='chat'), which is given turns, or ",
        Classifier: "load it with template='chat', or ",
    }
    is_own = not hasattr(model, "reads_turns") and not isinstance(model, tuple(RULES.values()))
    return ways.get(type(model), "set reads_turns = True on it if its score takes turns, or " * is_own)


def reward_function(reward_model: RewardModel) -> Callable[..., list[float]]:
    """A reward function of TRL's form, which stops at a score that is no number.

    Columns of the data say what reward models are shown in place of the policy's prompt; see `scoring.Asked`.
    """

    def scored(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **of_rows):
        rows = [{name: of_rows[name][i] for name in of_rows} | {"prompt": text} for i, text in enumerate(prompts)]
        of_run = {"trainer_state": trainer_state, "log_extra": log_extra, "log_metric": log_metric}
        return score(reward_model, [Asked.of(row) for row in rows], completions, completion_ids, **of_run)

    scored.__name__ = reward_model.name
    return scored


def _reward(item: object, *, trust_remote_code: bool) -> RewardModel:
    """What one item stands for; a model of torch is also callable, and one of ours need not be."""
    if isinstance(item, str | os.PathLike):
        return load_reward_models([RewardEntry(os.fspath(item))], trust_remote_code=trust_remote_code)[0]
    if isinstance(item, RewardModel) and not isinstance(item, type):  # which has the names that its objects have
        return item
    if callable(item) and not isinstance(item, nn.Module | type):
        plain = item.func if isinstance(item, functools.partial) else item
        return FunctionReward(item, name=getattr(plain, "__name__", type(plain).__name__))
    hint = ", as reward_models.load or Classifier.from_pretrained make one of its folder" * isinstance(item, nn.Module)
    hint += f", as {item.__name__}(...) makes one" if isinstance(item, type) else ""
    raise ValueError(
        f"reward_models holds {excerpt(item)}, expected reward models{hint}: objects with a name and a method score, "
        "functions, or texts such as rule:length"
    )
