"""Verb `evaluate`: benchmarks for the points of a finished sweep, whose results become metrics of the points."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lines.distributed import Processes, leads
from rlhf_lines.errors import Problems
from rlhf_lines.evaluation.asking import Asking, Preparation, Question
from rlhf_lines.evaluation.models import describe_models
from rlhf_lines.evaluation.points import FRONT, chosen_points
from rlhf_lines.lock import only_run
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.schema import Front
from rlhf_lines.progress import Bar
from rlhf_lines.sweep.finished.front import front_of, trace_front
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.store import Store, open_finished


if TYPE_CHECKING:
    from rlhf_lines.evaluation.worker import Worker


@dataclass(frozen=True)
class Outcome:
    """What `evaluate` did: per task, for how many specs it was asked now; and the front with the results."""

    asked: Mapping[str, int]
    front: Front


def evaluate(
    folder: str | Path,
    tasks: Sequence[str],
    *,
    points: Sequence[str] = (FRONT,),
    groups: Sequence[str] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Outcome | None:
    """Ask points of a finished sweep benchmarks of lm-eval; their results become metrics, which change no front.

    All points are asked on the one loaded base. Results are stored task by task and spec by spec: killed and repeated,
    it goes on with what is missing. At the end `front.json`, its figures and the page are written again. Of several
    processes the first has the run store and writes; each asks a point of its own at the same time.

    Args:
        folder: the `output_dir` of a sweep.
        tasks: names of tasks, groups of tasks or tags, as lm-eval has them.
        points: see `chosen_points`.
        groups: see `chosen_points`.
        limit: how many documents of each task, the first; None is all.
        num_fewshot: examples before each question; None is what the task says.
        apply_chat_template: put questions into the tokenizer's chat template.
        system_instruction: what comes before everything else; in the chat template the system's turn.
        include_path: a folder of further task configs.
        batch_size: texts in one pass; None is what fits.
        overwrite: forget what these tasks have found, of all points.

    Returns:
        What was done; None in a process that does not lead.

    Raises:
        FileNotFoundError: there is no finished sweep, no such folder, or a model is no longer where it was.
        ValueError: lm-eval is not installed, a name or a number is wrong, a model has changed, or a task was asked
            otherwise before.
    """
    numbers = {"limit": (limit, 1), "num_fewshot": (num_fewshot, 0), "batch_size": (batch_size, 1)}
    _check_settings(tasks, system_instruction, numbers)
    from rlhf_lines.evaluation.worker import Worker

    asking, tasks = Asking(limit, num_fewshot, apply_chat_template, system_instruction), list(dict.fromkeys(tasks))
    processes = Processes()
    with only_run(folder):
        with Worker(asking, include_path, batch_size) as worker:
            if not leads():
                processes.follow(worker)
                return None
            with processes.leading():
                asked = _ask_points(folder, points, groups, tasks, asking, processes, worker, overwrite=overwrite)
        front = trace_front(folder)
        write_report(folder)
    return Outcome(asked, front)


def _check_settings(
    tasks: Sequence[str], system_instruction: str | None, numbers: Mapping[str, tuple[int | None, int]]
) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("evaluate needs the package lm-eval: pip install lm-eval")
    if not tasks:
        raise ValueError("no task is named: give --tasks, such as arc_easy,ifeval")
    if system_instruction is not None and not system_instruction.strip():
        raise ValueError("system_instruction is empty: leave it out")
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def _ask_points(
    folder: str | Path,
    points: Sequence[str],
    groups: Sequence[str],
    tasks: Sequence[str],
    asking: Asking,
    processes: Processes,
    worker: Worker,
    *,
    overwrite: bool,
) -> dict[str, int]:
    """Fill the run store with what it lacks, and return by task how many specs were asked."""
    with open_finished(folder, reading=False) as store:
        front = front_of(folder)
        stored = {point.id: point for point in store.points(front["split"])}
        chosen = [stored[point["id"]] for point in chosen_points(front, points, groups)]
        specs = {point.spec_id: point.spec for point in chosen}  # two groups may share one
        missing = _missing(store, specs, tasks, asking, overwrite=overwrite)
        if any(missing.values()):
            preparation = Preparation(describe_models(folder, store), [task for task in tasks if missing[task]])
            with Bar(total=sum(map(len, missing.values())), desc="evaluate", unit="results") as bar:
                processes.map(worker, [preparation] * processes.count)
                for task in preparation.tasks if overwrite else ():
                    store.drop_evaluations(task)
                _ask_missing(store, specs, missing, processes, worker, bar)
        store.finish()
    return {task: len(missing[task]) for task in tasks}


def _missing(
    store: Store, specs: Collection[int], tasks: Sequence[str], asking: Asking, *, overwrite: bool
) -> dict[str, list[int]]:
    """By task, the ids of the specs that have not been asked.

    Raises:
        ValueError: others were asked otherwise, or by another version of lm-eval.
    """
    kept = {} if overwrite else store.evaluations()
    version = importlib.metadata.version("lm_eval")
    problems = Problems()
    for task in tasks:
        for before in itertools.islice(kept.get(task, {}).values(), 1):  # all are of one asking
            if (asked := Asking(**before["asked"])) != asking:
                problems.add(
                    f"points have results of {task} with {_words(asked)}, and now it is {_words(asking)}: ask as "
                    "before, or add --overwrite to ask all anew"
                )
            elif before["lm_eval"] != version:
                problems.add(
                    f"points have results of {task} by lm-eval {before['lm_eval']}, and {version} is installed: "
                    f"pip install lm-eval=={before['lm_eval']}, or add --overwrite to ask all anew"
                )
    problems.check()
    return {task: [spec for spec in specs if spec not in kept.get(task, {})] for task in tasks}


def _words(asking: Asking) -> str:
    return ", ".join(f"{name} {'left out' if value is None else value}" for name, value in asdict(asking).items())


def _ask_missing(
    store: Store,
    specs: Mapping[int, MergeSpec],
    missing: Mapping[str, Sequence[int]],
    processes: Processes,
    worker: Worker,
    bar: Bar,
) -> None:
    """Ask every spec what is missing, and store it as it is found."""
    for asked in rounds(list(specs), missing, processes.count):
        bar.begin(f"evaluate: {asked[0][1]}", bar.total)
        questions = [Question(specs[spec_id], task) for spec_id, task in asked]
        for (spec_id, task), found in zip(asked, processes.map(worker, questions), strict=True):
            _check_alike(store, task, found)
            store.add_evaluation(spec_id, task, found)
            bar.update()


def rounds(specs: Sequence[int], missing: Mapping[str, Sequence[int]], count: int) -> Iterator[list[tuple[int, str]]]:
    """Yield which (spec, task) are asked at the same time, one by each process.

    Each process has a spec of its own, which it keeps over all tasks, as its weights may have to be merged; and all
    have the same task, which takes each as long. Where fewer specs than processes are left, tasks stand side by side.

    Args:
        specs: ids, in the order in which they are asked.
        missing: by task, the ids of the specs that are asked it.
        count: of the processes.
    """
    together = [specs[start : start + count] for start in range(0, len(specs), count)]
    pairs = [(spec, task) for few in together for task in missing for spec in few if spec in missing[task]]
    for start in range(0, len(pairs), count):
        yield pairs[start : start + count]


def _check_alike(store: Store, task: str, found: Mapping[str, Any]) -> None:
    """Stop where a task asks something else than it asked before, or its metrics have names of scores, or of others."""
    kept = {name: next(iter(by_spec.values())) for name, by_spec in store.evaluations().items()}
    before = kept.pop(task, found)["tasks"]
    if changed := [leaf for leaf, asked in found["tasks"].items() if asked != before.get(leaf)]:
        raise ValueError(
            f"task {changed[0]} asks something else than it asked other points (version, documents or prompts "
            "differ): restore its config and data, or add --overwrite to ask all anew"
        )
    for other, one in kept.items():  # a point could have the result of one, and the SFT model that of the other
        if taken := sorted(found["metrics"].keys() & one["metrics"].keys()):
            raise ValueError(f"the run has {taken[0]} from task {other} already: leave out task {task}")
    if taken := sorted(found["metrics"].keys() & set(store.recall("reward_names"))):
        raise ValueError(f"the run has scores of the name {taken[0]!r} already: name the task otherwise")
