"""OTA and FFG: public numbers, and their quotient written down a second time."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import CASES, WIDTHS, plus_base, task_vectors, tensors
from tests.merge.rules.means import RESIDUALS, SHAPES, mean
from tests.merge.rules.one_layer import EMBEDDING, NORM, UP, WEIGHTS, Q, assert_equal, randn


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("ota_n3", {}),
        ("ota_ffg_n3", {"thresholds": CASES["ota_ffg_n3"]["params"]["precond_threshold"]}),
        ("ota_rank1_n3", {"rank1": True}),
    ],
)
def test_ota_agrees_with_the_public_code(case, options, dtype):
    """Which has float32 arithmetic, and here not all parameters."""
    moments = [tensors(f"fisher{k}", dtype) for k in range(3)]
    merged = plus_base(merge_residuals(task_vectors(3, dtype), "ota", statistics=moments, add=1e-12, **options))
    expected, tol = tensors(case), CASES[case]["tol"]
    assert expected.keys() == merged.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name].double(), tensor, rtol=tol["rtol"], atol=tol["atol"], msg=name)


MOMENTS = [{name: 1e-18 * tensor**4 for name, tensor in randn(10 + k, shapes=SHAPES).items()} for k in range(3)]


def quotient(residuals, moments, masks, power=0.5, add=0.0):
    """sum_k c_k m_k P_k tau_k / sum_k c_k m_k P_k; zero where all m_k are."""
    merged = {}
    for name in residuals[0]:
        factors = [w * m[name] * (v[name] ** power + add) for w, m, v in zip(WEIGHTS, masks, moments, strict=True)]
        above = sum(factor * tau[name] for factor, tau in zip(factors, residuals, strict=True))
        merged[name] = torch.where(sum(factors) > 0, above / sum(factors), 0)
    return merged


ALL = [{name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}] * 3


@pytest.mark.parametrize(("power", "add"), [(0.5, 0.0), (0.25, 0.0), (1.0, 1e-18)])
def test_ota_is_the_mean_weighted_by_a_power_of_the_moments(power, add):
    merged = merge_residuals(RESIDUALS, "ota", weights=[5, 3, 2], statistics=MOMENTS, power=power, add=add)
    assert_equal(merged, quotient(RESIDUALS, MOMENTS, ALL, power, add))
    assert (merged[UP] - mean(RESIDUALS, WEIGHTS)[UP]).norm() > 0.05


def test_ota_with_power_one_is_fisher_merging_without_a_floor():
    fisher = merge_residuals(RESIDUALS, "fisher", weights=WEIGHTS, statistics=MOMENTS, floor=0.0)
    assert_equal(merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=MOMENTS, power=1.0), fisher)


def masks_of(density: float) -> list[dict[str, torch.Tensor]]:
    """Of each policy its int(density d) + 1 entries with the largest v tau^2."""
    masks = []
    for tau, v in zip(RESIDUALS, MOMENTS, strict=True):
        saliency = {name: v[name] * tau[name] ** 2 for name in tau}
        ranked = torch.cat([tensor.flatten() for tensor in saliency.values()]).sort(descending=True).values
        least = ranked[int(density * len(ranked))]
        masks.append({name: (tensor >= least).double() for name, tensor in saliency.items()})
    return masks


def test_ffg_keeps_the_most_salient_entries_of_every_policy():
    masks = masks_of(0.3)
    kept = sum(mask.sum() for mask in masks[0].values())
    assert kept == int(0.3 * sum(tensor.numel() for tensor in RESIDUALS[0].values())) + 1
    merged = merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=MOMENTS, density=0.3)
    expected = quotient(RESIDUALS, MOMENTS, masks)
    assert_equal(merged, expected)
    assert any((tensor == 0).any() for tensor in expected.values())
    # The unit of the moments of a policy does not matter to what it keeps, that of all policies to nothing.
    scaled = [{name: 1e6 * tensor for name, tensor in v.items()} for v in MOMENTS]
    assert_equal(merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=scaled, density=0.3), expected)


def test_ffg_with_density_one_keeps_everything():
    merged = merge_residuals(RESIDUALS, "ota", statistics=MOMENTS, density=1.0)
    assert_equal(merged, merge_residuals(RESIDUALS, "ota", statistics=MOMENTS))


def test_one_threshold_is_that_of_every_policy():
    options = {"weights": WEIGHTS, "statistics": MOMENTS}
    one = merge_residuals(RESIDUALS, "ota", thresholds=1e-18, **options)
    assert_equal(one, merge_residuals(RESIDUALS, "ota", thresholds=[1e-18] * 3, **options))
    masks = [
        {name: (v[name] * tau[name] ** 2 >= 1e-18).double() for name in tau}
        for tau, v in zip(RESIDUALS, MOMENTS, strict=True)
    ]
    assert_equal(one, quotient(RESIDUALS, MOMENTS, masks))


def test_rank_one_moments_are_products_of_their_sums():
    moments = [
        {n: v.sum(1, keepdim=True) * v.sum(0) / v.sum() if v.ndim == 2 else v for n, v in held.items()}
        for held in MOMENTS
    ]
    merged = merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=MOMENTS, rank1=True)
    assert_equal(merged, quotient(RESIDUALS, moments, ALL))


def test_where_no_policy_has_moments_the_kept_entries_count_alike():
    moments = [{name: tensor.clone() for name, tensor in v.items()} for v in MOMENTS]
    for v in moments:
        v[EMBEDDING][2] = 0.0
    merged = merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=moments)
    torch.testing.assert_close(merged[EMBEDDING][2], mean(RESIDUALS, WEIGHTS)[EMBEDDING][2])
    zero = [{name: torch.zeros_like(tensor) for name, tensor in MOMENTS[0].items()}] * 3
    for rank1 in (False, True):
        merged = merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=zero, rank1=rank1)
        assert_equal(merged, mean(RESIDUALS, WEIGHTS))


def test_parameters_without_moments_get_the_weighted_mean_unmasked():
    moments = [{name: v[name] for name in (Q, UP)} for v in MOMENTS]
    merged = merge_residuals(RESIDUALS, "ota", weights=WEIGHTS, statistics=moments, density=0.1)
    for name in (EMBEDDING, NORM):
        torch.testing.assert_close(merged[name], mean(RESIDUALS, WEIGHTS)[name])
    assert (merged[UP] == 0).sum() > merged[UP].numel() / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0}, "power is 0, which leaves nothing of the second moments; use rule linear"),
        ({"power": -1}, "power is -1, expected a number at least 0"),
        ({"add": -1e-8}, "add is -1e-08, expected a number at least 0"),
        ({"density": 40}, "density is 40, expected a number between 0 and 1"),
        ({"density": 0.4, "thresholds": 1e-8}, "density is 0.4 and thresholds are 1e-08, which say the same: keep one"),
        ({"thresholds": [1e-8]}, "1 threshold for 3 residuals; give one number, or one per residual"),
        ({"thresholds": [1e-8, -1, 0]}, "a threshold is -1, expected a number at least 0"),
        ({"rank1": "yes"}, "rank1 is 'yes', expected true or false"),
        ({"weights": [1, -1, 1]}, "rule 'ota' is a weighted mean and needs weights of at least 0"),
        ({"statistics": MOMENTS[:2]}, "rule 'ota' needs the second moment of each policy, got 2 sets for 3"),
        ({"statistics": [{Q: -MOMENTS[0][Q]}] * 3}, "the second moments of policy 1 have values below 0"),
        ({"statistics": [{Q: torch.ones(3, 3)}] * 3}, r"the second moment of policy 1 has shape \(3, 3\) for "),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals(RESIDUALS, "ota", **{"statistics": MOMENTS, **options})
