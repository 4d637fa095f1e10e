"""`merge_policies` with every rule, against the same merge of whole float64 tensors."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_lines.merge import MergeSpec, apply_lines, merge_policies
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.merge.tensors import order_statistics as order
from tests.merge.rules.cases import FIRST, OPTIONS
from tests.merge.rules.every_rule import (
    KINDS,
    NUM_LAYERS,
    ON_RESIDUALS,
    WEIGHTS,
    inputs_of,
    merged_residual,
    scaled_residual,
    spec_of,
    statistics_of,
    stored,
)


TOLERANCE = {"float64": 1e-12}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "merge_spec.json").read_text())


def test_no_rule_is_left_out():
    assert list(OPTIONS) == ON_RESIDUALS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_what_is_written_is_the_sft_model_plus_the_merged_residual(rule, kind, inputs, tmp_path):
    given, spec = inputs(kind), spec_of(rule)
    folders, statistics = statistics_of(rule, given, tmp_path)

    def merge(name: str, dtype: str | None) -> dict[str, torch.Tensor]:
        options = {"save": "dense", "dtype": dtype, "statistics": folders}
        return stored(merge_policies(given.sft, given.policies, spec, output_dir=tmp_path / name, **options))

    _, expected = scaled_residual(spec, given, statistics)
    # Consensus of two policies leaves out what one of them does not change.
    assert all(tensor.any() for tensor in expected.values()) or rule == "consensus"
    wide = merge("wide", "float64" if kind == "float64" else "float32")
    assert wide.keys() == given.theta.keys()
    tolerance = TOLERANCE.get(kind, 2e-6)
    for name, theta in given.theta.items():
        torch.testing.assert_close(
            wide[name].double(), theta + expected.get(name, 0), rtol=tolerance, atol=tolerance, msg=name
        )
    # The dtype of the SFT model is one cast away, and what no policy touches keeps its bits.
    stored_before = stored(given.sft)
    for name, tensor in merge("own dtype", None).items():
        assert torch.equal(tensor, wide[name].to(stored_before[name].dtype)), name
        assert name in expected or torch.equal(tensor, stored_before[name]), name


@pytest.mark.parametrize("kind", ["float32", "adapters"])
@pytest.mark.parametrize(("rule", "schedule"), zip(ON_RESIDUALS, itertools.cycle(SCHEDULES), strict=False))
def test_alpha_auto_is_measured_on_the_residuals_before_the_rule(kind, rule, schedule, inputs, tmp_path):
    """Also where a rule masks or scales what it merges, and where the merge stays an adapter."""
    given, spec = inputs(kind), spec_of(rule, alpha="auto", beta=0.7, schedule=schedule)
    folders, statistics = statistics_of(rule, given, tmp_path)
    adapter = kind == "adapters"
    out = merge_policies(
        given.sft,
        given.policies,
        spec,
        save="adapter" if adapter else "dense",
        rank=16 if adapter and not RULES[rule].is_linear else None,  # the width of the model, so nothing is truncated
        output_dir=tmp_path / "out",
        statistics=folders,
    )
    alpha, expected = scaled_residual(spec, given, statistics)
    assert record_of(out)["alpha"] == pytest.approx(alpha, rel=1e-6)
    assert record_of(out)["spec"]["alpha"] == "auto"
    got = inputs_of(given.sft, [out]).residuals[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=5e-6, msg=name)


@pytest.mark.parametrize("kind", ["float32", "adapters"])
@pytest.mark.parametrize("rule", [rule for rule in ON_RESIDUALS if RULES[rule].takes_lines_before(OPTIONS[rule])])
def test_lines_before_the_rule_scales_what_it_merges(rule, kind, inputs, tmp_path):
    """By `apply_lines` of whole float64 tensors; neither weights nor the statistics of a rule are scaled."""
    given = inputs(kind)
    folders, statistics = statistics_of(rule, given, tmp_path)
    spec = replace(spec_of(rule), lines="before")
    options = {"save": "dense", "dtype": "float32", "statistics": folders}
    out = merge_policies(given.sft, given.policies, spec, output_dir=tmp_path / "out", **options)
    scaled = [apply_lines(tau, spec.alpha, spec.beta, num_layers=NUM_LAYERS) for tau in given.residuals]
    expected = merged_residual(spec, replace(given, residuals=tuple(scaled)), statistics)
    _, after = scaled_residual(replace(spec, lines="after"), given, statistics)
    differing = max((expected[name] - tensor).abs().max().item() for name, tensor in after.items())
    assert differing > 1e-4 or kind == "adapters"  # whose zeros are more than some rules drop
    for name, tensor in stored(out).items():
        theta = given.theta[name]
        torch.testing.assert_close(tensor.double(), theta + expected.get(name, 0), rtol=2e-6, atol=2e-6, msg=name)
    assert record_of(out)["spec"]["lines"] == "before"
    assert "theta = theta_SFT + rule(LiNeS(tau_1), LiNeS(tau_2), ...)" in (out / "README.md").read_text()
    assert not (out / "mergekit.yaml").exists()


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("rule", [rule for rule in ON_RESIDUALS if not RULES[rule].is_linear])
def test_an_adapter_of_a_rank_is_the_truncated_svd_of_every_module(rule, rank, inputs, tmp_path, peft_logits, logits):
    from transformers import AutoModelForCausalLM

    given, spec = inputs("adapters"), spec_of(rule)
    folders, statistics = statistics_of(rule, given, tmp_path)
    options = {"save": "adapter", "rank": rank, "statistics": folders, "output_dir": tmp_path / "out"}
    out = merge_policies(given.sft, given.policies, spec, **options)
    _, residual = scaled_residual(spec, given, statistics)
    got = inputs_of(given.sft, [out]).residuals[0]
    assert got.keys() == residual.keys()
    shares, dropped, total = {}, 0.0, 0.0
    model = AutoModelForCausalLM.from_pretrained(given.sft, dtype=torch.float64).eval()
    for name, tau in residual.items():
        left, singular, right = torch.linalg.svd(tau, full_matrices=False)
        kept = (left[:, :rank] * singular[:rank]) @ right[:rank]
        torch.testing.assert_close(got[name], kept, rtol=1e-5, atol=5e-6, msg=name)
        size = singular.square().sum().item()
        shares[name] = (singular[rank:].square().sum().item() / size) ** 0.5 if size else 0.0
        dropped, total = dropped + singular[rank:].square().sum().item(), total + size
        model.get_parameter(name).data += kept
    found = record_of(out)["truncation"]
    assert found["rank"] == record_of(out)["rank"] == rank
    assert found["lost"] == pytest.approx((dropped / total) ** 0.5, rel=1e-5, abs=1e-9)
    assert found["worst_lost"] == pytest.approx(max(shares.values()), rel=1e-5, abs=1e-9)
    if rank == 2:
        assert found["lost"] > 0.1 and f"{found['worst_module']}.weight" == max(shares, key=shares.get)
    torch.testing.assert_close(peft_logits(given.sft, out).double(), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_the_order_of_policies_matters_only_where_a_rule_says_so(rule, inputs, tmp_path):
    given, spec = inputs("float32"), spec_of(rule)
    other = given.backwards()
    options = {key: value[::-1] if isinstance(value, list) else value for key, value in spec.options.items()}
    swapped = MergeSpec(rule, WEIGHTS[::-1], spec.alpha, spec.beta, options=options)
    got = []
    for name, (policies, asked) in {"one": (given, spec), "other": (other, swapped)}.items():
        folders, _ = statistics_of(rule, policies, tmp_path)
        options = {"save": "dense", "output_dir": tmp_path / name, "statistics": folders}
        got.append(stored(merge_policies(policies.sft, policies.policies, asked, **options)))
    differing = max((got[0][name] - got[1][name]).abs().max().item() for name in got[0])
    # OPCM goes through policies one after the other, DARE's masks belong to their numbers.
    assert differing > 1e-2 if "order" in FIRST[rule].but_not else differing < 1e-6


def test_names_of_layers_are_those_of_the_model(inputs):
    """The oracle scales by `apply_lines`; see that it has layers to scale and parameters beside them."""
    given = inputs("float32")
    merged = merged_residual(spec_of("linear"), given, [])
    layers = {name.split(".")[2] for name in merged if ".layers." in name}
    assert len(layers) == NUM_LAYERS and any(".layers." not in name for name in merged)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", ON_RESIDUALS)
@pytest.mark.parametrize("direct", [1, order.DIRECT])
def test_values_that_are_not_finite_are_refused_with_their_place(
    rule, value, direct, inputs, copy_of, tmp_path, monkeypatch
):
    """Also where the rule decomposes what is not finite, or searches among it."""
    monkeypatch.setattr(order, "DIRECT", direct)
    given = inputs("float32")
    policy = copy_of(given.policies[0], "broken")
    tensors = stored(policy)
    names = ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    for name in names:
        tensors[name].view(-1)[5] = value
    save_file(tensors, policy / "model.safetensors", metadata={"format": "pt"})
    policies = [policy, given.policies[1]]
    folders, _ = statistics_of(rule, replace(given, policies=tuple(policies)), tmp_path)
    options = {"save": "dense", "output_dir": tmp_path / "out", "statistics": folders}
    with pytest.raises(ValueError, match=r"^these have values that are not finite, there or in the SFT") as caught:
        merge_policies(given.sft, policies, spec_of(rule), **options)
    assert all(f"{name!r} of {str(policy)!r}" in str(caught.value) for name in names)
    assert str(given.policies[1]) not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rule", "total"), [("fisher", "39 parameters"), ("regmean", "29 linear maps")])
def test_a_merge_says_what_its_statistics_do_not_cover(rule, total, inputs, tmp_path):
    given, kind = inputs("float32"), RULES[rule].statistics
    folders, statistics = statistics_of(rule, given, tmp_path)  # one v_proj has none
    if kind.of_linear_maps:
        del statistics[1]["lm_head.weight"]
        save_file({n: t.float() for n, t in statistics[1].items()}, folders[1] / kind.file)
    missing = ["model.layers.0.self_attn.v_proj.weight", *(["lm_head.weight"] if kind.of_linear_maps else [])]
    could = [n for n, t in given.theta.items() if not kind.of_linear_maps or (t.ndim == 2 and "embed" not in n)]
    share = 1 - sum(given.theta[n].numel() for n in missing) / sum(given.theta[n].numel() for n in could)
    options = {"save": "dense", "statistics": folders}
    out = merge_policies(given.sft, given.policies, spec_of(rule), output_dir=tmp_path / "out", **options)
    covered = len(could) - len(missing)
    said = f"the statistics cover {covered} of {total} that the policies change ({share:.1%} of their elements); the"
    assert total.startswith(f"{len(could)} ")
    assert sum(warning.startswith(said) for warning in record_of(out)["warnings"]) == 1
    if not kind.of_linear_maps:  # all of them, and nothing is said
        for folder in folders:
            save_file({n: torch.ones(given.theta[n].shape) for n in could}, folder / kind.file)
        whole = merge_policies(given.sft, given.policies, spec_of(rule), output_dir=tmp_path / "whole", **options)
        assert not any("statistics cover" in warning for warning in record_of(whole)["warnings"])
