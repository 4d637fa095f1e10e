"""What the page shows of a front: its groups, its measures, the steps of the slider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.report.groups import Mark, marks
from rlhf_lines.pareto.report.words import share, weights
from rlhf_lines.pareto.schema import MORLHF, Front, Mean, PointEntry, Prediction
from rlhf_lines.pareto.table import decimals


# What is told of the completions of a point, as the page calls it.
COMPLETIONS = {
    "tokens": "tokens",
    "share_empty": "share empty",
    "share_cut": "share cut",
    "repetition": "repetition",
    "distinct": "distinct",
    "win_rate": "win rate",
}


@dataclass(frozen=True)
class Measure:
    """What is measured of every point, and with how many decimals it is written."""

    name: str
    unit: str
    of: Callable[[PointEntry], Mean | None]
    digits: int


@dataclass(frozen=True)
class Step:
    """One place of the slider: weights of the policies, in words, and the ids of the points that have them."""

    text: str
    points: list[int]


@dataclass(frozen=True)
class Content:
    """A front with what all parts of the page ask of it."""

    front: Front

    @cached_property
    def groups(self) -> dict[str, Mark]:
        """The groups by name, in the order in which they are listed."""
        return marks(point["group"] for point in self.front["points"])

    @property
    def flat(self) -> bool:
        """Whether fronts are lines in a plane."""
        return len(self.front["rewards"]) == 2

    @cached_property
    def predictions(self) -> list[Prediction]:
        """What was predicted and measured, of all groups."""
        return [entry for surrogate in (self.front["surrogate"] or {}).values() for entry in surrogate["predicted"]]

    @cached_property
    def schedules(self) -> list[str]:
        """The schedules that were tried on the validation prompts."""
        validation = self.front["validation"]
        return list(dict.fromkeys(entry["schedule"] for entry in validation["grid"])) if validation else []

    @cached_property
    def rewards(self) -> dict[str, Measure]:
        """The scores, by reward."""
        return {name: self._measure(name, "", lambda p, name=name: p["scores"][name]) for name in self.front["rewards"]}

    @cached_property
    def kl(self) -> Measure:
        """The divergence from the SFT model."""
        return self._measure("KL to SFT", "nats", lambda point: point["kl"])

    @cached_property
    def measures(self) -> list[Measure]:
        """The rewards in their order, then what points have of KL, perplexity and what their completions are like."""
        others = [
            self.kl,
            self._measure("perplexity", "", lambda point: point["perplexity"]),
            *(
                self._measure(name, "", lambda point, key=key: point["metrics"][key])
                for key, name in COMPLETIONS.items()
            ),
        ]
        return [*self.rewards.values(), *(other for other in others if any(map(other.of, self.front["points"])))]

    def _measure(self, name: str, unit: str, of: Callable[[PointEntry], Mean | None]) -> Measure:
        return Measure(name, unit, of, decimals(found["mean"] for found in map(of, self.front["points"]) if found))

    def points_of(self, group: str) -> list[PointEntry]:
        """The points of a group."""
        return [point for point in self.front["points"] if point["group"] == group]

    def names(self, point: PointEntry) -> list[str]:
        """The name of a point's group, and that of the policy that it is, if it is one alone."""
        alone = [] if point["single_policy"] is None else [f"{point['label']} alone"]
        return [self.groups[point["group"]].label, *alone]

    def label(self, point: PointEntry) -> str:
        """A point in words: its names and its weights."""
        values = point["spec"]["weights"]
        return ", ".join([*self.names(point), *([weights(values)] if any(values) else [])])

    @cached_property
    def steps(self) -> list[Step]:
        """The distinct weights, from the first policy's lowest to its highest, with their points.

        MORLHF runs have no weights of their group's choosing: theirs only say which run it is. A spec may have fewer
        weights than there are policies; the others are 0.
        """
        groups = self.front["fronts"].keys() - {MORLHF}
        points = [p for p in self.front["points"] if p["group"] in groups and any(p["spec"]["weights"])]
        longest = max((len(point["spec"]["weights"]) for point in points), default=0)
        found: dict[tuple[float, ...], list[int]] = {}
        for point in points:
            values = point["spec"]["weights"]
            found.setdefault((*values, *[0.0] * (longest - len(values))), []).append(point["id"])
        names = policy_names(self.front["policies"])[:longest]
        names += [f"policy {k + 1}" for k in range(len(names), longest)]
        texts = {key: [f"{share(w)} {name}" for w, name in zip(key, names, strict=True)] for key in found}
        return [Step(" · ".join(texts[key]), found[key]) for key in sorted(found)]
