"""Which alpha, beta and schedule of a group: those whose front has the largest hypervolume on validation prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_lines.errors import Problems
from rlhf_lines.pareto import hypervolume, reference_point
from rlhf_lines.pareto.bootstrap import CONFIDENCE
from rlhf_lines.pareto.comparisons import group_measure
from rlhf_lines.pareto.corrected import Hypervolume, correct
from rlhf_lines.pareto.schema import GridEntry, GroupMeasure, Tuning, Validation
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.forgetting import largest_ratio
from rlhf_lines.sweep.groups import LINES, SFT, Specs, simplex
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.progress import VALIDATION
from rlhf_lines.sweep.store import StoredPoint


logger = logging.getLogger(__name__)

Candidates = dict[str, list[Scaling]]  # by group


def choose_scalings(
    config: SweepConfig, inputs: Inputs, specs: Specs, measurement: Measurement
) -> tuple[dict[str, Scaling], Validation | None]:
    """By group, the scaling whose front has the largest hypervolume, and what was measured of every candidate.

    Each group is treated alike. A candidate is out if a point of it lies beyond a limit, or below a minimum. Where the
    best one lies at an edge of what was tried, one step beyond is tried too (see `beyond`), until it does not, or
    `edge_extensions` more candidates of the group are used up. All of that is a function of the stored measurements: a
    killed run goes on.

    Hypervolumes are those above the reference point of the SFT model and the policies as they are, which no candidate
    moves.

    Where there is nothing to choose, nothing is measured: the second value is then None.

    Raises:
        ValueError: no candidate of a group keeps the limits.
    """
    if not config.chooses:
        return {name: scalings[0] for name, scalings in specs.candidates.items()}, None
    trials = _Trials(config, inputs, specs, measurement)
    candidates = {name: list(scalings) for name, scalings in specs.candidates.items()}
    while True:
        trials.measure(candidates)
        chosen = _best(config, {name: trials.entries(name, tried) for name, tried in candidates.items()}, candidates)
        further = {
            name: beyond(tried, chosen[name])[: config.edge_extensions - len(tried) + len(specs.candidates[name])]
            for name, tried in candidates.items()
        }
        if not any(further.values()):
            break
        candidates = {name: [*tried, *further[name]] for name, tried in candidates.items()}
    for name in trials.without_spread():
        logger.warning(
            "the score %s is the same for all validation prompts and points, so its minimum limits nothing", name
        )
    for name in trials.flat_objectives:
        logger.warning(
            "the objective %s is the same for the SFT model and all policies on validation prompts, so that "
            "hypervolumes, which choose scalings, tell next to nothing of candidates: leave it out of objectives",
            name,
        )
    tunings = {name: trials.tuning(name, tried, chosen[name]) for name, tried in candidates.items()}
    return chosen, {
        **tunings.pop(LINES),
        "prompts": len(trials.prompts),
        "weights": len(trials.weights),
        "reference_point": trials.reference,
        "max_kl": config.max_kl,
        "max_forgetting": config.max_forgetting,
        "minimum": config.minimum,
        "groups": tunings,
    }


def next_values(tried: Sequence[Scaling], chosen: Scaling) -> dict[str, float]:
    """From `alpha` and `beta`, where the chosen one is at an edge, to the next value beyond.

    An edge is the largest or smallest of two or more numbers that were tried; the step is that to the neighbour:

        x' = x + (x - neighbour)

    >>> next_values([Scaling(0.5, 1.0), Scaling(1.0, 1.0), Scaling("auto", 1.0)], Scaling(1.0, 1.0))
    {'alpha': 1.5}
    """
    found = {}
    for axis in ("alpha", "beta"):
        values = sorted({getattr(scaling, axis) for scaling in tried} - {"auto"})
        value = getattr(chosen, axis)
        if len(values) > 1 and value in (values[0], values[-1]):
            found[axis] = value + (value - values[1 if value == values[0] else -2])
    return found


def beyond(tried: Sequence[Scaling], chosen: Scaling) -> list[Scaling]:
    """The candidates beyond the edges at which the chosen one lies: in alpha, in beta, and, in a corner, in both."""
    values = next_values(tried, chosen)
    moves = [{axis: value} for axis, value in values.items()] + [values] * (len(values) == 2)
    return [chosen._replace(**move) for move in moves]


class _Trials:
    """What validation prompts, and texts outside the task where they limit the choice, say of candidates."""

    def __init__(self, config: SweepConfig, inputs: Inputs, specs: Specs, measurement: Measurement) -> None:
        self._config, self._inputs, self._specs, self._measurement = config, inputs, specs, measurement
        self.prompts = inputs.prompts["validation"]
        self.weights = simplex(len(config.policies), config.validation_weights)
        self.reference: list[float] = []
        self.flat_objectives: list[str] = []  # with no margin below the anchors
        self._points: list[StoredPoint] = []

    def measure(self, candidates: Candidates) -> None:
        """Fill the store with what it lacks of these candidates."""
        groups = {
            _called(name, scaling): self._specs.tried(name, scaling, self.weights)
            for name, scalings in candidates.items()
            for scaling in scalings
        }
        anchors = self._specs.anchors()
        self._points = self._measurement.measure("validation", anchors | groups, self.prompts, phase=VALIDATION)
        if self._config.max_forgetting is not None:
            self._measurement.forgetting(self._points, self._inputs.forgetting)
        of_anchors = [self._scores(point) for point in self._points if point.group in anchors]
        means = np.stack(of_anchors).mean(axis=1)
        self.reference = self._config.reference_point or reference_point(means)
        if not self._config.reference_point:
            spreads = zip(self._inputs.objectives, np.ptp(means, axis=0), strict=True)
            self.flat_objectives = [name for name, spread in spreads if spread == 0.0]

    def entries(self, group: str, tried: Sequence[Scaling], *, resamples: bool = False) -> list[GridEntry]:
        """What was measured of every candidate of a group; without resamples, hypervolumes have no interval."""
        return [self._entry(scaling, _called(group, scaling), resamples=resamples) for scaling in tried]

    def tuning(self, group: str, tried: Sequence[Scaling], chosen: Scaling) -> Tuning:
        """How the scaling of a group was chosen."""
        return {
            "grid": self.entries(group, tried, resamples=True),
            "chosen": chosen._asdict(),
            "at_edge": bool(next_values(tried, chosen)),
        }

    def without_spread(self) -> list[str]:
        """The scores that have a minimum, and are the same for all prompts and points."""
        names = list(self._config.minimum)
        if not names:
            return []
        scores = np.stack([self._scores(point, names) for point in self._points])  # [points, prompts, names]
        return [name for name, spread in zip(names, np.ptp(scores, axis=(0, 1)), strict=True) if spread == 0.0]

    def _entry(self, scaling: Scaling, name: str, *, resamples: bool) -> GridEntry:
        points = [point for point in self._points if point.group == name]
        scores = np.stack([self._scores(point) for point in points])  # [points, prompts, rewards]
        value = hypervolume(scores.mean(axis=1), self.reference)
        measure: GroupMeasure = {"value": value, "corrected": value, "low": None, "high": None}
        if resamples:
            found = correct(scores, Hypervolume(tuple(self.reference)), self._config.seed)
            measure = group_measure(found, CONFIDENCE)
        kl, forgetting, lowest = self._kl(points), self._forgetting(points), self._lowest(points)
        limits = ((kl, self._config.max_kl), (forgetting, self._config.max_forgetting))
        reaches = all(lowest[name] >= least for name, least in self._config.minimum.items())
        return {
            **scaling._asdict(),
            "hypervolume": measure,
            "kl": kl,
            "forgetting": forgetting,
            "lowest": lowest,
            "within_limits": reaches and all(limit is None or value <= limit for value, limit in limits),
        }

    def _scores(self, point: StoredPoint, rewards: Sequence[str] | None = None) -> np.ndarray:
        """Of each prompt those of some rewards, or of the objectives, `[prompts, rewards]`."""
        return self._measurement.store.scores(point.spec_id, "validation", rewards or self._inputs.objectives)

    def _kl(self, points: Sequence[StoredPoint]) -> float | None:
        """The largest mean KL of a point, in nats."""
        if not self._config.samples_policy:
            return None
        store = self._measurement.store
        return max(store.kl(point.spec_id, "validation").mean().item() for point in points)

    def _forgetting(self, points: Sequence[StoredPoint]) -> float | None:
        """The largest perplexity of a point over that of the SFT model."""
        if self._config.max_forgetting is None:
            return None
        sft = next(point for point in self._points if point.group == SFT)
        return largest_ratio(self._measurement.store, points, sft)

    def _lowest(self, points: Sequence[StoredPoint]) -> dict[str, float]:
        """By the scores that have a minimum, the smallest mean of a point."""
        names = list(self._config.minimum)
        if not names:
            return {}
        means = [self._scores(point, names).mean(axis=0) for point in points]
        return dict(zip(names, np.min(means, axis=0).tolist(), strict=True))


def _called(group: str, scaling: Scaling) -> str:
    """The group of a candidate's points on validation prompts."""
    return f"{group} {' '.join(map(str, scaling))}"


def _best(
    config: SweepConfig, entries: Mapping[str, Sequence[GridEntry]], candidates: Candidates
) -> dict[str, Scaling]:
    """By group, the candidate of the largest hypervolume within the limits; of equal ones, the first."""
    problems, best = Problems(), {}
    for group, grid in entries.items():
        allowed = [i for i, entry in enumerate(grid) if entry["within_limits"]]
        if allowed:
            best[group] = candidates[group][max(allowed, key=lambda i: grid[i]["hypervolume"]["value"])]
        else:
            problems.add(_none_left(config, group, grid))
    problems.check()
    return best


def _none_left(config: SweepConfig, group: str, grid: Sequence[GridEntry]) -> str:
    found = []
    for key, limit in (("kl", config.max_kl), ("forgetting", config.max_forgetting)):
        if limit is not None:
            least = min(grid, key=lambda entry: entry[key])
            found.append(f"max_{key} {limit:g} (the smallest is {least[key]:.4g}, of {_settings(least)})")
    for name, limit in config.minimum.items():
        most = max(grid, key=lambda entry: entry["lowest"][name])
        found.append(f"minimum {name} {limit:g} (the largest is {most['lowest'][name]:.4g}, of {_settings(most)})")
    advice = "loosen it, or give other" if config.minimum else "raise the limit, or give smaller"
    return f"none of the {len(grid)} scalings of group {group} keeps {' and '.join(found)}: {advice} alphas and betas"


def _settings(entry: GridEntry) -> str:
    return f"alpha {entry['alpha']}, beta {entry['beta']}, schedule {entry['schedule']}"
