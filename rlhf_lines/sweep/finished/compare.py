"""Verb `compare`: finished sweeps beside each other, replicates of one recipe or two recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, write_record, write_whole
from rlhf_lines.merge.rules.profile import KEYS, options_text
from rlhf_lines.pareto.comparison import RunsFile, write_comparison
from rlhf_lines.pareto.figures.comparison import plot_comparison
from rlhf_lines.pareto.objectives import check_reference_point
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.replicates import check_sizes
from rlhf_lines.pareto.report.comparison import comparison_html
from rlhf_lines.pareto.runs import RunScores, compare_runs
from rlhf_lines.pareto.schema import Front
from rlhf_lines.sweep.completion_config import SAMPLING
from rlhf_lines.sweep.finished.front import front_of
from rlhf_lines.sweep.store import open_finished


PAGE = "comparison.html"
FIGURES = ("comparison.png", "comparison.pdf")
SAMPLED = tuple(key for key in SAMPLING if key != "seed")  # replicates may draw by seeds of their own
LEARNED = (*KEYS, "router")  # options that each run has learned, or searched for, with its own policies


class Sweep(NamedTuple):
    """A finished sweep, and what its store says of where its scores come from."""

    run: RunScores
    front: Front
    reward_models: dict[str, Any]
    policies_sha256: list[str]
    sft_sha256: str | None
    sampled: dict[str, Any]  # of `SAMPLED`, what the store tells


def compare(
    run_dirs: Sequence[str | Path],
    against: Sequence[str | Path] = (),
    *,
    output_dir: str | Path,
    reference_point: Sequence[float] | None = None,
    overwrite: bool = False,
) -> RunsFile:
    """Write `comparison.json`, its figure and its page into a new folder, and return what the file holds.

    Args:
        run_dirs: folders of finished sweeps, replicates of each other.
        against: folders of sweeps of another recipe; each group of theirs is subtracted from that of `run_dirs`.
        output_dir: the folder to make.
        reference_point: of the hypervolume, one number per objective; None is that of the anchors of all runs.
        overwrite: replace an existing folder.

    Raises:
        FileNotFoundError: a folder holds no finished sweep.
        FileExistsError: `output_dir` exists and `overwrite` is false, or it holds a run.
        ValueError: the runs cannot be compared; the sentence says why.
    """
    folders = [*run_dirs, *against]
    _check_folders(run_dirs, against)
    refuse_existing(output_dir, overwrite=overwrite)
    refuse_replacing(output_dir, folders)
    names = policy_names(list(map(str, folders)))
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    sides = ["a"] * len(run_dirs) + ["b"] * len(against)
    sweeps: list[Sweep] = []
    for folder, name, side in zip(folders, names, sides, strict=True):
        sweeps.append(read_sweep(folder, name, side, sweeps[0].front["objectives"] if sweeps else None))
    first = sweeps[0].front
    _check_alike(sweeps, replicates=not against)
    if reference_point is not None:
        check_reference_point(reference_point, first["objectives"])
    comparison = compare_runs(
        [sweep.run for sweep in sweeps],
        objectives=first["objectives"],
        split=first["split"],
        seed=first["seed"],
        given_reference=reference_point,
        notes=_notes(sweeps),
    )
    given = {
        "run_dirs": list(map(str, run_dirs)),
        "against": list(map(str, against)),
        "reference_point": reference_point and list(reference_point),
    }
    with new_folder(output_dir, overwrite=overwrite) as folder:
        plot_comparison(comparison, *(folder / name for name in FIGURES))
        write_whole(folder / PAGE, comparison_html(comparison, folder / FIGURES[0]))
        write_comparison(folder, comparison)
        write_record(folder, "compare", given)
    return comparison


def _check_folders(run_dirs: Sequence[str | Path], against: Sequence[str | Path]) -> None:
    check_sizes(len(run_dirs), len(against) or None)
    where: dict[Path, str | Path] = {}
    for folder in (*run_dirs, *against):
        resolved = Path(folder).resolve()
        if resolved in where:
            raise ValueError(f"{where[resolved]} and {folder} are one folder: give every run once")
        where[resolved] = folder


def read_sweep(folder: str | Path, name: str, side: str = "a", objectives: Sequence[str] | None = None) -> Sweep:
    """A finished sweep for `compare_runs`.

    Args:
        folder: of the sweep.
        name: what people read.
        side: see `RunScores`.
        objectives: the order of the scores, where the sweep has these objectives; None is the sweep's own.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
        ValueError: its `front.json` and its run store do not fit.
    """
    with open_finished(folder) as store:
        front = front_of(folder)
        split, own = front["split"], front["objectives"]
        objectives = objectives if objectives and sorted(objectives) == sorted(own) else own
        spec_of = {point.id: point.spec_id for point in store.points(split)}
        if not all(point["id"] in spec_of for point in front["points"]):
            raise ValueError(
                f"front.json in {folder} has points that its run store has not; make it again with: rlhf-lines front "
                f"{folder}"
            )
        run = RunScores(
            name=name,
            folder=str(folder),
            prompts=[prompt.text for prompt in store.prompts(split).values()],
            points=front["points"],
            scores={p["id"]: store.scores(spec_of[p["id"]], split, objectives) for p in front["points"]},
            sft_model=front["sft_model"],
            policies=front["policies"],
            side=side,
            kl={p["id"]: store.kl(spec_of[p["id"]], split) for p in front["points"] if p["kl"] is not None},
        )
        return Sweep(
            run,
            front,
            reward_models=store.recall("reward_models", {}),
            policies_sha256=store.recall("policies_sha256", []),
            sft_sha256=store.recall("sft_sha256", None),
            sampled={key: value for key in SAMPLED if (value := store.recall(key, ...)) is not ...},
        )


def _check_alike(sweeps: Sequence[Sweep], *, replicates: bool) -> None:
    """Stop where runs have other objectives or another split, or one group name for two ways to merge."""
    first = sweeps[0]
    for other in sweeps[1:]:
        pair = f"{first.run.folder} and {other.run.folder}"
        for key in ("objectives", "split"):
            a, b = first.front[key], other.front[key]
            if sorted(a) != sorted(b):
                remedy = "; choose them with rlhf-lines front RUN_DIR --objectives" if key == "objectives" else ""
                raise ValueError(
                    f"{pair} have other {key}, {_listed(a)} and {_listed(b)}: runs are compared by the same scores "
                    f"on the same split{remedy}"
                )
        for reward in first.front["objectives"]:
            a, b = (_identity(sweep.reward_models.get(reward)) for sweep in (first, other))
            if a and b and (parts := sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))):
                raise ValueError(
                    f"{pair} have different reward models of the name {reward!r} ({', '.join(parts)} differ): score "
                    "both runs by one reward model with rlhf-lines score"
                )
        for group in first.run.groups() if replicates else ():
            rules = [_rules(sweep, group) for sweep in (first, other)]
            if all(rules) and rules[0] != rules[1]:
                raise ValueError(
                    f"{pair} merge the group {group!r} in two ways, {_listed(rules[0])} and {_listed(rules[1])}, so "
                    "they are no replicates: compare recipes with --against"
                )


def _identity(reward: Any) -> dict[str, Any]:
    """What the scores of a reward model depend on; files known by their hashes may lie anywhere."""
    known = dict(reward or {})
    if known.get("files"):
        known.pop("model", None)
    return known


def _rules(sweep: Sweep, group: str) -> list[str]:
    """How a group is merged, but for weights and what is chosen for each run: alpha, beta, schedule and `LEARNED`."""
    specs = [point["spec"] for point in sweep.run.points if point["group"] == group]
    return sorted(
        {
            " ".join(
                [
                    spec["rule"],
                    *([options_text(given)] if (given := _given(spec["options"])) else []),
                    *(["LiNeS before the rule"] if spec.get("lines") == "before" else []),
                ]
            )
            for spec in specs
        }
    )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in LEARNED}


def _notes(sweeps: Sequence[Sweep]) -> list[str]:
    """What a reader should know of runs that differ in more than their seed."""
    runs, notes = [sweep.run for sweep in sweeps], []
    first = runs[0]
    if any(set(run.prompts) != set(first.prompts) for run in runs):
        shared = len(set.intersection(*(set(run.prompts) for run in runs)))
        counts = ", ".join(f"{run.name} {len(run.prompts)}" for run in runs)
        notes.append(f"the runs have other prompts ({counts}; {shared} in all), paired as far as they are the same")
    same = [
        f"{a.run.name} and {b.run.name}"
        for a, b in combinations(sweeps, 2)
        if a.policies_sha256 and a.policies_sha256 == b.policies_sha256
    ]
    if same:
        notes.append(f"the same policies are in {', '.join(same)}: these are no independent training runs")
    samples = {run.name: run.points[0]["samples_per_prompt"] for run in runs}
    if len(set(samples.values())) > 1:
        notes.append(f"samples per prompt differ: {', '.join(f'{name} {n}' for name, n in samples.items())}")
    for key in SAMPLED:
        told = {sweep.run.name: sweep.sampled[key] for sweep in sweeps if key in sweep.sampled}
        if any(value != next(iter(told.values())) for value in told.values()):
            notes.append(f"{key} differs: {', '.join(f'{name} {_shown(value)}' for name, value in told.items())}")
    known = [sweep for sweep in sweeps if sweep.sft_sha256 is not None]
    if len({sweep.sft_sha256 for sweep in known}) > 1:
        models = ", ".join(f"{sweep.run.name} {sweep.run.sft_model}" for sweep in known)
        notes.append(f"the SFT models differ: {models}")
    other = [name for name in first.groups() if len({_weights(run, name) for run in runs} - {()}) > 1]
    if other:
        notes.append(f"weights differ between runs in {', '.join(other)}: more points make a larger hypervolume")
    return notes


def _weights(run: RunScores, group: str) -> tuple:
    return tuple(sorted(tuple(p["spec"]["weights"]) for p in run.points if p["group"] == group))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))
