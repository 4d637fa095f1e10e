"""LiNeS factors, the alpha heuristic, and their use on a residual."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import apply_lines, lines_alpha, lines_scales, merge_residuals
from tests.merge.reference import CASES, TALL_THRESHOLDS, WIDTHS, assert_case, task_vectors, tensors


def residual_of(layers: int, *, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(layers)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(layers)]
    return {name: torch.randn(3, 2, generator=generator, dtype=torch.float64).to(dtype) for name in names}


def test_scales_grow_linearly_with_depth():
    scales = lines_scales(5, alpha=0.5, beta=2.0)
    # 0.5 + 2 i/4
    assert scales.dtype == torch.float64
    assert scales.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5]


def test_beta_zero_is_constant_and_one_layer_gets_alpha():
    assert lines_scales(3, alpha=0.7, beta=0.0).tolist() == [0.7, 0.7, 0.7]
    assert lines_scales(1, alpha=0.7, beta=0.3).tolist() == [0.7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, 1.0), "num_layers is 0"),
        ((2, float("nan"), 1.0), "alpha is nan"),
        ((2, 1.0, float("inf")), "beta is inf"),
        (
            (2, 1.0, 1.0, "lineal"),
            "unknown schedule 'lineal'; known: linear, .*; did you mean 'linear'",
        ),
    ],
)
def test_bad_scale_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lines_scales(*arguments)


def test_layers_get_their_factor_and_everything_else_alpha():
    residual = residual_of(3)
    before = {name: tensor.clone() for name, tensor in residual.items()}
    scaled = apply_lines(residual, 0.5, 1.0)
    factors = {"model.embed_tokens.weight": 0.5, "model.norm.weight": 0.5, "lm_head.weight": 0.5}
    factors |= {f"model.layers.{i}.self_attn.q_proj.weight": 0.5 + i / 2 for i in range(3)}
    assert scaled.keys() == residual.keys()
    for name, tensor in residual.items():
        assert torch.equal(scaled[name], before[name] * factors[name]), name
        assert torch.equal(tensor, before[name]), f"{name} was changed in place"


def test_identity_scaling_changes_nothing():
    residual = residual_of(4)
    scaled = apply_lines(residual, 1.0, 0.0)
    assert all(torch.equal(scaled[name], tensor) for name, tensor in residual.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_residuals_are_scaled_in_float32(dtype):
    residual = residual_of(3, dtype=dtype)
    scaled = apply_lines(residual, 0.1, 0.3)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert scaled[name].dtype == torch.float32
    # alpha + beta / 2 = 0.25 is a power of two, so the product is exact.
    assert torch.equal(scaled[name].double(), residual[name].double() * 0.25)


def test_a_residual_of_some_layers_needs_the_real_number_of_layers():
    residual = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(2, dtype=torch.float64) for i in (1, 3)}
    scaled = apply_lines(residual, 0.0, 1.0, num_layers=5)
    assert scaled["model.layers.1.mlp.up_proj.weight"].tolist() == [0.25, 0.25]
    assert scaled["model.layers.3.mlp.up_proj.weight"].tolist() == [0.75, 0.75]
    with pytest.raises(ValueError, match=r"have gaps: \[0, 2\] are missing below 3; pass num_layers"):
        apply_lines(residual, 0.0, 1.0)


def test_integer_tensors_are_refused():
    with pytest.raises(ValueError, match=r"'model.layers.0.steps' has dtype int64"):
        apply_lines({"model.layers.0.steps": torch.ones(1, dtype=torch.int64)}, 1.0, 0.0)


def test_alpha_is_the_l1_ratio_over_all_parameters():
    residuals = [
        {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([3.0, 1.0])},
    ]
    merged = {"a": torch.tensor([0.5, 0.5]), "b": torch.tensor([-1.5])}
    # sum: a = [4, -1], b = [4], L1 = 9; merged L1 = 2.5; K = 2
    assert lines_alpha(residuals, merged) == pytest.approx(9 / (2 * 2.5), rel=1e-15)
    assert residuals[0]["a"].tolist() == [1.0, -2.0]


def test_alpha_sums_in_float64():
    # In float32 the sum of 2**24 + 1 loses the one.
    residuals = [{"a": torch.tensor([2.0**24, 1.0, 1.0, 1.0])}]
    assert lines_alpha(residuals, {"a": torch.tensor([1.0])}) == 2.0**24 + 3


def test_alpha_of_a_zero_merge_is_refused():
    with pytest.raises(ValueError, match="zero everywhere"):
        lines_alpha([{"a": torch.ones(2)}], {"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="no residuals"):
        lines_alpha([], {"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        lines_alpha([{"a": torch.ones(2)}, {"a": torch.ones(1)}], {"a": torch.ones(2)})


def test_factors_beyond_float32_are_refused():
    assert lines_scales(3, 1e38, 1e38)[2].item() == 2e38
    with pytest.raises(ValueError, match=r"alpha 3e\+38 and beta 1e\+38 give a factor that float32 does not hold"):
        lines_scales(3, 3e38, 1e38)
    with pytest.raises(ValueError, match="give a factor"):
        lines_scales(1, 1e39, 0.0)


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
    # Stored as [embed_tokens, norm, lm_head, layer 0 .. layer L-1] at alpha 0.2, beta 0.7.
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


def l1(residual: dict[str, torch.Tensor]) -> float:
    return sum(tensor.double().abs().sum().item() for tensor in residual.values())


def table_row(row: dict) -> str:
    return "-".join(str(value) for key, value in row.items() if key in ("method", "N", "k", "agg", "prun_thre_k"))


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("row", CASES["lines_alpha_table"]["table"], ids=table_row)
def test_alpha_heuristic(row, dtype):
    options = {
        "sum": lambda: {},
        "ties": lambda: {"density": row["k"] / 100, "reduction": row["agg"]},
        "consensus": lambda: {"k": row["prun_thre_k"], "thresholds": TALL_THRESHOLDS[: row["N"]]},
    }[row["method"]]()
    residuals = task_vectors(row["N"], dtype)
    merged = merge_residuals(residuals, row["method"], **options)
    rtol = CASES["lines_alpha_table"]["tol"]["rtol"] if dtype == torch.float64 else 1e-5
    assert lines_alpha(residuals, merged) == pytest.approx(row["alpha"], rel=rtol)
    assert l1(merged) == pytest.approx(row["l1_mtv"], rel=rtol)
