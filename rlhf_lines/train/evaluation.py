"""What an evaluation of PPO says: numbers of all its completions at once, so that no batch size changes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


FOLDER = "eval_completions"


# What `completion_rows` has of each completion, and `evaluation_metrics` takes, in this order; the last six are sums
# over its tokens.
COLUMNS = (
    *("scores", "rewards", "kl", "lengths", "ends", "terminated"),
    *("returns", "squares", "errors", "squared_errors", "advantages", "entropies"),
)


def completion_rows(
    scores: Tensor,
    rewards: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    ends: Tensor,
    terminated: Tensor,
    returns: Tensor,
    values: Tensor,
    advantages: Tensor,
    entropies: Tensor,
) -> Tensor:
    """One row of numbers per completion, `[B, COLUMNS]`, from which `evaluation_metrics` makes its means.

    Args:
        scores: weighted and normalised, `[B]`.
        rewards: what PPO maximises, per completion, `[B]`.
        kl: to the SFT model, per completion, `[B]`.
        mask: of the completions, `[B, T]`.
        ends: whether an end token ends a completion, `[B]`.
        terminated: the same, a pad token included, `[B]`.
        returns: `[B, T]`.
        values: `[B, T]`.
        advantages: not whitened, `[B, T]`.
        entropies: of the distribution that each token was drawn from, `[B, T]`.
    """
    mask = mask.double()
    of_tokens = (returns.double(), values.double(), advantages.double(), entropies.double())
    returns, values, advantages, entropies = (x * mask for x in of_tokens)
    errors = returns - values
    sums = (returns, returns**2, errors, errors**2, advantages, entropies)
    columns = [scores, rewards, kl, mask.sum(dim=1), ends, terminated, *(x.sum(dim=1) for x in sums)]
    return torch.stack([column.double() for _, column in zip(COLUMNS, columns, strict=True)], dim=1)


def evaluation_metrics(
    rows: Tensor, scores: Tensor, names: Sequence[str], *, vf_coef: float, whitened: bool
) -> dict[str, float]:
    """The numbers of a rollout, of a whole evaluation.

    An evaluation makes no update: ratios are 1, nothing is clipped. Its loss is that of the policy as it sampled:
    minus the mean advantage, which is 0 where advantages are whitened, and `vf_coef` times the value loss.

    Args:
        rows: of `completion_rows`, of all completions, `[N, columns]`.
        scores: raw, `[N, rewards]`.
        names: of the rewards.
        vf_coef: weight of the value loss.
        whitened: whether advantages are.
    """
    of = dict(zip(COLUMNS, rows.unbind(1), strict=True))
    total, rewards, kl, lengths, ends, terminated = (of[name] for name in COLUMNS[:6])
    returns, squares, errors, squared_errors, advantages, entropy = (of[name].sum().item() for name in COLUMNS[6:])
    tokens = lengths.sum().item()
    value_loss = 0.5 * squared_errors / tokens
    unexplained = squared_errors - errors**2 / tokens
    finished = lengths[terminated.bool()]
    finished = finished if len(finished) else lengths.new_zeros(1)
    found = {
        "loss": vf_coef * value_loss - (0.0 if whitened else advantages / tokens),
        "reward": total.mean().item(),
        "reward_std": _std(total),
        "reward_minus_kl": rewards.mean().item(),
        "kl": kl.mean().item(),
        "eos_rate": ends.mean().item(),
        "entropy": entropy / tokens,
        "value_loss": value_loss,
        "explained_variance": 1 - unexplained / max(squares - returns**2 / tokens, 1e-8),
        "completions/clipped_ratio": 1 - terminated.mean().item(),
    }
    for prefix, some in (("", lengths), ("terminated_", finished)):
        for name, x in (("mean", some.mean()), ("min", some.min()), ("max", some.max())):
            found[f"completions/{name}_{prefix}length"] = x.item()
    for name, column in zip(names, scores.double().unbind(1), strict=True):
        found |= {f"rewards/{name}/mean": column.mean().item(), f"rewards/{name}/std": _std(column)}
    return found


def metric_names(rewards: Sequence[str]) -> list[str]:
    """What an evaluation says of a policy, with these names of rewards."""
    nothing = torch.ones(1, len(COLUMNS)), torch.ones(1, len(rewards))  # one row of `completion_rows`, and its scores
    of_run = ("kl_coef", "num_tokens", *(f"rewards/{name}/truncated" for name in rewards))
    return [*evaluation_metrics(*nothing, rewards, vf_coef=0.0, whitened=True), *of_run]


def write_completions(folder: Path, step: int, logs: Mapping[str, Any], count: int) -> None:
    """Write the completions of an evaluation, apart from those of training.

    Args:
        folder: `eval_completions/` of the run, or the part of it that is of one of several data sets.
        step: the update after which it was.
        logs: lists of texts and numbers, as GRPOTrainer collects them.
        count: how many there are; what is beyond was read a second time to fill the last batch.
    """
    import pandas

    columns = {"prompt": logs["prompt"], "completion": logs["completion"], **logs["rewards"], **logs["extra"]}
    table = {name: list(column)[:count] for name, column in columns.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"completions_{step:05d}.parquet"
    pandas.DataFrame({"step": [step] * len(table["prompt"]), **table}).to_parquet(path)


def _std(x: Tensor) -> float:
    return x.std(correction=1).item() if len(x) > 1 else math.nan
