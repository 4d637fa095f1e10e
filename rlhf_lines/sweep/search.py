"""Sampler search: merges with a line and a bend of their own for each policy, found on validation prompts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.space import Space, bent_lines
from rlhf_lines.pareto import hypervolume, nondominated, reference_point
from rlhf_lines.pareto.schema import LINES, SEARCHED, SOUP
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.forgetting import largest_ratio
from rlhf_lines.sweep.groups import Specs, simplex
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.progress import SEARCH
from rlhf_lines.sweep.proposals import best_subset, propose
from rlhf_lines.sweep.store import StoredPoint


GENERATION = 8  # merges that are proposed at once
STEP = 0.15  # where 1 is the soup's factor
PATIENT = 2  # generations in a row that add next to nothing, before the search ends


class Generation(TypedDict):
    """What a search has after a generation; the first is what it starts from."""

    measured: int  # merges so far, without those that choosing scalings has measured
    hypervolume: float  # of those within the limits, above the reference point of the anchors


class Found(TypedDict):
    """What a search found."""

    prompts: int
    generations: list[Generation]
    specs: list[dict]  # of the front, as test prompts meet it
    stopped: str  # why: `points` are used up, or `gain` is small


class _Tried(NamedTuple):
    """A merge that was measured: its vector in the space, its spec, its means, and whether it keeps the limits."""

    vector: tuple[float, ...]
    spec: MergeSpec
    means: np.ndarray
    allowed: bool


def search_front(
    config: SweepConfig, inputs: Inputs, specs: Specs, chosen: Mapping[str, Scaling], measurement: Measurement
) -> tuple[list[MergeSpec], Found]:
    """Find a front on validation prompts.

    A merge is three numbers for each policy: the factor of the first layer, what the last has more, and what the middle
    has more than the line between (`merge.space.bent_lines`). The search begins with the rewarded soup and LiNeS as
    chosen, at `validation_weights`; each generation proposes more (`proposals.propose`). It ends when `search_points`
    merges have been measured, or when two generations in a row have added less than `search_gain` of the hypervolume.

    All of that is a function of the settings and of stored measurements: a killed run goes on.

    Returns:
        As many specs as other groups have weights, or fewer, of what no other dominates on validation prompts; and what
        is told of the search.
    """
    search = _Search(config, inputs, measurement, specs)
    search.measure(search.starts(chosen))
    draws = np.random.Generator(np.random.PCG64(config.seed))
    while (left := config.search_points - search.measured) > 0 and not search.is_slow:
        search.measure(search.proposals(min(GENERATION, left), draws))
    found = search.front(len(specs.weights))
    return found, {
        "prompts": len(inputs.prompts["validation"]),
        "generations": search.generations,
        "specs": [spec.to_dict() for spec in found],
        "stopped": "gain" if search.measured < config.search_points else "points",
    }


def vector_of(weights: Sequence[float], scaling: Scaling) -> tuple[float, ...]:
    """The vector of a soup with LiNeS: exact for schedules linear and quadratic, the line to the same ends otherwise.

    >>> vector_of((0.5, 0.5), Scaling(1.0, 0.5, "quadratic"))  # d^2 = d - d (1 - d)
    (1.0, 0.5, -0.125, 1.0, 0.5, -0.125)
    """
    bend = -scaling.beta / 4 if scaling.schedule == "quadratic" else 0.0
    count = len(weights)
    return tuple(count * weight * number for weight in weights for number in (scaling.alpha, scaling.beta, bend))


def spec_of(vector: Sequence[float], space: Space) -> MergeSpec:
    """The merge of a vector: weights are the policies' shares of the mean factor, so that people can read them.

    Where a policy has factors and no share above 0, no weights say so, and they are equal.
    """
    profile = space.profile(vector)
    means = np.array([float(np.mean(row)) for row in profile.factors])
    has_factors = np.array([any(row) or at != 0 for row, at in zip(profile.factors, profile.outside, strict=True)])
    if (has_factors & (means <= 0)).any() or not has_factors.any():
        return MergeSpec("layerwise", (1.0 / len(means),) * len(means), options=profile.to_options())
    weights = means / means.sum()
    scales = [1.0 / (len(weights) * weight) if weight else 0.0 for weight in weights]
    return MergeSpec("layerwise", tuple(weights.tolist()), options=profile.scaled(scales).to_options())


class _Search:
    """What was tried so far."""

    def __init__(self, config: SweepConfig, inputs: Inputs, measurement: Measurement, specs: Specs) -> None:
        self._config, self._inputs, self._measurement, self._specs = config, inputs, measurement, specs
        self._store, self._prompts = measurement.store, inputs.prompts["validation"]
        self._space = bent_lines(len(config.policies), inputs.num_layers)
        chosen_from = [point for point in self._store.points("validation") if point.group != SEARCHED]
        self._known = {point.spec: point for point in chosen_from}  # a stopped search may have measured others
        self._tried: list[_Tried] = []
        self.generations: list[Generation] = []
        anchors = [self._known[spec] for group in specs.anchors().values() for spec in group]
        self._sft = anchors[0]
        self._reference = config.reference_point or reference_point(np.stack(list(map(self._means, anchors))))

    @property
    def measured(self) -> int:
        """How many merges were measured for the search alone."""
        return sum(one.spec not in self._known for one in self._tried)

    @property
    def is_slow(self) -> bool:
        """Whether the last generations added next to nothing, or all lie below the reference point."""
        volumes = [generation["hypervolume"] for generation in self.generations[-PATIENT - 1 :]]
        least = 1.0 + self._config.search_gain
        steps = itertools.pairwise(volumes)
        return len(volumes) > PATIENT and all(after < least * before or not after for before, after in steps)

    def starts(self, chosen: Mapping[str, Scaling]) -> list[tuple[tuple[float, ...], MergeSpec]]:
        """The soup and LiNeS as chosen, at the weights at which scalings are chosen."""
        found = {}
        for group, scaling in ((SOUP, Scaling(1.0, 0.0)), (LINES, chosen[LINES])):
            make = self._specs.maker(group, scaling)
            for weights in simplex(len(self._config.policies), self._config.validation_weights):
                spec = make(weights)
                found.setdefault(spec, vector_of(weights, Scaling(spec.alpha, spec.beta, spec.schedule)))
        return [(vector, spec) for spec, vector in found.items()]

    def proposals(self, count: int, draws: np.random.Generator) -> list[tuple[tuple[float, ...], MergeSpec]]:
        """Vectors that what was tried proposes, of which those within the limits have children."""
        means = np.stack([one.means for one in self._allowed])
        vectors = [one.vector for one in self._allowed]
        vectors = propose(vectors, means, self._reference, count, step=STEP, draws=draws)
        return [(tuple(vector), spec_of(vector, self._space)) for vector in vectors.tolist()]

    def measure(self, candidates: Sequence[tuple[tuple[float, ...], MergeSpec]]) -> None:
        """Measure a generation, and note what it adds."""
        new = [spec for _, spec in candidates if spec not in self._known]
        measured = self._measurement.measure("validation", {SEARCHED: new}, self._prompts, phase=SEARCH)
        if self._config.max_forgetting is not None:
            self._measurement.forgetting(measured, self._inputs.forgetting)
        points = self._known | {point.spec: point for point in measured}
        for vector, spec in candidates:
            point = points[spec]
            self._tried.append(_Tried(vector, spec, self._means(point), self._keeps_limits(point)))
        volume = hypervolume(np.stack([one.means for one in self._allowed]), self._reference)
        self.generations.append({"measured": self.measured, "hypervolume": volume})

    def front(self, count: int) -> list[MergeSpec]:
        """At most so many of what was tried, which together have most hypervolume; LiNeS as chosen keeps the limits.

        Where nothing lies above a given reference point, they are of what no other dominates.
        """
        means = np.stack([one.means for one in self._allowed])
        taken = best_subset(means, self._reference, count) or nondominated(means)[:count]
        return [self._allowed[i].spec for i in taken]

    @property
    def _allowed(self) -> list[_Tried]:
        return [one for one in self._tried if one.allowed]

    def _means(self, point: StoredPoint) -> np.ndarray:
        return self._store.scores(point.spec_id, "validation", self._inputs.objectives).mean(axis=0)

    def _keeps_limits(self, point: StoredPoint) -> bool:
        most, forgotten, least = self._config.max_kl, self._config.max_forgetting, self._config.minimum
        if most is not None and self._store.kl(point.spec_id, "validation").mean() > most:
            return False
        if forgotten is not None and largest_ratio(self._store, [point], self._sft) > forgotten:
            return False
        scores = self._store.scores(point.spec_id, "validation", list(least)).mean(axis=0) if least else []
        return all(score >= bound for score, bound in zip(scores, least.values(), strict=True))
