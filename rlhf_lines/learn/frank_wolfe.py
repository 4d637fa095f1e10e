"""Frank-Wolfe merging: steps towards the policies to which the gradient of a loss points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.learn.gradient import Slope, descend
from rlhf_lines.progress import beat


def frank_wolfe(
    slope: Callable[[NDArray[np.float64], int], Slope],
    start: Sequence[float],
    *,
    steps: int,
    num_policies: int,
    soft_steps: int = 0,
    learning_rate: float = 1e-3,
) -> tuple[list[float], list[float]]:
    """The vector after so many steps, and the loss before each of them.

        s_t = K linear_minimiser(dL/dx_t),   x_(t+1) = x_t + 2 / (t + 2) (s_t - x_t),   t = 0, 1, ..

    where x has K rows, in units of a soup's 1/K. The derivative by a factor is the inner product of the dense gradient
    with tau_k, in a layer or in all of them, so the step is that of the paper among the policies; the public codes
    take cosines with weights or residuals in its place. The first step goes all the way to a policy.

    Softly, what each policy gets is not given by the number of the step: from x_(t+1), so many steps of Adam follow
    among the policies that any step has chosen in a layer, each projected to where their factors are 0 or more and sum
    to K. The public code adds the models that it chooses to the merged one, with factors that AdaMerging learns without
    a bound.

    Source: arXiv 2503.12649, algorithm 1 (hard and soft; a layer or the model at a time); with a bound it is the fully
    corrective form, Jaggi, ICML 2013, algorithm 4.

    Args:
        slope: from a vector and the number of the step, from 0, to the loss and its derivatives.
        start: the first vector.
        steps: how many.
        num_policies: K.
        soft_steps: of Adam after each of them; 0 is the hard form.
        learning_rate: Adam's.
    """
    point, losses = np.array(start, np.float64).reshape(num_policies, -1), []
    chosen = np.zeros(point.shape, bool)
    for step in range(steps):
        beat(f"step {step + 1} of {steps}")
        loss, derivatives = slope(point.ravel(), step)
        losses.append(loss)
        vertex = num_policies * linear_minimiser(derivatives.reshape(point.shape))
        point = point + 2 / (step + 2) * (vertex - point)
        if soft_steps:
            chosen |= vertex > 0
            softly, of_step = {"steps": soft_steps, "learning_rate": learning_rate}, partial(_at, slope, step)
            found, _ = descend(of_step, point.ravel(), **softly, project=partial(onto_simplices, among=chosen))
            point = np.reshape(found, point.shape)
    return point.ravel().tolist(), losses


def onto_simplices(numbers: NDArray[np.float64], among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The nearest vector whose columns `[K]` are 0 or more, sum to K, and are 0 where `among` `[K, B]` is false.

    >>> onto_simplices(np.array([1.5, 0.25, 1.0, 2.0]), np.array([[True, True], [True, False]])).tolist()
    [1.25, 2.0, 0.75, 0.0]

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, ICML 2008 (by sorting).
    """
    columns, count = numbers.reshape(among.shape), len(among)
    ordered = -np.sort(-np.where(among, columns, -np.inf), axis=0)
    kept = np.arange(1, count + 1)[:, None]
    allowed = np.isfinite(ordered)
    above = (np.where(allowed, ordered, 0.0).cumsum(axis=0) - count) / kept
    last = (allowed & (ordered > above)).sum(axis=0) - 1
    threshold = above[last, np.arange(columns.shape[1])]
    return np.where(among, np.maximum(columns - threshold, 0.0), 0.0).ravel()


def _at(slope: Callable[[NDArray[np.float64], int], Slope], step: int, numbers: NDArray[np.float64], _: int) -> Slope:
    """The loss on the rows of one step."""
    return slope(numbers, step)


def linear_minimiser(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """In every column of `[K, B]` 1 for the policy of the smallest score, 0 for the others; of equal ones, the first.

    >>> linear_minimiser(np.array([[0.5, -1.0], [0.2, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return (np.arange(len(scores))[:, None] == scores.argmin(axis=0)).astype(np.float64)
