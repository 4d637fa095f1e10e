"""What the page shows of a front: its groups, its measures, the steps of the slider."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_lines.pareto.benchmarks import benchmark_metrics
from rlhf_lines.pareto.figures.kl import utility
from rlhf_lines.pareto.origin import policy_names, share
from rlhf_lines.pareto.picked import Picked, pick
from rlhf_lines.pareto.report.groups import Mark, marks
from rlhf_lines.pareto.report.words import weights
from rlhf_lines.pareto.schema import SOUP, WORDS, Front, Mean, PointEntry, Prediction, Tuning, Value
from rlhf_lines.pareto.table import decimals


# The units of what is told of the completions of a point.
COMPLETIONS = {
    "tokens": "",
    "share_empty": "%",
    "share_cut": "%",
    "repetition": "%",
    "distinct": "%",
    "log_ratio": "nats",
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
    """One place of the slider: weights of the policies, in words too, and the ids of the points that have them."""

    text: str
    parts: list[float]
    points: list[int]


@dataclass(frozen=True)
class Choice:
    """A preference over the objectives, in words too, and the id of the point that `pick --scale range` finds."""

    preference: tuple[float, ...]
    text: str
    point: int

    @property
    def ratio(self) -> str:
        """The preference in percent, without the names of the objectives."""
        return " : ".join(self._percents)

    @property
    def address(self) -> str:
        """The preference in percent as an address of the page has it, such as 70-30."""
        return "-".join(self._percents)

    @property
    def _percents(self) -> list[str]:
        return [f"{100 * part:.0f}" for part in self.preference]


@dataclass(frozen=True)
class Tuned:
    """A group whose scaling was chosen on validation prompts, or LiNeS alone."""

    group: str
    tuning: Tuning

    @property
    def schedules(self) -> list[str]:
        """The schedules that were tried."""
        return list(dict.fromkeys(entry["schedule"] for entry in self.tuning["grid"]))


@dataclass(frozen=True)
class Content:
    """A front with what all parts of the page ask of it.

    Attributes:
        front: what is shown.
        worths: for each of `preferences`, the utility of the point that is picked, corrected for having been picked;
            empty where that is not known.
        over_soup: for each of `preferences`, how much more the best point that `within_kl_of_picked` looks at is worth
            than the soup's, corrected for both having been picked; empty where that is not known.
    """

    front: Front
    worths: Sequence[Value | None] = ()
    over_soup: Sequence[Value | None] = ()

    @cached_property
    def groups(self) -> dict[str, Mark]:
        """The groups by name, in the order in which they are listed."""
        return marks(point["group"] for point in self.front["points"])

    @cached_property
    def by_id(self) -> dict[int, PointEntry]:
        """The points by their ids."""
        return {point["id"]: point for point in self.front["points"]}

    @cached_property
    def best(self) -> set[int]:
        """The ids of the points that no other of their group dominates."""
        return {i for entry in self.front["fronts"].values() for i in entry["nondominated"]}

    @property
    def flat(self) -> bool:
        """Whether fronts are lines in a plane."""
        return len(self.front["objectives"]) == 2

    @cached_property
    def predictions(self) -> list[Prediction]:
        """What was predicted and measured, of all groups."""
        return [entry for surrogate in (self.front["surrogate"] or {}).values() for entry in surrogate["predicted"]]

    @cached_property
    def tuned(self) -> list[Tuned]:
        """What was tried on validation prompts, LiNeS first."""
        validation = self.front["validation"]
        if not validation:
            return []
        return [Tuned("lines", validation), *(Tuned(name, entry) for name, entry in validation["groups"].items())]

    @cached_property
    def rewards(self) -> dict[str, Measure]:
        """The objectives, by name."""
        return {name: self._measure(name, "", lambda p, n=name: p["scores"][n]) for name in self.front["objectives"]}

    @cached_property
    def kl(self) -> Measure:
        """The divergence from the SFT model."""
        return self._measure("KL to SFT", "nats", lambda point: point["kl"])

    @cached_property
    def perplexity(self) -> Measure:
        """Of the texts outside the task."""
        return self._measure("perplexity", "", lambda point: point["perplexity"])

    @cached_property
    def scores(self) -> list[Measure]:
        """The objectives in their order, then what points have of KL, perplexity, further scores and benchmarks."""
        names = [*self.front["metrics"], *benchmark_metrics(self.front)]
        others = [self._measure(n, "", lambda p, n=n: p["metrics"].get(n)) for n in names]
        return [*self.rewards.values(), *filter(self._is_known, [self.kl, self.perplexity, *others])]

    @cached_property
    def behaviour(self) -> list[Measure]:
        """What completions are like."""
        found = [
            self._measure(WORDS[key], unit, lambda p, key=key: p["metrics"].get(key))
            for key, unit in COMPLETIONS.items()
        ]
        return [measure for measure in found if self._is_known(measure)]

    @cached_property
    def wins(self) -> list[Measure]:
        """How completions compare with the SFT model's, jointly and by objective, and what length has to do with it."""
        measures = [self._measure(WORDS["win_rate"], "%", lambda point: point["metrics"].get("win_rate"))]
        for key in ("all_better", "all_worse") if len(self.front["objectives"]) > 1 else ():
            measures.append(
                self._measure(WORDS[key], "%", lambda p, key=key: (p["metrics"].get("win_rate") or {}).get(key))
            )
        for name in self.front["objectives"]:
            for text, unit, find in (
                ("win rate in {}", "%", lambda m, n=name: ((m.get("win_rate") or {}).get("by_objective") or {}).get(n)),
                ("{} above SFT at equal length", "", lambda m, n=name: (m.get("at_matched_length") or {}).get(n)),
                ("correlation of {} with length", "", lambda m, n=name: (m.get("length_correlation") or {}).get(n)),
            ):
                measures.append(self._measure(text.format(name), unit, lambda p, find=find: find(p["metrics"])))
        return [measure for measure in measures if self._is_known(measure)]

    def _is_known(self, measure: Measure) -> bool:
        return any(map(measure.of, self.front["points"]))

    def _measure(self, name: str, unit: str, of: Callable[[PointEntry], Mean | None]) -> Measure:
        if unit == "%":
            return Measure(name, unit, lambda point: _in_percent(of(point)), 1)
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
        return ", ".join(filter(None, [*self.names(point), self.place(point)]))

    def place(self, point: PointEntry) -> str:
        """The weights of a point that its group shares with others, or those of its spec; nothing of the SFT model."""
        values = point["preference"] or point["spec"]["weights"]
        return weights(values) if any(values) else ""

    def utility(self, point: PointEntry, preference: Sequence[float] | None = None) -> float:
        """What a point is worth under a preference, or to somebody to whom all objectives are the same."""
        return utility(self.front, point, preference)

    @cached_property
    def policy_names(self) -> list[str]:
        """What the weights of a step belong to."""
        longest = max((len(p["preference"]) for p in self.front["points"] if p["preference"]), default=0)
        names = policy_names(self.front["policies"])[:longest]
        return names + [f"policy {k + 1}" for k in range(len(names), longest)]

    @cached_property
    def steps(self) -> list[Step]:
        """The distinct weights that groups share, from the first policy's lowest to its highest, with their points."""
        found: dict[tuple[float, ...], list[int]] = {}
        for point in self.front["points"]:
            if point["preference"] and point["group"] in self.front["fronts"]:
                values = [*point["preference"], *[0.0] * (len(self.policy_names) - len(point["preference"]))]
                found.setdefault(tuple(round(value, 9) for value in values), []).append(point["id"])
        return [
            Step(" · ".join(f"{share(w)} {n}" for w, n in zip(key, self.policy_names, strict=True)), [*key], found[key])
            for key in sorted(found)
        ]

    @cached_property
    def choices(self) -> list[Choice]:
        """What is best for each of `preferences`; none where there is no front to choose from."""
        if not self.front["fronts"]:
            return []

        def choice(row: tuple[float, ...]) -> Choice:
            parts = (f"{100 * part:.0f} % {name}" for part, name in zip(row, self.front["objectives"], strict=True))
            return Choice(row, " · ".join(parts), pick(self.front, preference=row, scale="range").point["id"])

        return [choice(row) for row in preferences(len(self.front["objectives"]))]

    @cached_property
    def within_kl(self) -> list[tuple[Picked, Picked] | None]:
        """For each of `choices`, what `within_kl_of_picked` finds."""
        return [within_kl_of_picked(self.front, choice.preference) for choice in self.choices]


def within_kl_of_picked(front: Front, preference: Sequence[float]) -> tuple[Picked, Picked] | None:
    """What is picked for a preference among the points that are no further from the SFT model, and the soup's best.

    The first is picked as `pick` does, but among the points whose measured KL is at most that of the one that is best
    of all; the second among those of the soup. None where there is no soup or no KL, or every point of the soup is
    further away.
    """
    spent = pick(front, preference=preference, scale="range").point["kl"]
    if SOUP not in front["fronts"] or spent is None:
        return None
    asked = {"preference": preference, "scale": "range", "max_kl": max(spent["mean"], 0.0)}
    try:
        return pick(front, **asked), pick(front, **asked, group=SOUP)
    except ValueError:  # no point of the soup is as near
        return None


def preferences(count: int) -> list[tuple[float, ...]]:
    """Preferences over so many objectives, evenly spaced: eleven over two, dozens over three to five, none over more.

    >>> preferences(1), preferences(2)[:2]
    ([(1.0,)], [(1.0, 0.0), (0.9, 0.1)])
    """
    parts = {1: 1, 2: 10, 3: 5}.get(count, 3 if count < 6 else 1)
    rows = itertools.product(range(parts, -1, -1), repeat=count) if count < 6 else []
    return [tuple(part / parts for part in row) for row in rows if sum(row) == parts]


def _in_percent(share: Mean | None) -> Mean | None:
    return share and {end: None if share[end] is None else 100 * share[end] for end in ("mean", "low", "high")}
