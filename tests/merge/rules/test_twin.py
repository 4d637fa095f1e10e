"""Twin-Merging: public numbers, numpy, the soup that it is at full rank, and its parts as adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.merge import merge_residuals
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, dense_residual
from rlhf_lines.merge.lora.twin import exclusive_parts
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors


WEIGHTS = (0.5, 0.2, 0.3)
MODULES = {"model.layers.0.q_proj": (6, 9), "model.layers.1.up_proj": (8, 5), "lm_head": (7, 6)}


@pytest.mark.parametrize("dtype", WIDTHS)
def test_twin_agrees_with_the_public_code(dtype):
    merged = merge_residuals(task_vectors(3, dtype), "twin", weights=WEIGHTS, rank=3, shared=0.3)
    assert_case("twin_svd_n3_r3", plus_base(merged))


@pytest.mark.parametrize("options", [{}, {"rank": 16}, {"rank": 16, "shared": 2.0}])
@pytest.mark.parametrize("weights", [WEIGHTS, (0.5, -0.2, 1.3)])
def test_at_full_rank_it_is_the_soup(options, weights):
    taus = task_vectors(3, torch.float64)
    got, soup = merge_residuals(taus, "twin", weights=weights, **options), merge_residuals(taus, weights=weights)
    assert all(torch.allclose(got[name], soup[name], rtol=1e-12, atol=1e-12) for name in soup)
    truncated = merge_residuals(taus, "twin", weights=weights, rank=15, shared=options.get("shared"))
    assert not torch.allclose(truncated["lm_head.weight"], soup["lm_head.weight"], rtol=1e-6, atol=1e-6)


def adapters() -> list[Adapter]:
    """Three of ranks 2, 3 and 1 with scales, of which the last leaves two modules alone."""
    generator = torch.Generator().manual_seed(0)

    def factors(rank: int, shape: tuple[int, int]) -> Factors:
        A, B = (torch.randn(size, generator=generator) for size in ((rank, shape[1]), (shape[0], rank)))
        return Factors(A, B, 0.5 * rank)

    return [
        Adapter(f"policy{k}", {name: factors(rank, MODULES[name]) for name in list(MODULES)[:count]})
        for k, (rank, count) in enumerate([(2, 3), (3, 3), (1, 1)])
    ]


@pytest.mark.parametrize("shared", [None, 0.3])
@pytest.mark.parametrize("rank", [1, 2, 40])
def test_the_parts_of_adapters_are_those_of_numpy(rank, shared):
    policies = adapters()
    parts = exclusive_parts(policies, rank=rank, shared=shared)
    for name, shape in MODULES.items():
        taus = [
            np.array(dense_residual(policy, name)) if name in policy.modules else np.zeros(shape) for policy in policies
        ]
        common = np.sum(taus, axis=0, dtype=np.float64) * (1 / 3 if shared is None else shared)
        for tau, (part, _) in zip(taus, parts, strict=True):
            left, values, right = np.linalg.svd(tau - common)
            nearest = sum(np.outer(left[:, i], right[i]) * values[i] for i in range(min(rank, len(values))))
            np.testing.assert_allclose(dense_residual(part, name), nearest, rtol=1e-4, atol=2e-6)
            assert part.modules[name].A.shape[0] == min(rank, 6)  # the sum of the ranks keeps all
    assert all((lost.lost < 1e-5) == (rank == 40) for _, lost in parts)
