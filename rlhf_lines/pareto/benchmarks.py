"""What benchmarks say of a point: its results with their intervals, and how far they are from the SFT model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_lines.pareto.intervals import paired_difference, paired_share_difference
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.pareto.schema import Front, Mean, Value


class Result(NamedTuple):
    """One metric of a benchmark.

    Attributes:
        value: of the metric.
        stderr: its standard error, as the benchmark says it; None where it says none.
        values: what each document counts, in their order, where the value is their mean.
    """

    value: float
    stderr: float | None = None
    values: Sequence[float] | None = None


def result_entry(result: Result, resampling: Resampling) -> Mean:
    """A result as `front.json` has it: `value -+ z stderr`, z the quantile of the normal distribution."""
    low, high = _ends(result.value, result.stderr, resampling)
    return {"mean": result.value, "low": low, "high": high}


def benchmark_changes(own: Mapping[str, Result], sft: Mapping[str, Result], resampling: Resampling) -> dict[str, Value]:
    """By metric, the result of a point minus the SFT model's, where both have one: the alignment tax, where negative.

    Paired by documents where both are means over the same ones: that some are harder than others is no noise of a
    difference. Answers that are right (1) or wrong (0) have the interval of `paired_share_difference`, other values
    that of `paired_difference`. What is no mean over documents has `-+ z sqrt(stderr^2 + stderr_sft^2)`, which is
    wider than need be, as it leaves out that both are about the same documents. The SFT model's own are exactly 0.

    Source: arXiv 2203.02155, section 4.2 (the alignment tax); arXiv 2411.00640, section 3 (pairing by questions).
    """
    return {name: _change(own[name], sft[name], resampling) for name in own if name in sft}


def _change(own: Result, sft: Result, resampling: Resampling) -> Value:
    difference = own.value - sft.value
    if own is sft:
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    if own.values is None or sft.values is None or len(own.values) != len(sft.values):
        known = own.stderr is not None and sft.stderr is not None
        low, high = _ends(difference, math.hypot(own.stderr, sft.stderr) if known else None, resampling)
        return {"value": difference, "low": low, "high": high}
    answers = np.isin([*own.values, *sft.values], (0.0, 1.0)).all()
    estimate = paired_share_difference if answers else paired_difference
    found = estimate(own.values, sft.values, confidence=resampling.confidence)
    return {"value": difference, "low": found.low, "high": found.high}


def _ends(value: float, stderr: float | None, resampling: Resampling) -> tuple[float, float] | tuple[None, None]:
    if stderr is None:
        return None, None
    reach = resampling.quantile * stderr
    return value - reach, value + reach


def benchmark_metrics(front: Front) -> dict[str, bool | None]:
    """The metrics of all benchmarks by their names in `metrics`, and whether higher is better, where that is known."""
    return {name: better for entry in front["benchmarks"].values() for name, better in entry["metrics"].items()}
