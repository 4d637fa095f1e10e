"""How the prompts are resampled, in one value for all that is measured of a point."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto.bootstrap import CONFIDENCE, RESAMPLES, bootstrap_means, mean_interval
from rlhf_lines.pareto.intervals import is_sparse, share_estimate
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
        samples, means = bootstrap_means(values[None], self.resamples, self.seed)[:, 0], values.mean(axis=0).tolist()
        found = {}
        for name, column, mean in zip(columns, samples.T, means, strict=True):
            low, high = mean_interval(column, mean, len(values), self.confidence)
            found[name] = {"mean": mean, "low": low, "high": high}
        return found

    def mean(self, column: NDArray[np.float64]) -> Mean:
        """That of one column."""
        return self.means({"": column})[""]

    def scores(
        self, columns: Mapping[str, NDArray[np.float64]], *, answers: Collection[str] | None = None
    ) -> dict[str, Mean]:
        """The mean of each column `[P]` of scores, with an interval that holds, or none.

        Resamples of a score that most prompts have alike are too much alike, and hold too little. Where all scores are
        0 or 1, or most are one of these and the others between, the interval is that of `share_estimate`; of other
        scores that are `is_sparse` there is none.

        Args:
            columns: by name, the mean score of each prompt.
            answers: names of the scores of which every single one, at whatever point, is 0 or 1. Left out, it is those
                whose columns are: means over several samples do not show it, nor does a single point.
        """
        found = self.means(columns)
        for name, column in columns.items():
            is_answers = bool(np.isin(column, (0.0, 1.0)).all()) if answers is None else name in answers
            at_end = max(np.mean(column == 0.0), np.mean(column == 1.0)) > 0.5
            if is_answers or (at_end and column.min() >= 0.0 and column.max() <= 1.0):
                found |= self.shares({name: column}, answers=is_answers)
            elif is_sparse(column):
                found[name] |= {"low": None, "high": None}
        return found

    def shares(self, columns: Mapping[str, NDArray[np.float64]], *, answers: bool = True) -> dict[str, Mean]:
        """The mean of each column `[P]` of numbers from 0 to 1, with the interval of `share_estimate`."""
        found = {name: share_estimate(column, self.confidence, answers=answers) for name, column in columns.items()}
        return {name: {"mean": share.value, "low": share.low, "high": share.high} for name, share in found.items()}

    @property
    def quantile(self) -> float:
        """How many standard errors the ends of a normal interval are away."""
        return NormalDist().inv_cdf((1 + self.confidence) / 2)
