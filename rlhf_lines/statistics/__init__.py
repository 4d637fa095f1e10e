"""What two merge rules need to know of a policy beside its weights: its diagonal Fisher, and its layers' inputs."""

from __future__ import annotations

from rlhf_lines.merge.inputs.statistics_files import FISHER_FILE, GRAM_FILE
from rlhf_lines.statistics.files import read_gram, stored_transposed


__all__ = ["FISHER_FILE", "GRAM_FILE", "read_gram", "stored_transposed"]
