"""Specs that are no row of coefficients: the loaded model is the merged one, and the SFT model again afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.sweep.choices import GroupEntry
from rlhf_lines.sweep.engines.merged_weights import MergedWeights
from rlhf_lines.sweep.merges import Merges


IDS = torch.tensor([[5, 9, 14, 3, 22, 30, 4], [7, 8, 8, 19, 6, 33, 12]])
SPECS = [
    MergeSpec("ties", (0.3, 0.7), alpha=0.5, beta=1.0, options={"density": 0.4}),
    MergeSpec("dare", (0.5, 0.5), options={"drop_rate": 0.5, "seed": 7}),
    MergeSpec("dare", (0.2, 0.3, 0.5), beta=0.5, options={"drop_rate": 0.5, "seed": 8}),
    MergeSpec("slerp", (0.3, 0.7)),
    MergeSpec("factor_average", (0.3, 0.7), beta=1.0),
    MergeSpec("peft_linear", (0.3, 0.7), alpha=0.5, beta=1.0, schedule="sqrt"),
    MergeSpec("ties", (0.3, 0.7), alpha=0.5, beta=1.0, options={"density": 0.1}, lines="before"),
    MergeSpec("doge", (0.3, 0.7), alpha=2.0, options={"steps": 3}),
]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def merged_weights(model, sft, policies, groups=()) -> MergedWeights:
    return MergedWeights(model, Merges(sft, [load_adapter(policy) for policy in policies], groups))


@pytest.fixture
def model(sft):
    return AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def equal(sft, save_policy):
    """Policies of one rank and one set of modules, whose factors can be averaged."""
    return [save_policy(sft, sft.parent / f"equal_{seed}", seed=seed) for seed in (11, 12, 13)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.rule} {len(spec.weights)}")
def test_the_loaded_model_is_the_one_that_a_merge_writes(sft, equal, model, tmp_path, spec):
    merge_policies(sft, equal[: len(spec.weights)], spec, save="dense", output_dir=tmp_path / "merged")
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval())
    before = logits(model)
    assert (expected - before).abs().max() > 0.05
    with merged_weights(model, sft, equal).loaded(spec):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(model), before)


def test_policies_of_different_ranks_and_modules(sft, policies, model, dense_model):
    """One adapts the head, which lies outside the layers."""
    spec = MergeSpec("ties", (0.2, 0.3, 0.5), alpha=0.5, beta=1.0)
    with merged_weights(model, sft, policies).loaded(spec):
        torch.testing.assert_close(logits(model), logits(dense_model(spec)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rule", "options"), [("fisher", {}), ("ota", {"density": 0.5})])
def test_statistics_reach_their_rule(rule, options, sft, policies, model, tmp_path):
    from safetensors.torch import load_file, save_file

    sizes, folders = load_file(sft / "model.safetensors"), [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        importance = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in sizes.items()}
        save_file(importance, folder / "fisher.safetensors")
    spec, group = (
        MergeSpec(rule, (0.5, 0.5), options=options),
        GroupEntry("importance", rule, options, statistics=tuple(map(str, folders))),
    )
    merged = merge_policies(sft, policies[:2], spec, save="dense", output_dir=tmp_path / "m", statistics=folders)
    expected = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval())
    with merged_weights(model, sft, policies[:2], [group]).loaded(spec):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    with (
        pytest.raises(ValueError, match="needs the statistics of each policy"),
        merged_weights(model, sft, policies).loaded(spec),
    ):
        pass


def test_outside_the_sft_model_is_back_bit_by_bit(sft, policies, model):
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    specs = merged_weights(model, sft, policies)
    for spec in SPECS[:2]:
        with specs.loaded(spec):
            changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name][1])]
            assert changed
        with pytest.raises(KeyError, match="stop"), specs.loaded(spec):
            raise KeyError("stop")
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name][1]) and parameter.data_ptr() == before[name][0]


def test_a_spec_is_merged_once_for_its_batches(sft, policies, model):
    merged = []

    class Counting(Merges):
        def weights(self, spec):
            merged.append(spec)
            return super().weights(spec)

    specs = MergedWeights(model, Counting(sft, [load_adapter(policy) for policy in policies]))
    found = []
    for spec in (SPECS[0], SPECS[0], SPECS[0], SPECS[3], SPECS[0]):
        with specs.loaded(spec):
            found.append(logits(model))
    assert merged == [SPECS[0], SPECS[3], SPECS[0]]  # one at a time is kept
    assert all(torch.equal(found[0], found[i]) for i in (1, 2, 4)) and not torch.equal(found[0], found[3])


def test_a_bfloat16_model_gets_weights_of_its_dtype(sft, policies, dense_model):
    model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.bfloat16).eval()
    with merged_weights(model, sft, policies).loaded(SPECS[0]):
        for (name, parameter), merged in zip(model.named_parameters(), dense_model(SPECS[0]).parameters(), strict=True):
            assert torch.equal(parameter, merged.to(torch.bfloat16)), name


def test_mistakes_leave_the_sft_model(sft, policies, model):
    before, specs = logits(model), merged_weights(model, sft, policies)
    averaged = MergeSpec("peft_linear", (0.5, 0.5))
    with pytest.raises(ValueError, match="adds up factors of equal shapes"), specs.loaded(averaged):
        pass
    assert torch.equal(logits(model), before)
    with specs.loaded(SPECS[0]):
        assert not torch.equal(logits(model), before)
