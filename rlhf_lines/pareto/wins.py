"""How often a policy's completions score above the SFT model's, and for which prompts they lost most.

Letters: P prompts, S samples of each, K objectives. A completion is compared with the SFT model's for the same prompt
and sample, which met the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_lines.pareto.intervals import unit
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import WinRate


def win_rate(own: ArrayLike, sft: ArrayLike, objectives: Sequence[str], resampling: Resampling) -> WinRate:
    """How often a point beats the SFT model, completion by completion, then averaged over samples and prompts.

        by objective: 1[y > y_SFT] + 1/2 [y = y_SFT]
        jointly:      1 where it is better in every objective, 0 where it is worse in every one, else 1/2

    The SFT model's own, the same array, are exactly 1/2, whatever the prompts: it ties with itself.

    Args:
        own: `[P, S, K]`, the point's scores.
        sft: `[P, S, K]`, the SFT model's.
        objectives: K names.
        resampling: of the prompts.
    """
    difference = np.asarray(own, dtype=np.float64) - np.asarray(sft, dtype=np.float64)
    better, worse = (difference > 0).all(axis=-1), (difference < 0).all(axis=-1)
    wins = (np.sign(difference) + 1) / 2
    joint = {"win_rate": (1 + better - 1.0 * worse) / 2, "all_better": 1.0 * better, "all_worse": 1.0 * worse}
    columns = joint | {f"objective {k}": wins[..., k] for k in range(len(objectives))}
    measure = resampling.means if own is sft else resampling.shares
    found = measure({name: column.mean(axis=1) for name, column in columns.items()})
    return {
        **found["win_rate"],
        "by_objective": {name: found[f"objective {k}"] for k, name in enumerate(objectives)},
        "all_better": found["all_better"],
        "all_worse": found["all_worse"],
    }


class Lost(NamedTuple):
    """A prompt for which a point's scores fell: its index, by how much over all, and the difference by objective."""

    prompt: int
    loss: float
    differences: dict[str, float]


def lost_most(own: ArrayLike, sft: ArrayLike, objectives: Sequence[str], count: int = 5) -> list[Lost]:
    """The prompts at which a point lost most against the SFT model, the worst first; none that did not lose.

        loss = -(1/K) sum_k (y_k - y_SFT,k) / sd_k

    with scores averaged over samples and sd_k the standard deviation of the SFT model's over prompts (1 where it is 0),
    so that no objective counts for more by its unit.

    Args:
        own: `[P, S, K]`, the point's scores.
        sft: `[P, S, K]`, the SFT model's.
        objectives: K names.
        count: how many at most.
    """
    mine, theirs = (np.asarray(scores, dtype=np.float64).mean(axis=1) for scores in (own, sft))
    difference = mine - theirs
    loss = -(difference / unit(theirs)).mean(axis=1)
    order = np.argsort(-loss, kind="stable")[:count]
    return [
        Lost(int(p), float(loss[p]), dict(zip(objectives, difference[p].tolist(), strict=True)))
        for p in order
        if loss[p] > 0
    ]
