"""Every entry of the registry has its page, vector, source, plan; rules by hand, inputs untouched, mistakes named."""

from __future__ import annotations

import json
import re

import pytest
import torch

from rlhf_lines.merge import MergeSpec, merge_residuals, tall_masks
from rlhf_lines.merge.rules import RULES, merge_lazily
from rlhf_lines.merge.rules.profile import options_text
from rlhf_lines.merge.tensors.residuals import residuals_in_memory
from rlhf_lines.plan import Options, plan
from rlhf_lines.plan.merging import passes_over_inputs
from tests.merge.merge_page import PAGE, table
from tests.merge.reference import ORIGIN
from tests.merge.rules.cases import OPTIONS, options_needed
from tests.merge.rules.every_rule import ON_RESIDUALS, statistics_of


# The numbers of a public code that a rule is compared with; `test_vectors_covered.py` sees that it is.
REFERENCE = {
    "linear": "linear_interp_ft0_ft1_l0.3",
    "sum": "task_arithmetic_sum_n3_lam0.4",
    "layerwise": "lines_merged_sum_n3_b0.4",
    "slerp": "slerp_residual_per_tensor_n2_t0.3",
    "ties": "ties_mean_n3_k20",
    "ties_layerwise": "ties_sum_n3_k20",
    "dare": "dare_ta_n3_p0.8_lam0.5",
    "breadcrumbs": "breadcrumbs_n3_keep0.5_remove0.125",
    "consensus": "consensus_ta_n3_k2",
    "pcb": "pcb_n3_r0.1",
    "opcm": "opcm_n2_a0.5",
    "doge": "doge_ta_n3",
    "widen": "widen_n3_r1_c1",
    "twin": "twin_svd_n3_r3",
    "fisher": "fisher_n3",
    "ota": "ota_n3",
    "regmean": "regmean_n3",
    "factor_average": "rs_lora_factor_average_n2_l0.3",
    "peft_linear": "peft_linear_n2_l0.3_delta",
}


def test_the_page_has_every_rule():
    assert [row[0] for row in table("| `rule` |")] == ON_RESIDUALS
    below_adapters = PAGE.partition("\n## Adapters\n")[2].partition("\n## ")[0]
    assert all(f"`{rule}` (" in below_adapters for rule in RULES if rule not in ON_RESIDUALS)


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_the_row_of_a_rule_is_what_the_code_does(rule):
    (row,) = [row for row in table("| `rule` |") if row[0] == rule]
    *_, passes, in_memory, source = row
    assert passes == str(passes_over_inputs(MergeSpec(rule, (0.5, 0.5), options=options_needed(rule))))
    assert (in_memory == "tensor") == (RULES[rule].whole is not None)
    assert in_memory == unit_of_a_linear_map(rule)
    assert re.fullmatch(r"\d{4}\.\d{5}", source) and f"arXiv {source}" in RULES[rule].source


def unit_of_a_linear_map(rule: str) -> str:
    """What the rule reads whole of a linear map, with default options."""
    name = "model.layers.0.weight"
    taus = [{name: torch.eye(4) * factor} for factor in (1.0, 2.0)]
    statistics = taus if RULES[rule].statistics else ()
    residuals = residuals_in_memory(taus, sft=taus[0], statistics=statistics)
    unit = merge_lazily(residuals, rule, **options_needed(rule)).unit
    return unit if isinstance(unit, str) else unit(name)


def test_the_options_of_the_page_are_those_of_the_code():
    rows = table("| rule | option |")
    defaults = {(name, option): default for name, rule in RULES.items() for option, default in rule.options.items()}
    assert {(rule, option): json.loads(default) for rule, option, default, _ in rows} == defaults
    assert len(rows) == len(defaults)
    python_only = {(rule, option) for rule, option, _, meaning in rows if meaning.startswith("Python only")}
    assert python_only == {(name, option) for name, rule in RULES.items() for option in rule.python_only}


def test_every_rule_has_a_reference_vector():
    assert list(REFERENCE) == list(RULES)
    assert set(REFERENCE.values()) <= ORIGIN["cases"].keys()


@pytest.mark.parametrize("rule", RULES)
def test_the_source_in_the_card_is_that_of_the_docstring(rule):
    named = re.search(r"arXiv \d{4}\.\d{5}|PEFT", RULES[rule].source)
    assert named[0] in RULES[rule].function.__doc__


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_a_plan(rule, inputs, tmp_path):
    given, options = inputs("adapters"), options_needed(rule) if rule in OPTIONS else {}
    folders, _ = statistics_of(rule, given, tmp_path)
    policies = [given.policies[0]] * 2 if RULES[rule].on_factors else given.policies  # factors of one rank
    planned = plan(
        [
            *("--sft_model", str(given.sft), "--policies", *map(str, policies)),
            *("--rule", rule, *(["--rule_options", json.dumps(options)] if options else [])),
            *(["--statistics", *map(str, folders)] if folders else []),
            *("--save", "adapter" if RULES[rule].makes_adapter else "dense", "--output_dir", str(tmp_path / "out")),
        ],
        Options("merge"),
    )
    work, (phase,) = dict(planned.work), planned.phases
    assert work["rule"] == (f"{rule}, {options_text(options)}" if options else rule)
    # What stays in factors reads no residual.
    assert ("passes over the inputs" in work) != RULES[rule].makes_adapter
    assert (f"statistics for {rule}" in work) == (RULES[rule].statistics is not None)
    assert ("one whole parameter" in phase.parts) == (RULES[rule].whole is not None)


def two_residuals(dtype=torch.float64):
    return [
        {"a": torch.tensor([1.0, 2.0], dtype=dtype), "b": torch.tensor([[4.0]], dtype=dtype)},
        {"a": torch.tensor([3.0, -2.0], dtype=dtype), "c": torch.tensor([8.0], dtype=dtype)},
    ]


@pytest.mark.parametrize(
    ("rule", "weights", "expected"),
    [
        # linear: w_1 tau_1 + w_2 tau_2, equal weights 1/2 by default
        ("linear", None, {"a": [2.0, 0.0], "b": [[2.0]], "c": [4.0]}),
        ("linear", [0.25, 0.75], {"a": [2.5, -1.0], "b": [[1.0]], "c": [6.0]}),
        ("linear", [2.0, -1.0], {"a": [-1.0, 6.0], "b": [[8.0]], "c": [-8.0]}),
        ("linear", [0.0, 0.0], {"a": [0.0, 0.0], "b": [[0.0]], "c": [0.0]}),
        ("sum", None, {"a": [4.0, 0.0], "b": [[4.0]], "c": [8.0]}),
        # sum with weights: 2 (0.25 tau_1 + 0.75 tau_2)
        ("sum", [0.25, 0.75], {"a": [5.0, -2.0], "b": [[2.0]], "c": [12.0]}),
        ("sum", [0.5, 0.5], {"a": [4.0, 0.0], "b": [[4.0]], "c": [8.0]}),
    ],
)
def test_values_by_hand(rule, weights, expected):
    residuals = two_residuals()
    merged = merge_residuals(residuals, rule, weights=weights)
    assert {name: tensor.tolist() for name, tensor in merged.items()} == expected
    for residual, fresh in zip(residuals, two_residuals(), strict=True):
        assert residual.keys() == fresh.keys()
        assert all(torch.equal(residual[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_the_result_shares_no_memory_with_the_inputs(rule):
    residuals = [{f"layers.0.{name}": tensor for name, tensor in tau.items()} for tau in two_residuals()]
    # What some rules need, and the others do not look at; [[1.0]] is a Fisher diagonal and a Gram matrix alike.
    others = options_needed(rule) | {
        "sft": residuals[0] | residuals[1],
        "statistics": [{"layers.0.b": torch.ones(1, 1, dtype=torch.float64)}] * 2,
    }
    merge_residuals(residuals, rule, weights=[1.0, 0.0], **others)["layers.0.a"].add_(1)
    assert residuals[0]["layers.0.a"].tolist() == [1.0, 2.0]


def test_one_hot_weights_return_that_residual_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    residuals = [{"a": torch.randn(50, generator=generator)} for _ in range(3)]
    assert torch.equal(merge_residuals(residuals, weights=[0, 1, 0])["a"], residuals[1]["a"])


def test_order_does_not_matter_when_weights_move_along():
    first, second = two_residuals()
    left = merge_residuals([first, second], weights=[0.3, 0.7])
    right = merge_residuals([second, first], weights=[0.7, 0.3])
    assert all(torch.allclose(left[name], right[name], rtol=1e-15, atol=0) for name in left)


def test_narrow_residuals_are_merged_in_float32():
    # In bfloat16 1 + 2**-9 is 1: the second residual would vanish.
    residuals = [{"a": torch.ones(1, dtype=torch.bfloat16)}, {"a": torch.full((1,), 2.0**-9, dtype=torch.bfloat16)}]
    merged = merge_residuals(residuals, "sum")["a"]
    assert merged.dtype == torch.float32
    assert merged.item() == 1 + 2**-9


@pytest.mark.parametrize(
    ("rule", "keywords", "message"),
    [
        ("liner", {}, "unknown rule 'liner'; known: .*linear.*; did you mean 'linear'"),
        ("linear", {"weights": [1.0]}, "1 weight for 2 residuals"),
        ("linear", {"weights": [1.0, float("nan")]}, "expected finite numbers"),
        ("linear", {"density": 0.2}, "unknown option of rule 'linear' 'density'; known: none"),
        ("slerp", {"weights": [1.0, -0.5]}, r"slerp got the weights \[1.0, -0.5\], expected none below zero"),
        ("slerp", {"granularity": "row"}, "unknown granularity 'row'; known: global, tensor"),
        ("slerp", {"of": "angles"}, "unknown of 'angles'"),
        ("slerp", {"of": "weights"}, "needs the SFT model, and none was given"),
        ("slerp", {"dot_threshold": 2}, "dot_threshold is 2, expected a number between 0 and 1"),
        ("breadcrumbs", {"keep": 20}, "keep is 20, expected a number between 0 and 1"),
        ("breadcrumbs", {"remove": None}, "remove is None, expected a number between 0 and 1"),
        ("breadcrumbs", {"order": "removefirst"}, "unknown order 'removefirst'.*did you mean 'remove_first'"),
        ("linear", {"weights": [1e308, 1e308]}, r"expected finite numbers of at most 1.7e\+38 in size"),
        ("sum", {"weights": [2e38, 1.0]}, r"expected finite numbers of at most 1.7e\+38 in size"),
        ("breadcrumbs", {"scale": 1e308}, r"scale is 1e\+308, expected a number at least 0 that float32 holds"),
        ("breadcrumbs", {"scale": -1}, "scale is -1, expected a number at least 0"),
        ("breadcrumbs", {"granularity": "layer"}, "unknown granularity 'layer'; known: global, row, tensor"),
        ("twin", {"rank": 0}, "rank is 0, expected a whole number"),
        ("twin", {"shared": 0.3}, "shared is 0.3, but without a rank the merge is the same"),
        ("twin", {"shared": -0.1}, "shared is -0.1, expected a number at least 0"),
        (
            "twin",
            {"router": "5f"},
            "a router depend on the prompt, so no one model is this merge: leave out the router",
        ),
        ("consensus", {"k": 3}, "k is 3, expected a whole number between 0 and 2"),
        ("consensus", {"k": True}, "k is True, expected a whole number"),
        ("consensus", {"of": "mean"}, "unknown of 'mean'; known: sum, ties"),
        ("consensus", {"thresholds": [0.4]}, "1 threshold for 2 residuals"),
        ("consensus", {"thresholds": [0.4, -1]}, "a threshold is -1, expected a number at least 0"),
        ("consensus", {"thresholds": "0.4"}, "a threshold is '0.4', expected a number"),
        ("consensus", {"ties_options": [0.1]}, r"ties_options is \[0.1\], expected a mapping"),
        ("consensus", {"ties_options": {"density": 0.1}}, "only of=\"ties\" uses; of is 'sum'"),
        ("consensus", {"of": "ties", "ties_options": {"k": 1}}, "unknown option of rule 'ties' 'k'"),
    ],
)
def test_mistakes_are_named(rule, keywords, message):
    with pytest.raises(ValueError, match=message):
        merge_residuals(two_residuals(), rule, **keywords)


def test_ties_gives_cancelled_entries_the_sign_of_the_majority():
    first, second = torch.tensor([1.0, 2.0, 3.0, -4.0]), torch.tensor([-1.0, 2.0, 3.0, -4.0])
    for sign in (1, -1):
        residuals = [{"a": sign * first}, {"a": sign * second}]
        by_majority = merge_residuals(residuals, "ties", density=1)["a"]
        assert by_majority.tolist() == [sign * x for x in (1.0, 2.0, 3.0, -4.0)]
        assert merge_residuals(residuals, "ties", density=1, zero_sign="positive")["a"][0] == 1


def test_slerp_is_of_two_policies():
    with pytest.raises(ValueError, match="slerp merges two policies, got 3"):
        merge_residuals([{"a": torch.ones(2)}] * 3, "slerp")


def test_consensus_is_of_two_or_more_policies():
    for k in ({}, {"k": 1}):
        with pytest.raises(ValueError, match="consensus is of two or more policies, got 1"):
            merge_residuals([{"a": torch.ones(2)}], "consensus", **k)


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_residuals_without_parameters_give_none(rule):
    statistics = [{}, {}] if RULES[rule].statistics else []
    assert merge_residuals([{}, {}], rule, statistics=statistics, **options_needed(rule)) == {}


def test_tall_masks_by_hand():
    first, second = {"a": torch.tensor([1.0, 1.0, -1.0])}, {"b": torch.tensor([2.0])}
    merged = {"a": torch.tensor([3.0, 3.5, 1.0]), "b": torch.tensor([2.0])}
    # |1| > 0.4 |3 - 1|, not > 0.4 |3.5 - 1| (equal), |-1| > 0.4 |1 + 1|; a policy without `b` has zero there.
    masks = tall_masks([first, second], merged, [0.4, 0.2])
    assert {name: mask.tolist() for name, mask in masks[0].items()} == {"a": [True, False, True], "b": [False]}
    assert {name: mask.tolist() for name, mask in masks[1].items()} == {"a": [False, False, False], "b": [True]}
    assert all(mask.dtype == torch.bool for mask in masks[0].values())
    with pytest.raises(ValueError, match=r"the merged residual has shape None for 'b', a residual has \(1,\)"):
        tall_masks([first, second], {"a": merged["a"]}, 0.4)


def test_shapes_and_emptiness_are_checked():
    with pytest.raises(ValueError, match=r"'a' has shapes \(2,\) and \(1,\)"):
        merge_residuals([{"a": torch.ones(2)}, {"a": torch.ones(1)}])
    with pytest.raises(ValueError, match="no residuals"):
        merge_residuals([])
    with pytest.raises(ValueError, match="'a' has dtype int32"):
        merge_residuals([{"a": torch.ones(2, dtype=torch.int32)}])
