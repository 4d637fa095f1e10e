"""Many merged policies on one loaded base: every row of a batch may be another one.

A merge that is linear in the residuals differs from the SFT model, in one module, by

    h = W x + B (c * (A x)),   A = [A_1; A_2; ...], B = [s_1 B_1, s_2 B_2, ...]

where c, one number per rank, is the only thing that depends on weights, alpha, beta and the layer. So the factors of
all policies are loaded once, nothing is merged into W, and a quantised base stays as it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.lora.low_rank import coefficients, stack


_ROUTED = re.compile(r"\bexperts\.\d+\.")
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of Llama and its relatives


class MultiLoRA:
    """A causal language model whose rows follow the spec that they are given.

    Args:
        model: the SFT model; hooks are added to the adapted modules, its weights are not touched.
        adapters: the policies, in the order of the specs' weights; a spec may have fewer weights, the rest are 0.

    Raises:
        ValueError: an adapter has a module that the model has not, or one that `check_mixable` refuses.
    """

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        self.model = model
        self._num_layers = model.config.get_text_config().num_hidden_layers
        check_mixable(adapters)
        stacked = stack(adapters)
        self._ranks = next(iter(stacked.values())).ranks
        self._diagonals: dict[int | None, Tensor] = {}  # layer -> [rows, 1, R]
        self._cache: dict[MergeSpec, Tensor] = {}
        self._length = 0  # tokens of a row of the current pass
        self._followed: Tensor | None = None  # coefficients of all rows, [layers, R]
        model.register_forward_pre_hook(self._see_pass, with_kwargs=True)
        modules = dict(model.named_modules())
        layers = layer_indices([f"{name}.weight" for name in stacked], num_layers=self._num_layers)
        self._layers = sorted(set(layers.values()), key=lambda layer: -1 if layer is None else layer)
        for name in stacked:
            if name not in modules:
                raise ValueError(f"the adapters change the module {name!r}, which the SFT model has not")
        for names in _readers_of_one_input(stacked):
            device = next(modules[names[0]].parameters()).device
            # In the model's dtype, as its weights: float32 products beside bfloat16 ones took longer than those.
            narrow = _Narrow([stacked[name].A.T.to(device, model.dtype) for name in names])
            for place, name in enumerate(names):
                up = stacked[name].B.T.to(device, model.dtype).contiguous()
                self._attach(name, modules[name], up, narrow, place, layers[f"{name}.weight"])

    @contextlib.contextmanager
    def rows(self, specs: Sequence[MergeSpec]) -> Iterator[None]:
        """Inside, row i of every forward pass follows `specs[i]`; outside, all rows are the SFT model."""
        self._given = torch.stack([self._coefficients(spec) for spec in specs]).to(self.model.device)
        self.select_rows(torch.arange(len(specs)))
        try:
            yield
        finally:
            self._diagonals = {}

    @contextlib.contextmanager
    def following(self, spec: MergeSpec) -> Iterator[None]:
        """Inside, all rows of every forward pass follow a spec, however many there are; outside, the SFT model."""
        self._followed = self._coefficients(spec).to(self.model.device)
        try:
            yield
        finally:
            self._followed, self._diagonals = None, {}

    @contextlib.contextmanager
    def mixed(self, factors: Tensor, rows: int) -> Iterator[None]:
        """Inside, all rows follow these factors, through which gradients flow back; outside, the SFT model.

        One forward and backward pass gives the derivatives of a loss by all factors; those of the factor of policy k in
        layer l are the inner product of the dense gradient and tau_k[l].

        Args:
            factors: `[K, 1 + L]`, of every policy outside the layers, and in each.
            rows: of every pass.
        """
        places = [0 if layer is None else 1 + layer for layer in self._layers]
        diagonals = factors.T[places].repeat_interleave(torch.tensor(self._ranks, device=factors.device), dim=1)
        diagonals = diagonals.unsqueeze(1).expand(-1, rows, -1).unsqueeze(2)
        self._diagonals = dict(zip(self._layers, diagonals, strict=True))
        try:
            yield
        finally:
            self._diagonals = {}

    def select_rows(self, rows: Tensor) -> None:
        """Let the next passes read only some of the given specs' rows, by index and in this order."""
        current = self._given[rows.to(self._given.device)]
        self._diagonals = {layer: current[:, i].unsqueeze(1) for i, layer in enumerate(self._layers)}

    def _see_pass(self, model: nn.Module, arguments: tuple, options: dict) -> None:
        rows, self._length = (options["input_ids"] if "input_ids" in options else arguments[0]).shape
        if self._followed is not None:
            everywhere = self._followed.expand(rows, 1, *self._followed.shape)
            self._diagonals = {layer: everywhere[:, :, i] for i, layer in enumerate(self._layers)}

    def _coefficients(self, spec: MergeSpec) -> Tensor:
        if spec not in self._cache:
            ranks = self._ranks[: len(spec.weights)]
            per_layer = torch.stack([coefficients(spec, ranks, layer, self._num_layers) for layer in self._layers])
            self._cache[spec] = nn.functional.pad(per_layer, (0, sum(self._ranks) - sum(ranks)))
        return self._cache[spec]

    def _attach(self, name: str, module: nn.Module, up: Tensor, narrow: _Narrow, place: int, layer: int | None) -> None:
        """Let a module add its residual; `up` is its B, `[R, out]`."""

        def add_residual(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            diagonal = self._diagonals.get(layer)
            if diagonal is None:
                return output
            x, rows = inputs[0], len(diagonal)
            if len(x) != (rows if x.ndim > 2 else rows * self._length):
                raise ValueError(
                    f"module {name!r} reads {tuple(x.shape)} for {rows} rows of {self._length} tokens, which does not "
                    "tell whose token is whose, so specs cannot share a batch: sweep policies that leave it alone, or "
                    "merge them one by one with rlhf-lines merge"
                )
            scaled = narrow(x, diagonal, place)
            if output.dtype == up.dtype and not torch.is_grad_enabled():
                # One operation in place of two: small ones cost most where rows are short. With gradients, the output
                # of an 8-bit module is a view that must not be changed.
                output.view(-1, up.shape[1]).addmm_(scaled, up)
                return output
            return output + (scaled @ up).view(output.shape).to(output.dtype)

        module.register_forward_hook(add_residual)


def check_mixable(adapters: Iterable[Adapter]) -> None:
    """Stop where policies adapt single experts of a mixture, which read some tokens of a batch, of unknown rows.

    Raises:
        ValueError: they do.
    """
    for adapter in adapters:
        if routed := next(filter(_ROUTED.search, adapter.modules), None):
            raise ValueError(
                f"policy {adapter.path} adapts the expert {routed!r}, which reads only the tokens that are routed to "
                "it, so specs cannot share a batch: sweep policies of other modules, or merge these with rlhf-lines "
                "merge"
            )


class _Narrow:
    """c * (A x) of the modules that read one tensor, all in one product when the first of them asks.

    Args:
        downs: A of each module, `[in, R]`.
    """

    def __init__(self, downs: Sequence[Tensor]) -> None:
        self._down, self._count, self._rank = torch.cat(list(downs), dim=1), len(downs), downs[0].shape[1]
        self._input = self._found = None
        self._unread = 0

    def __call__(self, x: Tensor, diagonal: Tensor, place: int) -> Tensor:
        """What the module at a place gets, `[rows T, R]`, for x `[rows, T, in]` or flattened, and c `[rows, 1, R]`."""
        if x is not self._input:
            by_row = x.to(self._down.dtype).reshape(len(diagonal), -1, x.shape[-1])
            wide = (by_row @ self._down).unflatten(-1, (self._count, self._rank)) * diagonal.unsqueeze(2)
            # Coefficients are in float32: rounded, each would be off by the same share in all of its tokens.
            self._input, self._found = x, wide.to(self._down.dtype).flatten(2).flatten(0, 1)
            self._unread = self._count
        found = self._found[:, place * self._rank : (place + 1) * self._rank]
        self._unread -= 1
        if self._unread == 0:  # keep no activations
            self._input = self._found = None
        return found


def _readers_of_one_input(modules: Iterable[str]) -> list[list[str]]:
    """The modules in groups that may read one tensor: siblings whose names say so, each other one alone."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in modules:
        parent, _, own = name.rpartition(".")
        shared = next((names[0] for names in SAME_INPUT if own in names), own)
        groups.setdefault((parent, shared), []).append(name)
    return list(groups.values())
