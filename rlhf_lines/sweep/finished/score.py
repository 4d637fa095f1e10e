"""Verb `score`: scores of further reward models for the completions that a finished sweep has stored."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models import Comparer, RewardModel
from reward_models.judge import RIVAL
from rlhf_lines.errors import Problems
from rlhf_lines.example import reward_reading
from rlhf_lines.lock import only_writer
from rlhf_lines.merge.inputs.fingerprints import changed_parts, reward_identity
from rlhf_lines.pareto.objectives import check_score_names
from rlhf_lines.pareto.schema import FILE_NAME, Front
from rlhf_lines.progress import Bar
from rlhf_lines.scoring import Asked
from rlhf_lines.scoring import score as score_completions
from rlhf_lines.sweep.finished.front import (
    asked_metrics,
    check_free_of_reference_point,
    front_of,
    metrics_of,
    objectives_of,
    trace_front,
)
from rlhf_lines.sweep.finished.judged import Rivals, added, counts_of, is_group, rivals, wins_of_groups
from rlhf_lines.sweep.finished.report import REPORT, write_report
from rlhf_lines.sweep.store import Store, Unscored, open_finished
from rlhf_lines.task_rewards import RewardEntry, load_reward_models, raw_score_problems, reward_entries


CHUNK = 256  # completions per commit


@dataclass(frozen=True)
class Outcome:
    """What `score` did.

    Attributes:
        scored: per reward, how many completions it scored.
        front: with these scores.
        judged: what judges have counted.
        wins: of judges that compare with a group, what they say of the others.
    """

    scored: Mapping[str, int]
    front: Front
    judged: Mapping[str, Mapping[str, int]]
    wins: Mapping[str, Sequence[str]]


def score(
    folder: str | Path,
    rewards: Sequence[str | Mapping[str, Any]],
    *,
    batch_size: int = 32,
    as_objectives: bool = False,
) -> Outcome:
    """Score every stored completion of a finished sweep by further reward models; nothing is generated.

    Scores are committed in chunks. Killed and repeated, it goes on with the completions that have no score yet. A
    reward belongs to the run once all completions have its score; then `front.json` and its figures are written
    again. The new scores are metrics, which change no front.

    Args:
        folder: the `output_dir` of a sweep.
        rewards: as in the config of a sweep.
        batch_size: of a reward model that does not name its own.
        as_objectives: make fronts of these scores too, also of those that the run has already.

    Raises:
        FileNotFoundError: there is no finished sweep, or no such reward model.
        ValueError: an item is wrong, the run has scores of this name by another reward model, or a reference point was
            given for the objectives that there are.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    entries = reward_entries(rewards)
    Problems(raw_score_problems(entries)).check()
    with only_writer(folder):
        return _score(folder, entries, batch_size, as_objectives)


def _score(folder: str | Path, entries: Sequence[RewardEntry], batch_size: int, as_objectives: bool) -> Outcome:
    with open_finished(folder, reading=False) as store:
        known = store.recall("reward_models")
        models = load_reward_models(entries, batch_size=batch_size)
        check_score_names([model.name for model in models])
        for name in {model.name for model in models} & set(asked_metrics(store)):
            raise ValueError(
                f"{name} is what the run has of a benchmark: give the reward another name, as in "
                '{"model": ..., "name": ...}'
            )
        objectives = objectives_of(store)
        if as_objectives:
            _check_whole(models)
            objectives += [model.name for model in models if model.name not in objectives]
        if objectives != objectives_of(store):
            check_free_of_reference_point(store)
        # What there is none of is told before any is asked.
        others = {model.name: rivals(store, model) for model in models if isinstance(model, Comparer)}
        for model, entry in zip(models, entries, strict=True):
            _check_same_model(store, known, model.name, reward_identity(entry))
        scored = {}
        for model, entry in zip(models, entries, strict=True):
            known[model.name] = reward_identity(entry)
            store.replace(reward_models=known)
            size = max(CHUNK, entry.batch_size or batch_size)
            scored[model.name] = _score_all(store, model, others.get(model.name), size=size)
            names = store.recall("reward_names")
            if model.name not in names:
                # A run of an earlier version does not say its objectives: what has been added is none of them.
                store.replace(reward_names=[*names, model.name], objectives=objectives_of(store))
            _add_example(store, model)
        store.replace(objectives=objectives)
        metrics, judged, wins = metrics_of(store, "test"), store.recall("judged", {}), wins_of_groups(store)
        store.finish()
    front = front_of(folder)
    if (front["objectives"], front["metrics"]) != (objectives, metrics):
        front = trace_front(folder)
    if not _is_newer(Path(folder) / REPORT, Path(folder) / FILE_NAME):  # else a run was killed between the two
        write_report(folder)
    told = {name: judged[name] for name in scored if name in judged}
    return Outcome(scored, front, told, {name: wins[name] for name in scored if name in wins})


def _check_whole(models: Sequence[RewardModel]) -> None:
    """Refuse to make an objective of a comparison with a group, which some points have no rival in."""
    for model in models:
        if isinstance(model, Comparer) and is_group(model.against):
            raise ValueError(
                f"the judge {model.name!r} compares with the group {model.against!r} at the same weights, which the "
                "SFT model has not: it can be a metric, but no objective; leave out --as_objectives"
            )


def _check_same_model(store: Store, known: Mapping[str, Any], name: str, model: Mapping[str, Any]) -> None:
    before = known.get(name, model)
    if {"files": model["files"], **before} == model:  # an earlier version kept no files
        return
    if name not in store.recall("reward_names") and not store.has_scores(name):
        return  # the other one failed before its first chunk
    if {**before, "files": model["files"]} == model:
        raise ValueError(
            f"the run has scores {name!r} by {model['model']}, which has changed since "
            f"({', '.join(changed_parts(before['files'], model['files']))}): restore it, or give the new one another "
            'name, as in {"model": ..., "name": ...}'
        )
    raise ValueError(
        f"the run has scores {name!r} by {_written(before)}, and now the reward model is {_written(model)}: "
        'give it another name, as in {"model": ..., "name": ...}'
    )


def _written(model: Mapping[str, Any]) -> str:
    return json.dumps(
        {key: model[key] for key in ("model", "dtype", "options", "template", "label", "system") if key in model}
    )


def _score_all(store: Store, model: RewardModel, others: Rivals | None, *, size: int) -> int:
    """Score what has no score yet, by a comparison with others, and return how many completions that were."""
    missing, shown = sum(1 for _ in _unscored(store, model, others)), store.shown()
    judged, before = store.recall("judged", {}), counts_of(model)
    with Bar(total=missing, desc=f"score: {model.name}", unit="completions", disable=not missing) as bar:
        rows = _unscored(store, model, others)
        while chunk := list(itertools.islice(rows, size)):
            asked = [_asked(row, shown) for row in chunk]
            of_judge = {} if others is None else {RIVAL: [others.text(*row[:3]) for row in chunk]}
            texts, token_ids = [row.text for row in chunk], [row.token_ids for row in chunk]
            scores = score_completions(model, asked, texts, token_ids, **of_judge)
            pairs = zip(chunk, scores, strict=True)
            store.add_scores(model.name, ((row.spec, row.prompt, row.sample, value) for row, value in pairs))
            if before:
                store.replace(judged=judged | {model.name: added(judged.get(model.name, {}), counts_of(model))})
            bar.update(len(chunk))
    return missing


def _unscored(store: Store, model: RewardModel, others: Rivals | None) -> Iterator[Unscored]:
    """Yield the completions without this score; of a comparison those that there are others for."""
    rows = store.unscored(model.name)
    return rows if others is None else (row for row in rows if others.text(*row[:3]) is not None)


def _add_example(store: Store, model: RewardModel) -> None:
    """Keep how the model reads the row that the report shows as everybody reads it."""
    known = store.recall("example", None)
    if known is None:  # of an earlier version
        return
    row = next(store.rows("test", ()))
    shown = Asked(store.prompts("test")[row.prompt].scored_text, **store.shown().get(row.prompt, {}))
    reading = reward_reading(model.name, model, shown, row.text)
    store.replace(example=[*(old for old in known if old[0] != reading.reader), reading])


def _asked(row: Unscored, shown: Mapping[int, Mapping[str, Any]]) -> Asked:
    return Asked(row.scored_text, **shown.get(row.prompt, {}))


def _is_newer(path: Path, than: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= than.stat().st_mtime_ns
