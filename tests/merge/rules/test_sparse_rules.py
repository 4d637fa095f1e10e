"""TIES, DARE, Breadcrumbs, Consensus and SLERP: agreement with the numbers of public implementations."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import apply_lines, lines_alpha, merge_residuals, tall_masks
from tests.merge.reference import CASES, WIDTHS, assert_case, plus_base, task_vectors, tensors


TALL_THRESHOLDS = [0.4, 0.2, 0.6]
MERGEKIT_TIES = {"granularity": "tensor", "zero_sign": "positive"}


def l1(residual: dict[str, torch.Tensor]) -> float:
    return sum(tensor.double().abs().sum().item() for tensor in residual.values())


def of_each_policy(masks: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """The masks of a file, whose keys are task{k}.{parameter}."""
    split = [key.split(".", 1) for key in masks]
    return [{name: masks[f"{task}.{name}"] for task, name in split if task == f"task{k}"} for k in range(count)]


def table_row(row: dict) -> str:
    return "-".join(str(value) for key, value in row.items() if key in ("method", "N", "k", "agg", "prun_thre_k"))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_ties(dtype):
    residuals = task_vectors(3, dtype)
    summed = merge_residuals(residuals, "ties", density=0.2, reduction="sum")
    assert_case("ties_mean_n3_k20", merge_residuals(residuals, "ties", density=0.2))
    assert_case("ties_sum_n3_k20", summed)
    assert_case("ties_sum_n3_k20_theta_lam0.7", plus_base(apply_lines(summed, 0.7, 0.0)))
    assert_case("mergekit_ties_n3_d0.2", plus_base(merge_residuals(residuals, "ties", density=0.2, **MERGEKIT_TIES)))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_ties_keeps_as_many_entries(dtype):
    kept = [merge_residuals([residual], "ties", density=0.2) for residual in task_vectors(3, dtype)]
    counts = [sum(tensor.count_nonzero().item() for tensor in merged.values()) for merged in kept]
    assert counts == CASES["ties_trim_counts"]["scalars"]["kept_per_model"]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_lines_on_ties(dtype):
    residuals = task_vectors(2, dtype)
    merged = merge_residuals(residuals, "ties", density=0.2, reduction="sum")
    alpha = lines_alpha(residuals, merged)
    assert alpha == pytest.approx(CASES["lines_merged_ties_sum_n2_b0.5"]["scalars"]["alpha"], rel=1e-6)
    assert_case("lines_merged_ties_sum_n2_b0.5", apply_lines(merged, alpha, 0.5))


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


@pytest.mark.parametrize("dtype", WIDTHS)
def test_tall_masks(dtype):
    residuals = task_vectors(3, dtype)
    expected = of_each_policy(tensors("tall_masks_n3", torch.bool), 3)
    got = tall_masks(residuals, merge_residuals(residuals, "sum"), TALL_THRESHOLDS)
    for k in range(3):
        assert got[k].keys() == expected[k].keys()
        assert all(torch.equal(got[k][name], expected[k][name]) for name in expected[k])


@pytest.mark.parametrize("dtype", WIDTHS)
def test_consensus(dtype):
    residuals = task_vectors(3, dtype)
    merged = merge_residuals(residuals, "consensus", thresholds=TALL_THRESHOLDS, k=2)
    assert_case("consensus_ta_n3_k2", merged)
    alpha = CASES["consensus_ta_n3_k2"]["scalars"]["alpha"]
    assert lines_alpha(residuals, merged) == pytest.approx(alpha, rel=1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_dare_with_the_masks_of_the_reference(dtype):
    residuals = task_vectors(3, dtype)
    masks = of_each_policy(tensors("dare_masks_n3_p0.8", torch.bool), 3)
    merged = merge_residuals(residuals, "dare", drop_rate=0.8, masks=masks)
    # The reference multiplies the sum by 0.5, `linear` is the mean of three.
    assert_case("dare_ta_n3_p0.8_lam0.5", plus_base(apply_lines(merged, 1.5, 0.0)))
    weighted = merge_residuals(residuals, "dare", weights=[0.5, 0.5, 0.5], drop_rate=0.8, masks=masks)
    assert_case("dare_ta_n3_p0.8_lam0.5", plus_base(weighted))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_dare_rescaled_by_l1_norms_is_mergekits(dtype):
    # Kept are the entries that differ from the base: visible in float64 only.
    output, base = tensors("mergekit_dare_linear_n1_d0.2"), tensors("model_base")
    masks = [{name: output[name] != base[name] for name in base}]
    merged = merge_residuals(task_vectors(1, dtype), "dare", drop_rate=0.8, rescale="l1", masks=masks)
    assert_case("mergekit_dare_linear_n1_d0.2", plus_base(merged))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_breadcrumbs(dtype):
    residuals = task_vectors(3, dtype)
    merged = merge_residuals(residuals, "breadcrumbs", keep=0.5, remove=0.125)
    assert_case("breadcrumbs_n3_keep0.5_remove0.125", plus_base(apply_lines(merged, 0.3, 0.0)))
    scaled = merge_residuals(residuals, "breadcrumbs", keep=0.5, remove=0.125, scale=0.3)
    assert_case("breadcrumbs_n3_keep0.5_remove0.125", plus_base(scaled))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_breadcrumbs_of_whole_tensors_is_mergekits_without_its_bug(dtype):
    """Of parameters with fewer than 1 / gamma entries mergekit drops the whole residual: it slices [n_bot:-0]."""
    case = "mergekit_breadcrumbs_n3_d0.8_g0.05_lam0.4"
    merged = merge_residuals(
        task_vectors(3, dtype), "breadcrumbs", keep=0.8, remove=0.05, scale=0.4, granularity="tensor"
    )
    ours, theirs, base = plus_base(merged), tensors(case), tensors("model_base")
    norms = [name for name in base if base[name].ndim == 1]
    assert len(norms) == 13
    for name in norms:
        torch.testing.assert_close(theirs[name], base[name], rtol=0, atol=1e-7)
        assert merged[name].count_nonzero() >= int(0.8 * 16)
    assert_case(case, {name: theirs[name].to(dtype) if name in norms else ours[name] for name in ours})


@pytest.mark.parametrize("dtype", WIDTHS)
def test_slerp(dtype):
    residuals = task_vectors(2, dtype)
    assert_case("slerp_residual_per_tensor_n2_t0.3", merge_residuals(residuals, "slerp", weights=[0.7, 0.3]))
    whole = merge_residuals(residuals, "slerp", weights=[0.7, 0.3], sft=tensors("model_base", dtype), of="weights")
    assert_case("slerp_per_tensor_n2_t0.3", plus_base(whole))
    assert_case("mergekit_slerp_n2_t0.3", plus_base(whole))
