"""Specs that are no row of coefficients: their merged weights take the place of the SFT model's, one spec at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from rlhf_lines.merge import MergeSpec
from rlhf_lines.sweep.merges import Merges


class MergedWeights:
    """Lends the merged weights of a spec to a model.

    Args:
        model: the SFT model, not quantised.
        merges: of the policies.
    """

    def __init__(self, model: nn.Module, merges: Merges) -> None:
        self._parameters, self._merges = dict(model.named_parameters()), merges
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
            self._merged = dict(self._merge(spec))
            self._spec = spec
        originals = {name: self._parameters[name].data for name in self._merged}
        try:
            for name, tensor in self._merged.items():
                self._parameters[name].data = tensor
            yield
        finally:
            for name, tensor in originals.items():
                self._parameters[name].data = tensor

    def _merge(self, spec: MergeSpec) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._merges.weights(spec):
            if name not in self._parameters:
                raise ValueError(
                    f"the SFT model {self._merges.sft} holds {name!r}, which the loaded model calls otherwise: rule "
                    f"{spec.rule!r} cannot be swept with this architecture; merge it with rlhf-lines merge"
                )
            yield name, tensor.to(self._parameters[name])
