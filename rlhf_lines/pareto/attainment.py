"""Attainment: where the front would lie with other prompts of the same kind."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike


LEVELS = (0.025, 0.5, 0.975)
STEPS = 256  # of the range of the means: an exact edge has thousands of corners, which no picture shows


def attained_regions(means: ArrayLike) -> dict[str, list[list[float]]] | None:
    """The corners of the regions that shares of the resampled fronts attain, or None unless K is 2.

    A front attains a pair of scores if one of its points is at least as high in both. For every level, given as text
    (`0.5`), the pairs `[x, y]`, ascending in x, are the corners of the region that at least that share of the
    resamples attains: `0.5` is the median front, and the edges of `0.025` and `0.975` enclose 95 % of the fronts
    at every place. Where there are more than 256 corners they are rounded down to a grid of 1/256 of the range of the
    means, which keeps them inside the region and moves its edge by at most that.

    Args:
        means: `[R, n, K]`, mean scores of one group of n points under R resamples, from `bootstrap_means`.

    Source: Grunert da Fonseca, Fonseca and Hall, EMO 2001 (the empirical attainment function, there of runs in place
    of resamples); computed by moocore.
    """
    means = np.asarray(means, dtype=np.float64)
    resamples, points, rewards = means.shape
    if rewards != 2:
        return None
    # moocore minimises; its percentiles are the levels in per cent.
    low = means.min(axis=(0, 1))
    step = (means.max(axis=(0, 1)) - low) / STEPS
    owner = np.repeat(np.arange(resamples), points)
    surface = moocore.eaf(-means.reshape(-1, 2), owner, percentiles=[100.0 * level for level in LEVELS])
    regions = {}
    for level in LEVELS:
        corners = -surface[np.isclose(surface[:, 2], 100.0 * level), :2]
        if len(corners) > STEPS:
            corners = np.minimum(low + np.floor((corners - low) / step) * step, corners)
            corners = corners[moocore.is_nondominated(corners, maximise=True)]
        regions[str(level)] = corners[np.argsort(corners[:, 0])].tolist()
    return regions
