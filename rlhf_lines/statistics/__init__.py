"""What two merge rules need to know of a policy beside its weights: its Fisher, and the inputs of its linear maps."""

from __future__ import annotations

from rlhf_lines.lazily import exports


__all__ = ["read_gram", "stored_transposed"]
__getattr__ = exports(__name__, {"rlhf_lines.statistics.files": __all__})
