"""Which alpha, beta and schedule of LiNeS: those whose front has the largest hypervolume on validation prompts."""

from __future__ import annotations

import numpy as np

from rlhf_lines.pareto import bootstrap_hypervolumes, bootstrap_means, hypervolume, interval, reference_point
from rlhf_lines.pareto.schema import GridEntry, Validation
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.groups import LINES, Specs, scaled, simplex
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.progress import VALIDATION


def choose_scaling(
    config: SweepConfig, inputs: Inputs, specs: Specs, measurement: Measurement
) -> tuple[Scaling, Validation | None]:
    """The scaling whose front has the largest hypervolume, and the hypervolume of every candidate.

    A single candidate is chosen without measuring: the second value is then None.
    """
    candidates = config.candidates
    if len(candidates) == 1:
        return candidates[0], None
    prompts, weights = inputs.prompts["validation"], simplex(len(config.policies), config.validation_weights)
    groups = {
        f"{LINES} {' '.join(map(str, scaling))}": [specs.resolve(scaled(scaling)(row)) for row in weights]
        for scaling in candidates
    }
    points = measurement.measure("validation", groups, prompts, phase=VALIDATION)
    scores = np.stack([measurement.store.scores(point.spec_id, "validation", inputs.objectives) for point in points])
    means, resampled = scores.mean(axis=1), bootstrap_means(scores, seed=config.seed)
    reference = reference_point(means)
    grid: list[GridEntry] = []
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
