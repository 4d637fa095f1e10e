"""What is logged of the minibatches and rollouts since the last time: one number per name.

TRL takes the mean over whatever was noted. Minibatches and rollouts differ in their tokens, and the smallest of all is
no mean of the smallest of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from reward_models.base import excerpt
from rlhf_lines.train.evaluation import metric_names


TOKENS = "minibatch/tokens"  # of a minibatch of all processes, noted beside its numbers, and not logged
_PER_TOKEN = (
    *("value_loss", "value_clip_ratio", "update_kl", "entropy"),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
)
_SMALLEST = ("clip_ratio/low_min", "completions/min_length", "sampling/importance_sampling_ratio/min")
_LARGEST = (
    *("clip_ratio/high_max", "completions/max_length"),
    *("sampling/importance_sampling_ratio/max", "sampling/sampling_logp_difference/max"),
)
_CLIPPED = "completions/clipped_ratio"  # the share of a rollout's completions without an end
_OF_TERMINATED = "completions/{}_terminated_length"
_OF_RUN = (
    *("loss", "policy_loss", "aux_loss", "entropy_coef", "grad_norm", "learning_rate", "epoch", "step"),
    *("step_time", "tokens_per_second", "frac_reward_zero_std"),
    *("sampling/importance_sampling_ratio/mean", "sampling/sampling_logp_difference/mean"),
)


def of_window(noted: Mapping[str, Sequence[float]]) -> defaultdict[str, list[float]]:
    """The numbers of all minibatches and rollouts together, where their mean is not it; the others as they were noted.

    Numbers per token are weighed by tokens. Of the smallest and largest numbers the smallest and largest one counts,
    and of completions that have ended those of rollouts in which one has.

    Args:
        noted: a number of each minibatch or rollout, by name, with `TOKENS`.

    >>> noted = {"value_loss": [1.0, 4.0], TOKENS: [2.0, 1.0], "completions/min_length": [3.0, 2.0], "kl": [1.0, 2.0]}
    >>> dict(of_window(noted))
    {'value_loss': [2.0], 'completions/min_length': [2.0], 'kl': [1.0, 2.0]}
    """
    found = defaultdict(list, {name: list(values) for name, values in noted.items() if name != TOKENS})
    for name in _PER_TOKEN:
        if name in found:
            found[name] = [_mean(found[name], noted[TOKENS])]
    for names, extreme in ((_SMALLEST, min), (_LARGEST, max)):
        for name in names:
            if name in found:
                found[name] = [extreme(found[name])]
    ended = [1 - share for share in noted.get(_CLIPPED, ())]
    for kind, extreme in (("mean", None), ("min", min), ("max", max)):
        name = _OF_TERMINATED.format(kind)
        lengths = [length for length, share in zip(noted.get(name, ()), ended, strict=False) if share > 0]
        if lengths:  # else each is 0
            weights = [share for share in ended if share > 0]
            found[name] = [_mean(lengths, weights) if extreme is None else extreme(lengths)]
    return found


def check_noted(names: Iterable[str], rewards: Sequence[str]) -> None:
    """Stop where reward functions note a number under a name of PPO's own: the two would be mixed.

    Args:
        names: what functions have noted.
        rewards: the names of the rewards.

    Raises:
        ValueError: a name is PPO's.
    """
    strayed = [f"rewards/{name}/strayed" for name in rewards]
    own = {TOKENS, *_PER_TOKEN, *_SMALLEST, *_LARGEST, *_OF_RUN, *metric_names(rewards), *strayed}
    for name in names:
        if name in own:
            raise ValueError(
                f"a reward function notes {excerpt(name)} by log_metric, a name under which PPO notes a number of its "
                "own: choose another one"
            )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
