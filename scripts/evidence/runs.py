"""The sweeps of a task, one seed after the other, as the questions need them. Letters: P prompts, T texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.pareto.bootstrap import bootstrap_counts
from rlhf_lines.pareto.comparison import RunsFile
from rlhf_lines.pareto.corrected import DRAWN, Corrected
from rlhf_lines.pareto.intervals import Estimate, mean_estimate
from rlhf_lines.pareto.replicates import mean_over_runs
from rlhf_lines.pareto.runs import compare_runs
from rlhf_lines.pareto.schema import MORLHF, SFT, Front, PointEntry
from rlhf_lines.pareto.utility import utilities
from rlhf_lines.sweep.finished.compare import Sweep, read_sweep
from rlhf_lines.sweep.store import Row, Store


EQUAL = (0.5, 0.5)
WRONG = ("averaged factors", "PEFT linear")
PAIR = ("corrected", "low", "high")
Learned = dict[str, Any]  # what the record of `learn` says it found


@dataclass(frozen=True)
class Run:
    """A sweep with its front, and how well its specs predict texts outside the task.

    Attributes:
        sweep: scores and front.
        nll: -log p per token of every text, in nats, `[T]`, by the id of the point.
        sources: of the texts, in their order.
    """

    sweep: Sweep
    nll: dict[int, NDArray[np.float64]]
    sources: list[str]

    @classmethod
    def read(cls, folder: Path, name: str) -> Run:
        """The run of an unpacked folder."""
        sweep = read_sweep(folder, name)
        with Store(folder, reading=True) as store:
            texts = store.forgetting_texts()
            tokens = np.array([text.tokens for text in texts])
            nll = {point.id: store.nll(point.spec_id) / tokens for point in store.points(sweep.front["split"])}
        return cls(sweep, nll, [text.text.split()[0] for text in texts])

    @property
    def front(self) -> Front:
        """Its `front.json`."""
        return self.sweep.front

    @cached_property
    def groups(self) -> set[str]:
        """Names of the groups that it measured."""
        return {point["group"] for point in self.front["points"]}

    def point(self, group: str, weights: Sequence[float] = EQUAL) -> PointEntry:
        """The point of a group with these weights that groups share; of a single policy its own group is the soup."""
        own = [point for point in self.front["points"] if point["group"] == group]
        if group == SFT:
            return own[0]
        return next(p for p in own if np.allclose(p["preference"] or _share(p, own), weights))

    def utility(self, point: PointEntry) -> NDArray[np.float64]:
        """What the point is worth at each prompt to somebody to whom objectives are alike, `[P]`: `utilities`' mean."""
        scores = np.asarray(self.sweep.run.scores[point["id"]])
        return utilities(scores, self.front["reference_point"], self.front["ideal_point"]).mean(axis=1)

    def kl(self, point: PointEntry) -> NDArray[np.float64]:
        """The KL of the point to the SFT model at each prompt, in nats, `[P]`."""
        return np.asarray(self.sweep.run.kl[point["id"]])

    def forgotten(self, point: PointEntry, source: str) -> NDArray[np.float64]:
        """By how much the loss per token of each text of a source is above the SFT model's, in nats, `[T]`."""
        of_source = np.array([each == source for each in self.sources])
        return (self.nll[point["id"]] - self.nll[self.point(SFT)["id"]])[of_source]

    def answers(self, folder: Path, point: PointEntry, prompts: Sequence[int]) -> dict[int, str]:
        """What a point answered to prompts, by their ids."""
        with Store(folder, reading=True) as store:
            spec = next(each.spec_id for each in store.points(self.front["split"]) if each.id == point["id"])
            rows: list[Row] = list(store.rows_of(spec, []))
        return {row.prompt: row.text.strip() for row in rows if row.prompt in prompts}


@dataclass(frozen=True)
class Task:
    """A task with the sweeps of its seeds.

    Attributes:
        name: as in `configs/smollm2`.
        folders: of the comparing sweeps.
        runs: the comparing sweeps.
        thirds: the sweeps that give every third of the depth its factor.
        searches: the sweeps that search for a front, beside rules that were tuned at the same cost.
        learned: by method, what `learn` found with each seed.
    """

    name: str
    folders: list[Path]
    runs: list[Run]
    thirds: list[Run]
    searches: list[Run] = field(default_factory=list)
    learned: dict[str, list[Learned]] = field(default_factory=dict)

    def having(self, *groups: str) -> Task:
        """The task with those of its seeds alone that have all of these groups."""
        places = tuple(i for i, run in enumerate(self.runs) if run.groups.issuperset(groups))
        if len(places) == len(self.runs):
            return self
        return self._parts.setdefault(places, replace(self, runs=[self.runs[i] for i in places]))

    @property
    def replicated(self) -> list[Run]:
        """The comparing sweeps, where there are several."""
        return self.runs if len(self.runs) > 1 else []

    @property
    def wrong(self) -> list[Run]:
        """The comparing sweeps that have wrong mergers."""
        return self.having(*WRONG).runs

    @cached_property
    def _parts(self) -> dict[tuple[int, ...], Task]:  # so that what a part compares is measured once
        return {}

    @cached_property
    def compared(self) -> RunsFile | Front:
        """All pairs of groups: over seeds and prompts, or of a single seed over prompts."""
        first = self.runs[0].front
        if len(self.runs) == 1:
            return first
        sweeps = [run.sweep.run for run in self.runs]
        return compare_runs(sweeps, objectives=first["objectives"], split=first["split"], seed=first["seed"])

    def difference(self, a: str, b: str, measure: str) -> Estimate | None:
        """A measure of group a minus that of group b, in percent of b's; None where a seed has it not measured."""
        entry = next((each for each in self.compared["comparisons"] if _pair(each) == {a, b}), None)
        if entry is None:
            return None
        sign = 1 if entry["a"] == a else -1
        found = entry[f"{measure}_difference"]
        base = self._size(entry, b, measure)
        if found is None or found["low"] is None or base is None:
            return None
        value, *ends = (100.0 * sign * found[key] / base for key in PAIR)
        return Estimate(value, min(ends), max(ends), found["adjusted_p_value"])

    def _size(self, entry: dict, group: str, measure: str) -> float | None:
        """A measure of one of two groups that are compared, from the same points of reference as their difference."""
        if measure == "equal_kl":
            pairs = entry["equal_kl_hypervolumes"]
            pairs = [pairs] if len(self.runs) == 1 else pairs
            place = "ab".index("a" if entry["a"] == group else "b")
            return None if entry["equal_kl_hypervolumes"] is None else float(np.mean([pair[place] for pair in pairs]))
        alike = self.compared
        measured = [alike["fronts"]] if len(self.runs) == 1 else [run["groups"] for run in alike["runs"]]
        return float(np.mean([groups[group][measure]["corrected"] for groups in measured]))

    def mean(self, values: Callable[[Run], NDArray[np.float64]], *, thirds: bool = False) -> Estimate:
        """The mean over seeds of what a function gives for each prompt, or text, of a run, with its interval."""
        return over_seeds([values(run) for run in (self.thirds if thirds else self.runs)])


def over_seeds(values: Sequence[NDArray[np.float64]]) -> Estimate:
    """The mean of values `[P]` of every seed at the same prompts, with an interval for other seeds and other prompts.

    Of a single seed it is the t interval over prompts.
    """
    if len(values) == 1:
        return mean_estimate(values[0])
    size = len(values[0])
    counts = bootstrap_counts(size, DRAWN, 0)
    runs = []
    for each in values:
        drawn = counts @ each / counts.sum(axis=1)
        runs.append(Corrected(each.mean(), each.mean(), drawn - drawn.mean(), size, is_difference=True))
    return mean_over_runs(runs).estimate()


def _pair(entry: dict) -> set[str]:
    return {entry["a"], entry["b"]}


def _share(point: PointEntry, own: Sequence[PointEntry]) -> tuple[float, float]:
    """The weights of a MORLHF run, whose points are in the order of its mixtures."""
    share = (own.index(point) + 1) / (len(own) + 1)
    return (share, 1.0 - share) if point["group"] == MORLHF else (np.nan, np.nan)
