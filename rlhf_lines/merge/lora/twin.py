"""The exclusive parts of LoRA policies as adapters of their own, so that their mixes are rows of coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from rlhf_lines.merge.inputs.adapter import Adapter, Factors
from rlhf_lines.merge.lora.low_rank import stack
from rlhf_lines.merge.lora.truncate import Truncation, truncate_adapter
from rlhf_lines.merge.rules.twin import shared_factor


def exclusive_parts(
    adapters: Sequence[Adapter], *, rank: int, shared: float | None
) -> list[tuple[Adapter, Truncation]]:
    """Of every policy what it has beside the shared part, truncated to a rank, and what that lost.

        tau_k - shared sum_j tau_j = B diag(c) A,   c = 1 - shared in the segment of policy k, -shared in the others

    with the stacked factors A and B: no dense residual is formed. A rank above the sum of theirs keeps all.

    Args:
        adapters: K policies of one SFT model.
        rank: of each part.
        shared: as in rule `twin`.
    """
    stacked = stack(adapters)
    ranks = next(iter(stacked.values())).ranks
    common = shared_factor(len(adapters), shared)
    parts = []
    for k, adapter in enumerate(adapters):
        own = torch.tensor([float(j == k) - common for j in range(len(adapters))], dtype=torch.float64)
        diagonal = own.repeat_interleave(torch.tensor(ranks))
        whole = {
            module: Factors(factors.A, (factors.B * diagonal).to(factors.B.dtype), 1.0)
            for module, factors in stacked.items()
        }
        modules, lost = truncate_adapter(whole, min(rank, sum(ranks)))
        parts.append((replace(adapter, modules=modules, copied={}), lost))
    return parts
