"""The compatibility rules give the numbers of the codes they imitate, and differ from the merge of residuals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec, merge_residuals
from rlhf_lines.merge.inputs.adapter import Adapter, Factors, load_adapter
from rlhf_lines.merge.lora.low_rank import merge_adapters
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.rules.factors import factor_average, peft_linear
from tests.merge.adapters import lora_residual
from tests.merge.reference import CASES, FOLDER, reference_adapters


WEIGHTS = (0.7, 0.3)
ON_FACTORS = {rule: entry.function for rule, entry in RULES.items() if entry.on_factors}


@pytest.fixture
def adapters(tmp_path) -> list[Adapter]:
    """The two LoRA policies of the reference vectors, in float64."""
    return reference_adapters(tmp_path)


def residual(factors: Factors) -> torch.Tensor:
    return factors.scale * (factors.B @ factors.A)


def narrow(adapter: Adapter) -> Adapter:
    modules = {m: Factors(f.A.float(), f.B.float(), f.scale) for m, f in adapter.modules.items()}
    return Adapter(adapter.path, modules)


def test_factor_average_is_every_tensor_of_rewarded_soups(adapters):
    expected = load_file(FOLDER / "rs_lora_factor_average_n2_l0.3.safetensors")
    got = {}
    for module, factors in factor_average(adapters, WEIGHTS).items():
        got[f"base_model.model.{module}.lora_A.weight"] = factors.A
        got[f"base_model.model.{module}.lora_B.weight"] = factors.B
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, **CASES["rs_lora_factor_average_n2_l0.3"]["tol"])


@pytest.mark.parametrize(
    ("rule", "case", "distance"),
    [
        ("factor_average", "rs_lora_factor_average_n2_l0.3_delta", 0.55),
        ("peft_linear", "peft_linear_n2_l0.3_delta", 0.85),
    ],
)
def test_residuals_are_those_of_the_reference(adapters, rule, case, distance):
    expected = load_file(FOLDER / f"{case}.safetensors")
    wide = merge_adapters(adapters, MergeSpec(rule, WEIGHTS), num_layers=6)
    assert {f"{module}.weight" for module in wide} == expected.keys()
    for module, factors in wide.items():
        assert factors.scale == 1.0 and factors.A.shape[0] == 4
        torch.testing.assert_close(residual(factors), expected[f"{module}.weight"], **CASES[case]["tol"])
    for module, factors in merge_adapters(
        [narrow(a) for a in adapters], MergeSpec(rule, WEIGHTS), num_layers=6
    ).items():
        assert factors.B.dtype == torch.float32
        torch.testing.assert_close(residual(factors).double(), expected[f"{module}.weight"], rtol=1e-5, atol=1e-6)
    # Pitfall: neither is the merge of residuals; methods.md section 2 records how far off they are on these factors.
    soup = merge_residuals([lora_residual(adapter) for adapter in adapters], weights=WEIGHTS)
    error = sum((soup[name] - expected[name]).square().sum() for name in soup).sqrt()
    size = sum(tensor.square().sum() for tensor in soup.values()).sqrt()
    assert (error / size).item() == pytest.approx(distance, abs=0.01)


@pytest.mark.parametrize("rule", ON_FACTORS)
def test_lines_scales_the_residual_once(adapters, rule):
    plain = merge_adapters(adapters, MergeSpec(rule, WEIGHTS), num_layers=6)
    scaled = merge_adapters(adapters, MergeSpec(rule, WEIGHTS, alpha=0.5, beta=1.0), num_layers=6)
    for module, factors in plain.items():
        layer = int(module.split(".")[2])
        torch.testing.assert_close(residual(scaled[module]), (0.5 + layer / 5) * residual(factors))


@pytest.mark.parametrize("rule", ON_FACTORS)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_one_hot_weights_return_the_policy(adapters, rule, weights):
    merged = merge_adapters(adapters, MergeSpec(rule, weights), num_layers=6)
    alone = lora_residual(adapters[weights.index(1.0)])
    for module, factors in merged.items():
        torch.testing.assert_close(residual(factors), alone[f"{module}.weight"])


def test_peft_linear_with_weights_of_both_signs_is_that_of_peft(sft, helpful, tmp_path, save_adapter):
    """The side of the sign changes the cross terms, so the oracle is PEFT itself; scales and modules differ too."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = save_adapter(sft, tmp_path / "other", seed=7, lora_alpha=3, target_modules=["q_proj", "down_proj"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), helpful, adapter_name="a")
    model.load_adapter(other, adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [1.4, -0.4], adapter_name="merged", combination_type="linear")
    expected = {
        name.removeprefix("base_model.model."): module.get_delta_weight("merged").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    got = peft_linear([load_adapter(helpful), load_adapter(other)], (1.4, -0.4))
    assert got.keys() == expected.keys()
    for module, tensor in expected.items():
        torch.testing.assert_close(residual(got[module]), tensor, rtol=1e-5, atol=1e-6)


def test_ranks_that_differ_between_modules_are_filled_with_zeros(sft, tmp_path, save_adapter):
    options = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    policies = [load_adapter(save_adapter(sft, tmp_path / f"p{k}", seed=k, **options)) for k in range(2)]
    for rule, combine in ON_FACTORS.items():
        merged = merge_adapters(policies, MergeSpec(rule, (0.5, 0.5)), num_layers=4)
        assert {factors.A.shape[0] for factors in merged.values()} == {4}
        for module, factors in combine(policies, (0.5, 0.5)).items():
            torch.testing.assert_close(residual(merged[module]), residual(factors), rtol=1e-5, atol=1e-6)


def changed(adapter: Adapter, **modules) -> Adapter:
    names = {"q": "model.layers.0.self_attn.q_proj", "k": "model.layers.0.self_attn.k_proj"}
    replaced = {**adapter.modules, **{names[key]: value for key, value in modules.items()}}
    return Adapter("other", {module: factors for module, factors in replaced.items() if factors is not None})


def test_adapters_that_do_not_fit_are_named(adapters):
    q = adapters[0].modules["model.layers.0.self_attn.q_proj"]
    thin = Factors(q.A[:2], q.B[:, :2], q.scale)
    louder = Factors(q.A, q.B, 3.0)
    with pytest.raises(ValueError, match=r"only adapter .*lora0' has 'model.layers.0.self_attn.k_proj', not 'other'"):
        factor_average([adapters[0], changed(adapters[1], k=None)], WEIGHTS)
    with pytest.raises(ValueError, match=r"only adapter .*lora1' has .*k_proj', not 'other'"):
        factor_average([changed(adapters[0], k=None), adapters[1]], WEIGHTS)
    with pytest.raises(ValueError, match=r"equal scales, but .*q_proj' has 2 in .* and 3 in 'other'; use rule linear"):
        factor_average([adapters[0], changed(adapters[1], q=louder)], WEIGHTS)
    for rule, combine in ON_FACTORS.items():
        with pytest.raises(ValueError, match=rf"{rule} adds up .*q_proj' has rank 4 .* and rank 2 .* in 'other'"):
            combine([adapters[0], changed(adapters[1], q=thin)], WEIGHTS)
        with pytest.raises(ValueError, match="3 weights for 2 policies"):
            merge_adapters(adapters, MergeSpec(rule, (1, 1, 1)), num_layers=6)


def test_they_are_rules_of_adapters_without_options():
    for rule in ON_FACTORS:
        with pytest.raises(ValueError, match=f"unknown option of rule '{rule}' 'density'"):
            MergeSpec(rule, (1,), options={"density": 0.2})
        with pytest.raises(ValueError, match="combines the factors of adapters, which residuals do not show"):
            merge_residuals([{"model.layers.0.a": torch.ones(1)}], rule)
