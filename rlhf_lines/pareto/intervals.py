"""Intervals of means over prompts, their p-values, and the adjustment for several comparisons.

Student's t: `mean +- t se`, with `se = sd / sqrt(P)` and P - 1 degrees of freedom. `docs/statistics.md` has the
simulated coverage. One prompt has no spread: its interval is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE
from rlhf_lines.pareto.student import critical_value, within


FEW_OTHERS = 10  # fewer values than these beside the most frequent one do not show how large others may be
FEW_PROMPTS = 30  # below, the mean of skewed scores is not near enough to a normal variable


class Estimate(NamedTuple):
    """A number with the ends of its interval; None where no interval would hold what it says.

    `p_value` is two-sided, of the hypothesis that the number is 0: below 1 - confidence exactly where the interval
    leaves 0 out.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None


def estimate(value: float, standard_error: float, prompts: int, confidence: float = CONFIDENCE) -> Estimate:
    """`value +- t standard_error` with P - 1 degrees of freedom, and the p-value that inverts it.

    Without spread the interval is the number itself; its p-value is 1 if that is 0, else 0.

    >>> estimate(1.0, 0.5, 11).low.__round__(3)
    -0.114
    """
    if prompts < 2:
        return Estimate(float(value), None, None, None)
    reach = critical_value(confidence, prompts - 1) * standard_error
    if standard_error == 0.0:
        p_value = float(value == 0.0)
    else:
        p_value = max(0.0, 1.0 - within(value / standard_error, prompts - 1))
    return Estimate(float(value), float(value - reach), float(value + reach), p_value)


def mean_estimate(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of `values` `[P]`, one per prompt, with its t interval. For a difference, give the paired differences.

    >>> mean_estimate([1.0, 2.0, 3.0]).value
    2.0

    Raises:
        ValueError: `values` is not a vector with at least one number.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"got values of shape {values.shape}; expected one per prompt")
    error = deviation(values, ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return estimate(values.mean(), error, values.size, confidence)


def deviation(values: ArrayLike, ddof: int = 0) -> NDArray[np.float64]:
    """The standard deviation over the first axis, and 0 where all values are one: rounding of their mean gives 1e-17.

    >>> float(deviation([0.3] * 200)), float(deviation([1.0, 3.0]))
    (0.0, 1.0)

    Args:
        values: `[P, ...]`.
        ddof: what is subtracted from P in the divisor.
    """
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.ptp(values, axis=0) == 0.0, 0.0, values.std(axis=0, ddof=ddof))


def unit(values: ArrayLike) -> NDArray[np.float64]:
    """What values are divided by to be told in their spread over the first axis: the deviation, or 1 where it is 0.

    >>> float(unit([0.3] * 200)), float(unit([1.0, 5.0]))
    (1.0, 2.0)
    """
    found = deviation(values)
    return np.where(found > 0.0, found, 1.0)


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """`mean(a - b)` with its interval and p-value over prompts.

    Pairing removes the part of the noise that comes from some prompts being easier than others. Where few prompts
    differ (`is_sparse`) there is no interval: others may differ by more, and more of them.

    >>> paired_difference([3.0, 5.0], [2.0, 4.0])
    Estimate(value=1.0, low=1.0, high=1.0, p_value=0.0)
    >>> paired_difference([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0])
    Estimate(value=0.25, low=None, high=None, p_value=None)

    Args:
        a: `[P]`, scores of one policy, one per prompt.
        b: `[P]`, scores of the other policy on the same prompts in the same order.
        confidence: coverage of the interval.

    Raises:
        ValueError: the two vectors do not have the same length.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"got scores of shape {a.shape} and {b.shape}; expected one score per prompt, same prompts")
    found = mean_estimate(a - b, confidence)
    return found if np.ptp(a - b) == 0.0 or not is_sparse(a - b) else Estimate(found.value, None, None, None)


def is_sparse(values: ArrayLike) -> bool:
    """Whether most of `values` are one and the same number, and fewer than 10 are others.

    >>> is_sparse([0.0] * 30 + [0.3] * 9), is_sparse([0.0] * 30 + [0.3] * 10), is_sparse([1.0, 2.0, 3.0])
    (True, False, False)
    """
    _, counts = np.unique(np.asarray(values), return_counts=True)
    return bool(counts.max() > counts.sum() / 2 and counts.sum() - counts.max() < FEW_OTHERS)


def share_estimate(values: ArrayLike, confidence: float = CONFIDENCE, *, answers: bool = True) -> Estimate:
    """The mean p of `values` `[P]` between 0 and 1, one share per prompt, with Agresti and Coull's interval.

    `q +- t sqrt(q (1 - q) / (n + t^2))`, cut at 0 and 1, around the share q with t^2 / 2 more answers of either kind:
    that of a share near 0 or 1, where a t interval is far too narrow, reaches inwards. n is the number of independent
    yes or no answers that a mean with this spread is worth, `p (1 - p) / (sd^2 / P)`, and P where all values are equal;
    t has P - 1 degrees of freedom. Parts that are no means of answers may be larger than the few that were seen: of
    `is_sparse` ones n is P at most, as if all were 0 or 1.

    >>> [round(end, 3) for end in share_estimate([0.0] * 100)[1:3]]
    [0.0, 0.045]

    Args:
        values: `[P]`.
        confidence: coverage of the interval.
        answers: whether each is a mean of answers, which are 0 or 1.

    Source: Agresti and Coull, The American Statistician 52 (1998), 119-126; Korn and Graubard, Survey
    Methodology 24 (1998), 193-201 (the effective number).

    Raises:
        ValueError: `values` is not a vector of numbers from 0 to 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"got values of shape {values.shape}; expected a share from 0 to 1 per prompt")
    prompts, share = values.size, float(values.mean())
    if prompts < 2:
        return Estimate(share, None, None, None)
    variance = values.var(ddof=1) / prompts
    count = share * (1.0 - share) / variance if np.ptp(values) > 0.0 else float(prompts)
    if not answers and is_sparse(values):
        count = min(count, float(prompts))
    t = critical_value(confidence, prompts - 1)
    centre = (share * count + t**2 / 2.0) / (count + t**2)
    reach = t * math.sqrt(centre * (1.0 - centre) / (count + t**2))
    return Estimate(share, max(0.0, centre - reach), min(1.0, centre + reach), None)


def paired_share_difference(
    a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE, *, answers: bool = True
) -> Estimate:
    """`mean(a - b)` of shares `[P]` of the same prompts, with the interval that those of both shares give.

    With p, q the shares, [l, u] and [m, v] their intervals by `share_estimate`, and r the correlation of a and b over
    prompts (0 where one of them has no spread)::

        p - q - sqrt((p - l)^2 - 2 r (p - l) (v - q) + (v - q)^2)
        p - q + sqrt((u - p)^2 - 2 r (u - p) (q - m) + (q - m)^2)

    Where few prompts or none differ, the differences have next to no spread, and an interval that is made of it holds
    nothing.

    >>> [round(end, 3) for end in paired_share_difference([0.0] * 100, [0.0] * 100)[1:3]]
    [-0.045, 0.045]

    Source: Newcombe, Statistics in Medicine 17 (1998), 2635-2650 (method 10 without its continuity correction); Zou and
    Donner, Statistics in Medicine 27 (2008), 1693-1702 (for any two intervals).

    Raises:
        ValueError: as `share_estimate`, or the two vectors do not have the same length.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"got shares of shape {a.shape} and {b.shape}; expected one per prompt, the same prompts")
    one, other = (share_estimate(values, confidence, answers=answers) for values in (a, b))
    value = one.value - other.value
    if one.low is None or other.low is None:
        return Estimate(value, None, None, None)
    r = float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0.0 and np.ptp(b) > 0.0 else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2.0 * r * x * y + y**2))

    low = value - reach(one.value - one.low, other.high - other.value)
    return Estimate(value, low, value + reach(one.high - one.value, other.value - other.low), None)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for being several: an adjusted one below 0.05 is significant at a family-wise 5 %.

    The i-th smallest of m becomes `max over j <= i of min(1, (m - j + 1) p_j)`. None stays None and is not counted.

    >>> holm([0.01, 0.04, 0.03, None])
    [0.03, 0.06, 0.06, None]

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted
