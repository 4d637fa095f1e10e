"""Whether a score is a matter of length: its correlation with it, and what is left of a gain at equal lengths.

Letters: P prompts, S samples of each. Lengths are in tokens, the end token included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import Mean


# The regression that is read off at equal lengths has pairs on both sides of it; with fewer it is an extrapolation.
OVERLAP = 0.05
FLAT = 1e-12  # a spread below this share of the size of the values is rounding

Array = NDArray[np.float64]


def length_correlation(tokens: ArrayLike, scores: ArrayLike, resampling: Resampling) -> Mean | None:
    """Pearson's correlation of length and score over all completions; None where one of the two has no spread.

    Its interval is tanh(z +- q se) with Fisher's z = atanh(r) and se from a jackknife over prompts, which needs neither
    normal scores nor independent samples.

    Args:
        tokens: `[P, S]`.
        scores: `[P, S]`, of one objective.
        resampling: gives the confidence.
    """
    moments = Moments.of(tokens, scores)
    if moments.flat.any():
        return None
    r = moments.correlation()
    if len(moments.of_prompts) < 2:
        return {"mean": float(r), "low": None, "high": None}
    if 1 - abs(r) < FLAT:
        return {"mean": float(np.sign(r)), "low": float(np.sign(r)), "high": float(np.sign(r))}
    left_out = moments.without_each().correlation()
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = resampling.quantile * jackknife_error(np.arctanh(left_out))
    if not np.isfinite(reach):  # all the spread is one prompt's
        return {"mean": float(r), "low": -1.0, "high": 1.0}
    z = np.arctanh(r)
    return {"mean": float(r), "low": float(np.tanh(z - reach)), "high": float(np.tanh(z + reach))}


def at_matched_length(
    tokens: tuple[ArrayLike, ArrayLike], scores: tuple[ArrayLike, ArrayLike], resampling: Resampling
) -> Mean | None:
    """By how much a point's completions score above the SFT model's of equal length.

    The intercept a of the regression over all pairs of completions for one prompt and sample

        y - y_SFT = a + b (log n - log n_SFT)

    with n tokens: the conditioning on equal lengths of arXiv 2404.04475, for scores in place of wins. Its interval is
    a +- q se, se from a jackknife over prompts.

    Args:
        tokens: `[P, S]` of the point, and of the SFT model.
        scores: `[P, S]` of one objective, likewise.
        resampling: gives the confidence.

    Returns:
        None where fewer than 5 % of the pairs have the point's completion as long or longer, or as long or shorter.
    """
    longer, higher = np.subtract(*np.log(tokens)), np.subtract(*scores)
    if min(np.mean(longer >= 0), np.mean(longer <= 0)) < OVERLAP:
        return None
    moments = Moments.of(longer, higher)
    value = moments.intercept()
    if len(moments.of_prompts) < 2:
        return {"mean": float(value), "low": None, "high": None}
    reach = resampling.quantile * jackknife_error(moments.without_each().intercept())
    return {"mean": float(value), "low": float(value - reach), "high": float(value + reach)}


@dataclass(frozen=True)
class Moments:
    """Sums over completions of x and y from which a line and a correlation follow; with leading axes, of many sets.

    Attributes:
        sums: `[..., 6]`: n, x, y, xx, xy, yy, of values around `centre`, where rounding costs least.
        centre: of x and of y.
        size: the largest of |x| and of |y|, before.
        of_prompts: `[P, 6]`.
    """

    sums: Array
    centre: tuple[float, float]
    size: tuple[float, float]
    of_prompts: Array

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Moments:
        """Those of all completions; x and y are `[P, S]`."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        centre, size = (x.mean(), y.mean()), (np.abs(x).max(), np.abs(y).max())
        x, y = x - centre[0], y - centre[1]
        of_prompts = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).sum(axis=1)
        return cls(of_prompts.sum(axis=0), centre, size, of_prompts)

    def without_each(self) -> Moments:
        """P sets: all completions but those of one prompt."""
        return Moments(self.sums - self.of_prompts, self.centre, self.size, self.of_prompts)

    @property
    def squares(self) -> tuple[Array, Array, Array]:
        """The sums of squares and products around the means: xx, xy, yy."""
        n, x, y, xx, xy, yy = np.moveaxis(self.sums, -1, 0)
        n = np.maximum(n, 1)
        return xx - x * x / n, xy - x * y / n, yy - y * y / n

    @property
    def flat(self) -> NDArray[np.bool_]:
        """Whether x, and whether y, has no spread, `[..., 2]`."""
        n, (xx, _, yy) = np.maximum(self.sums[..., 0], 1), self.squares
        return np.stack(
            [total <= n * (FLAT * size) ** 2 for total, size in zip((xx, yy), self.size, strict=True)], axis=-1
        )

    def correlation(self) -> Array:
        """Pearson's r; nan where x or y has no spread."""
        xx, xy, yy = self.squares
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.flat.any(axis=-1), np.nan, np.clip(xy / np.sqrt(xx * yy), -1, 1))

    def intercept(self) -> Array:
        """Where the line of least squares has x = 0; the mean of y where x has no spread."""
        n, x, y = np.moveaxis(self.sums[..., :3], -1, 0)
        xx, xy, _ = self.squares
        flat = self.flat[..., 0]
        slope = np.where(flat, 0.0, xy / np.where(flat, 1.0, xx))
        n = np.maximum(n, 1)
        return self.centre[1] + y / n - slope * (self.centre[0] + x / n)


def jackknife_error(left_out: ArrayLike) -> float:
    """The standard error of a statistic from its values without each of P prompts, `[P]`.

        se^2 = (P - 1) / P  sum_p (t_p - mean of t)^2

    where t_p is the value without prompt p.
    """
    left_out = np.asarray(left_out, dtype=np.float64)
    return float(np.sqrt((len(left_out) - 1) * left_out.var()))
