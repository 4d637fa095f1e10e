"""Merging aligned policies in weight space: residuals, rules, LiNeS, and the folders that hold the result.

A `MergeSpec` says how to merge (rule, weights, LiNeS, options), a `Merge` (job.py) of which inputs, and what to save.
`open_merge` (opened.py) makes an `OpenMerge` of it, which a `DenseMerge` (dense.py) or sums of LoRA factors
(lora/) write. `Residuals` are the K residuals that a rule reads, `Merged` is the one that it makes of them.

Names are imported when they are asked for, so that `rlhf_lines.merge.spec` and other modules that do without torch can
be had without it.
"""

from __future__ import annotations

from rlhf_lines.lazily import exports


_MODULES = {
    "rlhf_lines.merge.inputs.checkpoint": ["checkpoint_sha256"],
    "rlhf_lines.merge.lines": ["apply_lines", "lines_alpha", "lines_scales"],
    "rlhf_lines.merge.policies": ["merge_policies"],
    "rlhf_lines.merge.rules": ["merge_residuals"],
    "rlhf_lines.merge.rules.consensus": ["tall_masks"],
    "rlhf_lines.merge.soups": ["greedy_soup", "metric_weights", "uniform_soup", "wise_ft"],
    "rlhf_lines.merge.spec": ["MergeSpec"],
}

__all__ = [name for names in _MODULES.values() for name in names]
__getattr__ = exports(__name__, _MODULES)
