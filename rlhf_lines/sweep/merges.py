"""The merges of a sweep's policies, from files that are opened once, however many specs there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM
from rlhf_lines.merge.inputs.statistics_files import check_statistics, open_statistics
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.opened import OpenMerge
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.tensors.residuals import Residuals, Tensors
from rlhf_lines.sweep.choices import GroupEntry


class Merges:
    """Any spec merged as dense weights; a context manager, which opens nothing before the first merge.

    Args:
        sft: folder of the SFT model.
        adapters: the policies, which belong to it, in the order of the specs' weights; a spec may have fewer.
        groups: whose statistics their rules get.

    Raises:
        ValueError: by every method, that these policies or statistics cannot be merged so.
        FileNotFoundError: by every method, that there are no such statistics.
    """

    def __init__(self, sft: Path, adapters: Sequence[Adapter], groups: Sequence[GroupEntry] = ()) -> None:
        self.sft, self._adapters = sft, adapters
        self._folders = {entry.rule: entry.statistics for entry in groups}
        self._statistics: dict[str, list[Tensors]] = {}
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Merges:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def check(self, spec: MergeSpec) -> None:
        """Stop where the policies cannot be merged so: one tensor is merged, and no alpha is measured."""
        next(self.weights(replace(spec, alpha=1.0)))

    def resolved(self, spec: MergeSpec) -> MergeSpec:
        """The spec with the number that alpha `"auto"` stands for; see `lines_alpha`."""
        return self._merge(spec).spec if spec.alpha == "auto" else spec

    def weights(self, spec: MergeSpec) -> Iterator[tuple[str, Tensor]]:
        """Every parameter that the policies change, with its merged values, one at a time; see `OpenMerge.tensors`.

        Names are those of the causal language model that is loaded.
        """
        for name, tensor in self._merge(spec).tensors():
            yield self.loaded_name(name), tensor

    def residuals(self) -> Residuals:
        """Those of all policies, by the names of the checkpoint."""
        return self._merge(MergeSpec("sum", (1.0,) * len(self._adapters))).residuals

    def loaded_name(self, name: str) -> str:
        """What the causal language model that is loaded calls a parameter of the checkpoint."""
        names = self._checkpoint.readings.loaded_by(CAUSAL_LM)
        return names.renamed(name) if names else name

    def _merge(self, spec: MergeSpec) -> OpenMerge:
        sft, adapters = self._checkpoint, self._adapters[: len(spec.weights)]
        statistics = self._statistics_of(spec.rule)
        merge = Merge(self.sft, [adapter.path for adapter in adapters], spec, "dense")
        return OpenMerge(merge, sft, adapters, statistics)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return self._files.enter_context(Checkpoint(self.sft))

    def _statistics_of(self, rule: str) -> list[Tensors]:
        if rule not in self._statistics:
            folders, needed = self._folders.get(rule, ()), RULES[rule].statistics
            check_statistics(rule, needed, folders, [adapter.path for adapter in self._adapters])
            self._statistics[rule] = open_statistics(needed, folders, self._files, self._checkpoint)
        return self._statistics[rule]
