"""Merges of specs from files that are opened once, and the number that alpha "auto" stands for."""

from __future__ import annotations

import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, lines_alpha, merge_residuals
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.tensors import tensor_file
from rlhf_lines.sweep.choices import GroupEntry, Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines import make_engine
from rlhf_lines.sweep.groups import Specs
from rlhf_lines.sweep.merges import Merges


def merges_of(sft, policies, groups=()) -> Merges:
    return Merges(sft, [load_adapter(policy) for policy in policies], groups)


def times_open(paths) -> list[int]:
    """How often this process has each of the files open; models of other tests may hold some, too."""
    opened = [file.path for file in psutil.Process().open_files()]
    return [opened.count(str(path)) for path in paths]


def test_files_are_opened_once_and_closed(sft, policies, tmp_path, monkeypatch):
    folders, weights = [tmp_path / "a", tmp_path / "b"], load_file(sft / "model.safetensors")
    for folder in folders:
        folder.mkdir()
        save_file({name: tensor.square() for name, tensor in weights.items()}, folder / "fisher.safetensors")
    adapters = [load_adapter(policy) for policy in policies[:2]]
    group = GroupEntry("importance", "fisher", statistics=tuple(map(str, folders)))
    held = [sft / "model.safetensors", *(folder / "fisher.safetensors" for folder in folders)]
    before = times_open(held)
    opened, original = [], tensor_file.os.open
    monkeypatch.setattr(tensor_file.os, "open", lambda path, *flags: opened.append(str(path)) or original(path, *flags))
    with Merges(sft, adapters, [group]) as merges:
        assert opened == []
        for weight in (0.25, 0.5, 0.75):
            for rule in ("ties", "fisher", "linear"):
                spec = MergeSpec(rule, (weight, 1 - weight), alpha="auto")
                merges.check(spec)
                assert len(list(merges.weights(merges.resolved(spec)))) > 4
        assert times_open(held) == [count + 1 for count in before]
        # The engine of the sweep merges from the same files, which are not opened nor checked again.
        named = {"sft_model": str(sft), "policies": list(map(str, policies[:2])), "rewards": ["m:a", "m:b"]}
        engine = make_engine(SweepConfig(**named, output_dir="never"), merges, adapters, tmp_path)
        for rule in ("ties", "fisher"):
            assert engine.nll([MergeSpec(rule, (0.5, 0.5))], [(3, 4, 5)])[0] > 0
        engine.close()
    assert [opened.count(str(path)) for path in held] == [1, 2, 2]  # statistics are opened to be checked, too
    assert times_open(held) == before


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec("linear", (0.3, 0.7), "auto", 1.0),
        MergeSpec("linear", (0.2, 0.3, 0.5), "auto", 0.5, "sqrt"),
        MergeSpec("sum", (0.5, 0.5), "auto"),
        MergeSpec("ties", (0.3, 0.7), "auto", options={"density": 0.4}),
    ],
    ids=lambda spec: f"{spec.rule} {len(spec.weights)}",
)
def test_measured_alpha_is_lines_alpha_of_dense_residuals(sft, policies, spec):
    adapters = [load_adapter(policy) for policy in policies[: len(spec.weights)]]
    residuals = [
        {name: f.scale * f.B.double() @ f.A.double() for name, f in adapter.modules.items()} for adapter in adapters
    ]
    shapes = {name: tau.shape for residual in residuals for name, tau in residual.items()}
    zeros = {f"{name}.weight": torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    residuals = [zeros | {f"{name}.weight": tau for name, tau in residual.items()} for residual in residuals]
    merged = merge_residuals(residuals, spec.rule, weights=spec.weights, **spec.options)
    merges = merges_of(sft, policies[: len(spec.weights)])
    found = merges.resolved(spec)
    assert found.alpha == pytest.approx(lines_alpha(residuals, merged), rel=1e-5)
    assert found == MergeSpec(spec.rule, spec.weights, found.alpha, spec.beta, spec.schedule, spec.options)
    assert merges.resolved(found) is found


def test_weights_have_the_names_of_the_loaded_model(tmp_path):
    """The files of a model with eyes name its text otherwise; a file of GPT-2's trunk lacks a prefix."""
    from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

    from rlhf_lines.sweep.engines.merged_weights import MergedWeights
    from tests import tiny

    text = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_key_value_heads": 1}
    eye = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    config = Gemma3Config(
        text_config={**text, **tiny.TWO_LAYERS}, vision_config={**eye, "patch_size": 4}, mm_tokens_per_image=4
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    modules = r".*language_model.*q_proj"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    policy = tiny.save_adapter(base, tmp_path / "p", seed=1, target_modules=modules)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    merges = merges_of(tmp_path / "sft", [policy, policy])
    spec = MergeSpec("ties", (0.5, 0.5), options={"density": 1.0})  # twice the same: it is that policy
    with merges, MergedWeights(model, merges).loaded(spec):
        for module, f in load_adapter(policy).modules.items():
            name = f"{module}.weight"
            torch.testing.assert_close(model.get_parameter(name), before[name] + f.scale * f.B @ f.A)


def test_where_alpha_is_not_defined_the_group_and_its_weights_are_named(sft, policies, tmp_path):
    """Of weights that are not zero only the residuals tell that they merge nothing."""
    copy = shutil.copytree(policies[0], tmp_path / "copy")
    named = {"sft_model": str(sft), "policies": [str(policies[0]), str(copy)], "rewards": ["m:a", "m:b"]}
    entry = {"name": "mine", "rule": "sum", "alpha": "auto"}
    config = SweepConfig(**named, output_dir="never", sampler="list", weights=["1 -1"], groups=[entry])
    with merges_of(sft, config.policies) as merges:
        specs = Specs(config, merges, 4, {})
        with pytest.raises(ValueError, match=r"^LiNeS at weights 1 / -1: the merged residual is zero everywhere, so"):
            specs.maker("lines", Scaling("auto", 1.0))((1.0, -1.0))
        with pytest.raises(ValueError, match=r"^mine at weights 1 / -1: the merged residual is zero everywhere, so"):
            specs.maker("mine", Scaling("auto", 0.0))((1.0, -1.0))
        assert specs.maker("lines", Scaling("auto", 1.0))((1.0, 0.0)).alpha == 1.0
