"""Merging aligned policies in weight space: residuals, rules, LiNeS, and the folders that hold the result.

A `MergeSpec` says how to merge (rule, weights, LiNeS, options), a `Merge` (job.py) of which inputs, and what to save.
`open_merge` (opened.py) makes an `OpenMerge` of it, which a `DenseMerge` (dense.py) or sums of LoRA factors
(lora/) write. `Residuals` are the K residuals that a rule reads, `Merged` is the one that it makes of them.
"""

from __future__ import annotations

from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.merge.lines import apply_lines, lines_alpha, lines_scales
from rlhf_lines.merge.policies import merge_policies
from rlhf_lines.merge.rules import merge_residuals
from rlhf_lines.merge.rules.consensus import tall_masks
from rlhf_lines.merge.soups import greedy_soup, metric_weights, uniform_soup, wise_ft
from rlhf_lines.merge.spec import MergeSpec


__all__ = [
    "MergeSpec",
    "apply_lines",
    "checkpoint_sha256",
    "greedy_soup",
    "lines_alpha",
    "lines_scales",
    "merge_policies",
    "merge_residuals",
    "metric_weights",
    "tall_masks",
    "uniform_soup",
    "wise_ft",
]
