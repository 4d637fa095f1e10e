"""One policy as a dense model whose parameters have the names of the SFT model's files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rlhf_lines.errors import about
from rlhf_lines.merge.inputs.adapter import Adapter, dense_residual, is_adapter, load_adapter, parameters_of
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import AdapterPolicy, DensePolicy, streamed_residuals
from rlhf_lines.merge.inputs.provenance import load_inputs
from rlhf_lines.merge.tensors.precision import DTYPES, Loss, LostResidual, add_residual, cast_loss, wide
from rlhf_lines.merge.tensors.residuals import Residuals
from rlhf_lines.native_dtypes import tell_if_slow


@dataclass(frozen=True)
class Policy:
    """A policy, ready to run.

    Attributes:
        model: the causal language model, without adapter, in eval mode.
        parameters: name in the SFT model's files to the model's parameter; tied weights once.
        adapted: the names that the policy's adapter changes; None for a dense policy.
        tied: the names, in the files, of parameters that the model uses in several places.
        lost: what rounding theta_SFT + s B A to the model's dtype lost; None for float32 and for dense policies.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    adapted: frozenset[str] | None
    tied: frozenset[str]
    lost: LostResidual | None

    def selected(self, parameters: str) -> list[str]:
        """The names that the policy changes (`adapted`; of a dense policy, every one), or `all`."""
        changed = self.parameters.keys() if parameters == "all" or self.adapted is None else self.adapted
        return [name for name in self.parameters if name in changed]


def check_policy(sft: Path, policy: Path, *, sft_renamed: bool = False) -> list[str]:
    """What a merge would warn of; reads configs and file headers, and the adapter.

    Raises:
        FileNotFoundError: a folder is no checkpoint.
        ValueError: what a merge refuses: another SFT model or tokenizer, other names or shapes, a quantised model, or
            an adapter that is more than s B A.
    """
    with Checkpoint(sft) as checkpoint, contextlib.ExitStack() as stack:
        checkpoint.check_plain(())
        (loaded,), warnings = load_inputs(checkpoint, [policy], stack, sft_renamed=sft_renamed)
        if isinstance(loaded, Checkpoint):
            DensePolicy(loaded, checkpoint)
        else:
            parameters_of(loaded, checkpoint)
        return warnings


def open_residuals(
    sft: Path, policies: Sequence[Path], stack: contextlib.ExitStack, *, sft_renamed: bool
) -> tuple[Residuals, set[tuple[str, str]]]:
    """The residuals of policies, open until `stack` closes, and a set that gets path and name where one is not finite.

    Raises:
        ValueError: as `check_policy`.
    """
    checkpoint = stack.enter_context(Checkpoint(sft))
    loaded, _ = load_inputs(checkpoint, policies, stack, sft_renamed=sft_renamed)
    opened = [
        AdapterPolicy(one, checkpoint) if isinstance(one, Adapter) else DensePolicy(one, checkpoint) for one in loaded
    ]
    not_finite: set[tuple[str, str]] = set()
    return streamed_residuals(checkpoint, opened, not_finite=not_finite), not_finite


def load_policy(sft: Path, policy: Path, *, dtype: str) -> Policy:
    """The policy with theta = theta_SFT + s B A in its weights, added in float32 or wider and cast once.

    Raises:
        ValueError: the model has a parameter that the files have not, or an adapted weight is tied to another.
    """
    from transformers import AutoModelForCausalLM

    adapter = load_adapter(policy) if is_adapter(policy) else None
    folder = policy if adapter is None else sft
    tell_if_slow(dtype)
    with about(f"model {folder} cannot be loaded"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    with Checkpoint(sft) as checkpoint:  # whose names they get: a dense policy's files may have others
        parameters, tied = _named(model, checkpoint)
        adapted = lost = None
        if adapter is not None:
            modules = parameters_of(adapter, checkpoint)
            both = sorted(tied & modules.keys())
            if both:
                raise ValueError(
                    f"adapter {adapter.path!r} changes {both[0]!r}, which the SFT model also uses in another place; "
                    "such an adapter has no dense weights of the SFT model's shape"
                )
            adapted, lost = frozenset(modules), _add(adapter, modules, parameters, checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Policy(model, parameters, adapted, tied, lost)


def _named(model: nn.Module, checkpoint: Checkpoint) -> tuple[dict[str, nn.Parameter], frozenset[str]]:
    """The parameters by their names in the files, and the names of those that are tied."""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    parameters, tied = {}, set()
    for parameter, names in places.items():
        stored = next(filter(None, map(checkpoint.parameter, names)), None)
        if stored is None or checkpoint.shapes[stored] != parameter.shape:
            raise ValueError(
                f"the model has a parameter {names[0]!r} of shape {tuple(parameter.shape)}, which "
                f"{str(checkpoint.folder)!r} does not hold as such; models that transformers assembles from "
                "other tensors (mixtures of experts) have no statistics here"
            )
        parameters[stored] = parameter
        if len(names) > 1:
            tied.update(filter(None, map(checkpoint.parameter, names)))
    return parameters, frozenset(tied)


@torch.no_grad()
def _add(
    adapter: Adapter, modules: Mapping[str, str], parameters: Mapping[str, nn.Parameter], sft: Checkpoint
) -> LostResidual | None:
    """Add the residuals to the weights, from the files' own values, which the model may already have rounded."""
    loss, exact = Loss(), True
    for name, module in modules.items():
        stored, residual = sft.read(name), dense_residual(adapter, module)
        residual = residual.T.contiguous() if sft.is_transposed(name) else residual
        sft_values = wide(stored, name)
        written = add_residual(sft_values, residual, parameters[name].dtype)
        parameters[name].copy_(written)
        if written.dtype != torch.float32:
            exact = False
            loss += cast_loss(residual.flatten(), sft_values.flatten(), written.flatten(), stored.dtype)
    return None if exact else loss.shares()
