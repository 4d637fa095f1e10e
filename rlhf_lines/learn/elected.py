"""Derivatives by factors on residuals that TIES has trimmed, which no adapter holds: through merged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf_lines.learn.gradient import RowLoss, Slope, loss_of_pass, passes
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.rules.ties import election
from rlhf_lines.merge.space import Space, Vector
from rlhf_lines.merge.tensors.residuals import Chunk
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Pair
from rlhf_lines.sweep.merges import Merges


class ElectedDifferentiated:
    """Losses of a merge by rule `ties_layerwise`, and their derivatives.

        dL/dc[k][l] = sum_(W in layer l) <dL/dW, t_k[W]>,   t_k what is elected of tau_k

    The merged weights take the place of the base's. The gradient of each is multiplied with what is elected of every
    policy as soon as it is there, chunk by chunk, and let go: beside the merged weights, one gradient is in memory.

    Args:
        engine: the base, not quantised.
        merges: of the policies.
        space: of the numbers.
        num_policies: K.
        density: the share of entries that is kept.
        pad_token_id: fills up the rows.
    """

    def __init__(
        self, engine: LocalEngine, merges: Merges, space: Space, num_policies: int, density: float, pad_token_id: int
    ) -> None:
        self._engine, self._space, self._density, self._pad = engine, space, density, pad_token_id
        self._weights = (1 / num_policies,) * num_policies
        self._matrix = space.matrix()
        self._residuals = merges.residuals()
        self._agreeing = election(self._residuals, density=density)
        num_layers = len(self._matrix) // num_policies - 1
        layers = layer_indices(sorted(self._residuals.shapes), num_layers=num_layers)
        self._places = {name: 0 if layer is None else 1 + layer for name, layer in layers.items()}
        self._model.requires_grad_(False)
        parameters = dict(self._model.named_parameters())
        self._parameters = {name: parameters[merges.loaded_name(name)] for name in layers}

    def __call__(self, vector: Vector, pairs: Sequence[Pair], loss: RowLoss, weights: Sequence[float]) -> Slope:
        """See `Differentiated`."""
        options = self._space.profile(vector).to_options() | {"density": self._density}
        spec = MergeSpec("ties_layerwise", self._weights, options=options)
        derivatives, total = np.zeros((len(self._weights), len(self._matrix) // len(self._weights))), 0.0
        with self._engine.merged.loaded(spec), self._caught(derivatives), torch.enable_grad():
            for rows in self.passes(pairs):
                part = loss_of_pass(self._model, [pairs[i] for i in rows], loss, [weights[i] for i in rows], self._pad)
                part.backward()
                total += part.item()
        return total, self._matrix.T @ derivatives.ravel()

    def passes(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """The rows of each pass; see `passes`."""
        return passes(self._model, pairs)

    @property
    def _model(self) -> nn.Module:
        return self._engine.multi_lora.model

    @contextlib.contextmanager
    def _caught(self, derivatives: NDArray[np.float64]) -> Iterator[None]:
        """Inside, what the backward pass finds is added to the derivatives `[K, 1 + L]`."""

        def caught(name: str, gradient: Tensor) -> None:
            flat = gradient.detach().reshape(-1).to("cpu", torch.float64)

            def products(chunk: Chunk) -> list[float]:
                agreeing, sign = self._agreeing(chunk)
                signed = flat[chunk.span.start : chunk.span.stop] * sign
                return [(signed * magnitudes).sum().item() for magnitudes in agreeing]

            for found in self._residuals.map(products, names=[name]):
                derivatives[:, self._places[name]] += found

        with contextlib.ExitStack() as stack:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(True)
                stack.callback(parameter.requires_grad_, False)

                def hook(parameter: Tensor, name: str = name) -> None:
                    caught(name, parameter.grad)
                    parameter.grad = None

                handle = parameter.register_post_accumulate_grad_hook(hook)
                stack.callback(handle.remove)
            yield
