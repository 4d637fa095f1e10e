"""Soups: weights of the rule `linear` that come from a recipe rather than from a preference.

A recipe needs nothing (`uniform_soup`, `wise_ft`), validation scores (`greedy_soup`), or what a trainer has written
beside the checkpoints of one run (`checkpoint_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.merge.spec import MergeSpec


STATE_FILE = "trainer_state.json"
METRICS = ("step", "loss")  # of a checkpoint, in that file


def uniform_soup(count: int) -> MergeSpec:
    """The mean of `count` policies: weights 1/K.

    Source: arXiv 2203.05482, uniform soup.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least one policy")
    return MergeSpec("linear", (1 / count,) * count)


def wise_ft(a: float) -> MergeSpec:
    """One policy, moved back towards the SFT model: theta = (1 - a) theta_SFT + a theta_1.

    The same as LiNeS with alpha = a and beta = 0 on all parameters.

    Source: arXiv 2109.01903, weight-space ensembling.
    """
    return MergeSpec("linear", (1.0,), alpha=a, beta=0.0)


def greedy_soup(scores: Sequence[float], evaluate: Callable[[tuple[float, ...]], float]) -> MergeSpec:
    """The mean of the policies that help: from the best on, each is kept if it makes the soup strictly better.

    The soup starts as the policy of the highest score (of equal ones, the first given). The others are tried by
    descending score; K - 1 soups are evaluated.

    Source: arXiv 2203.05482, recipe 1 (which also keeps a policy that leaves the score equal); strictly better as in
    mlfoundations/model-soups, main.py.

    Args:
        scores: the validation score of each policy alone, higher is better; for several rewards, one number that
            combines them.
        evaluate: from the weights of a soup, one per policy, 1/n or 0, to its score on the same validation prompts.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    if not scores:
        raise ValueError("scores is empty, expected one validation score per policy")
    for k, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"scores[{k}] is {score}, expected a finite number")
    first, *others = sorted(range(len(scores)), key=lambda k: -scores[k])
    chosen, best = [first], scores[first]
    for candidate in others:
        score = evaluate(_mean_of([*chosen, candidate], len(scores)))
        if score > best:
            chosen, best = [*chosen, candidate], score
    return MergeSpec("linear", _mean_of(chosen, len(scores)))


def metric_weights(values: Sequence[float], *, power: float = 1.0, lower_is_better: bool) -> tuple[float, ...]:
    """The weights of the checkpoints of one run, from a training metric of each.

        w_i = q_i^p / sum_j q_j^p,   q = 1 / value if lower is better (loss), q = value if not (steps)

    p = 0 is the uniform soup; the larger p, the more the best checkpoint counts.

    Source: arXiv 2504.18580, metrics-weighted averaging (without public code; the paper's penalty exponent is p).

    Raises:
        ValueError: no value, or one that is not a positive finite number.
    """
    if not values:
        raise ValueError("values is empty, expected one metric per checkpoint")
    for k, value in enumerate(values):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"the metric of checkpoint {k + 1} is {value:g}, expected a positive finite number")
    if not math.isfinite(power):
        raise ValueError(f"power is {power}, expected a finite number")
    # As logarithms relative to the largest, so that no power overflows.
    logs = [(-power if lower_is_better else power) * math.log(value) for value in values]
    shares = [math.exp(log - max(logs)) for log in logs]
    return tuple(share / math.fsum(shares) for share in shares)


def checkpoint_weights(checkpoints: Sequence[str | Path], by: str, *, power: float = 1.0) -> tuple[float, ...]:
    """The weights of the checkpoints of one run, from their `trainer_state.json`; see `metric_weights`.

    Args:
        checkpoints: folders `checkpoint-N` of one run, adapters or dense.
        by: `step` (later is better) or `loss` (the last training loss that was logged; lower is better).
        power: the exponent.

    Raises:
        FileNotFoundError: a folder has no `trainer_state.json`.
        ValueError: an unknown metric, or one that a checkpoint lacks or that is not positive.
    """
    if by not in METRICS:
        raise ValueError(unknown_name("weights_by", by, METRICS))
    values = [_metric(Path(folder), by) for folder in checkpoints]
    return metric_weights(values, power=power, lower_is_better=by == "loss")


def _mean_of(chosen: Sequence[int], count: int) -> tuple[float, ...]:
    return tuple(1 / len(chosen) if k in chosen else 0.0 for k in range(count))


def _metric(folder: Path, by: str) -> float:
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"policy {str(folder)!r} has no {STATE_FILE}; weights_by needs the checkpoint folders that the trainer "
            "wrote, or give --weights"
        )
    state = read_json(path)
    if by == "step":
        value = state.get("global_step")
    else:
        logged = [row["loss"] for row in state.get("log_history") or [] if "loss" in row]
        value = logged[-1] if logged else None
    if not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        reason = " (the loss of PPO may have any sign)" if by == "loss" and value is not None else ""
        raise ValueError(
            f"policy {str(folder)!r} has {by} {value!r} in {STATE_FILE}, expected a positive number{reason}; use "
            f"--weights_by {'step' if by == 'loss' else 'loss'} or --weights"
        )
    return float(value)
