"""Truncation keeps the largest singular values, and says what it lost."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Factors
from rlhf_lines.merge.lora.low_rank import merge_adapters
from rlhf_lines.merge.lora.truncate import factorise, factorise_residuals, truncate, truncate_adapter
from tests.merge.reference import CASES, FOLDER, reference_adapters


SHAPES = [(12, 20), (20, 12), (16, 16), (1, 9)]


def random_factors(shape, rank, *, seed=0, scale=0.5) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, shape[1], generator=generator, dtype=torch.float64)
    return Factors(A, torch.randn(shape[0], rank, generator=generator, dtype=torch.float64), scale)


def dense(factors: Factors) -> torch.Tensor:
    return factors.scale * (factors.B.double() @ factors.A.double())


def best(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """The oracle: the truncated SVD of the whole matrix, and the relative norm of the rest."""
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    lost = (singular[rank:].square().sum() / singular.square().sum()).sqrt().item()
    return (left[:, :rank] * singular[:rank]) @ right[:rank], lost


@pytest.fixture
def lora_policies(tmp_path):
    return reference_adapters(tmp_path)


@pytest.mark.parametrize(("case", "rank"), [("peft_svd4_n2_l0.3_delta", 4), ("peft_svd8_n2_l0.3_delta", 8)])
@pytest.mark.parametrize("dense_residuals", [False, True], ids=["factors", "dense"])
def test_agrees_with_the_svd_of_peft(lora_policies, case, rank, dense_residuals):
    merged = merge_adapters(lora_policies, MergeSpec("linear", (0.7, 0.3)), num_layers=6)
    if dense_residuals:
        factors, truncation = factorise_residuals(((module, dense(f)) for module, f in merged.items()), rank)
    else:
        factors, truncation = truncate_adapter(merged, rank)
    expected = load_file(FOLDER / f"{case}.safetensors")
    assert {f"{module}.weight" for module in factors} == expected.keys()
    for module, entry in factors.items():
        torch.testing.assert_close(dense(entry), expected[f"{module}.weight"].double(), **CASES[case]["tol"])
    exact = load_file(FOLDER / "peft_cat_n2_l0.3_delta.safetensors")
    error = sum((exact[name] - expected[name]).double().square().sum() for name in exact)
    size = sum(tensor.double().square().sum() for tensor in exact.values())
    # PEFT holds the weights in float32, so its full rank is off by 1e-8.
    assert truncation.lost == pytest.approx((error / size).sqrt().item(), rel=1e-6, abs=1e-7)
    assert truncation.lost == pytest.approx(0.25, abs=0.01) if rank == 4 else truncation.lost < 1e-7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_both_ways_are_the_truncated_svd(shape, rank):
    given = random_factors(shape, 6)
    expected, lost = best(dense(given), rank)
    for result in (truncate(given, rank), factorise(dense(given), rank)):
        torch.testing.assert_close(dense(result.factors), expected, rtol=1e-9, atol=1e-9)
        assert result.lost == pytest.approx(lost, rel=1e-6, abs=1e-7)
        assert result.total == pytest.approx(dense(given).square().sum().item(), rel=1e-12)
        assert result.factors.A.shape == (rank, shape[1]) and result.factors.B.shape == (shape[0], rank)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [6, 9, 40])
def test_a_rank_that_holds_everything_loses_nothing(shape, rank):
    """Also a rank above that of the residual, and above both of its sides: what is missing is zero."""
    given = random_factors(shape, 6)
    for result in (truncate(given, rank), factorise(dense(given), rank)):
        torch.testing.assert_close(dense(result.factors), dense(given), rtol=1e-9, atol=1e-9)
        assert result.lost < 1e-7
        assert result.factors.A.shape[0] == rank
        beyond = min(*shape, 6)
        assert not result.factors.A[beyond:].any() and not result.factors.B[:, beyond:].any()


def test_a_zero_residual_stays_zero():
    for result in (truncate(Factors(torch.ones(2, 5), torch.zeros(4, 2), 1.0), 3), factorise(torch.zeros(4, 5), 3)):
        assert not dense(result.factors).any() and result.lost == 0
        assert result.factors.A.shape == (3, 5) and result.factors.A.isfinite().all()


def test_a_dense_residual_is_factored_as_well_as_float64_allows():
    """Singular values over six decades: the Gram matrix squares them, the loss must not see it."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(50, 30, generator=generator, dtype=torch.float64))
    matrix = (left * torch.logspace(0, -6, 30, dtype=torch.float64)) @ right.T
    for rank in (5, 15, 25):
        expected, lost = best(matrix, rank)
        result = factorise(matrix, rank)
        assert result.lost == pytest.approx(lost, rel=1e-6)
        torch.testing.assert_close(dense(result.factors), expected, rtol=0, atol=1e-9)


def test_singular_values_are_shared_by_both_factors():
    """So that float16 holds them: its largest number is 65504, its smallest normal one 6e-5."""
    given = random_factors((12, 20), 4, scale=1e8)
    for result in (truncate(given, 4), factorise(dense(given), 4)):
        norms_A, norms_B = result.factors.A.norm(dim=1), result.factors.B.norm(dim=0)
        torch.testing.assert_close(norms_A, norms_B)
        singular = torch.linalg.svdvals(dense(given))[:4]
        torch.testing.assert_close(norms_A * norms_B, singular)
        half = Factors(result.factors.A.half(), result.factors.B.half(), 1.0)
        torch.testing.assert_close(dense(half), dense(given), rtol=5e-3, atol=1e6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_the_dtype_of_the_input(dtype):
    given = random_factors((6, 5), 3)
    given = Factors(given.A.to(dtype), given.B.to(dtype), given.scale)
    for result in (truncate(given, 2), factorise(dense(given).to(dtype), 2)):
        assert {result.factors.A.dtype, result.factors.B.dtype} == {dtype}
        torch.testing.assert_close(dense(result.factors), best(dense(given), 2)[0], rtol=1e-5, atol=1e-5)


def test_the_loss_over_all_modules_weighs_them_by_their_norm():
    modules = {"small": random_factors((6, 5), 4, seed=1, scale=0.01), "large": random_factors((6, 5), 4, seed=2)}
    modules["exact"] = random_factors((6, 5), 2, seed=3)
    _, truncation = truncate_adapter(modules, 2)
    error = size = 0.0
    shares = {}
    for module, factors in modules.items():
        near, shares[module] = best(dense(factors), 2)
        error += (near - dense(factors)).square().sum().item()
        size += dense(factors).square().sum().item()
    worst = max(shares, key=shares.__getitem__)
    assert truncation.rank == 2
    assert truncation.lost == pytest.approx((error / size) ** 0.5, rel=1e-6)
    assert (truncation.worst_module, truncation.worst_lost) == (worst, pytest.approx(shares[worst], rel=1e-6))


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "4"])
def test_bad_ranks_are_refused(rank):
    for call in (lambda: truncate(random_factors((4, 4), 2), rank), lambda: factorise(torch.ones(4, 4), rank)):
        with pytest.raises(ValueError, match="expected a whole number of at least 1"):
            call()


def test_what_has_no_rank_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\) has no rank"):
        factorise(torch.ones(4), 2)
    with pytest.raises(ValueError, match="not finite"):
        factorise(torch.full((4, 4), float("nan")), 2)
    with pytest.raises(ValueError, match="not finite"):
        truncate(Factors(torch.ones(2, 4), torch.full((4, 2), float("inf")), 1.0), 2)
    with pytest.raises(ValueError, match="no residual to truncate"):
        truncate_adapter({}, 2)
