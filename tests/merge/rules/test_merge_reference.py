"""Agreement with the numbers of public reference implementations (reference/merge/origin.json says which)."""

from __future__ import annotations

import hashlib

import pytest
import torch

from rlhf_lines.merge import MergeSpec, apply_lines, lines_alpha, lines_scales, merge_residuals
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.layers import block_indices
from rlhf_lines.merge.lora.low_rank import merge_adapters
from tests.merge.adapters import lora_residual
from tests.merge.reference import (
    CASES,
    FOLDER,
    NUM_LAYERS,
    ORIGIN,
    WIDTHS,
    assert_case,
    plus_base,
    reference_adapters,
    task_vectors,
    tensors,
)


@pytest.fixture
def adapters(tmp_path) -> list[Adapter]:
    """The two LoRA policies of the reference vectors, as PEFT folders."""
    return reference_adapters(tmp_path)


def residuals_of(adapters: list[Adapter], dtype) -> list[dict[str, torch.Tensor]]:
    return [{name: t.to(dtype) for name, t in lora_residual(adapter).items()} for adapter in adapters]


def test_reference_files_are_the_recorded_ones():
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.safetensors")}
    assert found == ORIGIN["sha256"]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_one_residual(dtype):
    (residual,) = task_vectors(1, dtype)
    assert_case("lines_single_a0.1_b0.9", apply_lines(residual, 0.1, 0.9))
    assert_case("lines_single_a1.0_b1.0", apply_lines(residual, 1.0, 1.0))


def test_scale_of_every_parameter_on_a_grid():
    case = CASES["lines_scale_grid"]
    expected = tensors("lines_scale_grid")
    names = case["params"]["column_order"]
    ones = {name: torch.ones((), dtype=torch.float64) for name in names}
    rows = []
    for alpha, beta in expected["alpha_beta"].tolist():
        scaled = apply_lines(ones, alpha, beta)
        rows.append(torch.stack([scaled[name] for name in names]))
    torch.testing.assert_close(torch.stack(rows), expected["factors"], **case["tol"])


@pytest.mark.parametrize("num_layers", [2, 6, 12, 24, 28, 32, 80])
def test_scales_of_common_depths(num_layers):
    # Stored as [embed_tokens, norm, lm_head, block 0 .. block L-1] at alpha 0.2, beta 0.7.
    expected = tensors("lines_scale_grid")[f"factors_L{num_layers}_a0.2_b0.7"]
    got = torch.cat([torch.full((3,), 0.2, dtype=torch.float64), lines_scales(num_layers, 0.2, 0.7)])
    torch.testing.assert_close(got, expected, **CASES["lines_scale_grid"]["tol"])


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_the_sum_of_three(dtype):
    residuals = task_vectors(3, dtype)
    merged = merge_residuals(residuals, "sum")
    alpha = lines_alpha(residuals, merged)
    assert alpha == pytest.approx(CASES["lines_merged_sum_n3_b0.4"]["scalars"]["alpha"], rel=1e-6)
    assert_case("lines_merged_sum_n3_b0.4", apply_lines(merged, alpha, 0.4))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_soups(dtype):
    residuals = task_vectors(3, dtype)
    assert_case("uniform_soup_n3", plus_base(merge_residuals(residuals)))
    assert_case("linear_interp_ft0_ft1_l0.3", plus_base(merge_residuals(residuals[:2], weights=[0.7, 0.3])))
    assert_case("task_arithmetic_sum_n3_lam0.4", plus_base(apply_lines(merge_residuals(residuals, "sum"), 0.4, 0.0)))
    assert_case("wise_ft_a0.3", plus_base(apply_lines(residuals[0], 0.3, 0.0)))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lora_residuals(adapters, dtype):
    first, second = residuals_of(adapters, dtype)
    assert_case("lora_residual0", first)
    assert_case("lora_residual1", second)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_lora_residuals(adapters, dtype):
    residuals = residuals_of(adapters, dtype)
    soup = merge_residuals(residuals, weights=[0.7, 0.3])
    assert_case("peft_cat_n2_l0.3_delta", soup)
    assert_case("lines_rewarded_soup_lora_n2_l0.3_a0.5_b0.5", apply_lines(soup, 0.5, 0.5))
    summed = merge_residuals(residuals, "sum")
    assert_case("lines_lora_sum_n2_b0.5", apply_lines(summed, lines_alpha(residuals, summed), 0.5))


@pytest.mark.parametrize(
    ("case", "spec"),
    [
        ("peft_cat_n2_l0.3_delta", MergeSpec("linear", (0.7, 0.3))),
        ("lines_rewarded_soup_lora_n2_l0.3_a0.5_b0.5", MergeSpec("linear", (0.7, 0.3), 0.5, 0.5)),
        ("lines_lora_sum_n2_b0.5", MergeSpec("sum", (0.5, 0.5), 0.5, 0.5)),
        ("lora_residual1", MergeSpec("linear", (0, 1))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stacked_factors_give_the_same_residual(adapters, case, spec):
    merged = merge_adapters(adapters, spec, num_layers=NUM_LAYERS)
    assert {factors.A.shape[0] for factors in merged.values()} == {8}
    assert {factors.scale for factors in merged.values()} == {1.0}
    assert_case(case, {f"{module}.weight": factors.B @ factors.A for module, factors in merged.items()})


def test_peft_linear_is_another_function(adapters):
    """Pitfall: PEFT's `linear` combines A and B apart and keeps cross terms; ours must not agree with it."""
    soup = merge_residuals([lora_residual(adapter) for adapter in adapters], weights=[0.7, 0.3])
    other = tensors("peft_linear_n2_l0.3_delta")
    error = sum((soup[name] - other[name]).square().sum() for name in soup).sqrt()
    size = sum(tensor.square().sum() for tensor in soup.values()).sqrt()
    # The recorded relative error of these factors is 85 %.
    assert (error / size).item() == pytest.approx(0.85, abs=0.01)


def test_the_reference_model_is_read_whole():
    indices = block_indices(tensors("model_base"))
    outside = {name for name, layer in indices.items() if layer is None}
    assert len(indices) == 57
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
