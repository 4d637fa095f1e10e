"""The convex hull of a front: the points that are best for some preference.

Letters: n points, K rewards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


TOLERANCE = 1e-12  # of the range of a reward


def hull_vertices(scores: ArrayLike) -> list[int]:
    """The rows of `scores` `[n, K]` that are best for some preference, ascending in the first reward.

    Row i stays if there is a preference w (at least 0, sum 1) with `w . s_i > w . s_j` for all rows j that stay: the
    vertices of the upper convex hull. A nondominated row that lies in a dent of the front, or on the line between two
    others, is not among them. Of equal rows the first stays.

    >>> hull_vertices([[0.0, 3.0], [1.0, 1.0], [2.0, 2.0], [3.0, 0.0], [2.0, 2.0]])
    [0, 2, 3]

    Source: Roijers, Vamplew, Whiteson and Dazeley, JAIR 48 (2013), 67-113 (the convex coverage set).
    """
    scores = np.asarray(scores, dtype=np.float64)
    spread = np.ptp(scores, axis=0)
    scaled = (scores - scores.min(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    kept = list(range(len(scaled)))
    # One at a time, against those that are left: of two rows that differ by rounding alone, one stays.
    for row in reversed(range(len(scaled))):
        others = [other for other in kept if other != row]
        if others and _advantage(scaled[row] - scaled[others]) <= TOLERANCE:
            kept = others
    return sorted(kept, key=lambda row: (scores[row, 0], row))


def _advantage(differences: NDArray[np.float64]) -> float:
    """`max_w min_j w . d_j` over preferences w, for rows d_j of `differences` `[m, K]`.

    That is the value of a matrix game. With all payoffs made positive by a shift, `1 / value` is the highest sum of
    z >= 0 with `B^T z <= 1`: a linear programme that starts at z = 0 and is solved by the simplex method.

    Source: Dantzig, Linear Programming and Extensions (1963), ch. 13 (the game); Bland, Mathematics of Operations
    Research 2 (1977), 103-107 (the order of pivots, which cannot cycle).
    """
    shift = 1.0 - differences.min()
    payoffs = differences + shift
    variables, constraints = payoffs.shape
    table = np.zeros((constraints + 1, variables + constraints + 1))
    table[:-1, :variables] = payoffs.T
    table[:-1, variables:-1] = np.eye(constraints)
    table[:-1, -1] = 1.0
    table[-1, :variables] = -1.0
    basis = list(range(variables, variables + constraints))
    while (improving := np.flatnonzero(table[-1, :-1] < -TOLERANCE)).size:
        column = improving[0]
        bounding = [row for row in range(constraints) if table[row, column] > TOLERANCE]
        pivot = min(bounding, key=lambda row: (table[row, -1] / table[row, column], basis[row]))
        table[pivot] /= table[pivot, column]
        for row in range(constraints + 1):
            if row != pivot:
                table[row] -= table[row, column] * table[pivot]
        basis[pivot] = int(column)
    return float(1.0 / table[-1, -1] - shift)
