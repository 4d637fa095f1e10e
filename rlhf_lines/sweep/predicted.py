"""Sampler map: the weights that a quadratic fit of the objectives predicts to be on the front, measured.

Source: MAP, arXiv 2406.07529.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.schema import SurrogateEntry
from rlhf_lines.pareto.surrogate import fit_surrogate, predicted_front, surrogate_report
from rlhf_lines.sweep.groups import Weights
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.measure import Measurement
from rlhf_lines.sweep.progress import PREDICTED
from rlhf_lines.sweep.store import StoredPoint


def measure_predicted(
    inputs: Inputs,
    makers: Mapping[str, Callable[[Weights], MergeSpec]],
    measurement: Measurement,
    points: Sequence[StoredPoint],
    weights: Sequence[Weights],
    *,
    count: int,
) -> tuple[dict[str, SurrogateEntry], list[StoredPoint]]:
    """Fit a quadratic to every group's points, measure the weights it predicts to be on the front, and compare.

    Args:
        inputs: with the prompts and the names of the objectives.
        makers: of every group, from weights to its spec.
        measurement: samples and scores.
        points: what is measured already.
        weights: at which every group is measured already. Those of its specs may be others, of other policies.
        count: how many predicted weights of a group are measured.

    Returns:
        By group, what was predicted and what was measured (see `surrogate_report`); and the new points.
    """

    def means(of: Sequence[StoredPoint]) -> dict[int, np.ndarray]:
        scores = measurement.store.scores
        return {point.id: scores(point.spec_id, "test", inputs.objectives).mean(axis=0) for point in of}

    fits, predicted = {}, {}
    asked = {(name, make(row)): row for name, make in makers.items() for row in weights}
    for name, make in makers.items():
        sampled = [point for point in points if point.group == name]
        known, fitted = means(sampled), [list(asked[name, point.spec]) for point in sampled]
        fit = fit_surrogate(fitted, list(known.values()))
        fits[name] = (fit, list(known))
        found = [tuple(row) for row in predicted_front(fit, count, fitted)]
        predicted[name] = [make(row) for row in found]
        asked |= {(name, make(row)): row for row in found}
    new = measurement.measure("test", predicted, inputs.prompts["test"], phase=PREDICTED)
    reports: dict[str, SurrogateEntry] = {}
    for name, (fit, sampled) in fits.items():
        of_group = [point for point in new if point.group == name]
        at = {point.id: asked[name, point.spec] for point in of_group}
        reports[name] = surrogate_report(fit, inputs.objectives, sampled=sampled, weights=at, measured=means(of_group))
    return reports, new
