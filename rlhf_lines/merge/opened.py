"""A merge whose inputs are open: from policies to the weights that they make."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, parameters_of
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM
from rlhf_lines.merge.inputs.policies import AdapterPolicy, DensePolicy
from rlhf_lines.merge.inputs.provenance import load_inputs
from rlhf_lines.merge.inputs.statistics_files import check_statistics, coverage_warnings, open_statistics
from rlhf_lines.merge.inputs.tokenizers import copy_files, tokenizer_files
from rlhf_lines.merge.job import Merge, Written
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.lora.low_rank import merge_adapters
from rlhf_lines.merge.lora.truncate import factorise_residuals, truncate_adapter
from rlhf_lines.merge.output.adapter import write_adapter
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.tensors.precision import add_residual
from rlhf_lines.merge.tensors.residuals import Residuals, Tensors


Progress = Callable[[str, int, int | None], object]  # phase, elements since the last call, total where it is known


@contextlib.contextmanager
def open_merge(
    merge: Merge, *, max_memory: int | None = None, progress: Progress = lambda phase, elements, total: None
) -> Iterator[OpenMerge]:
    """Open the inputs of a merge, once all that their headers and configs tell fits.

    Args:
        merge: the settings, checked.
        max_memory: bytes that the work on one parameter may take, for rules that need whole ones; None is no bound.
        progress: see `merge_policies`.

    Raises:
        ValueError: anything that cannot be merged exactly, with the reason.
        FileNotFoundError: a folder or file is missing.
    """
    needed = merge.rule.statistics
    with contextlib.ExitStack() as stack:
        sft = stack.enter_context(Checkpoint(merge.sft_model))
        policies, warnings = load_inputs(sft, merge.policies, stack, sft_renamed=merge.sft_renamed)
        check_statistics(merge.spec.rule, needed, merge.statistics, merge.policies)
        statistics = open_statistics(needed, merge.statistics, stack, sft)
        opened = OpenMerge(merge, sft, policies, statistics, max_memory=max_memory, progress=progress)
        opened.warnings[:0] = warnings
        yield opened


class OpenMerge:
    """A merge with its inputs: as factors where that is exact, else as dense residuals.

    Attributes:
        merge: the settings.
        sft: the SFT model.
        policies: K policies.
        adapters: those that are.
        rank: to which the adapter is truncated; None for the exact one and for a dense checkpoint.
        warnings: what cannot be known, or is not done as asked.
    """

    def __init__(
        self,
        merge: Merge,
        sft: Checkpoint,
        policies: Sequence[Adapter | Checkpoint],
        statistics: Sequence[Tensors] = (),
        *,
        max_memory: int | None = None,
        progress: Progress = lambda phase, elements, total: None,
    ) -> None:
        """Check the policies against the SFT model; all inputs are open.

        Raises:
            ValueError: a policy does not fit the SFT model or what is to be written, or alpha cannot be measured.
        """
        self.merge, self.sft, self.policies, self.rank = merge, sft, policies, merge.rank
        self.adapters = [policy for policy in policies if isinstance(policy, Adapter)]
        self._make_dense = partial(DenseMerge, sft, device=merge.device, max_memory=max_memory, progress=progress)
        self._dense, spec = None, merge.spec
        if merge.save == "adapter" or merge.rule.on_factors:
            self._check_all_adapters()
        if merge.save == "dense":
            sft.check_plain(())
        if merge.rule.on_factors:
            if spec.alpha == "auto":
                raise ValueError(
                    f'alpha "auto" is measured on residuals, rule {spec.rule!r} has factors; give a number'
                )
            self._factors()  # stops where the factors of these adapters cannot be combined
        elif merge.is_of_factors:
            # No weight of the SFT model is read, which may be quantised, or tie a head to the embedding.
            layer_indices([f"{name}.weight" for name in self._modules], num_layers=self.num_layers)
        else:
            residuals = [
                AdapterPolicy(one, sft) if isinstance(one, Adapter) else DensePolicy(one, sft) for one in policies
            ]
            self._dense = self._make_dense(residuals, spec, statistics=statistics)
        if spec.profile is not None:
            spec.profile.check(policies=len(policies), num_layers=self.num_layers)
        shapes = self._dense.residuals.shapes if self._dense else {}
        self.warnings = coverage_warnings(merge.rule.statistics, statistics, shapes)
        if self.rank is not None and self.rank > self._full_rank():
            self.rank = self._full_rank()
            self.warnings.append(
                f"rank {merge.rank} is more than the merged residual has: the adapter gets rank {self.rank}, which "
                "holds all of it"
            )

    @property
    def spec(self) -> MergeSpec:
        """The spec with the number that its alpha stands for."""
        spec = self.merge.spec
        return replace(spec, alpha=self._dense.alpha) if spec.alpha == "auto" else spec

    @property
    def residuals(self) -> Residuals:
        """The dense residuals, read where they are asked for."""
        return self._as_dense().residuals

    @property
    def _modules(self) -> list[str]:
        return sorted({module for one in self.adapters for module in one.modules})

    @cached_property
    def num_layers(self) -> int:
        """The number of layers of the part of the model that the policies change."""
        return self.sft.num_layers(self._dense.residuals.shapes if self._dense else self._modules)

    @property
    def stored_rank(self) -> int:
        """The rank of the adapter that is exact where the rule is linear: the policies' factors beside one another."""
        ranks = [max(factors.A.shape[0] for factors in one.modules.values()) for one in self.adapters]
        return max(ranks) if self.merge.rule.on_factors else sum(ranks)

    def write(self, folder: Path) -> Written:
        """Write the merged weights with their config into an existing, empty folder.

        An adapter is exact where the rule is linear and no rank is asked for, else the nearest of that rank.

        Raises:
            ValueError: values that are not finite.
            OSError: the disk is full.
        """
        if self.merge.save == "dense":
            lost = self._as_dense().write(folder, dtype=self.merge.dtype, max_shard_size=self.merge.max_shard_size)
            dtype = self.merge.dtype or _stored_dtype(self.sft)
            return Written(self.spec.alpha, lost, dtype, loaded_by=self.sft.loader() or CAUSAL_LM)
        truncation = None
        if self.merge.rule.makes_adapter:
            factors = self._factors()
            if self.rank is not None:
                factors, truncation = truncate_adapter(factors, self.rank)
        else:
            factors, truncation = factorise_residuals(self._module_residuals(), self.rank)
        lost, dtype = write_adapter(folder, factors, self.adapters, self.sft, self.merge.sft_model, self.merge.dtype)
        # With the tokenizer the folder is all that a chat needs beside the SFT model.
        copy_files(self.sft.folder, folder, tokenizer_files(self.sft.folder))
        rank, loader = next(iter(factors.values())).A.shape[0], self.sft.loader([f"{name}.weight" for name in factors])
        return Written(self.spec.alpha, lost, dtype, rank, truncation, loader or CAUSAL_LM)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter that a policy changes, with theta_SFT + LiNeS(tau_M), float32 or wider, one at a time.

        Raises:
            ValueError: values that are not finite.
        """
        dense = self._as_dense()
        for name in dense.residuals.shapes:
            residual = dense.scaled.tensor(name)
            yield name, add_residual(self.sft.read(name), residual, residual.dtype)
        dense.check_inputs()

    def _check_all_adapters(self) -> None:
        dense = next((str(policy.folder) for policy in self.policies if isinstance(policy, Checkpoint)), None)
        if dense is not None and self.merge.rule.on_factors:
            raise ValueError(
                f"rule {self.merge.spec.rule!r} combines the factors of adapters, but policy {dense!r} is a dense "
                "checkpoint; use rule linear"
            )
        if dense is not None:
            raise ValueError(not_an_adapter(dense))

    def _full_rank(self) -> int:
        """The rank that holds the merged residual of every module, whatever the values are."""
        modules = [factors for one in self.adapters for factors in one.modules.values()]
        narrow = max(min(factors.B.shape[0], factors.A.shape[1]) for factors in modules)
        return min(self.stored_rank, narrow) if self.merge.rule.makes_adapter else narrow

    def _as_dense(self) -> DenseMerge:
        if self._dense is not None:
            return self._dense
        # Weights and LiNeS are in the factors already.
        merged = AdapterPolicy(replace(self.adapters[0], modules=self._factors()), self.sft)
        return self._make_dense([merged], MergeSpec("linear", (1.0,)))

    def _factors(self) -> dict[str, Factors]:
        return merge_adapters(self.adapters, self.spec, num_layers=self.num_layers)

    def _module_residuals(self) -> Iterator[tuple[str, Tensor]]:
        """Every adapted module with its merged residual `[out, in]`, one at a time."""
        modules = {name: module for one in self.adapters for name, module in parameters_of(one, self.sft).items()}
        for name, module in modules.items():
            residual = self._dense.scaled.tensor(name)
            yield module, (residual.T if self.sft.is_transposed(name) else residual)
        self._dense.check_inputs()


def not_an_adapter(policy: str | Path) -> str:
    """Why a dense policy cannot go into an adapter, and what to do instead."""
    return f"policy {str(policy)!r} is a dense checkpoint, which no adapter holds exactly; use --save dense"


def _stored_dtype(sft: Checkpoint) -> str:
    """The dtype that most parameters of the SFT checkpoint have, as the files say (config.json may be silent)."""
    counts: dict[torch.dtype, int] = {}
    for entry in sft.entries.values():
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.size
    return str(max(counts, key=counts.__getitem__)).removeprefix("torch.")
