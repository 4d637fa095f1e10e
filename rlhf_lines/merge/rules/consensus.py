"""TALL masks, and the consensus of policies on what to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf_lines.errors import one_of
from rlhf_lines.merge.rules.common import one_per_policy, preference_factors, whole
from rlhf_lines.merge.rules.linear import sum_residuals
from rlhf_lines.merge.rules.ties import nested_options, ties
from rlhf_lines.merge.tensors.precision import wide
from rlhf_lines.merge.tensors.residuals import Chunk, Merged, Residuals


def consensus(
    residuals: Residuals,
    weights: Sequence[float] | None,
    *,
    thresholds: float | Sequence[float] = 0.4,
    k: int = 2,
    of: str = "sum",
    ties_options: Mapping[str, object] | None = None,
) -> Merged:
    """The merged residual where it matters to at least k policies, else zero.

        m_j   = [ |tau_j| > lam_j |tau - tau_j| ]           TALL mask of policy j, see `tall_masks`
        tau_M = tau [ sum_j m_j >= k ],   tau = sum_j tau_j, or TIES of them

    Preference weights scale tau_j by K w_j first, in tau and in the masks.

    k = 1 keeps everything where all lam_j < 1 / (K - 1). Two policies with k = 2 keep only the entries in which they
    are of similar size, lam_1 < |tau_1| / |tau_2| < 1 / lam_2: everything that is special to one reward goes.

    Source: arXiv 2405.07813, sections 3 and 4; nik-dim/tall_masks and wang-kee/LiNeS for the strict inequality.
    MergeBench fixes lam at 0.2.

    Args:
        residuals: K residuals.
        weights: K preference weights, or None for equal ones.
        thresholds: lam_j, one number or one per policy; the authors choose among 0.2, 0.3, 0.4, 0.5, 0.6 on validation
            data.
        k: how many policies must agree, at most K; 0 keeps everything.
        of: tau, `sum` or `ties`. The masks compare with residuals that are not trimmed.
        ties_options: options of `ties`, by default `reduction="sum"` and its own defaults.

    Raises:
        ValueError: one policy, or an option outside its range.
    """
    one_of("of", of, ("sum", "ties"))
    if residuals.count < 2:
        raise ValueError("consensus is of two or more policies, got 1; use rule linear")
    whole("k", k, low=0, high=residuals.count)
    lams = one_per_policy("thresholds", thresholds, residuals.count)
    of_ties = nested_options(ties_options, "of", of)
    residuals = residuals.scaled(preference_factors(residuals.count, weights))
    if of == "ties":
        merged = ties(residuals, None, **{"reduction": "sum", **of_ties})
    else:
        merged = sum_residuals(residuals, None)

    def agreed(chunk: Chunk, tau_m: Tensor) -> Tensor:
        votes = torch.zeros(tau_m.shape, dtype=torch.int32, device=tau_m.device)
        for tau, lam in zip(chunk.residuals, lams, strict=True):
            votes += _tall_mask(tau, tau_m, lam)
        return tau_m * (votes >= k)

    return merged.then(agreed)


def tall_masks(
    residuals: Sequence[Mapping[str, Tensor]], merged: Mapping[str, Tensor], thresholds: float | Sequence[float]
) -> list[dict[str, Tensor]]:
    """Where a merged residual stands for each policy: K mappings from parameter name to a boolean tensor.

        m_k = [ |tau_k| > lam_k |tau_M - tau_k| ]

    theta_SFT + m_k tau_M approximates policy k, so K masks and one residual stand for K policies.

    Source: arXiv 2405.07813, equation 4; the code's strict inequality.

    Args:
        residuals: K mappings from parameter name to tensor; a missing name counts as zero.
        merged: tau_M, unscaled, with every name of the residuals.
        thresholds: lam_k, one number or one per policy.

    Raises:
        ValueError: a name that `merged` lacks, shapes that differ, thresholds that do not fit.
    """
    lams = one_per_policy("thresholds", thresholds, len(residuals))
    for residual in residuals:
        for name, tensor in residual.items():
            shape = tuple(merged[name].shape) if name in merged else None
            if shape != tuple(tensor.shape):
                raise ValueError(
                    f"the merged residual has shape {shape} for {name!r}, a residual has {tuple(tensor.shape)}; give "
                    "the merged residual of these policies"
                )
    return [
        {
            name: _tall_mask(wide(residual.get(name, torch.zeros_like(tau_m)), name), wide(tau_m, name), lam)
            for name, tau_m in merged.items()
        }
        for residual, lam in zip(residuals, lams, strict=True)
    ]


def _tall_mask(tau: Tensor, tau_m: Tensor, lam: float) -> Tensor:
    return tau.abs() > (tau_m - tau).abs_().mul_(lam)
