"""Fisher merging: public numbers, and its quotient written down a second time."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors
from tests.merge.rules.means import RESIDUALS, SHAPES, mean
from tests.merge.rules.one_layer import EMBEDDING, NORM, UP, WEIGHTS, Q, assert_equal, randn


ABSOLUTE = {"floor": 0.0, "relative": False}


def diagonals(count: int, dtype) -> list[dict[str, torch.Tensor]]:
    return [tensors(f"fisher{k}", dtype) for k in range(count)]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize(
    ("case", "weights", "options"),
    [
        ("fisher_n3", None, ABSOLUTE | {"add": 1e-10}),
        ("fisher_n3_fusionbench_norm_min1e-6", None, ABSOLUTE | {"add": 1e-6, "normalize": "model"}),
        ("fisher_matena_n3", [0.5, 0.3, 0.2], ABSOLUTE | {"floor": 1e-6, "floor_on": "first", "normalize": "model"}),
        ("fisher_wiseft_n2_a0.3", [0.7, 0.3], ABSOLUTE | {"floor": 1e-6}),
    ],
)
def test_fisher_agrees_with_the_public_codes(case, weights, options, dtype):
    count = 2 if "n2" in case else 3
    merged = merge_residuals(
        task_vectors(count, dtype), "fisher", weights=weights, statistics=diagonals(count, dtype), **options
    )
    assert_case(case, plus_base(merged))


FISHERS = [{name: 1e-8 * tensor**4 for name, tensor in randn(10 + k, shapes=SHAPES).items()} for k in range(3)]


def quotient(precisions, residuals) -> dict[str, torch.Tensor]:
    """sum_k P_k tau_k / sum_k P_k."""
    return {
        name: sum(p[name] * tau[name] for p, tau in zip(precisions, residuals, strict=True))
        / sum(p[name] for p in precisions)
        for name in residuals[0]
    }


def test_fisher_raises_to_a_thousandth_of_the_smallest_median_by_default():
    fishers = [{name: tensor.clone() for name, tensor in fisher.items()} for fisher in FISHERS]
    fishers[1][EMBEDDING][:5] = 0.0  # tokens that policy 2 never met are not typical
    fishers[2][NORM][:] = 0.0
    positive = [torch.cat([tensor[tensor > 0] for tensor in fisher.values()]) for fisher in fishers]
    floor = 1e-3 * min(values.median().item() for values in positive)
    expected = quotient(
        [
            {name: w * tensor.clamp(min=floor) for name, tensor in f.items()}
            for w, f in zip(WEIGHTS, fishers, strict=True)
        ],
        RESIDUALS,
    )
    assert_equal(merge_residuals(RESIDUALS, "fisher", weights=WEIGHTS, statistics=fishers), expected)
    # The unit of F does not matter, nor the sum of the weights.
    scaled = [{name: 1e6 * tensor for name, tensor in fisher.items()} for fisher in fishers]
    assert_equal(merge_residuals(RESIDUALS, "fisher", weights=[5.0, 3.0, 2.0], statistics=scaled), expected)


def test_fisher_with_a_constant_of_other_codes_is_the_plain_mean_for_small_fishers():
    """Pitfall: a constant far above F drowns it; a floor relative to F cannot."""
    plain = mean(RESIDUALS, [1, 1, 1])
    drowned = merge_residuals(RESIDUALS, "fisher", statistics=FISHERS, relative=False, floor=0.0, add=1e-1)
    assert_equal(drowned, plain, rtol=1e-5, atol=1e-5)
    merged = merge_residuals(RESIDUALS, "fisher", statistics=FISHERS)
    assert (merged[UP] - plain[UP]).norm() > 0.3 * plain[UP].norm()


@pytest.mark.parametrize("normalize", ["model", "tensor"])
def test_fisher_normalises_by_the_norm_over_the_model_or_each_tensor(normalize):
    add = 1e-9
    precisions = []
    for weight, fisher in zip(WEIGHTS, FISHERS, strict=True):
        whole = torch.cat([tensor.flatten() for tensor in fisher.values()]).norm()
        norms = {name: whole if normalize == "model" else tensor.norm() for name, tensor in fisher.items()}
        precisions.append({name: weight * (tensor + add) / (norms[name] + add) for name, tensor in fisher.items()})
    options = {"floor": 0.0, "add": add, "relative": False, "normalize": normalize}
    merged = merge_residuals(RESIDUALS, "fisher", weights=WEIGHTS, statistics=FISHERS, **options)
    assert_equal(merged, quotient(precisions, RESIDUALS))


def test_fisher_of_some_parameters_leaves_the_weighted_mean_elsewhere():
    fishers = [{name: fisher[name] for name in (Q, UP)} for fisher in FISHERS]
    del fishers[0][UP]
    merged = merge_residuals(RESIDUALS, "fisher", weights=[5, 3, 2], statistics=fishers, **ABSOLUTE)
    plain = mean(RESIDUALS, WEIGHTS)
    weighted = [{name: w * t for name, t in f.items()} for w, f in zip(WEIGHTS, FISHERS, strict=True)]
    assert_equal(merged, plain | {Q: quotient(weighted, RESIDUALS)[Q]})


def test_fisher_that_is_zero_for_all_policies_gives_the_weighted_mean():
    fishers = [{name: tensor.clone() for name, tensor in fisher.items()} for fisher in FISHERS]
    for fisher in fishers:
        fisher[EMBEDDING][2] = 0.0
    merged = merge_residuals(RESIDUALS, "fisher", weights=WEIGHTS, statistics=fishers, **ABSOLUTE)
    torch.testing.assert_close(merged[EMBEDDING][2], mean(RESIDUALS, WEIGHTS)[EMBEDDING][2])
    assert merged[EMBEDDING].isfinite().all()
    zero = [{name: torch.zeros_like(tensor) for name, tensor in FISHERS[0].items()}] * 3
    for normalize in (None, "model", "tensor"):
        merged = merge_residuals(RESIDUALS, "fisher", weights=WEIGHTS, statistics=zero, normalize=normalize)
        assert_equal(merged, mean(RESIDUALS, WEIGHTS))


def test_fisher_of_another_base_is_the_same_mean_of_weights():
    base = randn(30, shapes=SHAPES)
    shifted = [{name: tau[name] + base[name] for name in tau} for tau in RESIDUALS]
    merged = merge_residuals(RESIDUALS, "fisher", statistics=FISHERS)
    expected = {name: tensor + base[name] for name, tensor in merged.items()}
    assert_equal(merge_residuals(shifted, "fisher", statistics=FISHERS), expected)


def with_tensor(name: str, tensor: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor}] * 3


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "needs the Fisher diagonal of each policy, got 0 sets for 3 policies; .*`rlhf-lines fisher`"),
        ({"statistics": with_tensor("q_proj", torch.ones(4))}, "no parameter has .* such as 'model.embed"),
        ({"statistics": with_tensor(NORM, torch.ones(5))}, r"policy 1 has shape \(5,\) for .* have \(4,\)"),
        ({"statistics": with_tensor(NORM, -torch.ones(4))}, "policy 1 has values below 0 or not finite in"),
        ({"statistics": with_tensor(NORM, torch.full((4,), float("nan")))}, "below 0 or not finite"),
        ({"statistics": FISHERS, "weights": [1, -1, 1]}, "'fisher' is a weighted mean and needs weights of"),
        ({"statistics": FISHERS, "normalize": "row"}, "unknown normalize 'row'; known: model, tensor"),
        ({"statistics": FISHERS, "floor_on": "last"}, "unknown floor_on 'last'; known: all, first"),
        ({"statistics": FISHERS, "relative": "no"}, "relative is 'no', expected true or false"),
        ({"statistics": FISHERS, "relative": 1}, "relative is 1, expected true or false"),
        ({"statistics": FISHERS, "floor": -1.0}, "floor is -1.0, expected a number at least 0"),
        ({"statistics": FISHERS, "add": 1e39}, r"add is 1e\+39, expected a number at least 0 that float32"),
    ],
)
def test_mistakes_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals(RESIDUALS, "fisher", **keywords)
