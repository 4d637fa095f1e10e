"""Stage `sweep`: merge, sample and score many specs, choose the scaling, and trace the fronts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_lines.artifact import new_folder, partial_folder, refuse_existing, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.distributed import Processes, leads
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import (
    Point,
    bootstrap_hypervolumes,
    bootstrap_means,
    hypervolume,
    interval,
    paired_difference,
    reference_point,
)
from rlhf_lines.pareto.surrogate import fit_surrogate, predicted_front, surrogate_report
from rlhf_lines.sweep import groups
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.finished.front import measured_points, trace_front
from rlhf_lines.sweep.finished.report import NAME as REPORT
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.forgetting import measure_control
from rlhf_lines.sweep.groups import LINES, SFT, SOUP, Weights, scaled
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.measure import Measurement, Worker
from rlhf_lines.sweep.store import FILE, Store, StoredPoint


CONFIGS = (RunConfig, DataConfig, SweepConfig)


def run(run_config: RunConfig, data_config: DataConfig, config: SweepConfig, given: dict) -> Path:
    """Sweep, and return the folder with the run store, `front.json`, figures and the report.

    1. On validation prompts, every candidate for alpha, beta and schedule is sampled at a few weights; the one whose
       front has the largest hypervolume is chosen.
    2. On test prompts, the SFT model, the rewarded soup (alpha 1, beta 0), LiNeS as chosen, its controls, MORLHF runs
       and further groups are sampled at all weights and scored by all reward models.
    3. Texts outside the task, if any, are read by every spec.

    With `--resume` a killed sweep goes on: finished completions are not sampled again. Of several processes the first
    has the run store; the others generate with it.

    Raises:
        FileNotFoundError: a model, policy or reward model does not exist.
        FileExistsError: `output_dir` exists, or a stopped sweep left completions and neither `resume` nor
            `overwrite` is given.
        ValueError: a policy belongs to another SFT model, two reward models have one name, or a setting does not fit.
    """
    processes = Processes()
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)
    if not (run_config.resume or run_config.overwrite):
        _refuse_stopped(config.output_dir)
    inputs = Inputs(data_config, config)
    partial = new_folder(
        config.output_dir, overwrite=run_config.overwrite, keep_partial=run_config.resume, leave_partial=True
    )
    with partial as folder, contextlib.closing(inputs.engine(folder)) as engine:
        worker = Worker(engine, inputs.reward_models, inputs.tokenizer)
        if not leads():
            processes.follow(worker)
        else:
            done = False
            try:
                _lead(folder, inputs, worker, processes, given)
                done = True
            finally:
                processes.dismiss(done)
    if leads():
        finish(Path(config.output_dir))
    return Path(config.output_dir)


def finish(folder: Path) -> None:
    """Write the report, whose commands tell the name that the folder has got, unless it is there."""
    if not (folder / REPORT).is_file():
        write_report(folder)


def _refuse_stopped(output_dir: str) -> None:
    """Raise FileExistsError where a stopped sweep has completions, which a new one would throw away."""
    partial = partial_folder(output_dir)
    if not (partial / FILE).is_file():
        return
    with Store(partial) as store:
        finished = len(store.finished())
    if finished:
        raise FileExistsError(
            f"a sweep into {output_dir} was stopped after {finished:,} completions: add --resume to go on with it, or "
            "--overwrite to begin again"
        )


def _lead(folder: Path, inputs: Inputs, worker: Worker, processes: Processes, given: dict) -> None:
    config = inputs.config
    with Store(folder) as store:
        store.remember(**inputs.facts())
        measurement = Measurement(store, worker, processes, inputs.tokenizer, config.samples_per_prompt)
        chosen, validation = choose_scaling(
            measurement,
            config.candidates,
            groups.simplex(len(inputs.policies), config.validation_weights),
            inputs.prompts.get("validation", {}),
            inputs.rewards,
            resolve=inputs.resolve,
            seed=config.seed,
        )
        makers, test = inputs.makers(chosen), inputs.prompts["test"]
        of_weights = {name: [make(weights) for weights in inputs.weights] for name, make in makers.items()}
        points = measurement.points("test", inputs.fixed() | of_weights, test)
        surrogate = None
        if config.sampler == "map":
            surrogate, predicted = _follow_predictions(measurement, points, makers, inputs)
            points += predicted
        if inputs.control:
            measure_control(store, measurement, points, inputs.control)
        store.replace(chosen=chosen._asdict(), validation=validation, surrogate=surrogate)
        gains = _gains(measured_points(store, "test"), inputs)
    trace_front(folder)
    write_record(folder, "sweep", given, seed=config.seed, **chosen._asdict(), validation=validation, gains=gains)


def _follow_predictions(
    measurement: Measurement,
    points: list[StoredPoint],
    makers: Mapping[str, Callable[[Weights], MergeSpec]],
    inputs: Inputs,
) -> tuple[dict[str, dict], list[StoredPoint]]:
    """Fit a quadratic to every group's points, measure the weights it predicts to be on the front, and compare.

    Source: MAP, arXiv 2406.07529.

    Returns:
        By group, what was predicted and what was measured (see `surrogate_report`); and the new points.
    """
    rewards, store = inputs.rewards, measurement.store
    mean = {point.id: store.scores(point.spec_id, "test", rewards).mean(axis=0) for point in points}
    fits, predicted = {}, {}
    for name, make in makers.items():
        sampled = [point for point in points if point.group == name]
        weights = [list(point.spec.weights) for point in sampled]
        fit = fit_surrogate(weights, [mean[point.id] for point in sampled])
        fits[name] = (fit, [point.id for point in sampled])
        predicted[name] = [make(tuple(row)) for row in predicted_front(fit, inputs.config.map_points, weights)]
    new = measurement.points("test", predicted, inputs.prompts["test"])
    reports = {}
    for name, (fit, sampled) in fits.items():
        of_group = [point for point in new if point.group == name]
        reports[name] = surrogate_report(
            fit,
            rewards,
            sampled=sampled,
            weights={point.id: point.spec.weights for point in of_group},
            measured={point.id: store.scores(point.spec_id, "test", rewards).mean(axis=0) for point in of_group},
        )
    return reports, new


def _gains(points: list[Point], inputs: Inputs) -> list[dict]:
    """Return, for every policy and reward, the mean gain over the SFT model in its standard deviations."""
    sft = next(point for point in points if point.group == SFT)
    gains = []
    for policy, weights in zip(inputs.config.policies, groups.one_hot(len(inputs.policies)), strict=True):
        point = next(p for p in points if p.group == SOUP and p.spec["weights"] == list(weights))
        for j, name in enumerate(inputs.rewards):
            scale = sft.scores[:, j].std() or 1.0  # a reward that is the same for all prompts has no spread
            gain = paired_difference(point.scores[:, j] / scale, sft.scores[:, j] / scale, seed=inputs.config.seed)
            gains.append({"policy": policy, "reward": name, "value": gain.value, "low": gain.low, "high": gain.high})
    return gains


def choose_scaling(
    measurement: Measurement,
    candidates: Sequence[Scaling],
    weights: Sequence[Weights],
    prompts: Mapping[str, str],
    rewards: Sequence[str],
    *,
    resolve: Callable[[MergeSpec], MergeSpec],
    seed: int,
) -> tuple[Scaling, dict | None]:
    """The scaling whose front has the largest hypervolume, and the hypervolume of every candidate.

    A single candidate is chosen without measuring: the second value is then None.

    Args:
        measurement: samples and scores.
        candidates: the scalings.
        weights: at which each is measured.
        prompts: the validation prompts.
        rewards: names of the rewards.
        resolve: from a spec to the one with a number for alpha.
        seed: of the bootstrap over prompts.
    """
    if len(candidates) == 1:
        return candidates[0], None
    groups = {
        f"{LINES} {' '.join(map(str, scaling))}": [resolve(scaled(scaling)(w)) for w in weights]
        for scaling in candidates
    }
    points = measurement.points("validation", groups, prompts)
    scores = np.stack([measurement.store.scores(point.spec_id, "validation", rewards) for point in points])
    means, resampled = scores.mean(axis=1), bootstrap_means(scores, seed=seed)
    reference = reference_point(means)
    grid = []
    for scaling, group in zip(candidates, groups, strict=True):
        rows = [row for row, point in enumerate(points) if point.group == group]
        low, high = interval(bootstrap_hypervolumes(resampled[:, rows], reference))
        value = hypervolume(means[rows], reference)
        grid.append({**scaling._asdict(), "hypervolume": {"value": value, "low": low, "high": high}})
    best = max(range(len(grid)), key=lambda i: grid[i]["hypervolume"]["value"])
    return candidates[best], {
        "prompts": len(prompts),
        "weights": len(weights),
        "reference_point": reference,
        "grid": grid,
        "chosen": candidates[best]._asdict(),
    }
