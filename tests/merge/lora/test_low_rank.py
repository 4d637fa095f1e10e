"""Stacked adapters are the weighted sum of residuals, for any ranks, scales and modules."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import MergeSpec, apply_lines, lines_alpha, merge_residuals
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, load_adapter
from rlhf_lines.merge.lora.low_rank import coefficients, difference, merge_adapters, stack
from tests.merge.adapters import lora_residual
from tests.merge.reference import WIDTHS, assert_case, reference_adapters


NUM_LAYERS = 4
SPECS = [
    MergeSpec("linear", (0.3, 0.7)),
    MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0),
    MergeSpec("linear", (1.5, -0.5), alpha=1.0, beta=1.0),
    MergeSpec("sum", (0.3, 0.7), alpha=0.4, beta=0.2),
    MergeSpec("linear", (0.0, 0.0)),
]


@pytest.fixture
def adapters(helpful, harmless) -> list[Adapter]:
    return [load_adapter(helpful), load_adapter(harmless)]


def dense_merge(adapters, spec) -> dict[str, torch.Tensor]:
    """The same merge on dense residuals in float64."""
    residuals = [{name: t.double() for name, t in lora_residual(adapter).items()} for adapter in adapters]
    merged = merge_residuals(residuals, spec.rule, weights=spec.weights)
    return apply_lines(merged, spec.alpha, spec.beta, num_layers=NUM_LAYERS)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_merged_adapter_is_the_merged_residual(adapters, spec):
    merged = merge_adapters(adapters, spec, num_layers=NUM_LAYERS)
    expected = dense_merge(adapters, spec)
    assert {f"{module}.weight" for module in merged} == expected.keys()
    for module, factors in merged.items():
        got = (factors.B @ factors.A) * factors.scale
        torch.testing.assert_close(got.double(), expected[f"{module}.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_sweep_gets_the_same_from_stack_and_coefficients(adapters, spec):
    stacked = stack(adapters)
    expected = dense_merge(adapters, spec)
    for module, factors in stacked.items():
        layer = int(module.split(".")[2])
        row = coefficients(spec, factors.ranks, layer, NUM_LAYERS)
        assert row.dtype == torch.float32
        got = (factors.B * row) @ factors.A
        torch.testing.assert_close(got.double(), expected[f"{module}.weight"], rtol=1e-5, atol=1e-6)


def test_all_modules_share_one_layout_with_zeros_for_what_a_policy_lacks(adapters):
    stacked = stack(adapters)
    # helpful has rank 4 everywhere; harmless 3, and 6 for one q_proj.
    assert {factors.ranks for factors in stacked.values()} == {(4, 6)}
    assert {factors.A.shape[0] for factors in stacked.values()} == {10}
    only_helpful = stacked["model.layers.0.self_attn.k_proj"]
    assert only_helpful.A[4:].abs().sum() == 0 and only_helpful.B[:, 4:].abs().sum() == 0
    only_harmless = stacked["model.layers.0.mlp.down_proj"]
    assert only_harmless.A[:4].abs().sum() == 0 and only_harmless.A[6:].abs().sum() == 0
    assert only_harmless.A[4:6].abs().min() > 0


def test_coefficients_by_hand():
    spec = MergeSpec("linear", (0.25, 0.75), alpha=0.5, beta=1.0)
    # lambda of layer 1 of 3 is 0.5 + 1/2 = 1; outside the layers alpha = 0.5
    assert coefficients(spec, (1, 2), 1, 3).tolist() == [0.25, 0.75, 0.75]
    assert coefficients(spec, (1, 2), None, 3).tolist() == [0.125, 0.375, 0.375]
    # sum: K w_k = 0.5, 1.5; one layer has factor alpha
    summed = MergeSpec("sum", (0.25, 0.75), alpha=0.5, beta=1.0)
    assert coefficients(summed, (2, 1), 0, 1).tolist() == [0.25, 0.25, 0.75]


def test_one_hot_returns_the_policy(adapters):
    merged = merge_adapters(adapters, MergeSpec("linear", (0, 1)), num_layers=NUM_LAYERS)
    alone = lora_residual(adapters[1])
    for module, factors in merged.items():
        residual = factors.B @ factors.A
        expected = alone.get(f"{module}.weight", torch.zeros_like(residual))
        torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-6)


def test_one_policy_is_scaled_by_lines_alone(adapters):
    merged = merge_adapters(adapters[:1], MergeSpec("linear", (1,), alpha=0.0, beta=3.0), num_layers=NUM_LAYERS)
    alone = lora_residual(adapters[0])
    for layer in range(NUM_LAYERS):
        factors = merged[f"model.layers.{layer}.self_attn.q_proj"]
        expected = layer * alone[f"model.layers.{layer}.self_attn.q_proj.weight"]
        torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-5, atol=1e-6)


def test_adapters_on_some_layers_use_the_depth_of_the_model(sft, tmp_path, save_adapter):
    policy = save_adapter(sft, tmp_path / "deep", seed=3, target_modules=["q_proj"], layers_to_transform=[1, 3])
    adapter = load_adapter(policy)
    merged = merge_adapters([adapter], MergeSpec("linear", (1,), alpha=0.0, beta=3.0), num_layers=NUM_LAYERS)
    alone = lora_residual(adapter)
    assert list(merged) == ["model.layers.1.self_attn.q_proj", "model.layers.3.self_attn.q_proj"]
    for layer in (1, 3):
        factors = merged[f"model.layers.{layer}.self_attn.q_proj"]
        expected = layer * alone[f"model.layers.{layer}.self_attn.q_proj.weight"]
        torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="out of range for a model of 3 layers"):
        merge_adapters([adapter], MergeSpec("linear", (1,)), num_layers=3)


def test_inputs_are_not_changed(adapters):
    before = [{name: (f.A.clone(), f.B.clone()) for name, f in adapter.modules.items()} for adapter in adapters]
    merged = merge_adapters(adapters, SPECS[1], num_layers=NUM_LAYERS)
    for factors in merged.values():
        factors.A.add_(1)
        factors.B.add_(1)
    for adapter, copies in zip(adapters, before, strict=True):
        for name, factors in adapter.modules.items():
            assert torch.equal(factors.A, copies[name][0]) and torch.equal(factors.B, copies[name][1])


def test_difference_is_the_relative_norm_of_dense_residuals(adapters):
    left = merge_adapters(adapters, SPECS[0], num_layers=NUM_LAYERS)
    right = {m: Factors(f.A.bfloat16(), f.B.bfloat16(), 1.0) for m, f in left.items()}
    error = size = 0.0
    for module, factors in left.items():
        exact = factors.B.double() @ factors.A.double()
        cast = right[module].B.double() @ right[module].A.double()
        error += (cast - exact).square().sum().item()
        size += exact.square().sum().item()
    assert difference(left, right) == pytest.approx((error / size) ** 0.5, rel=1e-6)
    assert difference(left, left) < 1e-7


def test_mistakes_are_named(adapters, monkeypatch):
    with pytest.raises(ValueError, match="1 weight for 2 policies"):
        merge_adapters(adapters, MergeSpec("linear", (1,)), num_layers=NUM_LAYERS)
    with pytest.raises(ValueError, match="no adapters"):
        stack([])
    small = Adapter("small", {"model.layers.0.self_attn.q_proj": Factors(torch.ones(2, 3), torch.ones(5, 2), 1.0)})
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj' has shapes \[\(5, 3\), \(16, 16\)\]"):
        stack([adapters[0], small])
    with pytest.raises(ValueError, match="rule 'ties' is not linear in the residuals"):
        coefficients(MergeSpec("ties", (0.5, 0.5)), (1, 1), 0, 4)


@pytest.fixture
def published(tmp_path) -> list[Adapter]:
    """The two LoRA policies of the reference vectors, in float64."""
    return reference_adapters(tmp_path)


def residuals_of(adapters: list[Adapter], dtype) -> list[dict[str, torch.Tensor]]:
    return [{name: t.to(dtype) for name, t in lora_residual(adapter).items()} for adapter in adapters]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lora_residuals(published, dtype):
    first, second = residuals_of(published, dtype)
    assert_case("lora_residual0", first)
    assert_case("lora_residual1", second)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_lora_residuals(published, dtype):
    residuals = residuals_of(published, dtype)
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
def test_stacked_factors_give_the_same_residual(published, case, spec):
    merged = merge_adapters(published, spec, num_layers=6)
    assert {factors.A.shape[0] for factors in merged.values()} == {8}
    assert {factors.scale for factors in merged.values()} == {1.0}
    assert_case(case, {f"{module}.weight": factors.B @ factors.A for module, factors in merged.items()})
