"""A merge of whole weights: computed and written chunk by chunk, so that the size of the model does not matter."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import Policy, streamed_residuals
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.lines import lines_scales, streamed_alpha
from rlhf_lines.merge.output.checkpoint import layout, write_companions, write_index
from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import Loss, LostResidual, add_residual, cast_loss, is_finite
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Tensors
from rlhf_lines.merge.tensors.spans import Scratch, Span, cut, in_threads
from rlhf_lines.merge.tensors.tensor_file import NewTensorFile


class DenseMerge:
    """A merge that is checked and ready to be written: theta = theta_SFT + LiNeS(tau_M).

    Attributes:
        residuals: of the policies.
    """

    def __init__(
        self,
        sft: Checkpoint,
        policies: Sequence[Policy],
        spec: MergeSpec,
        *,
        statistics: Sequence[Tensors] = (),
        device: str = "cpu",
        workers: int | None = None,
        max_memory: int | None = None,
        progress: Callable[[str, int, int | None], object] = lambda phase, elements, total: None,
    ) -> None:
        """Find the layer of every parameter that may change.

        Args:
            sft: the SFT model.
            policies: K policies, checked against it.
            spec: what to merge how.
            statistics: K sets of tensors that the rule needs.
            device: where the arithmetic is done.
            workers: threads; None is one per core.
            max_memory: bytes that the work on one parameter may take, for rules that need whole ones; None is no bound.
            progress: told the phase (`measure`, `write`), the elements done, and the total of the phase if known.

        Raises:
            ValueError: a parameter name whose layer cannot be read.
        """
        self._sft, self._spec, self._progress = sft, spec, progress
        self._not_finite: set[tuple[str, str]] = set()
        self.residuals = streamed_residuals(
            sft,
            policies,
            not_finite=self._not_finite,
            statistics=statistics,
            device=device,
            workers=workers,
            max_memory=max_memory,
            progress=lambda elements: progress("measure", elements, None),
        )
        names = sorted(self.residuals.shapes)
        self._num_layers = sft.num_layers(names)
        self._layers = layer_indices(names, num_layers=self._num_layers)
        self._scratch = Scratch()

    @cached_property
    def merged(self) -> Merged:
        """tau_M, scaled only where LiNeS is before the rule; measures what the rule has to know first.

        Raises:
            ValueError: values that are not finite; all that were met are named.
        """
        self._sft.check_plain(self.residuals.shapes)
        for name in self.residuals.shapes.keys() & self._sft.copies.keys():
            raise ValueError(
                f"an adapter adapts {name!r}, which {str(self._sft.folder)!r} ties to {self._sft.copies[name]!r}: no "
                "model holds this residual without the other; use --save adapter"
            )
        residuals = self.residuals
        if self._spec.lines == "before":
            factors = self._factors
            residuals = residuals.changed(lambda chunk: [tau * factors[chunk.name] for tau in chunk.residuals])
        merged = merge_lazily(residuals, self._spec.rule, weights=self._spec.weights, **self._spec.options)
        self.check_inputs()
        return merged

    @cached_property
    def alpha(self) -> float:
        """Alpha of the spec, or what `"auto"` stands for.

        Raises:
            ValueError: `"auto"`, and tau_M is zero everywhere.
        """
        if self._spec.alpha != "auto":
            return self._spec.alpha
        alpha = streamed_alpha(self.residuals, self.merged)
        self.check_inputs()
        return alpha

    @cached_property
    def scaled(self) -> Merged:
        """LiNeS(tau_M), or tau_M of what LiNeS has scaled before."""
        if self._spec.lines == "before":
            return self.merged

        factors = self._factors

        def scale(chunk: Chunk, merged: Tensor) -> Tensor:
            factor = factors[chunk.name]
            return merged if factor == 1 else merged.mul_(factor)

        return self.merged.then(scale)

    @cached_property
    def _factors(self) -> dict[str, float]:
        """LiNeS' factor of every parameter. Asked for before chunks are read: to measure alpha reads them all."""
        scales = lines_scales(self._num_layers, self.alpha, self._spec.beta, self._spec.schedule).tolist()
        return {name: self.alpha if layer is None else scales[layer] for name, layer in self._layers.items()}

    def write(
        self,
        folder: Path,
        *,
        dtype: str | None = None,
        max_shard_size: int | None = None,
    ) -> LostResidual:
        """Write weights, config, generation config and tokenizer into `folder`.

        Only tensors that the SFT files hold are written, so tied weights stay tied.

        Args:
            folder: an existing, empty folder.
            dtype: of the written floating-point tensors; None keeps the dtype of each.
            max_shard_size: bytes of a weight file at most (one tensor may be larger); None shards as the SFT model is.

        Returns:
            What the last cast lost.

        Raises:
            ValueError: values that are not finite, in a policy, the SFT model or the merged model; all are named.
            OSError: the disk is full.
        """
        entries, shards = layout(self._sft, dtype, max_shard_size)
        merged = self.scaled
        total = sum(entries[name].size for name in self._sft.distinct)
        copies: dict[str, list[str]] = {}
        for copy, name in self._sft.copies.items():
            copies.setdefault(name, []).append(copy)
        bad: set[str] = set()
        loss = Loss()
        with contextlib.ExitStack() as stack:
            files: dict[str, NewTensorFile] = {}
            for file, names in shards.items():
                metadata = self._sft.metadata(next(iter(self._sft.files))) or {"format": "pt"}
                opened = NewTensorFile(folder / file, {name: entries[name] for name in names}, metadata)
                stack.callback(opened.close)
                files |= dict.fromkeys(names, opened)

            def work(span: Span) -> tuple[int, Loss | None]:
                if span.name in merged.residuals.shapes:
                    values, lost = self._merge(span, merged, entries[span.name].dtype, bad)
                else:
                    values, lost = self._cast(span, entries[span.name].dtype, bad), None
                for name in (span.name, *copies.get(span.name, ())):
                    files[name].write(name, span.start, values)
                return span.stop - span.start, lost

            for size, lost in in_threads(work, self._spans(merged), self.residuals.workers):
                loss = loss if lost is None else loss + lost
                self._progress("write", size, total)
        self.check_inputs()
        bad = {name for name in bad if not self._sft.left_out(name)}
        if bad:
            names = _listed([repr(name) for name in sorted(bad)])
            dtypes = {str(entries[name].dtype).removeprefix("torch.") for name in bad}
            wider = "" if dtypes <= {"float32", "float64"} else ", or choose --dtype float32"
            raise ValueError(
                f"merged values of {names} are not finite in {' and '.join(sorted(dtypes))}; check alpha, beta and "
                f"weights{wider}"
            )
        write_index(self._sft, folder, shards, entries)
        write_companions(self._sft, folder, dtype)
        return loss.shares()

    def _spans(self, merged: Merged) -> Iterator[Span]:
        for name in self._sft.distinct:
            if name in merged.residuals.shapes:
                yield from merged.residuals.spans(merged.unit, [name])
            else:
                yield from cut(name, self._sft.shapes[name], "element", self.residuals.elements)

    def _merge(self, span: Span, merged: Merged, dtype: torch.dtype, bad: set[str]) -> tuple[Tensor, Loss]:
        chunk = merged.residuals.read(span)
        tau = merged.compute(chunk)
        written = add_residual(chunk.sft, tau, dtype, self._scratch if tau.device.type == "cpu" else None)
        loss = cast_loss(tau, chunk.sft, written, self._sft.entries[span.name].dtype)
        # The sums are not finite if one of the values is not, or if squares overflow.
        if not (math.isfinite(loss.error) and math.isfinite(loss.total)) and not torch.isfinite(written).all():
            bad.add(span.name)
        return written.cpu(), loss

    def _cast(self, span: Span, dtype: torch.dtype, bad: set[str]) -> Tensor:
        """The values of the SFT model where no policy changes them."""
        raw = self._scratch.take("raw", span.stop - span.start, self._sft.entries[span.name].dtype)
        self._sft.read_into(raw, span.name, span.start)
        written = raw.to(dtype)
        if dtype.is_floating_point and not is_finite(written):
            if is_finite(raw):
                bad.add(span.name)
            else:
                self._not_finite.add((str(self._sft.folder), span.name))
        return written

    def check_inputs(self) -> None:
        """Stop with a ValueError if a residual that was read is not finite; all that were met are named.

        A buffer that the model does not load may hold the infinities of a mask.
        """
        found = [f"{name!r} of {path!r}" for path, name in sorted(self._not_finite) if not self._sft.left_out(name)]
        if found:
            raise ValueError(
                f"{_listed(found)} has values that are not finite there or in the SFT model; train again"
                if len(found) == 1
                else f"these have values that are not finite, there or in the SFT model: {_listed(found)}; train again"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
