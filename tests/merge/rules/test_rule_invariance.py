"""What the rules on balance, projection, columns and statistics give however their residuals are read and ordered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_lines.merge import merge_residuals
from rlhf_lines.merge.rules import merge_lazily
from rlhf_lines.merge.tensors import order_statistics as order
from rlhf_lines.merge.tensors.residuals import residuals_in_memory


SHAPES = {
    "model.embed_tokens.weight": (11, 6),
    "model.layers.0.self_attn.q_proj.weight": (6, 6),
    "model.layers.0.mlp.up_proj.weight": (9, 6),
    "model.layers.0.mlp.down_proj.weight": (6, 9),
    "model.layers.0.mlp.experts.weight": (2, 4, 6),
    "model.norm.weight": (6,),
    "model.scale": (),
    "lm_head.weight": (11, 6),
}
LINEAR = [name for name, shape in SHAPES.items() if len(shape) == 2 and "embed" not in name]
RULES = {
    "pcb": {"ratio": 0.3, "clamp": 0.02},
    "pcb clamped": {"ratio": 0.3, "clamp": 0.02, "balance": "clamped"},
    "opcm": {"energy": 0.4},
    "widen": {"ratio": 1.1, "calibration": 0.8},
    "fisher": {},
    "fisher model": {"floor": 0.1, "floor_on": "first", "add": 0.01, "normalize": "model"},
    "fisher tensor": {"normalize": "tensor"},
    "regmean": {"reduce": 0.5},
}
WEIGHTS = [0.5, 0.3, 0.2]


def randn(seed: int, shapes=SHAPES, scale: float = 1.0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: (scale * tensor).to(dtype) for name, tensor in drawn.items()}


def inputs(rule: str, dtype=torch.float32, scale: float = 0.1) -> dict:
    """Three residuals, the SFT model and the statistics of a rule, as keywords of merge_residuals."""
    statistics = []
    if rule == "fisher":
        statistics = [{name: tensor.square() for name, tensor in randn(20 + k, dtype=dtype).items()} for k in range(3)]
        for k in range(3):
            statistics[k]["model.norm.weight"][k:] = 0.0
    if rule == "regmean":
        features = {name: (30, SHAPES[name][1]) for name in LINEAR}
        drawn = [randn(20 + k, features, dtype=dtype) for k in range(3)]
        statistics = [{name: x.T @ x / 30 for name, x in tensors.items()} for tensors in drawn]
    residuals = [randn(k, scale=scale, dtype=dtype) for k in range(3)]
    del residuals[1]["lm_head.weight"]  # a policy that leaves a parameter alone
    return {"residuals": residuals, "sft": randn(10, dtype=dtype), "statistics": statistics}


def merge(case: str, weights=WEIGHTS, **given) -> dict[str, torch.Tensor]:
    return merge_residuals(rule=case.split()[0], weights=weights, **given, **RULES[case])


def assert_same(left, right, **tolerance) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], **tolerance)


EXACT = {"rtol": 0.0, "atol": 0.0}


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_how_residuals_are_read_does_not_matter(case, dtype, monkeypatch):
    """Bit for bit: pieces of 7 elements, three threads, parameters in another order, a search instead of a sort."""
    given = inputs(case.split()[0], dtype)
    whole = merge(case, **given)
    assert all(tensor.isfinite().all() for tensor in whole.values())
    monkeypatch.setattr(order, "DIRECT", 0)
    backwards = [dict(reversed(residual.items())) for residual in given.pop("residuals")]
    small = replace(residuals_in_memory(backwards, elements=7, **given), workers=3)
    merged = merge_lazily(small, case.split()[0], weights=WEIGHTS, **RULES[case])
    assert_same({name: merged.tensor(name) for name in whole}, whole, **EXACT)


@pytest.mark.parametrize("case", RULES)
def test_inputs_are_not_changed(case):
    given, fresh = (inputs(case.split()[0], torch.float64) for _ in range(2))
    merge(case, **given)
    assert_same(given["sft"], fresh["sft"], **EXACT)
    for kind in ("residuals", "statistics"):
        for used, unused in zip(given[kind], fresh[kind], strict=True):
            assert_same(used, unused, **EXACT)


@pytest.mark.parametrize("case", RULES)
def test_order_of_policies_matters_only_to_rules_that_say_so(case):
    given = inputs(case.split()[0], torch.float64)
    merged = merge(case, **given)
    turned = [2, 0, 1]
    for kind in ("residuals", "statistics"):
        given[kind] = [given[kind][k] for k in turned] if given[kind] else []
    other = merge(case, weights=[WEIGHTS[k] for k in turned], **given)
    if case in ("opcm", "fisher model"):  # sequential; a floor on the first policy alone
        assert merged.keys() == other.keys()
        both = torch.stack([torch.cat([tau[name].flatten() for name in LINEAR]) for tau in (merged, other)])
        assert (both[0] - both[1]).norm() > 0.02 * both[0].norm()
    else:
        assert_same(merged, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in RULES if case.split()[0] in ("opcm", "fisher", "regmean")])
def test_doubled_residuals_give_the_doubled_merge_bit_for_bit(case):
    given = inputs(case.split()[0])
    once = merge(case, **given)
    given["residuals"] = [{name: 2 * tau for name, tau in residual.items()} for residual in given["residuals"]]
    assert_same(merge(case, **given), {name: 2 * tensor for name, tensor in once.items()}, **EXACT)


def test_widen_is_homogeneous_in_residuals_and_base_together():
    given = inputs("widen")
    once = merge("widen", **given)
    given["residuals"] = [{name: 2 * tau for name, tau in residual.items()} for residual in given["residuals"]]
    given["sft"] = {name: 2 * tensor for name, tensor in given["sft"].items()}
    twice = merge("widen", **given)
    for name in [*LINEAR, "model.embed_tokens.weight"]:  # vectors are scored by their size itself
        assert torch.equal(twice[name], 2 * once[name])


@pytest.mark.parametrize("case", ["pcb", "pcb clamped"])
def test_pcb_is_homogeneous_where_tanh_is_linear(case):
    # tanh(x) is x up to x^2/3, and x is below 1e-5 here.
    small = merge(case, **inputs("pcb", torch.float64, scale=1e-6))
    smaller = merge(case, **inputs("pcb", torch.float64, scale=1e-8))
    assert_same(small, {name: 100 * tensor for name, tensor in smaller.items()}, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("case", RULES)
def test_equal_weights_are_no_weights(case):
    given = inputs(case.split()[0], torch.float64)
    assert_same(merge(case, weights=[1 / 3] * 3, **given), merge(case, weights=None, **given), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
def test_policies_without_weight_leave_finite_values(case, weights):
    merged = merge(case, weights=weights, **inputs(case.split()[0]))
    assert all(tensor.isfinite().all() for tensor in merged.values())
    # What policy 2 lacks, no policy changes.
    assert not merged["lm_head.weight"].any()
    assert any(tensor.any() for tensor in merged.values()) == any(weights)


@pytest.mark.parametrize("case", ["opcm", "fisher", "fisher tensor", "regmean"])
def test_one_hot_weights_give_that_policy(case):
    """OPCM scales to the mean norm, which is that of 3 tau / 3."""
    given = inputs(case.split()[0], torch.float64)
    merged = merge(case, weights=[0.0, 1.0, 0.0], **given)
    expected = given["residuals"][1] | {"lm_head.weight": torch.zeros(11, 6, dtype=torch.float64)}
    assert_same(merged, {name: expected[name] for name in merged}, rtol=1e-12, atol=1e-15)
