"""Gram matrices for RegMean++: what a layer reads comes out of the layers before it as they are merged."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rlhf_lines.merge.layers import layer_of
from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.tensors.residuals import Residuals, Tensors
from rlhf_lines.merge.tensors.spans import Span
from rlhf_lines.statistics.inputs import in_groups
from rlhf_lines.statistics.linear_inputs import Enough, add_products, right_pad, shared_inputs, sum_bytes, width
from rlhf_lines.statistics.samples import batches


class LayerByLayer:
    """RegMean++ on one model in memory, whose parameters are those of one policy after the other, layer by layer.

        for l = 1..L:
            G_k = X^T X / n of the inputs of the linear maps of layer l of policy k,
                  where layers 1..l-1 are the merged ones, on the sequences of policy k
            layer l becomes the RegMean merge of the policies' layers with these G_k

    What lies before the layers (embeddings) is the mean of the policies'. The maps behind them (a head of its own) come
    last. A layer runs on each sequence as the policy's, once for each group of maps whose sums fit into memory, and
    once as it is merged: what the merged one gives is kept, and the next pass begins there.

    Source: arXiv 2508.03121, section 3; nthehai01/RegMean-plusplus. The paper's models of language keep the base's
    embedding, its models of images the mean.

    Args:
        model: the SFT model.
        parameters: name, as the residuals have it, to parameter of the model.
        modules: the linear modules of which Gram matrices are wanted, by the names of their weights.
        residuals: of the K policies, with the SFT model's values.
        sequences: token ids of K sets of sequences, one of each policy.
        reduce: as in `regmean`.
        batch_size: sequences in one forward pass.
        max_memory: bytes of the sums that are in memory at a time.

    Attributes:
        same_input: the name of every linear map that has a Gram matrix to that of the first that reads the same.

    Raises:
        ValueError: the layers of the model cannot be told, a module does not see every token, or `max_memory` is less
            than one matrix takes.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        modules: Mapping[str, nn.Module],
        residuals: Residuals,
        sequences: Sequence[Sequence[Sequence[int]]],
        *,
        reduce: float,
        batch_size: int,
        max_memory: int,
    ) -> None:
        known = {name: shape for name, shape in residuals.shapes.items() if name in parameters}  # no buffers
        self._model, self._parameters, self._modules = model, parameters, modules
        self._residuals = replace(residuals, shapes=known)
        self._sequences, self._reduce, self._batch_size = sequences, reduce, batch_size
        self._layers = layers_of(model)
        places = {parameter: layer for layer, module in enumerate(self._layers) for parameter in module.parameters()}
        self._place = {name: places.get(parameters[name]) for name in known}
        self.same_input = shared_inputs(model, modules, sequences[0][0])
        sums = sum_bytes({name: modules[name] for name in dict.fromkeys(self.same_input.values())})
        self._groups = {
            layer: in_groups({name: size for name, size in sums.items() if self._place[name] == layer}, max_memory)
            for layer in (*range(len(self._layers)), None)
        }

    @property
    def passes(self) -> int:
        """How often a layer is run as each policy's; the maps behind them count as one more."""
        return sum(map(len, self._groups.values()))

    @property
    def merged(self) -> int:
        """How many layers are run as they are merged."""
        return len(self._layers)

    @torch.no_grad()
    def grams(
        self, statistics: Sequence[Tensors], advance: Callable[[int], object] = lambda count: None
    ) -> Iterator[tuple[int, str, Tensor]]:
        """Yield policy k (from 0), name of a linear map and its G_k `[in, in]`, float32, on the CPU; once where shared.

        Args:
            statistics: where a layer's merge finds what was yielded of its maps, one for each policy.
            advance: called with the number of sequences after every batch.

        Raises:
            ValueError: a value is not finite.
        """
        outside = [name for name, layer in self._place.items() if layer is None]
        self._put(outside, self._merged(outside))
        flows = [[_Flow(batch) for batch in batches(own, self._batch_size)] for own in self._sequences]
        for layer, groups in self._groups.items():
            names = [name for name, place in self._place.items() if place == layer]
            for maps, (k, own) in itertools.product(groups, enumerate(flows)):
                if layer is not None:
                    self._put(names, self._of_policy(names, k))
                yield from ((k, name, gram) for name, gram in self._measure(own, layer, maps, advance))
            if layer is None:
                return
            self._put(names, self._merged(names, statistics if groups else ()))
            for own in flows:
                for flow in own:
                    with contextlib.suppress(Enough), self._from(layer, flow), _after(self._layers[layer], flow):
                        self._run(flow)
                    advance(len(flow.rows))

    def _measure(
        self, flows: Sequence[_Flow], layer: int | None, maps: Sequence[str], advance: Callable[[int], object]
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and G of these maps over all sequences of a policy."""
        device = next(self._model.parameters()).device
        sizes = {name: width(self._modules[name]) for name in maps}
        sums = {name: torch.zeros(n, n, dtype=torch.float64, device=device) for name, n in sizes.items()}
        modules = {name: self._modules[name] for name in maps}
        for flow in flows:
            with self._from(len(self._layers) if layer is None else layer, flow):
                add_products(self._model, modules, flow.rows, sums)
            advance(len(flow.rows))
        num_tokens = sum(len(row) for flow in flows for row in flow.rows)
        for name in maps:
            gram = sums.pop(name).div_(num_tokens).float().cpu()
            if not torch.isfinite(gram).all():
                raise ValueError(f"the inputs of {name!r} are not finite; choose dtype float32")
            yield name, gram

    def _of_policy(self, names: Sequence[str], k: int) -> Iterator[tuple[str, Tensor]]:
        """theta_SFT + tau_k of these parameters."""
        for name in names:
            chunk = self._whole(name)
            yield name, chunk.sft + chunk.residuals[k]

    def _merged(self, names: Sequence[str], statistics: Sequence[Tensors] = ()) -> Iterator[tuple[str, Tensor]]:
        """theta_SFT + tau_M of these parameters: by RegMean with these Gram matrices, or their mean without."""
        shapes = {name: self._residuals.shapes[name] for name in names}
        if not shapes:
            return
        held = replace(self._residuals, shapes=shapes, statistics=tuple(statistics))
        options = {"reduce": self._reduce, "plus_plus": True} if statistics else {}
        merged = merge_lazily(held, "regmean" if statistics else "linear", **options)
        for name in names:
            tau = merged.tensor(name)
            yield name, self._whole(name).sft + tau.flatten()

    def _whole(self, name: str):
        return self._residuals.read(Span(name, 0, self._parameters[name].numel()))

    def _put(self, names: Sequence[str], values: Iterator[tuple[str, Tensor]]) -> None:
        for name, value in values:
            parameter = self._parameters[name]
            parameter.copy_(value.view(parameter.shape))

    def _run(self, flow: _Flow) -> None:
        tokens, mask = right_pad(flow.rows, next(self._model.parameters()).device)
        self._model(input_ids=tokens, attention_mask=mask.long(), use_cache=False)

    @contextlib.contextmanager
    def _from(self, layer: int, flow: _Flow) -> Iterator[None]:
        """Inside, the layers before this one are passed over, and what the last of them gave before is taken."""
        skipped = self._layers[:layer]
        for number, module in enumerate(skipped):
            last = number == layer - 1
            module.forward = flow.give if last else flow.pass_on
        try:
            yield
        finally:
            for module in skipped:
                del module.forward


class _Flow:
    """One batch on its way through the layers.

    Attributes:
        rows: token ids of its sequences.
        hidden: what the layers that are merged so far make of it, as the last of them gave it.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows, self.hidden = rows, None

    def give(self, *args: object, **kwargs: object) -> object:
        """The forward pass of the last merged layer."""
        return self.hidden

    def pass_on(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        """The forward pass of a layer whose result nobody reads: a tensor, or a tuple, as that of the last one."""
        return (hidden, *self.hidden[1:]) if isinstance(self.hidden, tuple) else hidden


@contextlib.contextmanager
def _after(layer: nn.Module, flow: _Flow) -> Iterator[None]:
    """Inside, a forward pass stops behind this layer, and what it gave is kept."""

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        flow.hidden = output
        raise Enough

    hook = layer.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The transformer layers of a model in their order.

    Raises:
        ValueError: they do not stand in one place.
    """
    found: dict[str, set[int]] = {}
    for place, layer in filter(None, (layer_of(name) for name, _ in model.named_parameters())):
        found.setdefault(place, set()).add(layer)
    if len(found) != 1 or sorted(*found.values()) != list(range(len(next(iter(found.values()))))):
        raise ValueError(
            f"the layers of the model stand in {len(found)} places ({', '.join(found) or 'none'}), expected one: "
            "RegMean++ goes through the layers of one language model; use plain Gram matrices"
        )
    ((place, numbers),) = found.items()
    return [model.get_submodule(f"{place}{number}") for number in sorted(numbers)]
