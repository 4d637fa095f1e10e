"""Stage ``sweep``: merge, sample and score many specs, choose alpha and beta, and trace the fronts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import DataConfig, RunConfig
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.checkpoint import checkpoint_sha256, sha256_of
from rlhf_lines.merge.provenance import load_adapters
from rlhf_lines.merge.residuals import WEIGHTS_FILE
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.pareto import Point, hypervolume, paired_difference, reference_point
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engine import LocalEngine
from rlhf_lines.sweep.front import measured_points, trace_front
from rlhf_lines.sweep.store import Store
from rlhf_lines.task_rewards import load_reward_models, reward_entries


SOUP, LINES, SFT = "rewarded_soup", "lines", "sft"


CONFIGS = (RunConfig, DataConfig, SweepConfig)


def run(run_config: RunConfig, data_config: DataConfig, config: SweepConfig, given: dict) -> Path:
    """Sweep, and return the folder with the run store, ``front.json`` and ``front.png``.

    1. On validation prompts, every (alpha, beta) of the grid is sampled at a few weights; the pair whose front has the
       largest hypervolume is chosen.
    2. On test prompts, the SFT model, the rewarded soup (alpha 1, beta 0) and LiNeS with the chosen pair are sampled at
       all weights and scored by all reward models.

    With ``--resume`` a killed sweep goes on: finished completions are not sampled again.

    Raises:
        FileNotFoundError: a model, policy or reward model does not exist.
        FileExistsError: ``output_dir`` exists.
        ValueError: several processes were started, a policy belongs to another SFT model, or two reward models have
            one name.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(f"a sweep runs in one process, but {processes} were started: leave out the launcher")
    sft = local_folder(config.sft_model, what="SFT model")
    policies = [local_folder(policy, what="policy") for policy in config.policies]
    adapters = load_adapters(policies, sft)
    reward_models = load_reward_models(reward_entries(config.rewards), batch_size=config.batch_size)
    names = [model.name for model in reward_models]
    tokenizer = load_tokenizer(sft)
    prompts = {
        split: _distinct(data_config.load("prompts", split, tokenizer), count)
        for split, count in (("validation", config.validation_prompts), ("test", config.test_prompts))
    }
    with new_folder(
        config.output_dir, overwrite=run_config.overwrite, keep_partial=run_config.resume, leave_partial=True
    ) as folder:
        with Store(folder) as store:
            changeable = ("overwrite", "resume", "output_dir", "batch_size")
            settings = {key: value for key, value in vars(config).items() if key not in changeable}
            store.remember(
                **settings,
                dataset_name=data_config.dataset_name,
                reward_names=names,
                prompts_sha256=hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
                sft_sha256=checkpoint_sha256(sft),
                policies_sha256=[sha256_of([policy / WEIGHTS_FILE]) for policy in policies],
            )
            engine = LocalEngine(config, sft, adapters, reward_models, store)
            alpha, beta, grid = _choose(engine, prompts["validation"], names)
            _measure(engine, prompts["test"], alpha, beta)
            gains = _gains(measured_points(store, "test"), names, config)
        trace_front(folder)
        write_record(folder, "sweep", given, seed=config.seed, alpha=alpha, beta=beta, validation=grid, gains=gains)
    return Path(config.output_dir)


def simplex(num_policies: int, num_weights: int) -> list[tuple[float, ...]]:
    """Return all weights >= 0 that sum to 1, in steps of 1 / (num_weights - 1) per axis, last policy first to grow.

    >>> simplex(2, 3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    steps = num_weights - 1
    counts = itertools.product(range(steps, -1, -1), repeat=num_policies)
    return [tuple(count / steps for count in row) for row in counts if sum(row) == steps]


def _choose(engine: LocalEngine, prompts: Mapping[str, str], names: list[str]) -> tuple[float, float, list[dict]]:
    """Return the (alpha, beta) of the largest validation hypervolume, and the hypervolume of every pair."""
    config = engine.config
    weights = simplex(engine.num_policies, config.validation_weights)
    pairs = list(itertools.product(config.alphas, config.betas))
    groups = {f"lines({a},{b})": [MergeSpec("linear", w, a, b) for w in weights] for a, b in pairs}
    points = engine.points("validation", groups, prompts)
    means = {point: engine.store.scores(point, names).mean(axis=0) for point, _, _ in points}
    reference = reference_point(np.stack(list(means.values())))
    grid = []
    for (alpha, beta), group in zip(pairs, groups, strict=True):
        scores = np.stack([means[point] for point, of_group, _ in points if of_group == group])
        grid.append({"alpha": alpha, "beta": beta, "hypervolume": hypervolume(scores, reference)})
    best = max(grid, key=lambda row: row["hypervolume"])
    return best["alpha"], best["beta"], grid


def _measure(engine: LocalEngine, prompts: Mapping[str, str], alpha: float, beta: float) -> None:
    """Sample and score the test points of the SFT model, the rewarded soup and LiNeS."""
    weights = simplex(engine.num_policies, engine.config.num_weights)
    groups = {
        SFT: [MergeSpec("linear", (0.0,) * engine.num_policies)],
        SOUP: [MergeSpec("linear", w) for w in weights],
        LINES: [MergeSpec("linear", w, alpha, beta) for w in weights],
    }
    engine.points("test", groups, prompts)


def _gains(points: list[Point], names: list[str], config: SweepConfig) -> list[dict]:
    """Return, for every policy and reward, the mean gain over the SFT model in its standard deviations."""
    sft = next(point for point in points if point.group == SFT)
    gains = []
    for k, policy in enumerate(config.policies):
        one_hot = [float(i == k) for i in range(len(config.policies))]
        point = next(p for p in points if p.group == SOUP and p.spec["weights"] == one_hot)
        for j, name in enumerate(names):
            scale = sft.scores[:, j].std() or 1.0  # a reward that is the same for all prompts has no spread
            gain = paired_difference(point.scores[:, j] / scale, sft.scores[:, j] / scale, seed=config.seed)
            gains.append({"policy": policy, "reward": name, "value": gain.value, "low": gain.low, "high": gain.high})
    return gains


def _distinct(rows: Iterable[dict], count: int) -> dict[str, str]:
    """Return the first so many prompts, each once and in their order, with what reward models are shown of them.

    A prompt is one unit of the bootstrap.
    """
    prompts = {row["prompt"]: row["scored_prompt"] for row in rows}
    return dict(itertools.islice(prompts.items(), count))
