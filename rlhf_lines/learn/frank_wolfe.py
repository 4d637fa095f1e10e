"""Frank-Wolfe merging: steps towards the policies to which the gradient of a loss points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.learn.gradient import Slope
from rlhf_lines.progress import beat


def frank_wolfe(
    slope: Callable[[NDArray[np.float64], int], Slope], start: Sequence[float], *, steps: int, num_policies: int
) -> tuple[list[float], list[float]]:
    """The vector after so many steps, and the loss before each of them.

        s_t = K linear_minimiser(dL/dx_t),   x_(t+1) = x_t + 2 / (t + 2) (s_t - x_t),   t = 0, 1, ..

    where x has K rows, in units of a soup's 1/K. The derivative by a factor is the inner product of the dense gradient
    with tau_k, in a layer or in all of them, so the step is that of the paper among the policies; the public codes
    take cosines with weights or residuals in its place. The first step goes all the way to a policy.

    Source: arXiv 2503.12649, algorithm 1 (hard; a layer or the model at a time).

    Args:
        slope: from a vector and the number of the step, from 0, to the loss and its derivatives.
        start: the first vector.
        steps: how many.
        num_policies: K.
    """
    point, losses = np.array(start, np.float64).reshape(num_policies, -1), []
    for step in range(steps):
        beat(f"step {step + 1} of {steps}")
        loss, derivatives = slope(point.ravel(), step)
        losses.append(loss)
        vertex = num_policies * linear_minimiser(derivatives.reshape(point.shape))
        point = point + 2 / (step + 2) * (vertex - point)
    return point.ravel().tolist(), losses


def linear_minimiser(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """In every column of `[K, B]` 1 for the policy of the smallest score, 0 for the others; of equal ones, the first.

    >>> linear_minimiser(np.array([[0.5, -1.0], [0.2, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return (np.arange(len(scores))[:, None] == scores.argmin(axis=0)).astype(np.float64)
