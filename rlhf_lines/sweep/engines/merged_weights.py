"""Specs that are no row of coefficients: their merged weights take the place of the SFT model's, one spec at a time."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.job import Merge
from rlhf_lines.merge.opened import open_merge


class DenseSpecs:
    """Merges a spec's weights and lends them to a model.

    Args:
        model: the SFT model, not quantised.
        sft: its folder.
        policies: folders of the policies, in the order of the specs' weights.
        statistics: folders of statistics, one per policy, by the rule that needs them.
    """

    def __init__(
        self, model: nn.Module, sft: Path, policies: Sequence[Path], statistics: Mapping[str, Sequence[str]]
    ) -> None:
        self._parameters = dict(model.named_parameters())
        self._sft, self._policies, self._statistics = sft, policies, statistics
        self._spec: MergeSpec | None = None
        self._merged: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def loaded(self, spec: MergeSpec) -> Iterator[None]:
        """Inside, the model is the one merged for the spec; outside, the SFT model, bit by bit.

        The last spec's weights are kept, so that batches of one spec merge it once. They take as much memory as the
        parameters that the policies change.

        Raises:
            ValueError: the policies cannot be merged so, or a parameter is not in the model.
        """
        if spec != self._spec:
            self._merged, self._spec = {}, None  # before the next ones are made: two sets may be too many
            self._merged = self._merge(spec)
            self._spec = spec
        originals = {name: self._parameters[name].data for name in self._merged}
        try:
            for name, tensor in self._merged.items():
                self._parameters[name].data = tensor
            yield
        finally:
            for name, tensor in originals.items():
                self._parameters[name].data = tensor

    def _merge(self, spec: MergeSpec) -> dict[str, Tensor]:
        merged = {}
        policies, statistics = self._policies[: len(spec.weights)], self._statistics.get(spec.rule, ())
        with open_merge(Merge(self._sft, policies, spec, "dense", statistics=statistics)) as opened:
            for name, tensor in opened.tensors():
                if name not in self._parameters:
                    raise ValueError(
                        f"the SFT model {self._sft} holds {name!r}, which the loaded model calls otherwise: rule "
                        f"{spec.rule!r} cannot be swept with this architecture; merge it with rlhf-lines merge"
                    )
                of_model = self._parameters[name]
                merged[name] = tensor.to(of_model.device, of_model.dtype)
        return merged


def check_merge(sft: Path, policies: Sequence[Path], spec: MergeSpec, statistics: Sequence[str] = ()) -> None:
    """Stop where these policies cannot be merged so: one tensor is merged, and no alpha is measured.

    Raises:
        ValueError: the rule does not take these policies or these statistics.
        FileNotFoundError: there are no such statistics.
    """
    spec = dataclasses.replace(spec, alpha=1.0)
    with open_merge(Merge(sft, policies, spec, "dense", statistics=statistics)) as opened, torch.no_grad():
        next(opened.tensors())


def measured_alpha(sft: Path, policies: Sequence[Path], spec: MergeSpec, statistics: Sequence[str] = ()) -> MergeSpec:
    """The spec with the number that `"auto"` stands for; see `lines_alpha`."""
    if spec.alpha != "auto":
        return spec
    with open_merge(Merge(sft, policies, spec, "dense", statistics=statistics)) as opened, torch.no_grad():
        return opened.spec
