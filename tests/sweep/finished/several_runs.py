"""Finished sweeps of one recipe and of another, written without models: the scores are numbers of a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_lines.artifact import write_record
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import Point, build_front, write_front
from rlhf_lines.sweep.store import Row, Store


REWARDS = ("brief", "kind")
SHARES = (0.0, 0.5, 1.0)
PROMPTS = tuple(f"prompt {i}" for i in range(12))


def specs(rewards: int = 2) -> dict[str, list[MergeSpec]]:
    """The specs of every group: of two policies."""
    weights = [(1.0 - share, share) for share in SHARES]
    return {
        "sft": [MergeSpec("linear", (0.0, 0.0))],
        "rewarded_soup": [MergeSpec("linear", w) for w in weights],
        "lines": [MergeSpec("linear", w, 1.0, 1.0) for w in weights],
        "reversed": [MergeSpec("linear", w, 1.0, 1.0, "reversed_sqrt") for w in weights],
    }


def write_sweep(
    folder: Path,
    seed: int,
    *,
    prompts: Sequence[str] = PROMPTS,
    rewards: Sequence[str] = REWARDS,
    groups: Mapping[str, Sequence[MergeSpec]] | None = None,
    gain: float = 0.5,
    **facts,
) -> Path:
    """Write a finished sweep whose scores differ by seed; `lines` is better than the soup by about `gain`."""
    generator, groups = np.random.default_rng(seed), groups or specs()
    hard = {text: np.random.default_rng(len(text) + i).normal(size=len(rewards)) for i, text in enumerate(prompts)}
    folder.mkdir(parents=True)
    with Store(folder) as store:
        kept = {"reward_models": {name: {"model": name} for name in rewards}, "policies_sha256": [f"{seed}"]}
        store.remember(reward_names=list(rewards), samples_per_prompt=1, seed=5, validation=None, surrogate=None)
        store.remember(sft_model="sft", policies=["one", "two"], morlhf=[], **{**kept, **facts})
        ids = store.add_prompts("test", {text: text for text in prompts})
        points = []
        for group, of_group in groups.items():
            for point in store.add_points("test", group, of_group):
                worth = np.sqrt(np.array([*point.spec.weights, 0.2, 0.2][: len(rewards)]))
                worth += (gain if group == "lines" else 0.0) + 0.1 * generator.normal(size=len(rewards))
                kl = 0.1 + generator.gamma(2.0, 1.0 + gain, size=len(prompts))
                scores = np.array([worth + hard[text] + 0.3 * generator.normal(size=len(rewards)) for text in prompts])
                store.add(
                    Row(point.spec_id, prompt, 0, "text", (1, 2), nats, dict(zip(rewards, row, strict=True)))
                    for prompt, nats, row in zip(ids, kl.tolist(), scores.tolist(), strict=True)
                )
                points.append(Point(point.id, group, point.spec.to_dict(), scores, kl))
    settings = {"rewards": rewards, "split": "test", "seed": 5, "sft_model": "sft", "policies": ["one", "two"]}
    write_front(folder, build_front(points=points, **settings))
    write_record(folder, "sweep", {"seed": seed})
    return folder
