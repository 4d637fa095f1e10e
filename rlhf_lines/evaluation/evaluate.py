"""Verb `evaluate`: benchmarks for the points of a finished sweep, whose results become metrics of the points."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lines.errors import Problems
from rlhf_lines.evaluation.models import models_of
from rlhf_lines.evaluation.points import FRONT, chosen_points
from rlhf_lines.lock import only_writer
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.schema import Front
from rlhf_lines.progress import Bar
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.finished.front import front_of, trace_front
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.store import Store, open_finished


if TYPE_CHECKING:
    from rlhf_lines.evaluation.harness import Asking


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
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Ask points of a finished sweep benchmarks of lm-eval; their results become metrics, which change no front.

    All points are asked on the one loaded base. Results are stored task by task and spec by spec: killed and repeated,
    it goes on with what is missing. At the end `front.json`, its figures and the page are written again.

    Args:
        folder: the `output_dir` of a sweep.
        tasks: names of tasks, groups of tasks or tags, as lm-eval has them.
        points: see `chosen_points`.
        groups: see `chosen_points`.
        limit: how many documents of each task, the first; None is all.
        num_fewshot: examples before each question; None is what the task says.
        apply_chat_template: put questions into the tokenizer's chat template.
        include_path: a folder of further task configs.
        batch_size: texts in one pass; None is what fits.
        overwrite: forget what these tasks have found, of all points.

    Raises:
        FileNotFoundError: there is no finished sweep, no such folder, or a model is no longer where it was.
        ValueError: lm-eval is not installed, a name or a number is wrong, a model has changed, or a task was asked
            otherwise before.
    """
    _check_settings(tasks, {"limit": (limit, 1), "num_fewshot": (num_fewshot, 0), "batch_size": (batch_size, 1)})
    from rlhf_lines.evaluation.harness import Asking

    asking, tasks = Asking(limit, num_fewshot, apply_chat_template), list(dict.fromkeys(tasks))
    with only_writer(folder):
        with open_finished(folder, reading=False) as store:
            front = front_of(folder)
            stored = {point.id: point for point in store.points(front["split"])}
            chosen = [stored[point["id"]] for point in chosen_points(front, points, groups)]
            specs = {point.spec_id: point.spec for point in chosen}  # two groups may share one
            missing = _missing(store, specs, tasks, asking, overwrite=overwrite)
            if any(missing.values()):
                how = {"include_path": include_path, "batch_size": batch_size, "overwrite": overwrite}
                _ask_missing(folder, store, specs, missing, asking, **how)
            store.finish()
        front = trace_front(folder)
        write_report(folder)
    return Outcome({task: len(missing[task]) for task in tasks}, front)


def _check_settings(tasks: Sequence[str], numbers: Mapping[str, tuple[int | None, int]]) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("evaluate needs the package lm-eval: pip install lm-eval")
    if not tasks:
        raise ValueError("no task is named: give --tasks, such as arc_easy,ifeval")
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def _check_template(engine: LocalEngine, asking: Asking) -> None:
    if asking.apply_chat_template and engine.tokenizer.chat_template is None:
        raise ValueError(
            "apply_chat_template is given, but the SFT model's tokenizer has no chat template: leave it out"
        )


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
            if before["asked"] != asdict(asking):
                problems.add(
                    f"points have results of {task} with {_words(before['asked'])}, and now it is "
                    f"{_words(asdict(asking))}: ask as before, or add --overwrite to ask all anew"
                )
            elif before["lm_eval"] != version:
                problems.add(
                    f"points have results of {task} by lm-eval {before['lm_eval']}, and {version} is installed: "
                    f"pip install lm-eval=={before['lm_eval']}, or add --overwrite to ask all anew"
                )
    problems.check()
    return {task: [spec for spec in specs if spec not in kept.get(task, {})] for task in tasks}


def _words(asked: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {'left out' if value is None else value}" for name, value in asked.items())


def _ask_missing(
    folder: str | Path,
    store: Store,
    specs: Mapping[int, MergeSpec],
    missing: Mapping[str, Sequence[int]],
    asking: Asking,
    *,
    include_path: str | Path | None,
    batch_size: int | None,
    overwrite: bool,
) -> None:
    """Ask every spec what is missing, and store it as it is found: all of one spec first, whose weights are loaded."""
    from rlhf_lines.evaluation.harness import LoadedModel, ask, load_tasks

    total = sum(map(len, missing.values()))
    with models_of(folder, store) as engine, Bar(total=total, desc="evaluate", unit="results") as bar:
        _check_template(engine, asking)
        loaded = load_tasks([task for task in missing if missing[task]], asking, include_path)
        model = LoadedModel(engine.multi_lora.model, engine.tokenizer, batch_size)
        for task in loaded if overwrite else ():
            store.drop_evaluations(task)
        for spec_id, spec in specs.items():
            for task in (task for task in loaded if spec_id in missing[task]):
                bar.begin(f"evaluate: {task}", total)
                with engine.following(spec):
                    found = ask(model, task, loaded[task], asking)
                _check_alike(store, task, found)
                store.add_evaluation(spec_id, task, found)
                bar.update()


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
