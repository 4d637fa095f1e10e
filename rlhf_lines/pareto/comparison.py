"""`comparison.json`: finished sweeps beside each other, every key of it, how it is read and written.

Every key is always there. What there is nothing for is null or empty, and the comment beside the key says when.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypedDict

from rlhf_lines.artifact import write_whole
from rlhf_lines.pareto.schema import GroupMeasure, faults


FORMAT = 1
FILE_NAME = "comparison.json"


class GroupMeasures(TypedDict):
    """A group of a run, by the common reference point."""

    points: int
    hypervolume: GroupMeasure  # with the interval over prompts, as in `front.json`
    expected_utility: GroupMeasure


class RunEntry(TypedDict):
    """A finished sweep."""

    name: str  # what people read: its folder's name, with the parent's where names repeat
    folder: str  # as it was given
    side: Literal["a", "b"]  # b: what the others are compared against
    prompts: int
    samples_per_prompt: int
    sft_model: str | None
    policies: list[str]
    groups: dict[str, GroupMeasures]  # those that all runs have


class RunsDifference(GroupMeasure):
    """The mean difference of a measure over runs, with an interval for other runs and other prompts.

    With one run on each side the interval is for other prompts alone. Where a run has a single prompt there is none.
    """

    error_of_runs: float | None  # standard error from the spread over runs; null with one run on each side
    error_of_prompts: float | None  # standard error from the prompts that runs share; null as the interval
    p_value: float | None  # of 0, two-sided; null as the interval
    adjusted_p_value: float | None  # Holm's, as in `front.json`
    runs: list[GroupMeasure]  # the difference in each run, with its interval over prompts; empty between two sides
    positive_runs: int | None  # in how many it is above 0; null between two sides


class RunsComparison(TypedDict):
    """A group minus another in every run, or a group of the runs of side a minus that of side b."""

    a: str
    b: str  # the same group between two sides
    hypervolume_difference: RunsDifference
    expected_utility_difference: RunsDifference
    equal_kl_difference: RunsDifference | None  # as in `front.json`; null where a run has no KL
    # Of each run, those of a and of b; between two sides, of each side those of its runs.
    equal_kl_hypervolumes: list[list[float]] | None
    # The smallest and largest KL budget of each run, in nats; between two sides, whose groups it compares, one for all.
    kl_budgets: list[list[float]] | None
    no_equal_kl: str | None  # as in `front.json`, of the first run that has none
    verdict: Literal["better", "worse", "higher", "lower", "mixed", "undecided"]  # as in `front.json`
    # Rectangles, see `pareto.runs.attainment_difference`; null unless there are two objectives and as many runs on
    # both sides.
    attainment_difference: list[list[float]] | None


class Attainment(TypedDict):
    """Corners of what the front of a group attains, ascending in the first objective, of the runs of one side."""

    best: list[list[float]]  # in at least one run
    median: list[list[float]]  # in at least half of the runs
    worst: list[list[float]]  # in all runs


class RunsFile(TypedDict):
    """The content of `comparison.json`."""

    format: int
    objectives: list[str]  # what is compared; the runs' metrics are not
    split: str
    reference_point: list[float]  # one number per objective, as `ideal_point`; the same for all runs
    reference_point_rule: str
    ideal_point: list[float]
    utility_rule: str
    seed: int
    confidence: float
    shared_prompts: int  # how many prompts all runs have
    runs: list[RunEntry]
    comparisons: list[RunsComparison]
    attainment: dict[str, dict[str, Attainment]] | None  # by side and group; null unless objectives are two
    notes: list[str]  # a sentence each: what is left out, what differs between runs


def write_comparison(folder: str | Path, comparison: RunsFile) -> Path:
    """Write `comparison.json` into an existing folder, whole or not at all, and return its path.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    path = Path(folder) / FILE_NAME
    write_whole(path, json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    return path


def read_comparison(folder: str | Path) -> RunsFile:
    """The content of `comparison.json` in `folder`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another format, a key is missing or a value is of another type.
    """
    path, remedy = Path(folder) / FILE_NAME, "make it again with rlhf-lines compare"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the output_dir of rlhf-lines compare")
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from None
    found = comparison.get("format") if isinstance(comparison, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; expected {FORMAT}; {remedy}")
    for problem, key in faults(comparison, RunsFile):
        if problem != "unknown":
            raise ValueError(f"{path} has {'no' if problem == 'missing' else 'a wrong value for'} {key}; {remedy}")
    return comparison
