"""The LiNeS scaling that is best on validation prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import bootstrap_hypervolumes, bootstrap_means, hypervolume, interval, reference_point
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.groups import LINES, Weights, scaled
from rlhf_lines.sweep.measure import Measurement


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
    """Return the scaling whose front has the largest hypervolume, and the hypervolume of every candidate.

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
