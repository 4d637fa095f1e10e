"""Stage `sweep`: merge, sample and score many specs, choose the scaling, and trace the fronts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.distributed import Processes, from_leader, leads
from rlhf_lines.example import Reading, Sample, readings, try_rewards
from rlhf_lines.merge.audit import audit_policies
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.merge.outliers import two_policies, unlike_policies
from rlhf_lines.models import checkpoint_end_token_ids
from rlhf_lines.pareto.schema import SEARCHED
from rlhf_lines.sweep.begun import check_begun, refuse_begun
from rlhf_lines.sweep.choices import Scaling, distinct
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines import make_engine
from rlhf_lines.sweep.finished.behaviour import stopped_at_length
from rlhf_lines.sweep.finished.front import gains, trace_front
from rlhf_lines.sweep.finished.report import REPORT, write_report
from rlhf_lines.sweep.groups import LINES, Specs
from rlhf_lines.sweep.inputs import Inputs, facts, fingerprints, read_inputs
from rlhf_lines.sweep.measure import Measurement, Worker
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.predicted import measure_predicted
from rlhf_lines.sweep.progress import CONTROL, TEST, Progress
from rlhf_lines.sweep.reuse import Reused, check_reusable, check_sampling
from rlhf_lines.sweep.routes import Routes
from rlhf_lines.sweep.scaling import choose_scalings
from rlhf_lines.sweep.search import search_front
from rlhf_lines.sweep.store import Store, has_measured
from rlhf_lines.sweep.trackers import open_trackers


logger = logging.getLogger(__name__)


def run(run_config: RunConfig, data_config: DataConfig, config: SweepConfig, given: dict) -> Path:
    """Sweep, and return the folder with the run store, `front.json`, figures and the report.

    1. On validation prompts, every candidate for alpha, beta and schedule of LiNeS, of its controls and of further
       groups is sampled at a few weights; of each group the one whose front has the largest hypervolume is chosen.
    2. With sampler search, merges beyond all of these are searched for on the same prompts.
    3. On test prompts, the SFT model, the rewarded soup (alpha 1, beta 0), these groups as chosen, MORLHF runs and
       policies alone are sampled at all weights and scored by all reward models.
    4. Texts outside the task, if any, are read by every spec.

    With `--resume` a killed sweep goes on: finished completions are not sampled again. Of several processes the first
    has the run store; the others generate with it.

    Raises:
        FileNotFoundError: a model, policy or reward model does not exist.
        FileExistsError: `output_dir` exists, or a stopped sweep left completions and neither `resume` nor
            `overwrite` is given.
        ValueError: a policy belongs to another SFT model, two reward models have one name, or a setting does not fit.
    """
    processes = Processes()
    refuse_begun(run_config, config.output_dir, what="a sweep")
    for sentence in config.without_effect:
        logger.warning("%s", sentence)
    if config.reuse is not None:  # what can be told before models are loaded
        from_leader(lambda: check_sampling(config.reuse, config.sampling, config.output_dir))
    read = read_inputs(data_config, config)
    with contextlib.ExitStack() as stack:
        merges = stack.enter_context(Merges(read.sft, read.adapters[: len(config.policies)], config.groups))
        of_policy = dict(zip(config.listed_policies, read.adapters, strict=True))
        of_sets = {
            entry.name: stack.enter_context(Merges(read.sft, [of_policy[policy] for policy in entry.policies]))
            for entry in config.policy_sets
        }
        specs = Specs(config, merges, read.num_layers, of_sets)
        specs.check()  # the end of choosing would be the first to need a further group
        routes = Routes(config.groups, read.adapters, len(config.policies))
        kept = facts(read, data_config, config) | {"candidates": specs.candidates} if leads() else {}
        from_leader(lambda: routes.check(kept["sft_sha256"], kept["policies_sha256"], read.prompts["test"]))
        if run_config.resume:  # every process stops where the leader does
            further = partial(_refuse_earlier, config)
            from_leader(lambda: check_begun(config.output_dir, kept, what="the sweep", further=further))
        if config.reuse is not None:
            from_leader(lambda: check_reusable(config.reuse, kept))
        prompt, asked = next(iter(read.prompts["test"].items()))
        try_rewards(read.tokenizer, prompt, asked, read.reward_models)
        made = new_folder(
            config.output_dir,
            overwrite=run_config.overwrite,
            keep_partial=run_config.resume,
            leave_partial=has_measured,
        )
        folder = stack.enter_context(made)
        engine = stack.enter_context(
            contextlib.closing(make_engine(config, merges, [*read.adapters, *routes.parts], folder))
        )
        worker = Worker(engine, read.reward_models, read.tokenizer, config.stop)
        if not leads():
            processes.follow(worker)
        else:
            with processes.leading():
                found = _fill(folder, config, read, kept, specs, routes, processes, worker)
                trace_front(folder)
                write_record(folder, "sweep", given, seed=config.seed, **found, inputs_sha256=kept["inputs_sha256"])
    if leads():
        finish(Path(config.output_dir))
    return Path(config.output_dir)


def finish(folder: Path) -> None:
    """Write the report, whose commands tell the name that the folder has got, unless it is there."""
    if not (folder / REPORT).is_file():
        write_report(folder)


def inputs(run_config: RunConfig, data_config: DataConfig, config: SweepConfig) -> dict[str, Fingerprint]:
    """What a sweep with these settings would read, as its record holds it."""
    return fingerprints(data_config, config)


def _refuse_earlier(config: SweepConfig, store: Store) -> None:
    """Stop where a version that took alpha 1 where it was left out, or told schedules of beta 0 apart, has begun it."""
    sampled = any(not spec.beta and spec.schedule != "linear" for spec in store.specs().values())
    tried = [[Scaling(*scaling) for scaling in group] for group in store.recall("candidates", {}).values()]
    if sampled or any(distinct(group) != group for group in tried):
        raise ValueError(
            f"the sweep into {config.output_dir} was begun by a version that sampled merges with beta 0 once for every "
            "schedule, and this one samples them once: start again with --overwrite in place of --resume, or into "
            f"another output_dir with --reuse {config.output_dir}, which takes its completions"
        )
    if store.recall("candidates", None) is not None:
        return
    if names := [entry.name for entry in config.tuned if entry.leaves_alpha_out]:
        raise ValueError(
            f"the sweep into {config.output_dir} was begun by a version that took alpha 1 for {', '.join(names)}, and "
            "this one chooses it: start again with --overwrite in place of --resume, with alpha: 1 there to keep it"
        )


def _fill(
    folder: Path,
    config: SweepConfig,
    read: Inputs,
    kept: dict[str, Any],
    specs: Specs,
    routes: Routes,
    processes: Processes,
    worker: Worker,
) -> dict[str, Any]:
    """Fill the store of the folder with all that is measured, and return what the record of the run tells of it."""
    with contextlib.ExitStack() as stack:
        reused = None if config.reuse is None else stack.enter_context(Reused(config.reuse, kept))
        store = stack.enter_context(Store(folder))
        trackers = stack.enter_context(open_trackers(config.report_to, Path(config.output_dir).name, folder, kept))
        store.remember(**kept)
        store.replace(sft_renamed=config.sft_renamed, **_told_of_models(read))
        with Progress.of(config, read, specs, store) as progress:
            logger.info("to come: %s", progress.to_come)
            measurement = Measurement(
                store, worker, processes, progress, config.samples_per_prompt, reused, trackers, routes
            )
            if routes:
                rows = [tuple(read.tokenizer(prompt)["input_ids"]) for prompt in read.prompts["test"]]
                routes.read([*rows, *(text.token_ids for text in read.forgetting)], worker.engine.features)
            found = _measure(config, read, specs, measurement)
            if routes:
                found["routed"] = _routed(store, routes, rows)
        store.finish()
    return found


def _measure(config: SweepConfig, inputs: Inputs, specs: Specs, measurement: Measurement) -> dict[str, Any]:
    """Fill the store with all that the front needs, and return what the record of the run tells of it."""
    store = measurement.store
    scalings, validation = choose_scalings(config, inputs, specs, measurement)
    makers, chosen = specs.makers(scalings), scalings[LINES]
    of_weights = {name: [make(weights) for weights in specs.weights] for name, make in makers.items()}
    groups, searched, surrogate = specs.fixed() | of_weights, None, None
    if config.searches:
        groups[SEARCHED], searched = search_front(config, inputs, specs, scalings, measurement)
    points = measurement.measure("test", groups, inputs.prompts["test"], phase=TEST)
    if config.sampler == "map":
        surrogate, predicted = measure_predicted(
            inputs, makers, measurement, points, specs.weights, count=config.map_points
        )
        points += predicted
    if inputs.forgetting:
        early = store.points("validation") if config.max_forgetting is not None else []
        measurement.forgetting(points, inputs.forgetting, phase=CONTROL, early=early)
    store.replace(chosen=chosen._asdict(), validation=validation, surrogate=surrogate, example=_example(store, inputs))
    store.replace(stopped=stopped_at_length(store, inputs.tokenizer))
    if searched is not None:
        store.replace(search=searched)
    told = {} if searched is None else {"search": searched}
    return {**chosen._asdict(), "validation": validation, "gains": gains(store), **told}


def _told_of_models(inputs: Inputs) -> dict[str, Any]:
    """What the store keeps of the models: signatures of the policies, and the tokens that end a completion."""
    with Checkpoint(inputs.sft) as sft:
        audit = audit_policies(inputs.adapters, num_layers=inputs.num_layers, sft=sft)
    for sentence in unlike_policies(audit):
        logger.warning("%s", sentence)
    if sentence := two_policies(audit):
        logger.info("%s", sentence)
    return {"audit": audit, "end_tokens": checkpoint_end_token_ids(inputs.sft, inputs.tokenizer)}


def _example(store: Store, inputs: Inputs) -> list[Reading]:
    """The first test prompt with the first completion of it, as the policy and all reward models read them."""
    row = next(store.rows("test", ()))
    prompt = store.prompts("test")[row.prompt].text
    sample = Sample(row.text, row.token_ids)
    return readings(inputs.tokenizer, prompt, inputs.prompts["test"][prompt], inputs.reward_models, sample)


def _routed(store: Store, routes: Routes, rows: Sequence[Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
    """By group with a router, for every preference the weights that the test prompts got."""
    points = [point for point in store.points("test") if point.spec.is_routed]
    return {
        group: [
            {"preference": list(point.spec.weights), "chosen": routes.chosen(point.spec, rows)}
            for point in points
            if point.group == group
        ]
        for group in dict.fromkeys(point.group for point in points)
    }
