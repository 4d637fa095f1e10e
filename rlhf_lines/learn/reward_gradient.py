"""The policy gradient of the rewards by the factors alone, on completions of the current mix."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def advantages(rewards: ArrayLike) -> NDArray[np.float64]:
    """What each completion is worth more than the others of its prompt, `[P, S]`; of one sample, than the others' mean.

        A_ps = r_ps - mean of r_ps', s' != s            (S > 1)
        A_p  = r_p - mean of r_p', p' != p              (S = 1)

    No completion is in its own baseline, so that the gradient is unbiased. Of a single completion it is 0.

    >>> advantages([[1.0, 3.0], [0.0, 0.0]]).tolist(), advantages([[1.0], [3.0], [5.0]]).tolist()
    ([[-2.0, 2.0], [0.0, 0.0]], [[-3.0], [0.0], [3.0]])

    Source: arXiv 2402.14740 (leave one out).

    Args:
        rewards: `[P, S]`.
    """
    rewards = np.asarray(rewards, np.float64)
    rows = rewards if rewards.shape[1] > 1 else rewards.T
    count = rows.shape[1]
    if count == 1:
        return np.zeros_like(rewards)
    found = (rows - rows.mean(axis=1, keepdims=True)) * count / (count - 1)
    return found.reshape(rewards.shape)
