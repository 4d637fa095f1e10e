"""Merged policies as adapters on disk, each written once, for a server that loads them by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_lines.artifact import new_folder
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.lora.low_rank import linear_weights, merge_adapters
from rlhf_lines.merge.output.adapter import write_adapter
from rlhf_lines.merge.rules import RULES


def check_servable(spec: MergeSpec) -> None:
    """Stop with a ValueError if no adapter is exactly the policy of this spec."""
    if not RULES[spec.rule].is_linear:
        raise ValueError(f"rule {spec.rule!r} is not linear, so vLLM has no exact adapter for it: use engine local")
    if spec.alpha == "auto":
        raise ValueError('alpha "auto" is measured, so vLLM has no adapter for it yet: give the number')


class SpecAdapters:
    """The policies of linear specs as PEFT folders `FOLDER/adapters/DIGEST`, for one SFT model.

    A folder under its name is complete, so one that exists is used as it is: also after a run that was killed. It
    belongs to these policies as long as `folder` does.

    Args:
        folder: of the run.
        adapters: in the order of the specs' weights, or by their places among these.
        sft: folder of the SFT model.
        dtype: of the written factors.
    """

    def __init__(
        self, folder: Path, adapters: Sequence[Adapter] | Mapping[int, Adapter], sft: Path, dtype: str
    ) -> None:
        self._folder, self._adapters, self._sft, self._dtype = Path(folder) / "adapters", adapters, sft, dtype

    def path(self, spec: MergeSpec) -> Path | None:
        """The folder of a spec, written if it is not there yet; None for the SFT model itself.

        Its rank is the sum of the ranks of those policies whose weight is not 0.

        Raises:
            ValueError: `check_servable`, or factors that are not finite in the dtype.
        """
        check_servable(spec)
        weights = linear_weights(spec)
        used = [k for k, weight in enumerate(weights) if weight]
        if not used:
            return None
        path = self._folder / spec.digest()
        if not path.is_dir():
            adapters = [self._adapters[k] for k in used]
            same = _of_policies(spec, weights, used)
            with Checkpoint(self._sft) as sft, new_folder(path) as partial:
                merged = merge_adapters(adapters, same, num_layers=sft.num_layers(adapters[0].modules))
                write_adapter(partial, merged, adapters, sft, str(self._sft), self._dtype)
        return path


def _of_policies(spec: MergeSpec, weights: Sequence[float], used: Sequence[int]) -> MergeSpec:
    """The same merge, of those policies alone whose weight is not 0."""
    if spec.profile is None:
        return replace(spec, rule="linear", weights=tuple(weights[k] for k in used))
    profile = spec.profile.scaled(weights).of_policies(used)
    return replace(spec, weights=(1 / len(used),) * len(used), options=profile.to_options())


def largest_rank(adapters: Sequence[Adapter], *, mixed: Sequence[Sequence[int]]) -> int:
    """The largest rank of a spec's adapter, where one spec mixes adapters of one of these sets, or is one alone.

    That is the largest sum of the ranks of a set, or the rank of one adapter.
    """
    ranks = [max(factors.A.shape[0] for factors in adapter.modules.values()) for adapter in adapters]
    return max([*ranks, *(sum(ranks[k] for k in of_set) for of_set in mixed)])
