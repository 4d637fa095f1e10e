"""Inputs on disk for a merge with every rule of `cases.py`, and what it should write, worked out in float64."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, apply_lines, lines_alpha, merge_residuals
from rlhf_lines.merge.rules import RULES
from tests.merge.rules.cases import OPTIONS


ON_RESIDUALS = [rule for rule, entry in RULES.items() if not entry.on_factors]
WITH_STATISTICS = [rule for rule, entry in RULES.items() if entry.statistics]
# Of bfloat16 residuals, multiples in a simple ratio would cancel in float64 and not in float32.
WEIGHTS = (0.6180339, 0.3819661)
NUM_LAYERS = 4
DENSE = ("float32", "bfloat16", "mixed", "float64")
KINDS = (*DENSE, "adapters", "an adapter and a checkpoint")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Inputs:
    """An SFT model and its policies on disk, and the same numbers in float64.

    Attributes:
        sft: its folder.
        policies: their folders.
        theta: the SFT model's tensors.
        residuals: of each policy, without the parameters that it leaves alone.
    """

    sft: Path
    policies: tuple[Path, ...]
    theta: Tensors
    residuals: tuple[Tensors, ...]

    def backwards(self) -> Inputs:
        """The same with the policies in the opposite order."""
        return Inputs(self.sft, self.policies[::-1], self.theta, self.residuals[::-1])


def spec_of(rule: str, alpha: float | str = 0.5, beta: float = 1.0, schedule: str = "linear") -> MergeSpec:
    """A spec of the rule with the options of its first case."""
    return MergeSpec(rule, WEIGHTS, alpha, beta, schedule, OPTIONS[rule])


def stored(folder: Path) -> Tensors:
    """All tensors of a checkpoint, as stored."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_checkpoints(sft: Path, root: Path, kind: str) -> tuple[Path, list[Path]]:
    """The SFT model in a dtype, and two policies: noise of several sizes on every tensor."""

    def dtype(name: str, of_policy: bool) -> torch.dtype:
        if kind == "mixed":
            return torch.float32 if of_policy or "norm" in name else torch.bfloat16
        return getattr(torch, kind)

    folders = []
    for seed, name in enumerate(("sft", "first", "second")):
        folder = Path(shutil.copytree(sft, root / f"{kind} {name}"))
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, tensor in sorted(stored(sft).items()):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) ** 3 * 0.03
            tensors[key] = (tensor.double() + noise * bool(seed)).to(dtype(key, bool(seed)))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    return folders[0], folders[1:]


def inputs_of(sft: Path, policies: Sequence[Path]) -> Inputs:
    """Read folders; the residual of an adapter is formed here from its files, in float64."""
    theta = {name: tensor.double() for name, tensor in stored(sft).items()}
    residuals = []
    for policy in policies:
        if (policy / "adapter_config.json").is_file():
            residuals.append(_lora_residual(policy))
        else:
            residuals.append({name: tensor.double() - theta[name] for name, tensor in stored(policy).items()})
    return Inputs(sft, tuple(policies), theta, tuple(residuals))


def _lora_residual(policy: Path) -> Tensors:
    config = json.loads((policy / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    factors = {name: tensor.double() for name, tensor in load_file(policy / "adapter_model.safetensors").items()}
    modules = {name.split(".lora_")[0] for name in factors}
    return {
        f"{module.removeprefix('base_model.model.')}.weight": scale
        * (factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"])
        for module in modules
    }


def statistics_of(rule: str, inputs: Inputs, folder: Path) -> tuple[list[Path], list[Tensors]]:
    """Folders with random statistics of every policy, as the verbs write them, and their tensors; none where unused.

    One parameter has none.
    """
    kind = RULES[rule].statistics
    if kind is None:
        return [], []
    names = sorted({name for residual in inputs.residuals for name in residual})
    skipped = next(name for name in names if name.endswith("v_proj.weight"))
    folders, held = [], []
    for policy in inputs.policies:
        generator = torch.Generator().manual_seed(sum(map(ord, policy.name)))
        tensors = {}
        for name in names:
            shape = inputs.theta[name].shape
            if not kind.of_linear_maps:
                tensors[name] = torch.rand(shape, generator=generator) * 1e-6
            elif len(shape) == 2 and "embed" not in name:
                tokens = torch.randn(3 * shape[1], shape[1], generator=generator)
                tensors[name] = tokens.T @ tokens / len(tokens)
        tensors.pop(skipped)
        path = folder / f"{rule} of {policy.name}"
        path.mkdir(exist_ok=True)
        save_file(tensors, path / kind.file)
        folders.append(path)
        held.append({name: tensor.double() for name, tensor in tensors.items()})
    return folders, held


def merged_residual(spec: MergeSpec, inputs: Inputs, statistics: list[Tensors]) -> Tensors:
    """tau_M in float64, unscaled, from whole tensors in memory."""
    return merge_residuals(
        inputs.residuals,
        spec.rule,
        weights=spec.weights,
        sft=inputs.theta,
        statistics=statistics,
        **spec.options,
    )


def scaled_residual(spec: MergeSpec, inputs: Inputs, statistics: list[Tensors]) -> tuple[float, Tensors]:
    """alpha, and LiNeS(tau_M) in float64."""
    merged = merged_residual(spec, inputs, statistics)
    alpha = lines_alpha(inputs.residuals, merged) if spec.alpha == "auto" else spec.alpha
    return alpha, apply_lines(merged, alpha, spec.beta, schedule=spec.schedule, num_layers=NUM_LAYERS)
