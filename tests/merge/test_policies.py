"""Merged folders: complete and loadable, or not there at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec, checkpoint_sha256, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.job import Written
from rlhf_lines.merge.output.card import escape_markdown
from rlhf_lines.merge.policies import loss_warnings
from rlhf_lines.merge.tensors.precision import LostResidual
from tests import tiny
from tests.merge.adapters import lora_residual


SPEC = MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)
NUM_LAYERS = 4


def both_adapters_logits(sft, policies, spec, logits) -> torch.Tensor:
    """An independent way to the same policy: PEFT runs all adapters at once, with their scales written over."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names = [f"policy{k}" for k in range(len(policies))]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), policies[0], adapter_name=names[0])
    for name, policy in zip(names[1:], policies[1:], strict=True):
        model.load_adapter(policy, adapter_name=name)
    model.base_model.set_adapter(names)
    for module_name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            layer = int(module_name.split(".")[4])
            factor = spec.alpha + spec.beta * layer / (model.config.num_hidden_layers - 1)
            for name, weight in zip(names, spec.weights, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= weight * factor
    return logits(model.eval())


@pytest.mark.parametrize(
    "spec",
    [SPEC, MergeSpec("linear", (0.5, 0.5)), MergeSpec("linear", (1.4, -0.4), 1.0, 1.0), MergeSpec("linear", (0, 1))],
    ids=str,
)
def test_adapter_dense_and_two_active_adapters_agree(
    sft, helpful, harmless, tmp_path, spec, logits, peft_logits, dense_logits
):
    policies = [helpful, harmless]
    adapter = merge_policies(sft, policies, spec, save="adapter", output_dir=tmp_path / "adapter")
    dense = merge_policies(sft, policies, spec, save="dense", output_dir=tmp_path / "dense")
    expected = both_adapters_logits(sft, policies, spec, logits)
    # The merge must move the logits, or agreement would say nothing.
    assert (expected - dense_logits(sft)).abs().max() > 0.1
    torch.testing.assert_close(peft_logits(sft, adapter), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense_logits(dense), expected, rtol=1e-5, atol=1e-5)


def test_a_device_may_be_an_object_of_torch(sft, helpful, tmp_path):
    spec = MergeSpec("ties", (1.0,))
    out = [
        merge_policies(sft, [helpful], spec, save="dense", device=device, output_dir=tmp_path / name)
        for name, device in (("text", "cpu"), ("object", torch.device("cpu")))
    ]
    for file in ("merge_spec.json", "model.safetensors"):
        assert (out[0] / file).read_bytes() == (out[1] / file).read_bytes()


def test_gpt2_agrees_too(tmp_path, save_adapter, logits, peft_logits, dense_logits):
    sft = tmp_path / "gpt2"
    tiny.gpt2(n_layer=3, initializer_range=0.3).save_pretrained(sft)
    policies = [
        save_adapter(sft, tmp_path / "a", seed=1, target_modules=["c_attn", "c_proj"]),
        save_adapter(sft, tmp_path / "b", seed=2, target_modules=["c_attn", "c_fc"], r=2),
    ]
    adapter = merge_policies(sft, policies, SPEC, save="adapter", output_dir=tmp_path / "adapter")
    dense = merge_policies(sft, policies, SPEC, save="dense", output_dir=tmp_path / "dense")
    expected = both_adapters_logits(sft, policies, SPEC, logits)
    assert (expected - dense_logits(sft)).abs().max() > 0.1
    torch.testing.assert_close(peft_logits(sft, adapter), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense_logits(dense), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(1, 0), (0, 1)])
def test_one_hot_weights_return_that_policy(sft, helpful, harmless, tmp_path, weights, peft_logits, dense_logits):
    policies = [helpful, harmless]
    expected = peft_logits(sft, policies[weights.index(1)])
    for save, load in (("adapter", lambda folder: peft_logits(sft, folder)), ("dense", dense_logits)):
        out = merge_policies(sft, policies, MergeSpec("linear", weights), save=save, output_dir=tmp_path / save)
        torch.testing.assert_close(load(out), expected, rtol=1e-5, atol=1e-5)


def test_peft_linear_gives_another_policy(sft, helpful, tmp_path, save_adapter, logits, peft_logits):
    """Pitfall: add_weighted_adapter(combination_type="linear") adds cross terms B_i A_j."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    second = save_adapter(sft, tmp_path / "second", seed=5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), helpful, adapter_name="a")
    model.load_adapter(second, adapter_name="b")
    outcomes = {}
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], adapter_name=kind, combination_type=kind)
        model.set_adapter(kind)
        outcomes[kind] = logits(model.eval())
    out = merge_policies(
        sft, [helpful, second], MergeSpec("linear", (0.5, 0.5)), save="adapter", output_dir=tmp_path / "out"
    )
    ours = peft_logits(sft, out)
    torch.testing.assert_close(ours, outcomes["cat"], rtol=1e-5, atol=1e-5)
    assert (ours - outcomes["linear"]).abs().max() > 0.1


def test_adapter_folder_has_one_rank_scale_one_and_all_files(sft, helpful, harmless, tmp_path):
    out = merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / "made" / "here" / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (10, 10, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert config["base_model_name_or_path"] == str(sft)
    assert config["task_type"] == "CAUSAL_LM"
    assert sorted(config["target_modules"]) == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "merge_spec.json",
        "mergekit.yaml",
        "README.md",
        "tokenizer.json",
    }


@pytest.mark.parametrize("save", ["adapter", "dense"])
def test_weights_are_as_readable_as_the_folder(sft, helpful, tmp_path, save):
    """safetensors creates files of mode 0600, which a server under another user cannot open."""
    out = merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save=save, output_dir=tmp_path / "out")
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}


def test_an_adapter_on_some_layers_names_its_modules_in_full(sft, tmp_path, save_adapter, peft_logits):
    policy = save_adapter(sft, tmp_path / "a", seed=1, target_modules=["q_proj"], layers_to_transform=[1, 2])
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="adapter", output_dir=tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [f"model.layers.{i}.self_attn.q_proj" for i in (1, 2)]
    torch.testing.assert_close(peft_logits(sft, out), peft_logits(sft, policy), rtol=1e-5, atol=1e-5)


def test_merged_adapters_can_be_merged_again(sft, helpful, harmless, copy_of, tmp_path):
    moved = shutil.copytree(sft, tmp_path / "moved")
    policies = [copy_of(helpful, "a"), copy_of(harmless, "b")]
    for policy in policies:
        (policy / "rlhf_lines.json").write_text(json.dumps({"sft_sha256": checkpoint_sha256(sft)}))
    first = merge_policies(sft, policies, MergeSpec("linear", (0.5, 0.5)), save="adapter", output_dir=tmp_path / "one")
    again = merge_policies(moved, [first], MergeSpec("linear", (2,)), save="adapter", output_dir=tmp_path / "two")
    left, right = lora_residual(load_adapter(first)), lora_residual(load_adapter(again))
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], 2 * tensor, rtol=1e-6, atol=1e-7)


def test_dense_folder_carries_config_and_tokenizer(sft, helpful, tmp_path):
    out = merge_policies(
        sft, [helpful], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out", dtype="bfloat16"
    )
    assert (out / "tokenizer.json").read_bytes() == (sft / "tokenizer.json").read_bytes()
    assert (out / "generation_config.json").read_bytes() == (sft / "generation_config.json").read_bytes()
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (out, sft))
    assert config == original | {"dtype": "bfloat16"}
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("save", ["adapter", "dense"])
def test_the_record_says_what_was_merged(sft, helpful, harmless, tmp_path, save):
    out = merge_policies(sft, [helpful, harmless], SPEC, save=save, output_dir=tmp_path / "out")
    record = json.loads((out / "merge_spec.json").read_text())
    assert record["format"] == 1
    assert MergeSpec.from_dict(record["spec"]) == SPEC
    assert record["sft_model"] == str(sft)
    assert [{key: policy[key] for key in ("path", "sha256")} for policy in record["policies"]] == [
        {
            "path": str(policy),
            "sha256": hashlib.sha256((policy / "adapter_model.safetensors").read_bytes()).hexdigest(),
        }
        for policy in (helpful, harmless)
    ]
    assert (record["save"], record["dtype"]) == (save, "float32")
    assert record["versions"]["torch"] == torch.__version__
    assert 0 <= record["lost_residual"]["relative_l2"] < 1e-6


def test_a_narrow_adapter_reports_what_the_cast_lost(sft, helpful, harmless, tmp_path):
    exact = merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / "exact")
    narrow = merge_policies(
        sft, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / "narrow", dtype="bfloat16"
    )
    assert {t.dtype for t in load_file(narrow / "adapter_model.safetensors").values()} == {torch.bfloat16}
    left, right = (lora_residual(load_adapter(folder)) for folder in (exact, narrow))
    error = sum((left[name] - right[name]).double().square().sum() for name in left)
    size = sum(tensor.double().square().sum() for tensor in left.values())
    lost = json.loads((narrow / "merge_spec.json").read_text())["lost_residual"]
    assert lost["relative_l2"] == pytest.approx((error / size).sqrt().item(), rel=1e-3)
    assert lost["relative_l2"] > 1e-4
    assert lost["unchanged"] is None


def test_mergekit_config_is_the_same_merge(sft, helpful, harmless, tmp_path):
    out = merge_policies(sft, [helpful, harmless], SPEC, save="dense", output_dir=tmp_path / "out")
    assert yaml.safe_load((out / "mergekit.yaml").read_text()) == {
        "merge_method": "task_arithmetic",
        "base_model": str(sft),
        # [w alpha, w (alpha + beta)]
        "models": [
            {"model": f"{sft}+{helpful}", "parameters": {"weight": [0.3 * 0.5, 0.3 * 1.5]}},
            {"model": f"{sft}+{harmless}", "parameters": {"weight": [0.7 * 0.5, 0.7 * 1.5]}},
        ],
        "parameters": {"lambda": 1.0, "normalize": False},
        "dtype": "float32",
        "out_dtype": "float32",
    }


def test_no_config_where_mergekit_would_misread_a_path(sft, helpful, tmp_path):
    policy = shutil.copytree(helpful, tmp_path / "a+b")
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="adapter", output_dir=tmp_path / "out")
    assert not (out / "mergekit.yaml").exists()


def test_names_are_escaped_in_the_card(sft, helpful, tmp_path):
    policy = shutil.copytree(helpful, tmp_path / "a|b <img src=x onerror=y> [c](d)\n# e")
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="adapter", output_dir=tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "<img" not in card
    escaped = r"a\|b &lt;img src=x onerror=y&gt; \[c\]\(d\) \# e"
    assert re.search(rf"\| policy 1 \| .*{re.escape(escaped)} \| 1 \| `[0-9a-f]{{64}}` \|", card)


def test_markdown_signs_are_made_harmless():
    assert escape_markdown("a_b*c`d`") == r"a\_b\*c\`d\`"
    assert escape_markdown("x\n\n- y & <b>") == "x - y &amp; &lt;b&gt;"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save": "adpter"}, "unknown save 'adpter'; known: adapter, dense; did you mean 'adapter'"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'; known: bfloat16"),
        ({"policies": []}, "expected a list of one or more folders"),
        ({"policies": "one"}, "expected a list of one or more folders"),
        ({"spec": MergeSpec("linear", (1,))}, "1 weight for 2 policies"),
    ],
)
def test_bad_arguments_are_named(sft, helpful, harmless, tmp_path, changes, message):
    arguments = {"policies": [helpful, harmless], "spec": SPEC, "save": "adapter", **changes}
    with pytest.raises(ValueError, match=message):
        merge_policies(sft, output_dir=tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_named(sft, helpful, tmp_path):
    spec = MergeSpec("linear", (1,))
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        merge_policies(tmp_path / "nowhere", [helpful], spec, save="dense", output_dir=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        merge_policies(sft, [tmp_path / "nowhere"], spec, save="dense", output_dir=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' has neither model.safetensors nor"):
        merge_policies(sft, [tmp_path / "empty"], spec, save="dense", output_dir=tmp_path / "out")


def test_a_dense_policy_cannot_become_an_adapter(sft, helpful, copy_of, tmp_path):
    with pytest.raises(ValueError, match="dense checkpoint, which no adapter holds exactly; use --save dense"):
        merge_policies(sft, [helpful, copy_of(sft)], SPEC, save="adapter", output_dir=tmp_path / "out")


def test_refused_policies_leave_nothing_behind(sft, helpful, harmless, copy_of, edit_config, tmp_path):
    for changes in ({"use_dora": True}, {"base_model_name_or_path": "org/other"}):
        policy = edit_config(copy_of(harmless, "policy"), **changes)
        for save in ("adapter", "dense"):
            with pytest.raises(ValueError, match=r"use_dora|one base"):
                merge_policies(sft, [helpful, policy], SPEC, save=save, output_dir=tmp_path / "out")
        shutil.rmtree(policy)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_kept(sft, helpful, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("1")
    with pytest.raises(FileExistsError, match="out exists: choose another folder, or add --overwrite"):
        merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save="dense", output_dir=out)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_overwrite_replaces_only_after_success(sft, helpful, tmp_path, monkeypatch):
    out = tmp_path / "out"
    spec = MergeSpec("linear", (1,))
    merge_policies(sft, [helpful], spec, save="dense", output_dir=out)
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lines.merge.policies.model_card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge_policies(sft, [helpful], spec, save="adapter", output_dir=out, overwrite=True)
    assert (out / "model.safetensors").is_file()
    merge_policies(sft, [helpful], spec, save="adapter", output_dir=out, overwrite=True)
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_never_deletes_an_input(sft, helpful, copy_of, tmp_path, monkeypatch):
    policy = copy_of(helpful, "project")
    spec = MergeSpec("linear", (1,))
    for output in (policy, tmp_path, sft):
        with pytest.raises(FileExistsError, match="which --overwrite would delete"):
            merge_policies(sft, [policy], spec, save="adapter", output_dir=output, overwrite=True)
    assert (policy / "adapter_model.safetensors").is_file()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(FileExistsError, match="holds the current or the home folder"):
        merge_policies(sft, [policy], spec, save="adapter", output_dir=work, overwrite=True)


@pytest.mark.parametrize("save", ["adapter", "dense"])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_no_folder(sft, helpful, tmp_path, monkeypatch, save, error):
    def fail(*_, **__):
        # Something was written before the disk was full.
        assert any(path.name == ".out.partial" for path in tmp_path.iterdir())
        raise error

    writes = "output.adapter.save_file" if save == "adapter" else "tensors.tensor_file.NewTensorFile.write"
    monkeypatch.setattr(f"rlhf_lines.merge.{writes}", fail)
    with pytest.raises(type(error)):
        merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save=save, output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("share", "dtype", "fits", "named", "unnamed"),
    [
        (0.101, "bfloat16", True, ["lost 10.1%", "--dtype float32", "--save adapter"], []),
        (0.101, "bfloat16", False, ["--dtype float32"], ["--save adapter"]),
        (0.5, "float16", False, ["--dtype float32"], ["--save adapter"]),
        (0.5, "float32", True, ["--save adapter"], ["--dtype"]),
    ],
)
def test_a_large_loss_names_the_ways_out(share, dtype, fits, named, unnamed):
    (warning,) = loss_warnings(Written(1.0, LostResidual(share, 0.5), dtype), fits_adapter=fits)
    assert all(words in warning for words in named) and not any(words in warning for words in unnamed)


def test_a_tenth_is_not_a_large_loss():
    assert loss_warnings(Written(1.0, LostResidual(0.1, 0.5), "bfloat16"), fits_adapter=True) == []


@pytest.mark.parametrize(("save", "as_adapter"), [("dense", True), ("dense", False), ("adapter", True)])
def test_an_adapter_is_a_way_out_only_where_one_is_not_saved_and_could_be(sft, helpful, tmp_path, save, as_adapter):
    policy = helpful
    if not as_adapter:
        policy = merge_policies(sft, [helpful], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "p")
    spec = MergeSpec("linear", (1,), alpha=1e-4 if save == "dense" else 1e-11)  # lost in float16, in all cases
    out = merge_policies(sft, [policy], spec, save=save, output_dir=tmp_path / "out", dtype="float16")
    warning = json.loads((out / "merge_spec.json").read_text())["warnings"][-1]
    assert warning.startswith("float16 lost ") and "--dtype float32" in warning
    assert ("--save adapter" in warning) == (save == "dense" and as_adapter)


def test_importing_the_package_loads_no_trainer():
    import subprocess
    import sys

    heavy = "{'trl', 'transformers', 'peft', 'accelerate', 'rlhf_lines.train'}"
    code = (
        f"import sys, rlhf_lines.merge; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_is_no_spec_is_one_sentence_and_a_size_may_be_a_text(sft, helpful, tmp_path):
    for spec in ("linear", {"rule": "linear", "weights": [1.0]}):
        with pytest.raises(ValueError, match=r"^spec is .*, expected a MergeSpec, as MergeSpec.from_dict makes"):
            merge_policies(sft, [helpful], spec, save="dense", output_dir=tmp_path / "out")
    spec, size = MergeSpec("linear", (1.0,)), {"max_shard_size": "5KB"}
    out = merge_policies(sft, [helpful], spec, save="dense", output_dir=tmp_path / "out", **size)
    assert json.loads((out / "merge_spec.json").read_text())["max_shard_size"] == 5000
    with pytest.raises(ValueError, match="max_shard_size 'big' is not a size"):
        merge_policies(sft, [helpful], spec, save="dense", output_dir=tmp_path / "o", max_shard_size="big")
