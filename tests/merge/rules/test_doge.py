"""DOGE: public numbers, and its steps by autograd and torch's Adam."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from rlhf_lines.merge.rules.doge import shared_basis
from tests.merge.reference import CASES, WIDTHS, task_vectors, tensors
from tests.merge.rules.one_layer import DOWN, EMBEDDING, HEAD, LINEAR, NORM, UP, Q, assert_equal, randn


FUSION_BENCH = {"relative": False, "eta": 0.07, "lr": 1e-4}


@pytest.mark.parametrize("dtype", WIDTHS)
def test_doge_agrees_with_the_public_code(dtype):
    expected, base = tensors("doge_ta_n3"), tensors("model_base")
    taus = [{name: tau[name] for name in expected} for tau in task_vectors(3, dtype)]
    merged = merge_residuals(taus, "doge", **FUSION_BENCH)
    assert merged.keys() == expected.keys()
    tol = CASES["doge_ta_n3"]["tol"]
    for name, tensor in expected.items():
        torch.testing.assert_close(base[name] + merged[name].double(), tensor, rtol=tol["rtol"], atol=tol["atol"])


def by_autograd(taus, lams, count, subspace, lr, steps):
    """Delta as the paper writes its loss down, by torch's own Adam; complete projectors."""
    leading = min(taus[0].shape) // count
    bases = [torch.linalg.svd(tau, full_matrices=False)[0][:, :leading] for tau in taus]
    shared = torch.linalg.svd(torch.cat(bases, 1), full_matrices=False)[0][:, : min(taus[0].shape) // subspace]
    delta = torch.zeros_like(taus[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        merged = sum(lam * (tau + delta) for lam, tau in zip(lams, taus, strict=True))
        loss = sum(torch.einsum("oi,oi->o", tau, tau - merged).square().sum() for tau in taus)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta.grad = gradient - shared @ shared.T @ gradient
        adam.step()
    return delta.detach()


@pytest.mark.parametrize("weights", [None, [0.6, 0.3, 0.1]])
def test_doge_in_units_of_the_residuals_is_the_problem_with_entries_of_size_one(weights):
    residuals, keep, steps = [randn(k) for k in range(3)], 0.4, 30
    shares = weights or [1 / 3] * 3
    everything = [torch.cat([tau[name].flatten() for name in LINEAR]).abs() for tau in residuals]
    kept = int(keep * len(everything[0])) + 1
    smallest = [entries.sort(descending=True).values[kept - 1] for entries in everything]
    expected = {
        name: sum(w * tau[name] for w, tau in zip(shares, residuals, strict=True)) for name in (EMBEDDING, NORM)
    }
    for name in LINEAR:
        taus = [tau[name] for tau in residuals]
        size = (sum(tau.square().mean() for tau in taus) / 3).sqrt()  # of an entry
        units = [tau / size for tau in taus]
        lams = [3 * w * 0.7 * tau.numel() ** 0.5 / tau.norm() for w, tau in zip(shares, units, strict=True)]
        moved = by_autograd(units, lams, 3, 4, 0.2, steps)
        expected[name] = size * sum(
            lam * torch.where(tau.abs() >= least, unit + moved, 0)
            for lam, tau, unit, least in zip(lams, taus, units, smallest, strict=True)
        )
    options = {"eta": 0.7, "keep": keep, "subspace": 4, "lr": 0.2, "steps": steps}
    assert_equal(merge_residuals(residuals, "doge", weights=weights, **options), expected, rtol=1e-8, atol=1e-10)


def test_doge_without_steps_gives_every_policy_the_same_norm():
    """keep 1 keeps all entries; lam_k = K w_k eta n / ||tau_k||, n the root mean square of the norms."""
    residuals = [randn(0, scale=5.0), randn(1)]
    merged = merge_residuals(residuals, "doge", weights=[0.7, 0.3], eta=0.5, keep=1.0, steps=0)
    for name in (Q, UP, DOWN, HEAD):
        first, second = (tau[name] for tau in residuals)
        unit = ((first.square().sum() + second.square().sum()) / 2).sqrt()
        torch.testing.assert_close(merged[name], unit * (0.7 * first / first.norm() + 0.3 * second / second.norm()))


def test_the_shared_directions_are_those_of_the_residuals_alone():
    """Two residuals of rank 1 that share their output: one direction, however many were asked for; of zeros none."""
    generator = torch.Generator().manual_seed(3)
    left, *rights = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (8, 6, 6))
    for dtype in WIDTHS:
        taus = [torch.outer(left, right).to(dtype) for right in rights]
        basis = shared_basis(taus, 2, 2)
        assert basis.shape == (8, 1) and basis.dtype == dtype
        torch.testing.assert_close(basis[:, 0].abs().double(), left.abs() / left.norm(), rtol=1e-5, atol=1e-6)
        assert shared_basis(taus, 2, 7).shape == (8, 0)  # 6 // 7 directions


def test_doge_of_a_policy_that_leaves_a_matrix_alone_is_of_the_others():
    residuals = [randn(0), {name: tau for name, tau in randn(1).items() if name != Q}]
    alone = merge_residuals([{Q: residuals[0][Q]}, {}], "doge", keep=1.0, steps=3)
    assert_equal({Q: merge_residuals(residuals, "doge", keep=1.0, steps=3)[Q]}, alone)
    assert alone[Q].isfinite().all() and alone[Q].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": -0.1}, "eta is -0.1, expected a number at least 0"),
        ({"keep": 30}, "keep is 30, expected a number between 0 and 1"),
        ({"subspace": 0}, "subspace is 0, expected a whole number between 1"),
        ({"lr": "fast"}, "lr is 'fast', expected a number at least 0"),
        ({"steps": 1.5}, "steps is 1.5, expected a whole number between 0"),
        ({"relative": 1}, "relative is 1, expected true or false"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([randn(0), randn(1)], "doge", **options)
