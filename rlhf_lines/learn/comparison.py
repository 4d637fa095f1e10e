"""Verb `compare` of runs of `learn`: what they learned by depth, and its spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_lines.artifact import is_complete, new_folder, read_record, refuse_existing, refuse_replacing, write_record
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.record import BEST, LEARNED, PLACES, SOUP
from rlhf_lines.merge.rules.profile import Profile
from rlhf_lines.pareto import mean_estimate
from rlhf_lines.pareto.bootstrap import CONFIDENCE
from rlhf_lines.pareto.corrected import Corrected, resampled_noise
from rlhf_lines.pareto.intervals import Estimate
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.pareto.replicates import check_sizes, mean_over_runs, shared_counts
from rlhf_lines.sweep.store import Store


MAY_DIFFER = (*PLACES, "seed", "sft_model", "policies", "rewards")  # rewards have their names compared


@dataclass(frozen=True)
class LearnRun:
    """A finished run of `learn`.

    Attributes:
        folder: where it is.
        record: what it tells of itself.
        settings: what replicates share.
        prompts: texts of the validation prompts.
        by_prompt: by profile, what it is worth on each of them, `[P]`; empty of a hypervolume.
    """

    folder: str
    record: dict[str, Any]
    settings: dict[str, Any]
    prompts: list[str]
    by_prompt: dict[str, list[float]]


def compare(run_dirs: Sequence[str | Path], *, output_dir: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write what runs of `learn` have in common into the record of a new folder, and return it.

    By profile (what was learned, the best LiNeS, the soup) the factors of every policy and layer in units of a soup's
    1/K, as mean, standard deviation, smallest and largest over runs; and what each is worth on validation prompts, in
    every run and in the mean, with an interval for other runs and other prompts (`replicates.mean_over_runs`). A
    hypervolume has no value by prompt: its interval is Student's over runs, for these prompts.

    Raises:
        FileNotFoundError: a folder holds no finished run of `learn`.
        FileExistsError: `output_dir` exists and `overwrite` is false, or it holds a run.
        ValueError: the runs are no replicates of each other.
    """
    check_sizes(len(run_dirs))
    if len({Path(folder).resolve() for folder in run_dirs}) < len(run_dirs):
        raise ValueError(f"{', '.join(map(str, run_dirs))}: give every run once")
    refuse_existing(output_dir, overwrite=overwrite)
    refuse_replacing(output_dir, run_dirs)
    runs = [read_run(folder) for folder in run_dirs]
    check_alike(runs)
    found = over_runs(runs)
    with new_folder(output_dir, overwrite=overwrite) as folder:
        write_record(folder, "compare", {"run_dirs": list(map(str, run_dirs))}, **found)
    return found


def read_run(folder: str | Path) -> LearnRun:
    """A finished run of `learn`.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is of a version that kept too little.
    """
    record = read_record(folder)
    if not is_complete(folder) or record.get("stage") != "learn":
        raise FileNotFoundError(
            f"{folder} is no finished run of learn, as others that are given are: runs of learn are compared with each "
            "other"
        )
    way = json.loads((Path(folder) / LEARNED).read_text())
    if "validation" not in way:
        raise ValueError(
            f"{folder} was learned by a version that kept no values by prompt, which are compared: learn again, with "
            "--overwrite"
        )
    names = {entry.name for entry in fields(LearnConfig)} - set(MAY_DIFFER)
    with Store(folder, reading=True) as store:
        settings = {name: store.recall(name, None) for name in (*sorted(names), "dataset_name", "reward_names")}
        prompts = [prompt.text for prompt in store.prompts("validation").values()]
    return LearnRun(str(folder), record, settings, prompts, way["validation"])


def check_alike(runs: Sequence[LearnRun]) -> None:
    """Stop where runs differ in more than their seed and what policies they merge.

    Raises:
        ValueError: they do.
    """
    first = runs[0]
    for other in runs[1:]:
        if differ := [name for name, value in first.settings.items() if other.settings[name] != value]:
            raise ValueError(
                f"{first.folder} and {other.folder} differ in {', '.join(differ)}: compare runs that differ in "
                "seed, or in the seed of their policies"
            )
        shapes = [np.shape(run.record["profiles"][SOUP]["factors"]) for run in (first, other)]
        if shapes[0] != shapes[1]:
            told = [f"{policies} policies in {layers} layers" for policies, layers in shapes]
            raise ValueError(f"{first.folder} learned factors of {told[0]}, {other.folder} of {told[1]}")


def over_runs(runs: Sequence[LearnRun]) -> dict[str, Any]:
    """What `compare` tells of runs."""
    first = runs[0].record
    # A run in which no LiNeS keeps the limits has none to compare.
    names = [name for name in first["profiles"] if all(name in run.record["profiles"] for run in runs)]
    values = {name: [run.record["validation"][name]["value"] for run in runs] for name in names}
    others = [name for name in names if name != BEST]
    counts = shared_counts([run.prompts for run in runs], seed=0)

    def estimated(each: Sequence[float], by_prompt: Sequence[ArrayLike]) -> dict[str, Any]:
        found = _mean_of_values(by_prompt, counts) if runs[0].by_prompt else mean_estimate(each)
        return {"mean": found.value, "low": found.low, "high": found.high, "runs": list(each)}

    def by_prompt(name: str) -> list[NDArray[np.float64]]:
        return [np.array(run.by_prompt[name]) for run in runs if run.by_prompt]

    validation = {name: estimated(values[name], by_prompt(name)) for name in names}
    return {
        "method": first["method"],
        "aim": first["aim"],
        "runs": [run.folder for run in runs],
        "seeds": [run.record["seed"] for run in runs],
        "names": policy_names([run.folder for run in runs]),
        "policies": policy_names(first["policies"]),
        "prompts": sorted({len(run.prompts) for run in runs}),
        "validation": validation,
        "differences": {
            name: estimated(
                np.subtract(values[BEST], values[name]).tolist(),
                [a - b for a, b in zip(by_prompt(BEST), by_prompt(name), strict=True)],
            )
            for name in others
        },
        "profiles": {name: spread([Profile.of(run.record["profiles"][name]) for run in runs]) for name in names},
    }


def spread(profiles: Sequence[Profile]) -> dict[str, list[list[float]]]:
    """Of factors in units of a soup's 1/K, by policy, outside the layers and then in each: mean and spread over runs.

    >>> spread([Profile(((0.5,),), (1.0,)), Profile(((1.5,),), (1.0,))])["mean"]
    [[1.0, 1.0]]
    """
    factors = np.array([len(one.factors) * np.reshape(one.vector(), (len(one.factors), -1)) for one in profiles])
    measured = {
        "mean": factors.mean(axis=0),
        "standard_deviation": factors.std(axis=0, ddof=1),
        "smallest": factors.min(axis=0),
        "largest": factors.max(axis=0),
    }
    return {name: values.tolist() for name, values in measured.items()}


def _mean_of_values(by_prompt: Sequence[NDArray[np.float64]], counts: Sequence[NDArray[np.float64]]) -> Estimate:
    """The mean over runs of means over prompts, which no choice among points has biased."""
    means = []
    for values, drawn in zip(by_prompt, counts, strict=True):
        value, noise = float(values.mean()), np.zeros(len(drawn))
        if len(values) > 1:
            noise = resampled_noise(values[None, :, None], drawn)[:, 0, 0]
        means.append(Corrected(value, value, noise, len(values), is_difference=True))
    return mean_over_runs(means).estimate(CONFIDENCE)
