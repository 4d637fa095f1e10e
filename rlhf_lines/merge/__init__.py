"""Merging aligned policies in weight space: residuals, rules, LiNeS, and the folders that hold the result."""

from rlhf_lines.merge.checkpoint import checkpoint_sha256
from rlhf_lines.merge.export import merge_policies
from rlhf_lines.merge.lines import apply_lines, lines_alpha, lines_scales
from rlhf_lines.merge.rules import merge_residuals
from rlhf_lines.merge.rules.consensus import tall_masks
from rlhf_lines.merge.spec import MergeSpec


__all__ = [
    "MergeSpec",
    "apply_lines",
    "checkpoint_sha256",
    "lines_alpha",
    "lines_scales",
    "merge_policies",
    "merge_residuals",
    "tall_masks",
]
