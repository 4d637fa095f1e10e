"""Stage `learn`: factors by policy and layer from the rewards themselves."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import new_folder, write_record, write_whole
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.distributed import Processes, from_leader, leads
from rlhf_lines.example import try_rewards
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.counts import completions_of_steps, specs_of_splits
from rlhf_lines.learn.grid import point_names
from rlhf_lines.learn.inputs import (
    Inputs,
    demonstrations_for,
    fingerprints,
    read_inputs,
    read_prompts,
    texts_for,
)
from rlhf_lines.learn.methods import METHODS, Search
from rlhf_lines.learn.progress import Progress
from rlhf_lines.learn.record import BEST, FACTORS, LEARNED, LIMITS, LINES, PLACES, SOUP
from rlhf_lines.learn.trials import Options, Trial, Trials, merge_rule
from rlhf_lines.learn.workers import LearnWorker, Workers
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.merge.space import Space, Vector, make_space
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.pareto import paired_difference
from rlhf_lines.redaction import without_secrets
from rlhf_lines.sweep.begun import check_begun, refuse_begun
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store, has_measured


logger = logging.getLogger(__name__)


def run(run_config: RunConfig, data_config: DataConfig, config: LearnConfig, given: dict) -> Path:
    """Learn, and return the folder with `factors.json`, which rule `layerwise` takes.

    1. On training prompts, candidates of the method are sampled and scored; the one that is worth most is learned.
    2. So are as many points of LiNeS on a grid, unless `compare_grid` is false.
    3. On validation prompts, which chose nothing, the learned factors, the best LiNeS and the soup are measured.

    With `--resume` a killed run goes on: the method asks for the same candidates again, and finished completions are
    not sampled again. Of several processes the first has the run store and the method; the others work with it.

    Raises:
        FileNotFoundError, ValueError: as `read_inputs`; or no candidate keeps the limits.
        FileExistsError: `output_dir` exists, or a stopped run left completions and neither `resume` nor `overwrite` is
            given.
    """
    processes = Processes()
    refuse_begun(run_config, config.output_dir, what="learning")
    read = read_inputs(data_config, config)
    kept = _facts(read, data_config, config) if leads() else {}
    if run_config.resume:  # every process stops where the leader does
        from_leader(lambda: check_begun(config.output_dir, kept, what="learning"))
    prompt, asked = next(iter(read.prompts["train"].items()))
    try_rewards(read.tokenizer, prompt, asked, read.reward_models)
    space = make_space(config.space, len(read.adapters), read.num_layers)
    with contextlib.ExitStack() as stack:
        merges = stack.enter_context(Merges(read.sft, read.adapters))
        if config.density is not None:
            merges.check(MergeSpec("sum", (1.0,) * len(read.adapters)))  # before anything is written
        made = new_folder(
            config.output_dir,
            overwrite=run_config.overwrite,
            keep_partial=run_config.resume,
            leave_partial=has_measured,
        )
        folder = stack.enter_context(made)
        engine = stack.enter_context(contextlib.closing(LocalEngine(config, merges, read.adapters)))
        worker = LearnWorker(engine, read, config, merges, space)
        if not leads():
            processes.follow(worker)
        else:
            with processes.leading():
                found, way = _measure(config, read, kept, folder, space, processes, worker)
                write_whole(folder / FACTORS, json.dumps(found["profiles"][BEST], indent=1) + "\n")
                write_whole(folder / LEARNED, json.dumps({"format": 1, **way}, indent=1) + "\n")
                write_record(folder, "learn", given, seed=config.seed, **found, inputs_sha256=kept["inputs_sha256"])
    return Path(config.output_dir)


def inputs(run_config: RunConfig, data_config: DataConfig, config: LearnConfig) -> dict[str, Fingerprint]:
    """What the stage would read with these settings, as its record holds it."""
    tokenizer = load_tokenizer(local_folder(config.sft_model, what="SFT model"))
    texts = read_prompts(data_config, config, tokenizer)
    shown = demonstrations_for(data_config, config, tokenizer)
    return fingerprints(data_config, config, texts, shown, texts_for(config, tokenizer))


@dataclass(frozen=True)
class _Tried:
    """A candidate: who proposed it, as which vector, and what it is worth."""

    by: str
    vector: tuple[float, ...]
    trial: Trial

    def told(self) -> dict[str, Any]:
        """As `learned.json` has it."""
        trial = self.trial
        return {
            "by": self.by,
            "vector": list(self.vector),
            "value": trial.value,
            "kl": trial.kl,
            "forgetting": trial.forgetting,
            "within_limits": trial.within_limits,
        }


def _measure(
    config: LearnConfig,
    read: Inputs,
    kept: dict[str, Any],
    folder: Path,
    space: Space,
    processes: Processes,
    worker: LearnWorker,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fill the store of the folder with all that is asked for, and return what `_learn` does."""
    with Store(folder) as store:
        store.remember(**kept)
        store.replace(**{name: getattr(config, name) for name in LIMITS})
        texts = specs_of_splits(config, read.num_layers)["train"] * len(read.forgetting)  # each spec reads once
        done = len(store.finished()) + len(store.finished_forgetting())
        with Progress(_completions(config, read) + texts, done, with_texts=bool(texts)) as progress:
            measurement = Measurement(store, worker, processes, progress, config.samples_per_prompt)
            found, way = _learn(config, read, space, Workers(processes, worker), measurement)
        store.finish()
    return found, way


def _learn(
    config: LearnConfig, read: Inputs, space: Space, workers: Workers, measurement: Measurement
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was found, for the record, and what `learned.json` tells of the way there."""
    trials, tried = Trials(config, read, measurement), []

    def measure(by: str, vectors: Sequence[Vector], candidates: Sequence[Options]) -> list[Trial]:
        found = trials.measure("train", by, candidates)
        pairs = zip(vectors, found, strict=True)
        tried.extend(_Tried(by, tuple(map(float, vector)), trial) for vector, trial in pairs)
        return found

    own = partial(measure, config.method)
    search = Search(config, read, workers, trials, space, own, measurement.progress.update)
    METHODS[config.method](search)
    if config.compares:
        METHODS["grid"](replace(search, measure=partial(measure, "grid")))
    own_tries = [one for one in tried if one.by == config.method]
    if (learned := _best(own_tries)) is None:
        raise ValueError(
            f"{_none_keeps(config, own_tries)}: raise the limit and add --resume, which measures again only what is "
            "not measured yet"
        )
    best = {BEST: learned}
    if config.compares:
        of_grid = [one for one in tried if one.by == "grid"]
        if (lines := _best(of_grid)) is None:
            logger.warning("%s: there is no LiNeS to compare with", _none_keeps(config, of_grid))
        else:
            best[LINES] = lines
    profiles = {name: one.trial.options for name, one in best.items()}
    profiles[SOUP] = space.profile(space.start).to_options()
    train = {name: one.trial for name, one in best.items()}
    train |= zip([SOUP], trials.measure("train", SOUP, [profiles[SOUP]]), strict=True)
    validation = dict(zip(profiles, trials.measure("validation", "chosen", list(profiles.values())), strict=True))
    _tell_broken(config, validation[BEST])
    found = {
        "method": config.method,
        "aim": config.aim,
        "space": config.space,
        "numbers": list(space.names if config.method != "grid" else point_names(len(read.adapters))),
        "vector": list(best[BEST].vector),
        "sft_model": config.sft_model,
        "policies": list(config.policies),
        "prompts": {split: len(texts) for split, texts in read.prompts.items()},
        "candidates": sum(one.by == config.method for one in tried),
        "train": {name: _told(trial) for name, trial in train.items()},
        "validation": {name: _told(trial) for name, trial in validation.items()},
        "differences": _differences(validation),
        "profiles": profiles,
        "rule": merge_rule(profiles[BEST]),
    }
    by_prompt = {name: one.by_prompt.tolist() for name, one in validation.items() if one.by_prompt is not None}
    told = [one.told() for one in tried]
    return found, {"candidates": told, "losses": search.losses, "validation": by_prompt}


def _told(trial: Trial) -> dict[str, float | None]:
    return {"value": trial.value, "kl": trial.kl, "forgetting": trial.forgetting}


def _best(tried: Sequence[_Tried]) -> _Tried | None:
    """The candidate that is worth most within the limits, or None where none keeps them; of equal ones, the first."""
    allowed = [one for one in tried if one.trial.within_limits]
    return max(allowed, key=lambda one: one.trial.value, default=None)


def _limits(config: LearnConfig) -> dict[str, float]:
    """The limits by what of a trial they bound."""
    limits = {name.removeprefix("max_"): getattr(config, name) for name in LIMITS}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _none_keeps(config: LearnConfig, tried: Sequence[_Tried]) -> str:
    """The sentence on candidates of which none keeps the limits."""
    missed = [
        f"max_{name} {limit:g} (the smallest is {min(getattr(one.trial, name) for one in tried):.4g})"
        for name, limit in _limits(config).items()
    ]
    return f"none of the {len(tried)} candidates of {tried[0].by} keeps {' and '.join(missed)}"


def _tell_broken(config: LearnConfig, trial: Trial) -> None:
    """Log where what was chosen within a limit on train prompts is beyond it on others."""
    for name, limit in _limits(config).items():
        if (found := getattr(trial, name)) > limit:
            logger.warning(
                "what was learned keeps max_%s %g on train prompts, but has %.4g on validation prompts: more "
                "train_prompts or samples_per_prompt make it surer, a smaller limit leaves room",
                name, limit, found,
            )  # fmt: skip


def _differences(validation: dict[str, Trial]) -> dict[str, dict[str, float]]:
    """What the learned factors are worth more than the others, where each prompt has a value."""
    learned = validation[BEST].by_prompt
    if learned is None:
        return {}
    found = {name: paired_difference(learned, one.by_prompt) for name, one in validation.items() if name != BEST}
    return {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in found.items()}


def _completions(config: LearnConfig, read: Inputs) -> int:
    """All completions of a run."""
    specs = specs_of_splits(config, read.num_layers)
    of_specs = sum(count * len(read.prompts[split]) for split, count in specs.items())
    return config.samples_per_prompt * of_specs + completions_of_steps(config, len(read.prompts["train"]))


def _facts(read: Inputs, data_config: DataConfig, config: LearnConfig) -> dict[str, Any]:
    """What a resumed run must share with the one that was stopped."""
    settings = {key: value for key, value in vars(config).items() if key not in (*PLACES, *LIMITS)}
    rewards = [entry.identity() for entry in config.rewards]
    return {
        **without_secrets({**settings, "rewards": rewards}),
        "dataset_name": without_secrets(data_config.dataset_name),
        "reward_names": [model.name for model in read.reward_models],
        "inputs_sha256": fingerprints(data_config, config, read.prompts, read.demonstrations, read.forgetting),
    }
