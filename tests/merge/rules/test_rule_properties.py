"""What holds of rules whatever the numbers; `cases.py` says what does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lines.merge.rules import RULES, merge_lazily
from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from rlhf_lines.merge.tensors.spans import ELEMENTS
from tests.merge.rules.cases import CASES, OPTIONS, Case, options_needed


# One has no dimensions, one no elements; some rules turn embeddings.
SHAPES = {
    "layers.0.a.b": (41, 13),
    "embed_tokens": (11, 6),
    "lm_head": (11, 6),
    "layers.1.v": (29,),
    "layers.2.c": (3, 4, 5),
    "norm": (),
    "layers.3.e": (0, 7),
}
LONGER = {"layers.1.w": (1030, 257), **SHAPES}  # than a chunk
assert math.prod(LONGER["layers.1.w"]) > ELEMENTS
WIDTHS = [torch.float32, torch.float64]
Tensors = dict[str, torch.Tensor]


def drawn(seed: int, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def given(case: Case, dtype: torch.dtype = torch.float32, shapes=SHAPES) -> dict[str, Any]:
    """What the case merges: heavy-tailed residuals with a part in common, two of which lack a parameter."""
    shared, *own = (drawn(k, dtype, shapes) for k in range(case.count + 1))
    residuals = [{name: x[name] ** 3 + shared[name] ** 3 / 2 for name in shapes} for x in own]
    del residuals[0]["layers.2.c"], residuals[1]["lm_head"]
    kind, statistics = RULES[case.rule].statistics, []
    if kind and kind.of_linear_maps:
        maps = [name for name, shape in shapes.items() if len(shape) == 2 and all(shape) and "embed" not in name]
        features = {name: (2 * shapes[name][1], shapes[name][1]) for name in maps}
        inputs = [drawn(20 + k, dtype, features) for k in range(case.count)]
        statistics = [{name: x.T @ x / len(x) for name, x in tensors.items()} for tensors in inputs]
    elif kind:
        statistics = [{name: x**2 for name, x in drawn(20 + k, dtype, shapes).items()} for k in range(case.count)]
        for k, diagonal in enumerate(statistics):
            diagonal["layers.1.v"][k:] = 0.0
    return {"residuals": residuals, "sft": drawn(99, dtype, shapes), "statistics": statistics}


def changed(held: dict[str, Any], change, *kinds: str) -> dict[str, Any]:
    """The same with a change of every mapping from names to tensors, or of those of some kinds."""
    new = {kind: change(x) if isinstance(x, dict) else [change(tensors) for tensors in x] for kind, x in held.items()}
    return {kind: new[kind] if kind in (kinds or held) else held[kind] for kind in held}


def merged_by(case: Case, held: dict[str, Any], weights=(), *, workers: int = 1, elements: int = ELEMENTS) -> Tensors:
    """tau_M of every parameter."""
    residuals = replace(residuals_in_memory(**held, elements=elements), workers=workers)
    weights = case.weights() if weights == () else weights
    merged = merge_lazily(residuals, case.rule, weights=weights, **case.options)
    return {name: merged.tensor(name) for name in residuals.shapes}


def assert_same(got: Tensors, expected: Tensors, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def of_cases(*but_not: str):
    """Run a test on the cases that have a property, or on all."""
    return pytest.mark.parametrize("case", [case for case in CASES if not {*but_not} & {*case.but_not}], ids=str)


def with_one_hot(kind: str):
    return pytest.mark.parametrize("case", [case for case in CASES if case.one_hot == kind], ids=str)


@of_cases()
def test_how_residuals_are_read_does_not_change_a_bit(case, monkeypatch):
    """Three threads, parameters in another order, small chunks, and a search for quantiles instead of a sort."""
    held = given(case, shapes=LONGER)
    expected = merged_by(case, held)
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == LONGER
    assert all(tensor.isfinite().all() for tensor in expected.values())
    assert_same(merged_by(case, held, workers=3), expected)
    assert_same(merged_by(case, changed(held, lambda tensors: dict(reversed(tensors.items())))), expected)
    monkeypatch.setattr(order, "DIRECT", 0)
    assert_same(merged_by(case, held, workers=3, elements=1000), expected)


@of_cases()
@pytest.mark.parametrize("dtype", WIDTHS)
def test_chunks_of_seven_do_not_change_a_bit(case, dtype, monkeypatch):
    held = given(case, dtype)
    expected = merged_by(case, held)
    assert_same(merged_by(case, held, elements=7), expected)
    monkeypatch.setattr(order, "DIRECT", 0)
    backwards = changed(held, lambda tensors: dict(reversed(tensors.items())))
    assert_same(merged_by(case, backwards, workers=3, elements=7), expected)


@of_cases("threads")
def test_threads_of_torch_do_not_change_a_bit(case, set_threads):
    set_threads(1)
    expected = merged_by(case, given(case, shapes=LONGER))
    set_threads(4)
    assert_same(merged_by(case, given(case, shapes=LONGER)), expected)


@of_cases()
@pytest.mark.parametrize("dtype", WIDTHS)
def test_inputs_stay_as_they_are(case, dtype):
    held, fresh = given(case, dtype), given(case, dtype)
    merged_by(case, held)
    assert_same(held["sft"], fresh["sft"])
    for kind in ("residuals", "statistics"):
        for used, unused in zip(held[kind], fresh[kind], strict=True):
            assert_same(used, unused)


@of_cases()
def test_names_do_not_matter_where_nothing_is_random(case):
    """Only DARE looks at names; all other rules treat a renamed parameter alike."""
    held = given(case)
    renamed = changed(held, lambda tensors: {name.replace("a.b", "z"): x for name, x in tensors.items()})
    same = torch.equal(merged_by(case, renamed)["layers.0.z"], merged_by(case, held)["layers.0.a.b"])
    assert same == ("names" not in case.but_not)


@of_cases("factor")
def test_a_factor_on_all_residuals_is_one_on_the_result(case):
    # Powers of two, so that nothing rounds.
    def smaller(tensors: Tensors) -> Tensors:
        return {name: x * 2.0**-20 for name, x in tensors.items()}

    held = given(case)
    assert_same(merged_by(case, changed(held, smaller, "residuals")), smaller(merged_by(case, held)))


@of_cases()
def test_a_factor_for_every_parameter_is_one_on_its_result_only_where_a_rule_says_so(case):
    """So that LiNeS before such a rule, which is refused, is LiNeS after it."""
    factors = {name: 2.0**power for power, name in enumerate(SHAPES, start=-3)}

    def scaled(tensors: Tensors) -> Tensors:
        return {name: x * factors[name] for name, x in tensors.items()}

    held = given(case)
    before = merged_by(case, changed(held, scaled, "residuals"))
    after = scaled(merged_by(case, held))
    same = all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert same != RULES[case.rule].takes_lines_before(case.options)


@of_cases("sign")
def test_the_opposite_residuals_give_the_opposite(case):
    def opposite(tensors: Tensors) -> Tensors:
        return {name: -x for name, x in tensors.items()}

    held = given(case)
    assert_same(merged_by(case, changed(held, opposite, "residuals")), opposite(merged_by(case, held)))


@of_cases()
def test_order_of_policies_matters_only_to_rules_that_say_so(case):
    held = given(case, torch.float64)
    expected = merged_by(case, held)
    for places in [[1, 0]] if case.count == 2 else [[1, 0, 2], [2, 0, 1]]:
        options = dict(case.options)
        for name in ("thresholds", "factors", "outside"):  # one of each policy
            if isinstance(options.get(name), list):
                options[name] = [options[name][k] for k in places]
        turned = {kind: [x[k] for k in places] if isinstance(x, list) and x else x for kind, x in held.items()}
        got = merged_by(replace(case, options=options), turned, [case.weights()[k] for k in places])
        if "order" not in case.but_not:
            assert_same(got, expected, rtol=1e-10, atol=1e-12)
        else:
            both = [torch.cat([tau[name].flatten() for name in ("layers.0.a.b", "lm_head")]) for tau in (got, expected)]
            assert (both[0] - both[1]).norm() > 0.02 * both[1].norm()


@of_cases()
def test_zero_weights_are_the_sft_model(case):
    merged = merged_by(case, given(case), [0.0] * case.count)
    assert all(tensor.count_nonzero() == 0 for tensor in merged.values())


@of_cases("untouched")
@pytest.mark.parametrize("k", [0, 1])
def test_one_hot_weights_leave_alone_what_that_policy_does(case, k):
    merged = merged_by(case, given(case), [float(j == k) for j in range(case.count)])
    assert all(tensor.isfinite().all() for tensor in merged.values())
    assert not merged["layers.2.c" if k == 0 else "lm_head"].any()
    # Consensus keeps what two policies agree on.
    assert any(tensor.any() for tensor in merged.values()) == (case.rule != "consensus")


@with_one_hot("bits")
@pytest.mark.parametrize("k", [0, 1])
def test_one_hot_weights_are_that_policy(case, k):
    held = given(case)
    merged = merged_by(case, held, [float(j == k) for j in range(case.count)])
    assert_same({name: merged[name] for name in held["residuals"][k]}, held["residuals"][k])


@with_one_hot("close")
@pytest.mark.parametrize("k", [0, 1])
def test_one_hot_weights_are_that_policy_up_to_rounding(case, k):
    """OPCM scales to the mean norm, which is that of 3 tau / 3."""
    held = given(case, torch.float64)
    merged = merged_by(case, held, [float(j == k) for j in range(case.count)])
    assert_same({name: merged[name] for name in held["residuals"][k]}, held["residuals"][k], rtol=1e-12, atol=1e-15)


@with_one_hot("alone")
def test_one_hot_weights_are_what_the_rule_makes_of_that_policy(case):
    held = given(case)
    merged = merged_by(case, held, [0.0, 1.0, 0.0])
    # The preference factor of three equal policies is 3.
    three = [{name: 3 * x for name, x in held["residuals"][1].items()} | {"lm_head": torch.zeros(SHAPES["lm_head"])}]
    assert_same(merged, merged_by(replace(case, count=1), held | {"residuals": three}, [1.0]))


@of_cases()
def test_equal_weights_are_no_weights(case):
    held = given(case, torch.float64)
    equal = merged_by(case, held, [1 / case.count] * case.count)
    # Half and half is exact.
    tolerance = {} if case.count == 2 else {"rtol": 1e-12, "atol": 1e-15}
    assert_same(equal, merged_by(case, held, None), **tolerance)


@pytest.mark.parametrize("rule", OPTIONS)
def test_equal_weights_of_two_are_no_weights_bit_for_bit(rule):
    case = Case(rule, OPTIONS[rule], count=2)
    for each in (case, Case(rule, options_needed(rule), count=2)):  # half and half is exact
        held = given(each)
        assert_same(merged_by(each, held, [0.5, 0.5]), merged_by(each, held, None))
