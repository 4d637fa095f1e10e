"""What candidates are worth: their completions on the prompts of a split, scored, as one number each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.inputs import Inputs
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import hypervolume, ideal_point, reference_point, utilities
from rlhf_lines.sweep.forgetting import largest_ratio
from rlhf_lines.sweep.groups import one_hot, simplex
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.store import StoredPoint


ANCHORS = "anchors"
Options = dict[str, Any]
FAR = 1e30  # times what is beyond a limit: below whatever a candidate within it is worth


@dataclass(frozen=True)
class Trial:
    """A candidate that was measured.

    Attributes:
        options: its factors; see `merge_rule`.
        value: what it is worth: utility or hypervolume.
        by_prompt: `[P]`, its utility on each prompt; None of a hypervolume, which has no such.
        kl: the largest mean KL of a point of it to the SFT model, in nats; None where completions do not estimate it.
        forgetting: the largest perplexity of a point of it over the SFT model's; None without `max_forgetting`.
        excess: the largest of what is limited over its limit, 0 where nothing is.
    """

    options: Options
    value: float
    by_prompt: NDArray[np.float64] | None
    kl: float | None
    forgetting: float | None
    excess: float

    @property
    def within_limits(self) -> bool:
        """Whether it keeps `max_kl` and `max_forgetting`."""
        return self.excess <= 1.0

    @property
    def fitness(self) -> float:
        """The value; beyond a limit less than any value, and less the further beyond."""
        return self.value if self.within_limits else -FAR * self.excess


def merge_rule(options: Options) -> str:
    """The merge rule that factors are of: with a `density`, they are learned on what TIES elects."""
    return "ties_layerwise" if "density" in options else "layerwise"


class _Point(NamedTuple):
    """Scores `[prompts, objectives]` of a spec, its mean KL, and its perplexity over the SFT model's, where read."""

    scores: NDArray[np.float64]
    kl: float
    forgetting: float | None


class Trials:
    """Measures candidates. Scores count from the SFT model and the policies as they are, as a sweep has it.

        utility      p . u, u = (mean score - reference point) / (ideal point - reference point) per objective
        hypervolume  of the mean scores at all weights, above the reference point

    Args:
        config: what is learned.
        inputs: what it is learned from.
        measurement: fills the store with what it lacks.
    """

    def __init__(self, config: LearnConfig, inputs: Inputs, measurement: Measurement) -> None:
        self._config, self._inputs, self._measurement = config, inputs, measurement
        count = len(inputs.adapters)
        self.weights = [(1 / count,) * count] if config.aim == "utility" else simplex(count, config.num_weights)
        given = config.preference or [1.0] * len(inputs.objectives)
        self.preference = np.array(given) / sum(given)
        self._ends: dict[str, tuple[list[float], list[float]]] = {}
        self._sft: StoredPoint | None = None

    def ends(self, split: str) -> tuple[list[float], list[float]]:
        """Reference and ideal point of a split."""
        if split not in self._ends:
            count = len(self._inputs.adapters)
            specs = [MergeSpec("linear", row) for row in ((0.0,) * count, *one_hot(count))]
            means = np.stack([point.scores.mean(axis=0) for point in self._measured(split, ANCHORS, specs)])
            self._ends[split] = reference_point(means), ideal_point(means)
        return self._ends[split]

    def measure(self, split: str, group: str, candidates: Sequence[Options]) -> list[Trial]:
        """Each candidate with what it is worth on a split; `group` is what they are called in the store."""
        ends, per = self.ends(split), len(self.weights)
        specs = [
            MergeSpec(merge_rule(options), weights, options=options)
            for options in candidates
            for weights in self.weights
        ]
        measured = self._measured(split, group, specs)
        return [self._trial(one, measured[i * per : (i + 1) * per], *ends) for i, one in enumerate(candidates)]

    def _trial(
        self,
        options: Options,
        points: Sequence[_Point],
        reference: list[float],
        ideal: list[float],
    ) -> Trial:
        scores = [point.scores for point in points]
        by_prompt = None
        if self._config.aim == "utility":
            by_prompt = utilities(scores[0], reference, ideal) @ self.preference
            value = by_prompt.mean().item()
        else:
            value = hypervolume(np.stack([of_point.mean(axis=0) for of_point in scores]), reference)
        kl = max(point.kl for point in points) if self._config.samples_policy else None
        forgetting = max(point.forgetting for point in points) if self._inputs.forgetting else None
        limits = ((kl, self._config.max_kl), (forgetting, self._config.max_forgetting))
        excess = max((found / limit for found, limit in limits if limit is not None), default=0.0)
        return Trial(options, value, by_prompt, kl, forgetting, excess)

    def _measured(self, split: str, group: str, specs: Sequence[MergeSpec]) -> list[_Point]:
        prompts, store = self._inputs.prompts[split], self._measurement.store
        points = self._measurement.measure(split, {group: specs}, prompts, phase=f"{group} on {split} prompts")
        if texts := self._inputs.forgetting:
            self._measurement.forgetting(points, texts)
            self._sft = self._sft or points[0]  # of the anchors, which are measured first
        return [
            _Point(
                store.scores(point.spec_id, split, self._inputs.objectives),
                store.kl(point.spec_id, split).mean().item(),
                largest_ratio(store, [point], self._sft) if texts else None,
            )
            for point in points
        ]
