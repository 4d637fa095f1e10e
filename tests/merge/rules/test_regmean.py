"""RegMean: public numbers, and least squares by other means."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors
from tests.merge.rules.means import LINEAR, RESIDUALS, SHAPES, mean
from tests.merge.rules.one_layer import DOWN, NORM, UP, WEIGHTS, Q, assert_equal, randn


def grams(dtype) -> list[dict[str, torch.Tensor]]:
    """The Gram matrices, which are stored by module, by parameter."""
    return [{f"{module}.weight": gram for module, gram in tensors(f"gram{k}", dtype).items()} for k in range(3)]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_regmean_agrees_with_the_public_code(dtype):
    merged = merge_residuals(task_vectors(3, dtype), "regmean", statistics=grams(dtype), reduce=1.0)
    assert_case("regmean_n3", plus_base(merged))


def features(rows: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of each linear map, ``[rows, in]``, that are correlated."""
    drawn = [randn(20 + k, shapes={name: (rows, SHAPES[name][1]) for name in LINEAR}) for k in range(3)]
    mixing = randn(40, shapes={name: (SHAPES[name][1], SHAPES[name][1]) for name in LINEAR})
    return [{name: x @ mixing[name] for name, x in inputs.items()} for inputs in drawn]


def grams_of(inputs) -> list[dict[str, torch.Tensor]]:
    return [{name: x.T @ x / len(x) for name, x in tensors.items()} for tensors in inputs]


@pytest.mark.parametrize("weights", [None, WEIGHTS, [5.0, 3.0, 2.0]])
def test_regmean_is_the_least_squares_fit_of_the_policies_outputs(weights):
    inputs = features(40)
    merged = merge_residuals(RESIDUALS, "regmean", weights=weights, statistics=grams_of(inputs), reduce=1.0)
    expected = mean(RESIDUALS, weights or [1, 1, 1])
    for name in LINEAR:
        rows = [w**0.5 * x[name] for w, x in zip(weights or [1, 1, 1], inputs, strict=True)]
        outputs = [x @ tau[name].T for x, tau in zip(rows, RESIDUALS, strict=True)]
        expected[name] = torch.linalg.lstsq(torch.cat(rows), torch.cat(outputs)).solution.T
    assert_equal(merged, expected, rtol=1e-9, atol=1e-12)
    changed = [name for name in LINEAR if not torch.allclose(merged[name], mean(RESIDUALS, weights or [1, 1, 1])[name])]
    assert changed == list(LINEAR)


def test_weights_that_are_stored_the_other_way_round_are_turned():
    """Square ones among them, whose Gram matrices fit both ways."""
    assert SHAPES[Q] == (4, 4)

    def turned(tensors):
        return {name: tensor.T.contiguous() if name in LINEAR else tensor for name, tensor in tensors.items()}

    settings = {"weights": WEIGHTS, "statistics": grams_of(features(40)), "reduce": 0.9}
    merged = merge_residuals(list(map(turned, RESIDUALS)), "regmean", **settings, transposed=LINEAR)
    assert_equal(turned(merged), merge_residuals(RESIDUALS, "regmean", **settings))


@pytest.mark.parametrize("options", [{}, {"reduce": 0.9}, {"reduce": 0.0}])
def test_regmean_reduces_what_is_off_the_diagonal(options):
    factor = options.get("reduce", 0.1)
    grams = grams_of(features(40))
    expected = mean(RESIDUALS, [1, 1, 1])
    for name in LINEAR:
        off = 1 - torch.eye(SHAPES[name][1], dtype=torch.float64)
        reduced = [gram[name] * (1 - (1 - factor) * off) for gram in grams]
        right = sum(gram @ tau[name].T for gram, tau in zip(reduced, RESIDUALS, strict=True))
        expected[name] = (torch.linalg.inv(sum(reduced)) @ right).T
    assert_equal(merge_residuals(RESIDUALS, "regmean", statistics=grams, **options), expected, rtol=1e-9, atol=1e-12)


def test_regmean_with_equal_grams_is_the_weighted_mean():
    plain = mean(RESIDUALS, WEIGHTS)
    identity = {name: torch.eye(SHAPES[name][1], dtype=torch.float64) for name in LINEAR}
    for gram in (identity, grams_of(features(40))[0]):
        assert_equal(merge_residuals(RESIDUALS, "regmean", weights=WEIGHTS, statistics=[gram] * 3), plain)


def test_regmean_gives_the_mean_in_directions_that_no_policy_has_seen():
    """Fewer tokens than inputs: the minimum-norm solution for the difference to the mean."""
    grams = grams_of(features(1))
    for gram in grams:
        gram[DOWN][:, 2] = gram[DOWN][2] = 0.0  # an input that is always zero
        gram[UP] = torch.zeros(4, 4, dtype=torch.float64)
    merged = merge_residuals(RESIDUALS, "regmean", statistics=grams, reduce=1.0)
    expected = mean(RESIDUALS, [1, 1, 1])
    for name in (Q, DOWN):
        right = sum(g[name] @ (tau[name] - expected[name]).T for g, tau in zip(grams, RESIDUALS, strict=True))
        expected[name] = expected[name] + (torch.linalg.pinv(sum(g[name] for g in grams), rtol=1e-9) @ right).T
    # The ridge is 1e-8 of the mean of the eigenvalues.
    assert_equal(merged, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_regmean_sees_inputs_that_depend_on_each_other_through_rounding(seed):
    """Cholesky may succeed on rounding alone, if the last pivot comes out as 1e-16 and not below zero."""
    inputs = randn(seed, shapes={str(k): (40, 4) for k in range(3)}).values()
    for x in inputs:
        x[:, 3] = x[:, :3].sum(1)
    grams = [{UP: x.T @ x} for x in inputs]
    expected = mean(RESIDUALS, [1, 1, 1])
    right = sum(g[UP] @ (tau[UP] - expected[UP]).T for g, tau in zip(grams, RESIDUALS, strict=True))
    expected[UP] = expected[UP] + (torch.linalg.pinv(sum(g[UP] for g in grams), rtol=1e-9) @ right).T
    merged = merge_residuals(RESIDUALS, "regmean", statistics=grams, reduce=1.0)
    assert_equal(merged, expected, rtol=1e-5, atol=1e-6)


def test_regmean_needs_grams_of_every_policy_for_a_parameter():
    grams = grams_of(features(40))
    whole = merge_residuals(RESIDUALS, "regmean", statistics=grams)
    del grams[1][UP]
    assert_equal(merge_residuals(RESIDUALS, "regmean", statistics=grams), whole | {UP: mean(RESIDUALS, [1, 1, 1])[UP]})


def off_diagonal(value: float) -> torch.Tensor:
    gram = torch.eye(4)
    gram[0, 1] = gram[1, 0] = value
    return gram


def with_tensor(name: str, tensor: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor}] * 3


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "needs Gram matrices of each policy, got 0 sets for 3 policies; .*`rlhf-lines gram`"),
        ({"statistics": with_tensor(UP, torch.eye(6))}, r"that of the outputs of \(6, 4\); expected \[in, in\]: name"),
        ({"statistics": with_tensor(UP, torch.eye(5))}, r"is \(5, 5\), the residual is \(6, 4\); expected"),
        ({"statistics": with_tensor(NORM, torch.eye(4))}, r"the residual is \(4,\); expected \[in, in\]"),
        ({"statistics": with_tensor(UP, -torch.eye(4))}, "not finite, or negative ones on the diagonal"),
        ({"statistics": with_tensor(UP, off_diagonal(float("nan")))}, "not finite, or negative ones on"),
        ({"statistics": with_tensor(UP, off_diagonal(2.0)), "reduce": 1}, "have negative eigenvalues"),
        ({"statistics": with_tensor(UP, torch.eye(4)), "reduce": 2}, "reduce is 2, expected a number between"),
        ({"statistics": with_tensor(UP, torch.eye(4)), "weights": [-1, 1, 1]}, "'regmean' is a weighted mean"),
    ],
)
def test_mistakes_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals(RESIDUALS, "regmean", **keywords)
