"""Derivatives by factors on what TIES elects, against the dense gradient; and learning by them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.elected import ElectedDifferentiated
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.adapter import dense_residual, load_adapter
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.space import make_space
from rlhf_lines.plan import Options, plan
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.merges import Merges
from rlhf_lines.sweep.store import Store
from tests.learn.test_gradient import PAIRS, WEIGHTS, likelihood


DENSITY = 0.3


def elected(taus: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Trimmed to the largest entries of each policy, all parameters together, and of the sign of their sum."""
    shapes = {name: tensor.shape for tau in taus for name, tensor in tau.items()}
    flat = torch.stack(
        [torch.cat([tau.get(n, torch.zeros(s)).double().ravel() for n, s in shapes.items()]) for tau in taus]
    )
    smallest = flat.abs().sort(dim=1, descending=True).values[:, int(DENSITY * flat.shape[1])].unsqueeze(1)
    trimmed = torch.where(flat.abs() >= smallest, flat, 0.0)
    sign = trimmed.sum(dim=0).sign()
    kept = torch.where(trimmed * sign > 0, trimmed, 0.0)  # nothing is kept where the sum is 0
    parts = kept.split([shape.numel() for shape in shapes.values()], dim=1)
    return [{n: part[k].view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)} for k in range(len(taus))]


def test_derivatives_are_inner_products_with_what_is_elected(sft, policies):
    from transformers import AutoModelForCausalLM

    adapters = [load_adapter(policy) for policy in policies]
    space = make_space("coefficients", 3, 4)
    vector = np.random.default_rng(0).normal(0.8, 0.5, len(space.start))
    config = LearnConfig(str(sft), list(map(str, policies)), ["rule:length", "m:f"], "out")
    with Merges(sft, adapters) as merges:
        engine = LocalEngine(config, merges, adapters)
        slope = ElectedDifferentiated(engine, merges, space, 3, DENSITY, 0)
        got, derivatives = slope(vector, PAIRS, likelihood, WEIGHTS)
        loaded = engine.multi_lora.model
    untouched = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32)
    for name, parameter in untouched.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
        assert not loaded.get_parameter(name).requires_grad and loaded.get_parameter(name).grad is None

    model, profile = untouched.double(), space.profile(vector)
    taus = elected([{f"{m}.weight": dense_residual(one, m) for m in one.modules} for one in adapters])
    layers = layer_indices(sorted(taus[0]), num_layers=4)
    with torch.no_grad():
        for k, tau in enumerate(taus):
            for name, residual in tau.items():
                model.get_parameter(name).add_(profile.at(layers[name])[k] * residual)
    total = sum(
        weight * likelihood(model(input_ids=torch.tensor([before + after])).logits[0], (before, after))
        for (before, after), weight in zip(PAIRS, WEIGHTS, strict=True)
    )
    total.backward()
    by_factor = np.zeros((3, 5))
    for k, tau in enumerate(taus):
        for name, residual in tau.items():
            place = 0 if layers[name] is None else 1 + layers[name]
            by_factor[k, place] += (model.get_parameter(name).grad * residual).sum().item()
    assert got == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(derivatives, by_factor.ravel() / 3, rtol=1e-4, atol=1e-5)


def test_adamerging_on_what_is_elected_lowers_the_entropy_and_is_merged_by_its_file(flags, sft, policies, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {"method": "adamerging", "space": "coefficients", "num_steps": 4, "learning_rate": 0.1}
    settings |= {"density": DENSITY, "population": None, "num_candidates": 4, "step_prompts": 5}
    folder = run_stage("learn", flags(tmp_path / "out", **settings))
    record, learned = read_record(folder), json.loads((folder / "learned.json").read_text())
    assert learned["losses"] == sorted(learned["losses"], reverse=True) and record["rule"] == "ties_layerwise"
    factors = json.loads((folder / "factors.json").read_text())
    assert factors.keys() == {"factors", "outside", "density"} and factors["density"] == DENSITY

    # The first loss is that of all factors 1/2 on what is elected.
    start = {"factors": [[0.5] * 4] * 2, "outside": [0.5] * 2, "density": DENSITY}
    spec = MergeSpec("ties_layerwise", (0.5, 0.5), options=start)
    merge_policies(sft, policies[:2], spec, save="dense", output_dir=tmp_path / "start")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "start"), AutoTokenizer.from_pretrained(sft)
    with Store(folder, reading=True) as store:
        prompts = [prompt.text for prompt in store.prompts("train").values()]
        rules = {spec.rule for spec in store.specs().values()}
    entropies = []
    for text in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].double()
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().mean().item())
    assert learned["losses"][0] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert rules == {"linear", "layerwise", "ties_layerwise"}, "soup and LiNeS are of whole residuals"

    given = ["--sft_model", str(sft), "--policies", *map(str, policies[:2]), "--rule", "ties_layerwise"]
    given += ["--rule_options", json.dumps({"factors": str(folder / "factors.json")}), "--save", "dense"]
    assert cli.main(["merge", *given, "--output_dir", str(tmp_path / "merged")]) == 0
    merge_policies(
        sft,
        policies[:2],
        MergeSpec("ties_layerwise", (0.5, 0.5), options=factors),
        save="dense",
        output_dir=tmp_path / "same",
    )
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "same"))
    assert all(torch.equal(one[name], other[name]) for name in other)

    planned = plan(flags(tmp_path / "other", **settings), Options("learn"))
    assert "merged weights of one spec" in planned.phases[0].parts
    assert dict(planned.work)["points merged one by one"].startswith("6:"), "a step each, and the candidate twice"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 1.5}, "density is 1.5, expected a number above 0 and at most 1"),
        ({"density": 0.2, "load_in_4bit": True}, "density needs the weights of the SFT model: leave out load_in_8bit"),
        ({"density": 0.2, "method": "atlas"}, "density is given, but method is atlas: leave it out"),
    ],
)
def test_mistakes_are_named(changes, message):
    needed = {"sft_model": "sft", "policies": ["a", "b"], "rewards": ["rule:length", "m:f"], "output_dir": "out"}
    with pytest.raises(ValueError, match=message):
        LearnConfig(**{**needed, "method": "adamerging", **changes})
