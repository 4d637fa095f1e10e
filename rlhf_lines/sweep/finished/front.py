"""From the run store of a sweep to `front.json` and the figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlhf_lines.artifact import write_whole
from rlhf_lines.lock import only_writer
from rlhf_lines.merge.outliers import two_policies
from rlhf_lines.pareto import (
    Front,
    Point,
    build_front,
    paired_difference,
    plot_benchmarks,
    plot_forgetting,
    plot_front,
    plot_kl,
    plot_validation,
    read_front,
    write_front,
)
from rlhf_lines.pareto.benchmarks import Result
from rlhf_lines.pareto.intervals import unit
from rlhf_lines.pareto.latex import front_tex
from rlhf_lines.pareto.objectives import check_objectives, check_reference_point
from rlhf_lines.pareto.origin import shared_weights, single_policy
from rlhf_lines.pareto.schema import SFT, SOUP, Audit, Benchmark, Forgetting, Validation
from rlhf_lines.pareto.spreadsheet import front_csv
from rlhf_lines.sweep.finished.behaviour import read_behaviour
from rlhf_lines.sweep.policy_sets import PolicySet, all_policies
from rlhf_lines.sweep.store import RUN_STORE, Store, StoredPoint, check_stage, open_finished


logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".pdf")
TABLE, POINTS = "table.tex", "front.csv"
ANCHORS = "anchors"  # the reference point that the SFT model and the single policies make


def trace_front(
    folder: str | Path,
    *,
    split: str = "test",
    objectives: Sequence[str] | None = None,
    reference_point: Sequence[float] | Literal["anchors"] | None = None,
) -> Front:
    """Write `front.json` and the figures from what the store holds, and return the front.

    The figures are `front`, and, where there is something to draw, `kl`, `validation`, `forgetting` and `benchmarks`,
    each as .png and .pdf. Beside them are `table.tex`, the measures of the groups, and `front.csv`, the points.

    Args:
        folder: of the sweep.
        split: the prompts.
        objectives: names of the scores that the front is made of from now on; None leaves them as they are.
        reference_point: a number per objective, or `anchors` for the rule, from now on; None leaves it as it is.

    Raises:
        FileNotFoundError: the folder has no run store, or something is to be set and the sweep has not finished.
        ValueError: the folder is of another stage, the store is not that of a finished sweep, or what is to be set does
            not fit.
    """
    folder = Path(folder)
    if not (folder / RUN_STORE).is_file():
        raise FileNotFoundError(f"{folder} has no {RUN_STORE}: expected the output_dir of rlhf-lines sweep")
    check_stage(folder)
    with only_writer(folder):
        if objectives is not None or reference_point is not None:
            with open_finished(folder, reading=False) as store:
                _set(store, objectives, reference_point)
                store.finish()
        return _trace_front(folder, split)


def front_of(folder: str | Path) -> Front:
    """The front of a finished sweep, as `front.json` has it; where that is missing or of an older form, made anew.

    One that can be read stays where there is no run store to make it from, or the folder may not be written.

    Raises:
        FileNotFoundError, ValueError: as `trace_front`.
    """
    try:
        front = read_front(folder)
    except (FileNotFoundError, ValueError):
        return trace_front(folder)
    if front["answers"] is None and (Path(folder) / RUN_STORE).is_file() and os.access(folder, os.W_OK):
        logger.info("front.json in %s is of an earlier version: it is made anew", folder)
        return trace_front(folder, split=front["split"])
    return front


def objectives_of(store: Store) -> list[str]:
    """The scores that the front is made of; of a run of an earlier version all."""
    return store.recall("objectives", None) or store.recall("reward_names")


def metrics_of(store: Store, split: str | None = None) -> list[str]:
    """The other scores; of a split those that its completions have, as a comparison needs others to compare with."""
    objectives = objectives_of(store)
    names = [name for name in store.recall("reward_names") if name not in objectives]
    return names if split is None else [name for name in names if split in store.scored_splits(name)]


def answers_of(store: Store) -> list[str]:
    """The scores of which every single one is 0 or 1."""
    return list(filter(store.are_answers, store.recall("reward_names")))


def gains(store: Store) -> list[dict[str, Any]]:
    """For every policy and objective, the mean gain over the SFT model in its standard deviations, on test prompts."""
    policies, objectives, points = store.recall("policies"), objectives_of(store), store.points("test")

    def scores(point: StoredPoint) -> NDArray[np.float64]:
        return store.scores(point.spec_id, "test", objectives)

    before = scores(next(point for point in points if point.group == SFT))
    soup = {single_policy(point.spec.to_dict(), policies): point for point in points if point.group == SOUP}
    found = []
    for k, policy in enumerate(policies):
        for name, own, column in zip(objectives, scores(soup[k]).T, before.T, strict=True):
            gain = paired_difference(own / unit(column), column / unit(column))
            found.append({"policy": policy, "reward": name, "value": gain.value, "low": gain.low, "high": gain.high})
    return found


def asked_metrics(store: Store) -> list[str]:
    """The metrics of the benchmarks that points were asked."""
    return [name for benchmark in _benchmarks(store).values() for name in benchmark["metrics"]]


def check_free_of_reference_point(store: Store) -> None:
    """Refuse other objectives where a reference point was given for those that there are.

    Raises:
        ValueError: it was.
    """
    if (given := store.recall("reference_point", None)) is not None:
        raise ValueError(
            f"the reference point {_numbers(given)} was given for {', '.join(objectives_of(store))}: with other "
            "objectives it is another one; give it, or go back to the rule: rlhf-lines front RUN_DIR --reference_point "
            "anchors"
        )


def _set(store: Store, objectives: Sequence[str] | None, reference_point: Sequence[float] | str | None) -> None:
    before = objectives_of(store)
    objectives = before if objectives is None else list(objectives)
    check_objectives(objectives, store.recall("reward_names"))
    check_whole(store, objectives)
    if reference_point is None and objectives != before:
        check_free_of_reference_point(store)
    facts = {"objectives": objectives}
    if reference_point is not None:
        given = reference_point != ANCHORS
        if given:
            check_reference_point(reference_point, objectives)
        facts["reference_point"] = list(map(float, reference_point)) if given else None
    store.replace(**facts)


def check_whole(store: Store, names: Sequence[str]) -> None:
    """Refuse an objective that points of the front lack.

    Raises:
        ValueError: there is one.
    """
    prompts = len(store.prompts("test"))
    for name in names:
        for point in store.points("test"):
            if len(store.scores(point.spec_id, "test", [name])) != prompts:
                raise ValueError(
                    f"point {point.id} has no score {name}, as a comparison has none where nothing stands at the same "
                    "weights: it can be a metric, but no objective"
                )


def preferences(store: Store, split: str) -> dict[int, list[float] | None]:
    """The weights at which each point, by its id, stands beside those of other groups; None of one that has none."""
    of_sets = _of_sets(store)
    return {
        point.id: found if (found := of_sets(point)) is not None else shared_weights(point.group, point.spec.weights)
        for point in store.points(split)
    }


def _of_sets(store: Store) -> Callable[[StoredPoint], list[float] | None]:
    """The function from a point to its preference among the policies of its set; None of a point of no further set."""
    sets = {entry.name: entry for entry in map(PolicySet.of, store.recall("policy_sets", []))}
    listed = policies_of(store)

    def preference(stored: StoredPoint) -> list[float] | None:
        if (entry := sets.get(stored.group)) is None:
            return None
        weights = [*stored.spec.weights, *[0.0] * len(listed)]
        return list(entry.preference([weights[listed.index(policy)] for policy in entry.policies]))

    return preference


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:zg}" for value in values)


def _trace_front(folder: Path, split: str) -> Front:
    with Store(folder, reading=True) as store:
        front = build_front(
            rewards=objectives_of(store),
            metrics=metrics_of(store, split),
            given_reference_point=store.recall("reference_point", None),
            split=split,
            seed=store.recall("seed"),
            points=measured_points(store, split),
            sft_model=store.recall("sft_model"),
            policies=policies_of(store),
            sft_renamed=store.recall("sft_renamed", False),
            validation=_validation(store),
            surrogate=store.recall("surrogate"),
            forgetting=_forgetting(store),
            audit=_audit(store),
            benchmarks=_benchmarks(store),
            prompt_ids=list(store.prompts(split)),
            answers=answers_of(store),
        )
    plot_front(front, *_files(folder, "front"))
    if any(point["kl"] for point in front["points"]):
        plot_kl(front, *_files(folder, "kl"))
    if front["validation"] is not None:
        plot_validation(front, *_files(folder, "validation"))
    if front["forgetting"] is not None:
        plot_forgetting(front, *_files(folder, "forgetting"))
    if any(point["benchmark_changes"] for point in front["points"]):
        plot_benchmarks(front, *_files(folder, "benchmarks"))
    write_whole(folder / TABLE, front_tex(front))
    write_whole(folder / POINTS, front_csv(front))
    write_front(folder, front)  # last: who finds it finds the figures too
    return front


def _validation(store: Store) -> Validation | None:
    """How alpha and beta were chosen; a run of an earlier version knew fewer limits, or none, and LiNeS alone."""
    found = store.recall("validation")
    if found is None or "minimum" in found:
        return found
    if "groups" not in found:
        found = _of_lines_alone(found)
    tunings = {name: _without_minimum(tuning) for name, tuning in found["groups"].items()}
    return {**_without_minimum(found), "minimum": {}, "groups": tunings}


def _without_minimum(tuning: dict[str, Any]) -> dict[str, Any]:
    return {**tuning, "grid": [{"lowest": {}} | entry for entry in tuning["grid"]]}


def _of_lines_alone(found: dict[str, Any]) -> dict[str, Any]:
    """What a version kept that knew no limits, and chose for LiNeS alone, as later ones do."""
    grid, chosen = found["grid"], found["chosen"]
    tried = {axis: {entry[axis] for entry in grid} - {"auto"} for axis in ("alpha", "beta")}
    at_edge = any(len(values) > 1 and chosen[axis] in (min(values), max(values)) for axis, values in tried.items())
    unknown = {"kl": None, "forgetting": None, "within_limits": True}
    grid = [
        {**entry, "hypervolume": {"corrected": entry["hypervolume"]["value"]} | entry["hypervolume"]} for entry in grid
    ]
    limits = {"max_kl": None, "max_forgetting": None}
    return {**found, "grid": [unknown | entry for entry in grid], "at_edge": at_edge, **limits, "groups": {}}


def _audit(store: Store) -> Audit | None:
    """The signatures of the policies, with what can be said of two; None of a run of a version that made none."""
    found = store.recall("audit", None)
    return None if found is None else {**found, "of_two": two_policies(found)}


def policies_of(store: Store) -> list[str]:
    """Every policy, in the order of the specs' weights."""
    sets = [PolicySet.of(entry) for entry in store.recall("policy_sets", [])]
    return all_policies(store.recall("policies"), store.recall("morlhf"), sets)


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def _forgetting(store: Store) -> Forgetting | None:
    """What the texts outside the task are, or None without any."""
    tokens = store.forgetting_tokens()
    if len(tokens) == 0:
        return None
    return {"texts": len(tokens), "tokens": int(tokens.sum()), "source": store.recall("control")}


def _benchmarks(store: Store) -> dict[str, Benchmark]:
    """How points were asked, by what they were asked; all of one benchmark were asked alike."""
    found = {task: next(iter(by_spec.values())) for task, by_spec in store.evaluations().items()}
    return {
        task: {
            "lm_eval": one["lm_eval"],
            "limit": one["asked"]["limit"],
            "apply_chat_template": one["asked"]["apply_chat_template"],
            "system_instruction": one["asked"].get("system_instruction"),  # an earlier version gave none
            "tasks": one["tasks"],
            "metrics": {name: metric["higher_is_better"] for name, metric in one["metrics"].items()},
        }
        for task, one in found.items()
    }


def _results(store: Store) -> dict[int, dict[str, Result]]:
    """What benchmarks found, by the id of the spec and by metric."""
    found: dict[int, dict[str, Result]] = {}
    for by_spec in store.evaluations().values():
        for spec, one in by_spec.items():
            metrics = one["metrics"].items()
            found.setdefault(spec, {}).update(
                {name: Result(metric["value"], metric["stderr"], metric["values"]) for name, metric in metrics}
            )
    return found


def measured_points(store: Store, split: str) -> list[Point]:
    """Every point of a split with its scores per prompt."""
    objectives, metrics = objectives_of(store), metrics_of(store, split)
    preference = _of_sets(store)
    samples, tokens, name = store.recall("samples_per_prompt"), store.forgetting_tokens(), store.log_ratio_name
    behaviours, results = read_behaviour(store, split, objectives), _results(store)

    def log_ratio(spec: int) -> dict[str, Any]:
        values = store.kl(spec, split)
        return {"kl": values} if name == "kl" else {"metrics": {name: values}}

    def forgetting(spec: int) -> dict[str, Any]:
        nll = store.nll(spec)
        return {"nll": nll, "text_tokens": tokens} if len(nll) else {}

    def further(spec: int, name: str) -> Any:
        values = store.scores(spec, split, [name])[:, 0]
        return values if len(values) else None

    def point(stored: StoredPoint) -> Point:
        measured = {**log_ratio(stored.spec_id), **forgetting(stored.spec_id)}
        scores = {name: further(stored.spec_id, name) for name in metrics}
        measured["metrics"] = {**measured.get("metrics", {}), **scores}
        return Point(
            id=stored.id,
            group=stored.group,
            spec=stored.spec.to_dict(),
            scores=store.scores(stored.spec_id, split, objectives),
            samples_per_prompt=samples,
            behaviour=behaviours[stored.spec_id],
            preference=preference(stored),
            results=results.get(stored.spec_id, {}),
            **measured,
        )

    return [point(stored) for stored in store.points(split)]
