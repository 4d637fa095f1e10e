"""Fisher merging and RegMean: public numbers, and formulas written down a second time in float64."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from tests.merge.reference import WIDTHS, assert_case, plus_base, task_vectors, tensors


def diagonals(count: int, dtype) -> list[dict[str, torch.Tensor]]:
    return [tensors(f"fisher{k}", dtype) for k in range(count)]


def grams(dtype) -> list[dict[str, torch.Tensor]]:
    """The Gram matrices, which are stored by module, by parameter."""
    return [{f"{module}.weight": gram for module, gram in tensors(f"gram{k}", dtype).items()} for k in range(3)]


ABSOLUTE = {"floor": 0.0, "relative": False}


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


@pytest.mark.parametrize("dtype", WIDTHS)
def test_regmean_agrees_with_the_public_code(dtype):
    merged = merge_residuals(task_vectors(3, dtype), "regmean", statistics=grams(dtype), reduce=1.0)
    assert_case("regmean_n3", plus_base(merged))


SHAPES = {
    "model.embed_tokens.weight": (7, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 6),
    "model.norm.weight": (4,),
}
EMBEDDING, Q, UP, DOWN, NORM = SHAPES
LINEAR = (Q, UP, DOWN)


def randn(seed: int, shapes=SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def assert_equal(got, expected, rtol=1e-10, atol=1e-13) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def mean(residuals, weights) -> dict[str, torch.Tensor]:
    total = sum(weights)
    return {
        name: sum(w / total * residual[name] for w, residual in zip(weights, residuals, strict=True))
        for name in residuals[0]
    }


RESIDUALS = [randn(k) for k in range(3)]
FISHERS = [{name: 1e-8 * tensor**4 for name, tensor in randn(10 + k).items()} for k in range(3)]
WEIGHTS = [0.5, 0.3, 0.2]


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
    base = randn(30)
    shifted = [{name: tau[name] + base[name] for name in tau} for tau in RESIDUALS]
    merged = merge_residuals(RESIDUALS, "fisher", statistics=FISHERS)
    expected = {name: tensor + base[name] for name, tensor in merged.items()}
    assert_equal(merge_residuals(shifted, "fisher", statistics=FISHERS), expected)


# RegMean


def features(rows: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of each linear map, ``[rows, in]``, that are correlated."""
    drawn = [randn(20 + k, {name: (rows, SHAPES[name][1]) for name in LINEAR}) for k in range(3)]
    mixing = randn(40, {name: (SHAPES[name][1], SHAPES[name][1]) for name in LINEAR})
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
    inputs = randn(seed, {str(k): (40, 4) for k in range(3)}).values()
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
    ("rule", "keywords", "message"),
    [
        ("fisher", {}, "needs the Fisher diagonal of each policy, got 0 sets for 3 policies; .*`rlhf-lines fisher`"),
        ("regmean", {}, "needs Gram matrices of each policy, got 0 sets for 3 policies; .*`rlhf-lines gram`"),
        ("fisher", {"statistics": with_tensor("q_proj", torch.ones(4))}, "no parameter has .* such as 'model.embed"),
        ("fisher", {"statistics": with_tensor(NORM, torch.ones(5))}, r"policy 1 has shape \(5,\) for .* have \(4,\)"),
        ("fisher", {"statistics": with_tensor(NORM, -torch.ones(4))}, "policy 1 has values below 0 or not finite in"),
        ("fisher", {"statistics": with_tensor(NORM, torch.full((4,), float("nan")))}, "below 0 or not finite"),
        ("fisher", {"statistics": FISHERS, "weights": [1, -1, 1]}, "'fisher' is a weighted mean and needs weights of"),
        ("fisher", {"statistics": FISHERS, "normalize": "row"}, "unknown normalize 'row'; known: model, tensor"),
        ("fisher", {"statistics": FISHERS, "floor_on": "last"}, "unknown floor_on 'last'; known: all, first"),
        ("fisher", {"statistics": FISHERS, "relative": "no"}, "relative is 'no', expected true or false"),
        ("fisher", {"statistics": FISHERS, "relative": 1}, "relative is 1, expected true or false"),
        ("fisher", {"statistics": FISHERS, "floor": -1.0}, "floor is -1.0, expected a number at least 0"),
        ("fisher", {"statistics": FISHERS, "add": 1e39}, r"add is 1e\+39, expected a number at least 0 that float32"),
        ("regmean", {"statistics": with_tensor(UP, torch.eye(6))}, r"stored \[in, out\] \(Conv1D of GPT-2\) are not"),
        ("regmean", {"statistics": with_tensor(UP, torch.eye(5))}, r"is \(5, 5\), the residual is \(6, 4\); expected"),
        ("regmean", {"statistics": with_tensor(NORM, torch.eye(4))}, r"the residual is \(4,\); expected \[in, in\]"),
        ("regmean", {"statistics": with_tensor(UP, -torch.eye(4))}, "not finite, or negative ones on the diagonal"),
        ("regmean", {"statistics": with_tensor(UP, off_diagonal(float("nan")))}, "not finite, or negative ones on"),
        ("regmean", {"statistics": with_tensor(UP, off_diagonal(2.0)), "reduce": 1}, "have negative eigenvalues"),
        (
            "regmean",
            {"statistics": with_tensor(UP, torch.eye(4)), "reduce": 2},
            "reduce is 2, expected a number between",
        ),
        (
            "regmean",
            {"statistics": with_tensor(UP, torch.eye(4)), "weights": [-1, 1, 1]},
            "'regmean' is a weighted mean",
        ),
    ],
)
def test_mistakes_are_named(rule, keywords, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals(RESIDUALS, rule, **keywords)
