"""How the prompts are resampled, in one value for all that is measured of a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, RESAMPLES, bootstrap_means, interval
from rlhf_lines.pareto.schema import Mean


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: the resampled prompts are those of the scores."""

    resamples: int = RESAMPLES
    seed: int = 0
    confidence: float = CONFIDENCE

    def means(self, columns: Mapping[str, NDArray[np.float64]]) -> dict[str, Mean]:
        """The mean of each column `[P]`, with its interval from a bootstrap over prompts."""
        values = np.stack(list(columns.values()), axis=-1)  # [P, columns]
        samples = bootstrap_means(values[None], self.resamples, self.seed)[:, 0]
        ends = [interval(column, self.confidence) for column in samples.T]
        rows = zip(columns, values.mean(axis=0).tolist(), ends, strict=True)
        return {name: {"mean": mean, "low": low, "high": high} for name, mean, (low, high) in rows}

    @property
    def quantile(self) -> float:
        """How many standard errors the ends of a normal interval are away."""
        return NormalDist().inv_cdf((1 + self.confidence) / 2)
