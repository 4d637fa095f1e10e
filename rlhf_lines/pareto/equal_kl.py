"""Hypervolume at equal KL: how much two groups offer whose policies have moved as far from the SFT model.

Letters: R resamples, n points, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import bootstrap_hypervolumes
from rlhf_lines.pareto.corrected import Corrected, Hypervolume, correct, resampled_noise


STEPS = 8  # from one weight to the next
LEAST_BUDGETS = 0.2  # of those measured: a share of them


@dataclass(frozen=True)
class EqualKL(Hypervolume):
    """`equal_kl_hypervolumes` as a measure that can be corrected: K scores, then minus the KL, above `(r, -k1)`.

    Attributes:
        least: k0, in nats.
    """

    least: float = 0.0

    @classmethod
    def between(cls, least: float, most: float, reference_point: Sequence[float]) -> EqualKL:
        """For budgets from `least` to `most` nats, above the reference point of the scores."""
        return cls((*map(float, reference_point), -float(most)), float(least))

    @property
    def budgets(self) -> tuple[float, float]:
        """k0 and k1, in nats."""
        return self.least, -self.reference_point[-1]

    def value(self, means: NDArray[np.float64]) -> float:
        """See `Measure`."""
        return float(self.values(means[None])[0])

    def values(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Measure`."""
        values = np.concatenate([means[..., :-1], -means[..., -1:]], axis=-1)
        return equal_kl_hypervolumes(values, self.budgets, self.reference_point[:-1])


def equal_kl_hypervolumes(
    values: ArrayLike, budgets: tuple[float, float], reference_point: Sequence[float]
) -> NDArray[np.float64]:
    """The mean hypervolume of what points offer within a KL budget, over budgets from k0 to k1, `[R]`.

    With HV(k) the hypervolume, above the reference point r, of the points whose KL is at most k::

        1 / (k1 - k0) integral_k0^k1 HV(k) dk

    A point that gives the scores s at the KL c offers them for the budgets from c, or from k0, to k1, so that the
    integral is the hypervolume of the points (s, -max(c, k0)) in K + 1 dimensions above (r, -k1).

    Two points: one at no cost with a box of 2 x 1, the other at half of the budget with one of 3 x 1.

    >>> equal_kl_hypervolumes([[[2.0, 1.0, 0.0], [3.0, 1.0, 2.0]]], (0.0, 4.0), [0.0, 0.0]).tolist()
    [2.5]

    Args:
        values: `[R, n, K + 1]`, mean scores and, last, mean KL in nats.
        budgets: k0, and k1 above it.
        reference_point: r, K numbers.
    """
    values, (least, most) = np.asarray(values, dtype=np.float64), budgets
    offers = np.concatenate([values[..., :-1], -np.maximum(values[..., -1:], least)], axis=-1)
    return bootstrap_hypervolumes(offers, [*reference_point, -most]) / (most - least)


def common_budgets(*groups: Sequence[ArrayLike | None]) -> tuple[float, float] | None:
    """From the least KL that all groups have a point for to the most that all can spend, in nats.

    The largest of their smallest mean KL (below 0 it counts as 0), and the smallest of their largest. None where the
    first is not below the second, and where a point has no KL.

    Args:
        groups: of each, the KL of every point, one per prompt.
    """
    if any(kl is None for group in groups for kl in group):
        return None
    spent = [[max(0.0, float(np.mean(kl))) for kl in group] for group in groups]
    least, most = max(map(min, spent)), min(map(max, spent))
    return (least, most) if least < most else None


def correct_at_equal_kl(
    offered: Sequence[NDArray[np.float64]],
    kl: Sequence[Sequence[ArrayLike]],
    reference_point: Sequence[float],
    counts: Sequence[ArrayLike],
) -> list[Corrected]:
    """`EqualKL` of groups that are compared, over the budgets that all of them have, corrected as `correct` does.

    What is estimated is the measure over the budgets of their true KL. Those of the measured KL are as noisy as it is,
    so that every resample is measured over budgets of its own (`noise_over_own_budgets`). Differences of the results
    are paired.

    Args:
        offered: of each group, `[m, P, K + 1]`, as `offers` returns them.
        kl: of each group, the KL of every point, `[P]`; `common_budgets` finds some.
        reference_point: of the scores, K numbers.
        counts: of each group, `[DRAWN, P]`, how often each of its prompts is drawn.
    """
    measure = EqualKL.between(*common_budgets(*kl), reference_point)
    if any(each.shape[1] < 2 for each in offered):  # one prompt has no resamples
        return [correct(each, measure) for each in offered]
    noise = noise_over_own_budgets(offered, kl, counts)
    return [correct(each, measure, noise=drawn) for each, drawn in zip(offered, noise, strict=True)]


def noise_over_own_budgets(
    offered: Sequence[NDArray[np.float64]], kl: Sequence[Sequence[ArrayLike]], counts: Sequence[ArrayLike]
) -> list[NDArray[np.float64]]:
    """Of each group, draws of the error of its means, `[R, m, K + 1]`, for a measure over the measured budgets.

    With the budgets [k0, k1] of the measured KL and [k0', k1'] of a resample, a KL of c in the resample is written as

        k0 + (c - k0') (k1 - k0) / (k1' - k0')

    which takes the resample's budgets to the measured ones and leaves the mean over budgets what it is. Budgets that
    nearly vanish in a resample count as `LEAST_BUDGETS` of the measured ones.

    Args:
        offered: of each group, `[m, P, K + 1]`, as `offers` returns them.
        kl: of each group, the KL of every point, `[P]`.
        counts: of each group, `[R, P]`, how often each of its prompts is drawn.
    """
    least, most = common_budgets(*kl)
    spent = [_resampled(np.stack(each)[..., None], drawn)[..., 0] for each, drawn in zip(kl, counts, strict=True)]
    low = np.max([each.min(axis=1) for each in spent], axis=0).clip(min=0.0)
    high = np.min([each.max(axis=1) for each in spent], axis=0).clip(min=0.0)
    stretch = (most - least) / np.maximum(high - low, LEAST_BUDGETS * (most - least))
    found = []
    for each, drawn in zip(offered, counts, strict=True):
        moved = _resampled(each, drawn)
        moved[..., -1] = -(least + (-moved[..., -1] - low[:, None]) * stretch[:, None])
        found.append(moved - each.mean(axis=1))
    return found


def _resampled(values: NDArray[np.float64], counts: ArrayLike) -> NDArray[np.float64]:
    """Means `[R, n, K]` of values `[n, P, K]` with draws of their error."""
    return values.mean(axis=1) + resampled_noise(values, counts)


def why_no_budgets(groups: Mapping[str, Sequence[ArrayLike | None]], *, is_ratio: bool) -> str:
    """Why `common_budgets` finds none, in words.

    >>> why_no_budgets({"LiNeS": [[5.0], [7.0]], "soup": [[1.0], [4.5]]}, is_ratio=False)
    'no common KL: LiNeS takes longer steps, from 5.00 nats on, where soup ends at 4.50'

    Args:
        groups: by what people read, the KL of every point, one per prompt.
        is_ratio: whether log-ratios were measured that are no KL.
    """
    if is_ratio:
        return "no KL: the text is greedy, or drawn with top_p or top_k"
    if any(kl is None for group in groups.values() for kl in group):
        return "no KL: it was not measured at every point"
    spent = {name: [max(0.0, float(np.mean(kl))) for kl in group] for name, group in groups.items()}
    far, near = max(spent, key=lambda name: min(spent[name])), min(spent, key=lambda name: max(spent[name]))
    if far == near:
        return f"no common KL: all of {far} is at {min(spent[far]):z.2f} nats"
    return (
        f"no common KL: {far} takes longer steps, from {min(spent[far]):z.2f} nats on, where {near} ends at "
        f"{max(spent[near]):z.2f}"
    )


def offers(
    scores: ArrayLike, kl: Sequence[ArrayLike], weights: Sequence[Sequence[float]], unmoved: ArrayLike
) -> NDArray[np.float64]:
    """What a group offers at which KL, as `EqualKL` measures it, `[m, P, K + 1]`: scores, then minus the KL.

    Args:
        scores: `[n, P, K]`.
        kl: n times `[P]`.
        weights: n rows; what lies between neighbours is joined (`with_neighbours_joined`).
        unmoved: `[1, P, K]`, scores of the SFT model, which every group offers at no KL; `[0, P, K]` where they are
            unknown.
    """
    own = np.concatenate([scores, -np.stack(kl)[..., None]], axis=-1)
    free = np.concatenate([unmoved, np.zeros((*np.shape(unmoved)[:2], 1))], axis=-1)
    return np.concatenate([with_neighbours_joined(own, weights), free])


def with_neighbours_joined(values: ArrayLike, weights: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Points `[n, ...]` and, of two policies, what lies between those with neighbouring weights, `[m, ...]`.

    Between two neighbours scores and KL are interpolated linearly in 8 steps: m = 8 (n - 1) + 1, in the order of their
    weights. With more policies, or weights that lie on no line or occur twice, no point has two neighbours, and the
    points are returned as they are.

    >>> with_neighbours_joined([[1.0, 2.0], [0.0, 4.0]], [(1.0, 0.0), (0.0, 1.0)])[::4].tolist()
    [[0.0, 4.0], [0.5, 3.0], [1.0, 2.0]]

    Args:
        values: n points, each with scores and KL, of prompts or their means.
        weights: n rows.
    """
    values, weights = np.asarray(values, dtype=np.float64), [tuple(row) for row in weights]
    if not _on_a_line(weights) or len(set(weights)) < len(weights):
        return values
    values = values[sorted(range(len(weights)), key=weights.__getitem__)]
    share = (np.arange(STEPS) / STEPS).reshape(-1, *(1 for _ in values.shape[1:]))
    between = values[:-1, None] * (1.0 - share) + values[1:, None] * share  # [n - 1, steps, ...]
    return np.concatenate([between.reshape(-1, *values.shape[1:]), values[-1:]])


def _on_a_line(weights: Sequence[tuple[float, ...]]) -> bool:
    """Whether weights are of the same one or two policies and lie on a line: mixtures, or scalings of one of them."""
    if len({len(row) for row in weights}) > 1 or len(weights[0]) > 2:
        return False
    return np.linalg.matrix_rank(np.subtract(weights, weights[0]), tol=1e-9) < 2
