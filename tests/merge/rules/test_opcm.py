"""OPCM: public numbers, and its recursion with complete singular vectors."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import CASES, WIDTHS, assert_case, plus_base, task_vectors
from tests.merge.rules.one_layer import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    SHAPES,
    UP,
    Q,
    assert_equal,
    flat,
    randn,
)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_opcm_agrees_with_the_public_code(dtype):
    assert_case("opcm_n2_a0.5", plus_base(merge_residuals(task_vectors(2, dtype), "opcm")))


def opcm_step_by_step(residuals, energy: float, weights=None):
    """The recursion with lambda_t and complete singular vectors; returns D_K and every lambda_t."""
    count = len(residuals)
    factors = [count * weight for weight in weights or [1 / count] * count]
    taus = [{name: factor * tau for name, tau in t.items()} for factor, t in zip(factors, residuals, strict=True)]

    def norm(residual):
        return math.sqrt(sum(tensor.square().sum().item() for tensor in residual.values()))

    merged, lambdas = taus[0], [1.0]
    for step in range(1, count):
        raised = {}
        for name, before in merged.items():
            tau = taus[step][name]
            if before.ndim == 2 and name != EMBEDDING:
                left, values, right = torch.linalg.svd(before)
                share = values.cumsum(0) / values.sum()
                protected = next(i for i, value in enumerate(share.tolist()) if value > energy)
                projected = left.T @ tau @ right.T
                projected.fill_diagonal_(0)
                projected[:protected, :protected] = 0
                tau = left @ projected @ right
            raised[name] = lambdas[-1] * before + tau
        mean = sum(norm(tau) for tau in taus[: step + 1]) / (step + 1)
        lambdas.append(norm(raised) / mean)
        merged = {name: tensor / lambdas[-1] for name, tensor in raised.items()}
    return merged, lambdas


def test_opcm_step_by_step_has_the_factors_of_the_public_code():
    _, lambdas = opcm_step_by_step(task_vectors(2, torch.float64), 0.5)
    assert lambdas == pytest.approx(CASES["opcm_n2_a0.5"]["scalars"]["lambda_t"], rel=1e-10)


@pytest.mark.parametrize("energy", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.2, 0.1]])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_opcm_is_its_recursion(count, weights, energy):
    residuals = [randn(k) for k in range(count)]
    weights = weights and weights[:count]
    expected, _ = opcm_step_by_step(residuals, energy, weights)
    assert_equal(merge_residuals(residuals, "opcm", weights=weights, energy=energy), expected)


def test_opcm_protects_up_to_and_including_the_share_of_the_singular_values():
    """Values 4, 2, 1, 1 have shares 1/2, 3/4, ..: the first above 3/4 is the third, so two are protected."""
    taus = [{Q: torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]).double())}, {Q: torch.ones(4, 4, dtype=torch.float64)}]
    merged = merge_residuals(taus, "opcm", energy=0.75)[Q]
    expected = 1 - torch.eye(4, dtype=torch.float64)
    expected[:2, :2] = 0
    torch.testing.assert_close(merged / merged[0, 2] - taus[0][Q], expected)


def test_opcm_with_all_energy_clears_the_whole_span():
    """Of a matrix of full rank that is all there is, whichever way its singular values are added up."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        taus = [{Q: torch.randn(16, 16, generator=generator, dtype=torch.float64)} for _ in range(2)]
        merged = merge_residuals(taus, "opcm", energy=1)[Q]
        norms = [tau[Q].norm() for tau in taus]
        torch.testing.assert_close(merged, taus[0][Q] * (norms[0] + norms[1]) / (2 * norms[0]))


def test_opcm_has_the_mean_norm_and_keeps_the_first_residual():
    residuals = [randn(k) for k in range(2)]
    merged = merge_residuals(residuals, "opcm", energy=0.9)
    norms = [flat(residual).norm() for residual in residuals]
    torch.testing.assert_close(flat(merged).norm(), (norms[0] + norms[1]) / 2)
    # In the first residual's singular vectors, the merge is its singular values times one factor.
    left, values, right = torch.linalg.svd(residuals[0][DOWN], full_matrices=False)
    kept = (left.T @ merged[DOWN] @ right.T).diagonal() / values
    torch.testing.assert_close(kept, kept[:1].expand_as(kept))


def test_opcm_adds_what_is_outside_a_first_residual_of_low_rank():
    """After a residual of rank 1, no direction but one is protected, however its null space is written down."""
    first, second = randn(0), randn(1)
    generator = torch.Generator().manual_seed(5)
    for name in (Q, UP, DOWN, HEAD):
        out, into = SHAPES[name]
        left = torch.randn(out, 1, generator=generator, dtype=torch.float64)
        first[name] = left @ torch.randn(1, into, generator=generator, dtype=torch.float64)
    for dtype in WIDTHS:  # the product of two factors that are rounded to float32 still counts as of rank 1
        taus = [{name: tensor.to(dtype) for name, tensor in tau.items()} for tau in (first, second)]
        merged = merge_residuals(taus, "opcm", energy=0.5)
        factor = merged[NORM] / (taus[0][NORM] + taus[1][NORM])
        for name in (Q, UP, DOWN, HEAD):
            left, _, right = (tensor.to(dtype) for tensor in torch.linalg.svd(first[name], full_matrices=False))
            inside = left[:, :1] @ (left[:, :1].T @ taus[1][name] @ right[:1].T) @ right[:1]
            expected = factor[0] * (taus[0][name] + taus[1][name] - inside)
            torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_opcm_after_a_policy_without_residual_is_the_other_policy():
    residuals = [{NORM: torch.zeros(5, dtype=torch.float64)}, {name: t for name, t in randn(1).items() if name != NORM}]
    merged = merge_residuals(residuals, "opcm")
    # ||E|| = ||tau_2||, and the mean norm is half of it.
    for name, tau in residuals[1].items():
        torch.testing.assert_close(merged[name], tau / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": -0.1}, "energy is -0.1, expected a number between 0 and 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals([randn(0), randn(1)], "opcm", sft=randn(2), **options)
