"""A merged policy as a full checkpoint, written one shard at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf_lines.merge.checkpoint import Checkpoint
from rlhf_lines.merge.layers import block_indices
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.merge.precision import DTYPES, LossMeter, LostResidual, wide
from rlhf_lines.merge.residuals import Adapter, dense_residual, parameters_of
from rlhf_lines.merge.rules import LINEAR_RULES, merge_residuals
from rlhf_lines.merge.spec import MergeSpec


# What else belongs to a model. Code files are left out on purpose.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)


class DensePolicy:
    """A dense checkpoint seen as its difference to the SFT model."""

    def __init__(self, checkpoint: Checkpoint, sft: Checkpoint) -> None:
        """Check names and shapes against `sft`.

        Raises:
            ValueError: a parameter is missing, extra, or of another shape.
        """
        self.checkpoint, self.sft = checkpoint, sft
        for name in sorted(checkpoint.shapes.keys() | sft.shapes.keys()):
            theirs, ours = checkpoint.shapes.get(name), sft.shapes.get(name)
            if theirs != ours:
                raise ValueError(
                    f"policy {str(checkpoint.folder)!r} has {_shape(theirs)} for {name!r}, but the SFT model "
                    f"{str(sft.folder)!r} has {_shape(ours)}; residuals need equal names and shapes"
                )

    def residual(self, name: str) -> Tensor | None:
        """theta_k - theta_SFT of one parameter, or None for an integer tensor that is the same in both.

        Raises:
            ValueError: an integer tensor differs, or the difference is not finite.
        """
        theirs, ours = self.checkpoint.read(name), self.sft.read(name)
        if not (theirs.is_floating_point() or ours.is_floating_point()):
            if not torch.equal(theirs, ours):
                raise ValueError(
                    f"{name!r} holds integers that differ between {str(self.checkpoint.folder)!r} and the SFT model; "
                    "only "
                    "floating-point parameters can be merged"
                )
            return None
        residual = wide(theirs, name) - wide(ours, name)
        if not torch.isfinite(residual).all():
            raise ValueError(
                f"{name!r} has values that are not finite in {str(self.checkpoint.folder)!r} or in the SFT model; "
                "train again"
            )
        return residual

    def parameters(self) -> set[str]:
        """The names of the parameters that may differ."""
        return set(self.checkpoint.shapes)


class AdapterPolicy:
    """An adapter seen as dense residuals under the names of the SFT checkpoint."""

    def __init__(self, adapter: Adapter, sft: Checkpoint) -> None:
        """Check that every adapted parameter exists in `sft` with the right shape."""
        self.adapter = adapter
        self._modules = parameters_of(adapter, sft)

    def residual(self, name: str) -> Tensor | None:
        """s B A of one parameter, or None if the adapter leaves it alone."""
        return dense_residual(self.adapter, self._modules[name]) if name in self._modules else None

    def parameters(self) -> set[str]:
        """The names of the adapted parameters."""
        return set(self._modules)


class DenseMerge:
    """A merge that is checked and ready to be written: theta = theta_SFT + LiNeS(tau_M)."""

    def __init__(self, sft: Checkpoint, policies: Sequence[DensePolicy | AdapterPolicy], spec: MergeSpec) -> None:
        """Find the block of every parameter that may change.

        Raises:
            ValueError: a parameter name whose block cannot be read.
        """
        self._sft, self._policies, self._spec = sft, policies, spec
        num_layers = sft.num_layers()
        names = set().union(*(policy.parameters() for policy in policies))
        self._layers = block_indices(sorted(names), num_layers=num_layers)
        self._scales = lines_scales(num_layers, spec.alpha, spec.beta, spec.schedule).tolist()
        self._whole: dict[str, Tensor] | None = None

    def residual(self, name: str) -> Tensor | None:
        """The merged, LiNeS-scaled residual of one parameter, or None if no policy changes it."""
        if self._spec.rule not in LINEAR_RULES and self._whole is None:
            # The rule ranks or signs over the whole model, so all residuals are needed at once.
            self._whole = self._merge(sorted(self._layers))
        merged = (self._merge([name]) if self._whole is None else self._whole).get(name)
        if merged is None:
            return None
        layer = self._layers[name]
        return merged * (self._spec.alpha if layer is None else self._scales[layer])

    def write(self, folder: Path, *, dtype: str | None = None) -> LostResidual:
        """Write weights (sharded as the SFT model), config and tokenizer into `folder`.

        Only tensors that the SFT files hold are written, so tied weights stay tied.

        Args:
            folder: an existing, empty folder.
            dtype: of the written floating-point tensors; None keeps the dtype of each.

        Returns:
            What the last cast lost.

        Raises:
            ValueError: a merged value is not finite in the output dtype.
        """
        meter = LossMeter()
        total_size = total_parameters = 0
        for file, names in self._sft.files.items():
            shard = {name: self._merged(name, dtype, meter) for name in names}
            save_file(shard, folder / file, metadata=self._sft.metadata(file) or {"format": "pt"})
            total_size += sum(tensor.nbytes for tensor in shard.values())
            total_parameters += sum(tensor.numel() for tensor in shard.values())
        if self._sft.index is not None:
            metadata = {**self._sft.index.get("metadata", {}), "total_size": total_size}
            if "total_parameters" in metadata:
                metadata["total_parameters"] = total_parameters
            index = {"metadata": metadata, "weight_map": self._sft.index["weight_map"]}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        _write_companions(self._sft, folder, dtype)
        return meter.result()

    def _merge(self, names: Sequence[str]) -> dict[str, Tensor]:
        residuals: list[dict[str, Tensor]] = []
        for policy in self._policies:
            found = {name: policy.residual(name) for name in names}
            residuals.append({name: tensor for name, tensor in found.items() if tensor is not None})
        return merge_residuals(residuals, self._spec.rule, weights=self._spec.weights, **self._spec.options)

    def _merged(self, name: str, dtype: str | None, meter: LossMeter) -> Tensor:
        sft = self._sft.read(name)
        residual = self.residual(name) if name in self._layers else None
        target = DTYPES[dtype] if dtype and sft.is_floating_point() else sft.dtype
        if residual is None:
            return sft.to(target)
        written = (wide(sft, name) + residual).to(target)
        if not torch.isfinite(written).all():
            raise ValueError(
                f"merged values of {name!r} are not finite in {str(target).removeprefix('torch.')}; check alpha, beta "
                "and "
                "weights, or choose --dtype float32"
            )
        meter.add(residual, sft, written)
        return written


def _write_companions(sft: Checkpoint, folder: Path, dtype: str | None) -> None:
    config = dict(sft.config)
    if dtype is not None:
        # transformers 5 writes `dtype`, older versions `torch_dtype`; whichever is there must agree with the weights.
        for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]:
            config[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for pattern in _COMPANIONS:
        for path in sorted(sft.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {shape}"
