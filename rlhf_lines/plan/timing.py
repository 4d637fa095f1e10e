"""The seconds of a stage's parts: how many passes it has, and what each takes in a trial on this machine.

Completions count as those of the data, and as the longest where it has none. Every update counts as taken: a run takes
less where `max_update_kl` leaves some out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from rlhf_lines.plan.rewards import RewardPlan
from rlhf_lines.plan.time import Tokens, padded, written
from rlhf_lines.plan.trial import Trial, judging, learning, reading, shortened, writing


MOST_ROWS = 64  # of a trial of writing; more of them take as many times as long
WORDS_AT_ONCE = 32768  # of TRL's tiles of logits, where PPO does not set its own


if TYPE_CHECKING:
    from rlhf_lines.plan.plan import Plan

STARTING, EVALUATION = "starting and loading", "evaluations"  # which no plan counts


@dataclass(frozen=True)
class Rollouts:
    """Completions that are sampled, of all batches of a process.

    Attributes:
        completions: how many.
        batch: of them at once.
        prompt: tokens of a padded prompt.
        mean: tokens of a completion, in the mean.
        longest: tokens of the longest completion of a batch, in the mean.
    """

    completions: int
    batch: int
    prompt: int
    mean: float
    longest: float

    @classmethod
    def of(cls, completions: int, batch: int, prompt: int, most: int, lengths: Sequence[int]) -> Rollouts:
        """Completions that are as long as those of the data, and at most `most` tokens, or else all so long."""
        batch = max(1, min(batch, completions))
        cut = [min(length, most) for length in lengths] or [most]
        return cls(completions, batch, prompt, statistics.mean(cut), padded(cut, batch))

    @property
    def tokens(self) -> int:
        """How many are drawn."""
        return math.ceil(self.completions * self.mean)

    @property
    def texts(self) -> Tokens:
        """Prompts with their completions, padded to the longest of a batch."""
        return Tokens(self.completions, self.prompt + math.ceil(self.longest))


def sampled(trial: Trial, rollouts: Rollouts, *, distinct: int | None = None, policies: bool = False) -> float:
    """The seconds in which prompts are read and completions are drawn, token by token.

    Args:
        trial: of the policy.
        rollouts: what is sampled.
        distinct: how many rows of a batch have noise of their own; None is all of them.
        policies: whether the rows are policies of a sweep.
    """
    rows = min(rollouts.batch, MOST_ROWS)
    noises = max(1, min(rows, (distinct or rollouts.batch) * rows // rollouts.batch))
    length = rollouts.prompt + math.ceil(rollouts.mean / 2)
    step = trial.seconds(partial(writing, tokens=Tokens(rows, length), distinct=noises))
    one = trial.seconds(partial(writing, tokens=Tokens(1, length), distinct=1))
    of_batch = {"batch": rollouts.batch, "steps": rollouts.longest, "mean": rollouts.mean}
    prompts = trial.seconds_of(partial(reading, policies=policies), Tokens(rollouts.completions, rollouts.prompt))
    return prompts + rollouts.completions / rollouts.batch * written(one, step, rows, **of_batch)


def judged(
    trial: Trial, texts: Tokens, positions: int, *, tile: int, learns: bool = False, policies: bool = False
) -> float:
    """The seconds in which texts are read, forward or forward and back, and so many of their tokens are judged.

    Args:
        trial: of the policy.
        texts: which are read.
        positions: how many tokens the head judges.
        tile: words that it takes at once.
        learns: whether the passes go back.
        policies: whether the rows are policies of a sweep.
    """
    through = trial.seconds_of(learning if learns else partial(reading, policies=policies), texts)
    head = partial(judging, tile=tile, learns=learns)
    return through + (trial.seconds_of(head, Tokens(positions, 1), through_layers=False) if positions else 0.0)


def scored(rewards: Sequence[RewardPlan], texts: Tokens, *, device: str) -> float:
    """The seconds in which reward models read so many texts."""
    total = 0.0
    for reward in rewards:
        if reward.model is None:
            continue
        config, dtype = reward.model.config, str(next(reward.model.parameters()).dtype).removeprefix("torch.")
        make = reward.make
        trial = Trial(
            lambda depth: make(shortened(config, depth), dtype=dtype),  # noqa: B023 (called here)
            config.get_text_config().num_hidden_layers,
            device=device,
        )
        length = reward.length(texts.length)
        if reward.reasoning:
            written = Rollouts(texts.rows, reward.batch_size, length, reward.reasoning, reward.reasoning)
            total += sampled(trial, written)
        total += trial.seconds_of(reading, texts._replace(length=length + reward.reasoning))
    return total


def functions(rewards: Sequence[RewardPlan]) -> list[str]:
    """What is said of rewards that are no models: only a run tells how long they take."""
    return [f"reward {reward.name}" for reward in rewards if reward.model is None]


def tell_time(plan: Plan, add: Callable[[], None], *, bits: int, why_not: str | None = None) -> None:
    """Put the seconds of a stage into its plan, or why there are none.

    Args:
        plan: of the stage.
        add: puts them in; a ValueError says that no model of few layers can be tried.
        bits: 8 or 4 where weights are held in so few.
        why_not: what else stands against it, or None.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        why_not = "it is for a GPU, and none is here"
    elif bits in (4, 8):
        why_not = f"weights in {bits} bits are not tried"
    if why_not is None:
        try:
            add()
            return
        except ValueError as error:
            plan.seconds, why_not = {}, str(error)
    plan.untimed = [why_not]


def supposed(rollouts: Rollouts, lengths: Sequence[int]) -> str:
    """What a plan says of the completions that it counted with."""
    if not lengths:
        return "time: as if no completion ended early"
    return f"time: as if completions were those of the data, {rollouts.mean:.0f} tokens in the mean"
