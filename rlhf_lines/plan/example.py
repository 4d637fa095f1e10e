"""The first row of a stage as everybody will read it, where the data and the tokenizers are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reward_models import Comparer, FunctionReward, RemoteReward
from reward_models.encoder import Encoder
from rlhf_lines.example import Reading, as_text, policy_reading, reward_reading, stand_in
from rlhf_lines.scoring import Asked


if TYPE_CHECKING:
    from rlhf_lines.plan.plan import Plan
    from rlhf_lines.plan.rewards import RewardPlan
    from rlhf_lines.plan.rows import Rows
    from rlhf_lines.train.config import RewardTextConfig

NOT_HERE = "(its tokenizer is not here yet)"


def show_prompts(plan: Plan, rows: Rows, rewards: Sequence[RewardPlan]) -> None:
    """Put a prompt as the policy and the reward models read it into a plan, and what is assumed of the latter.

    Functions and services are not called, and what they would be given is shown.
    """
    plan.notes += [reward.guessed for reward in rewards if reward.guessed is not None]
    if rows.first is None:
        plan.notes.append("the data set is not here: the run itself shows its first row as it is read")
        return
    prompt, asked = rows.first["prompt"], Asked.of(rows.first)
    if rows.tokenizer is None:
        found, completion = [Reading("policy", NOT_HERE)], "..."
    else:
        found = [policy_reading(rows.tokenizer, rows.tokenizer(prompt)["input_ids"])]
        completion = stand_in(rows.tokenizer, prompt, asked).text
    for reward in rewards:
        if reward.reader is None:
            found.append(Reading(f"reward {reward.name}", NOT_HERE))
        else:
            found.append(reward_reading(reward.name, reward.reader, asked, completion))
        if isinstance(reward.reader, FunctionReward):
            of_run = ["completion_ids", "log_extra", "log_metric", *(["trainer_state"] if plan.stage == "ppo" else [])]
            reward.reader.check_form([*asked.columns, *of_run])
        elif isinstance(reward.reader, RemoteReward | Comparer):
            reward.reader.check_form(list(asked.columns))
    plan.example = as_text(found, stands_in=True)


def show_pair(plan: Plan, rows: Rows, text_config: RewardTextConfig, config) -> None:
    """Put both texts of a pair as the reward model reads them into the plan of its training."""
    if rows.first is None or rows.tokenizer is None:
        return
    if rows.tokenizer.eos_token is None:  # as the stage does
        rows.tokenizer.eos_token = rows.tokenizer.sep_token
    encoder = Encoder(config, rows.tokenizer, text_config.format(), name="reward model")
    asked = Asked(rows.first["prompt"], rows.first.get("conversation"))
    sides = ("chosen", "rejected")
    plan.example = as_text([reward_reading(side, encoder, asked, rows.first[side]) for side in sides])


def show_demonstration(plan: Plan, rows: Rows) -> None:
    """Put a demonstration as the policy will read it into a plan."""
    if rows.first is None or rows.tokenizer is None:
        return
    row, tokenizer = rows.first, rows.tokenizer
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"]
    elif isinstance(row["prompt"], str):
        text = row["prompt"] + row["completion"]
        ends = text.endswith(tokenizer.eos_token or "")
        ids = tokenizer(text if ends else text + tokenizer.eos_token)["input_ids"]
    else:
        ids = chat_ids(tokenizer, row)
    plan.example = as_text([policy_reading(tokenizer, ids)])


def chat_ids(tokenizer, row: Mapping[str, Any]) -> list[int]:
    """The tokens of a demonstration whose prompt and completion are messages."""
    settings = row.get("chat_template_kwargs") or {}
    messages = [*row["prompt"], *row["completion"]]
    return tokenizer.apply_chat_template(messages, return_dict=True, **settings)["input_ids"]
