"""From the policies of a merge to the weights that it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.adapter import Adapter, Factors, parameters_of
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import AdapterPolicy, DensePolicy
from rlhf_lines.merge.lora.low_rank import merge_adapters
from rlhf_lines.merge.lora.truncate import Truncation, factorise_residuals, truncate_adapter
from rlhf_lines.merge.output.adapter import write_adapter
from rlhf_lines.merge.output.dense import DenseMerge
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import LostResidual, add_residual
from rlhf_lines.merge.tensors.residuals import Tensors


@dataclass(frozen=True)
class Written:
    """What was written: what the cast lost, the dtype, and of an adapter its rank and what truncation to it lost."""

    lost: LostResidual
    dtype: str
    rank: int | None = None
    truncation: Truncation | None = None


class PolicyMerge:
    """The way of a spec's rule from policies to files: as factors where that is exact, else as dense residuals."""

    def __init__(
        self,
        spec: MergeSpec,
        sft: Checkpoint,
        loaded: Sequence[Adapter | Checkpoint],
        statistics: Sequence[Tensors],
        make_dense: Callable[..., DenseMerge],
    ) -> None:
        """Check the policies against the SFT model.

        Args:
            spec: what to merge how.
            sft: the SFT model.
            loaded: K policies.
            statistics: K sets of tensors that the rule needs, or none.
            make_dense: `DenseMerge` of this SFT model: from policies, a spec and statistics.

        Raises:
            ValueError: a policy does not fit the SFT model, or alpha cannot be measured.
        """
        if RULES[spec.rule].on_factors and spec.alpha == "auto":
            raise ValueError(f'alpha "auto" is measured on residuals, rule {spec.rule!r} has factors; give a number')
        self._spec, self._sft, self._make_dense = spec, sft, make_dense
        self.adapters = [policy for policy in loaded if isinstance(policy, Adapter)]
        self._dense = None
        if not RULES[spec.rule].on_factors:
            policies = [
                AdapterPolicy(one, sft) if isinstance(one, Adapter) else DensePolicy(one, sft) for one in loaded
            ]
            self._dense = make_dense(policies, spec, statistics=statistics)
        else:
            self._factors()  # stops where the factors of these adapters cannot be combined

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the parameters that a policy changes; nothing for rules that combine factors."""
        return self._dense.residuals.shapes if self._dense else {}

    @property
    def alpha(self) -> float:
        """The number that the spec's alpha stands for."""
        return self._dense.alpha if self._spec.alpha == "auto" else self._spec.alpha

    @property
    def resolved(self) -> MergeSpec:
        """The spec with that number."""
        return replace(self._spec, alpha=self.alpha)

    @property
    def stored_rank(self) -> int:
        """The rank of the adapter that is exact where the rule is linear: the policies' factors beside one another."""
        ranks = [max(factors.A.shape[0] for factors in one.modules.values()) for one in self.adapters]
        return max(ranks) if RULES[self._spec.rule].on_factors else sum(ranks)

    @property
    def full_rank(self) -> int:
        """The rank that holds the merged residual of every module, whatever the values are."""
        modules = [factors for one in self.adapters for factors in one.modules.values()]
        narrow = max(min(factors.B.shape[0], factors.A.shape[1]) for factors in modules)
        linear = RULES[self._spec.rule].makes_adapter
        return min(self.stored_rank, narrow) if linear else narrow

    def write_adapter(self, folder: Path, sft_model: str, *, rank: int | None, dtype: str | None) -> Written:
        """Write a PEFT folder: exact where the rule is linear and `rank` is None, else the nearest of that rank."""
        truncation = None
        if RULES[self._spec.rule].makes_adapter:
            factors = self._factors()
            if rank is not None:
                factors, truncation = truncate_adapter(factors, rank)
        else:
            factors, truncation = factorise_residuals(self._module_residuals(), rank)
        lost, written_dtype = write_adapter(folder, factors, self.adapters, self._sft, sft_model, dtype)
        return Written(lost, written_dtype, next(iter(factors.values())).A.shape[0], truncation)

    def write_dense(self, folder: Path, *, dtype: str | None, max_shard_size: int | None) -> Written:
        """Write a full checkpoint; see `DenseMerge.write`."""
        lost = self._as_dense().write(folder, dtype=dtype, max_shard_size=max_shard_size)
        return Written(lost, dtype or _stored_dtype(self._sft))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter that a policy changes, with theta_SFT + LiNeS(tau_M), float32 or wider, one at a time.

        Raises:
            ValueError: values that are not finite.
        """
        dense = self._as_dense()
        for name in dense.residuals.shapes:
            residual = dense.scaled.tensor(name)
            yield name, add_residual(self._sft.read(name), residual, residual.dtype)
        dense.check_inputs()

    def _as_dense(self) -> DenseMerge:
        if self._dense is not None:
            return self._dense
        # Weights and LiNeS are in the factors already.
        merged = AdapterPolicy(replace(self.adapters[0], modules=self._factors()), self._sft)
        return self._make_dense([merged], MergeSpec("linear", (1.0,)))

    def _factors(self) -> dict[str, Factors]:
        return merge_adapters(self.adapters, self.resolved, num_layers=self._sft.num_layers())

    def _module_residuals(self) -> Iterator[tuple[str, Tensor]]:
        """Every adapted module with its merged residual `[out, in]`, one at a time."""
        modules = {name: module for one in self.adapters for name, module in parameters_of(one, self._sft).items()}
        for name, module in modules.items():
            residual = self._dense.scaled.tensor(name)
            yield module, (residual.T if self.adapters[0].transposed else residual)
        self._dense.check_inputs()


def _stored_dtype(sft: Checkpoint) -> str:
    """The dtype that most parameters of the SFT checkpoint have, as the files say (config.json may be silent)."""
    counts: dict[torch.dtype, int] = {}
    for entry in sft.entries.values():
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.size
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")
