"""Dominance, hypervolume and the reference point. Higher scores are better everywhere.

Letters: n points, K rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


MARGIN = 0.1
REFERENCE_POINT_RULE = (
    "per objective: the lowest mean score of the SFT model and the single policies as they were trained, minus 10 % of "
    "the range of their mean scores"
)
ALL_POINTS_RULE = (
    "per objective: the lowest mean score of any point, minus 10 % of the range of mean scores over all points, as the "
    "SFT model and single policies are not among them"
)
GIVEN_RULE = "given"


def nondominated(scores: ArrayLike) -> list[int]:
    """The indices of the rows of `scores` `[n, K]` that no other row dominates, in ascending order.

    Row a dominates row b if it is at least as high everywhere and higher somewhere. Equal rows do not dominate each
    other, so duplicates stay or go together.

    >>> nondominated([[1, 3], [3, 1], [2, 2], [1, 1], [2, 2]])
    [0, 1, 2, 4]
    """
    scores = _as_matrix(scores)
    return np.flatnonzero(moocore.is_nondominated(scores, maximise=True, keep_weakly=True)).tolist()


def hypervolume(scores: ArrayLike, reference_point: Sequence[float]) -> float:
    """The volume of the region that lies below some row of `scores` `[n, K]` and above the reference point.

    A row that does not exceed the reference point in every reward adds nothing, and neither does a dominated row.

    Two unit-wide boxes, 1 x 3 and 3 x 1, that share the unit square: 3 + 3 - 1.

    >>> hypervolume([[1, 3], [3, 1]], [0, 0])
    5.0

    Source: Zitzler and Thiele, PPSN 1998 (the measure); computed by moocore.
    """
    return float(moocore.hypervolume(_as_matrix(scores), ref=np.asarray(reference_point, float), maximise=True))


def reference_point(scores: ArrayLike) -> list[float]:
    """The lowest of mean scores `[n, K]` minus a tenth of their range, per objective: see `REFERENCE_POINT_RULE`.

    The margin gives the ends of a front a volume of their own. An objective on which all rows agree has no margin.

    >>> reference_point([[0.0, 10.0], [1.0, 30.0]])
    [-0.1, 8.0]
    """
    scores = _as_matrix(scores)
    low, high = scores.min(axis=0), scores.max(axis=0)
    return (low - MARGIN * (high - low)).tolist()


def _as_matrix(scores: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores have shape {scores.shape}; expected [points, rewards] with at least one of each")
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0, 0])
        raise ValueError(f"the scores of point {row} are {scores[row].tolist()}; expected finite numbers")
    return scores
