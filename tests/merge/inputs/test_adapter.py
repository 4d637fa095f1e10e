"""Adapters as residuals: read as PEFT reads them, refused where s B A is not the whole story."""

from __future__ import annotations

import json
import math
import os
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, checkpoint_sha256, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import AdapterPolicy
from rlhf_lines.merge.inputs.provenance import check_same_base
from rlhf_lines.merge.tensors.spans import Scratch, Span
from rlhf_lines.statistics.policy import load_policy
from tests import tiny
from tests.merge.adapters import lora_residual


def peft_deltas(sft, folder) -> dict[str, torch.Tensor]:
    """The residual of every adapted module according to PEFT itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), folder)
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def test_scales_follow_patterns_as_in_peft(harmless):
    modules = load_adapter(harmless).modules
    ranks = {name.removeprefix("model.layers."): factors.A.shape[0] for name, factors in modules.items()}
    scales = {name.removeprefix("model.layers."): factors.scale for name, factors in modules.items()}
    assert len(modules) == 12
    assert (ranks["0.self_attn.q_proj"], scales["0.self_attn.q_proj"]) == (3, 5 / math.sqrt(3))
    assert (ranks["1.self_attn.q_proj"], scales["1.self_attn.q_proj"]) == (6, 5 / math.sqrt(6))
    assert (ranks["2.self_attn.v_proj"], scales["2.self_attn.v_proj"]) == (3, 7 / math.sqrt(3))
    assert (ranks["3.mlp.down_proj"], scales["3.mlp.down_proj"]) == (2, 5 / math.sqrt(2))


@pytest.mark.parametrize("policy", ["helpful", "harmless"])
def test_residual_equals_the_delta_weight_of_peft(sft, policy, request):
    folder = request.getfixturevalue(policy)
    expected = peft_deltas(sft, folder)
    residual = lora_residual(load_adapter(folder))
    assert residual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(residual[name], tensor, rtol=1e-5, atol=1e-6)


def test_conv1d_residual_is_transposed_as_in_peft(tmp_path, save_adapter):
    sft = tmp_path / "gpt2"
    tiny.gpt2().save_pretrained(sft)
    # attn.c_proj is square, where a wrong layout has the right shape.
    policy = save_adapter(sft, tmp_path / "policy", seed=1, target_modules=["c_attn", "attn.c_proj"])
    adapter = load_adapter(policy)
    check_same_base([adapter], sft)
    expected = peft_deltas(sft, policy)
    with Checkpoint(sft) as checkpoint:
        as_policy = AdapterPolicy(adapter, checkpoint)
        residual = {
            name: as_policy.residual(Span(name, 0, theta.numel()), theta, Scratch()).view(theta.shape)
            for name, theta in ((name, checkpoint.read(name)) for name in as_policy.shapes)
        }
    assert residual["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)
    assert residual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(residual[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(
    ("model", "modules"),
    [
        (partial(tiny.llama, num_key_value_heads=4), ["q_proj", "v_proj"]),
        (tiny.gpt2, ["attn.c_proj", "c_attn"]),
        (partial(tiny.gpt2, tie_word_embeddings=False), ["attn.c_proj", "lm_head"]),
    ],
    ids=["llama", "gpt2", "gpt2 and its head"],
)
def test_the_layout_is_the_models_whatever_fan_in_fan_out_says(
    tmp_path, save_adapter, edit_config, model, modules, flag
):
    """PEFT goes by the class of the module; a matrix that is square shows a wrong layout by its values alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sft = tmp_path / "sft"
    model().save_pretrained(sft)
    options = {"target_modules": modules, "save_embedding_layers": False}
    policy = edit_config(save_adapter(sft, tmp_path / "policy", seed=1, **options), fan_in_fan_out=flag)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), policy)
    expected, deltas = loaded.merge_and_unload().state_dict(), peft_deltas(sft, policy)
    out = merge_policies(sft, [policy], MergeSpec("linear", (1.0,)), save="dense", output_dir=tmp_path / "dense")
    assert load_file(out / "model.safetensors").keys() >= deltas.keys()
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    for name, parameter in load_policy(sft, policy, dtype="float32").parameters.items():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)
    for rule, options in (("linear", {}), ("ties", {"density": 1.0})):  # by factors, and by dense residuals
        spec = MergeSpec(rule, (1.0,), options=options)
        out = merge_policies(sft, [policy], spec, save="adapter", rank=4, output_dir=tmp_path / rule)
        assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is ("c_proj" in modules[0])
        found = peft_deltas(sft, out)
        assert found.keys() == deltas.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, deltas[name], rtol=1e-4, atol=1e-5)


def test_float64_factors_stay_float64_and_narrow_ones_become_float32(copy_of, helpful, edit_weights):
    def as_dtype(dtype):
        return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}

    wide = lora_residual(load_adapter(edit_weights(copy_of(helpful, "wide"), as_dtype(torch.float64))))
    narrow = lora_residual(load_adapter(edit_weights(copy_of(helpful, "narrow"), as_dtype(torch.bfloat16))))
    assert {tensor.dtype for tensor in wide.values()} == {torch.float64}
    assert {tensor.dtype for tensor in narrow.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "sets use_dora in adapter_config.json: DoRA"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"target_parameters": ["experts.w1"]}, "sets target_parameters"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "sets layer_replication"),
        ({"some_new_option": 3}, "sets some_new_option.*an option whose effect"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"r": 8}, "has ranks 4 .* but adapter_config.json says 8"),
    ],
)
def test_configs_that_mean_more_than_s_b_a_are_refused(copy_of, helpful, edit_config, changes, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(edit_config(copy_of(helpful), **changes))


def test_dora_as_peft_writes_it_is_refused(sft, tmp_path, save_adapter):
    with pytest.raises(ValueError, match="use_dora"):
        load_adapter(save_adapter(sft, tmp_path / "dora", seed=1, use_dora=True))


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {f"{Q0}.lora_magnitude_vector": torch.ones(1)}, "holds '.*lora_magnitude_vector'"),
        (lambda t: t | {f"{Q0}.lora_A.weight": torch.ones(4, 16, 1, 1)}, r"shape \(4, 16, 1, 1\)"),
        (
            lambda t: {k: v for k, v in t.items() if k != f"{Q0}.lora_B.weight"},
            "no lora_B for 'model.layers.0.self_attn",
        ),
        (
            lambda t: {k: v for k, v in t.items() if k != f"{Q0}.lora_A.weight"},
            "no lora_A for 'model.layers.0.self_attn",
        ),
        (lambda t: t | {f"{Q0}.lora_A.weight": torch.full((4, 16), float("nan"))}, "not finite"),
        (lambda t: t | {f"{Q0}.lora_B.weight": torch.full((16, 4), float("inf"))}, "not finite"),
        (lambda t: t | {f"{Q0}.lora_A.weight": torch.ones(4, 16, dtype=torch.int8)}, "has dtype int8"),
        (lambda t: {}, "holds no tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(copy_of, helpful, edit_weights, change, message):
    folder = edit_weights(copy_of(helpful), change)
    with pytest.raises(ValueError, match=message):
        load_adapter(folder)


def test_missing_and_broken_files_are_named(copy_of, helpful, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' has no adapter_config.json"):
        load_adapter(tmp_path / "nowhere")
    folder = copy_of(helpful)
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"cannot read .*adapter_model.safetensors"):
        load_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json' is not JSON"):
        load_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors"):
        load_adapter(folder)


def test_a_folder_whose_name_is_not_utf_8_is_no_damaged_file(helpful, tmp_path):
    """safetensors opens none, and it was told to save the adapter again."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(helpful, folder)
    with pytest.raises(ValueError, match=r"caf\\udce9/adapter_model.*' is no path in UTF-8, .*: rename the folder"):
        load_adapter(folder)


def record_hash(folder, sft_sha256):
    (folder / "rlhf_lines.json").write_text(json.dumps({"sft_sha256": sft_sha256}))
    return folder


def test_same_base_passes(sft, helpful, harmless, monkeypatch):
    adapters = [load_adapter(helpful), load_adapter(harmless)]
    check_same_base(adapters, sft)
    monkeypatch.chdir(sft.parent)
    check_same_base(adapters, "sft")


def test_other_bases_stop_the_merge(sft, helpful, harmless, copy_of, edit_config):
    other = load_adapter(edit_config(copy_of(harmless, "other"), base_model_name_or_path="org/base-b"))
    with pytest.raises(ValueError, match=r"other' was trained on org/base-b, .* residuals add up only on one base"):
        check_same_base([load_adapter(helpful), other], sft)
    with pytest.raises(ValueError, match="was trained on org/base-b, but the SFT model given is"):
        check_same_base([other], sft)
    revised = load_adapter(edit_config(copy_of(harmless, "revised"), revision="9be4410"))
    with pytest.raises(ValueError, match=r"sft@9be4410, .* residuals add up only on one base"):
        check_same_base([load_adapter(helpful), revised], sft)
    silent = load_adapter(edit_config(copy_of(harmless, "silent"), base_model_name_or_path=None))
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        check_same_base([silent], sft)


def test_hub_ids_are_compared_by_name_and_found_in_the_hub_cache(sft, helpful, copy_of, edit_config, tmp_path):
    adapter = load_adapter(edit_config(copy_of(helpful), base_model_name_or_path="org/base-a"))
    check_same_base([adapter], "org/base-a")
    snapshot = tmp_path / "models--org--base-a" / "snapshots" / "3f2c1d0"
    shutil.copytree(sft, snapshot)
    check_same_base([adapter], snapshot)


def test_recorded_hashes_decide_when_every_adapter_has_one(sft, helpful, harmless, copy_of, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(sft, moved)
    digest = checkpoint_sha256(sft)
    left = record_hash(copy_of(helpful, "left"), digest)
    right = record_hash(copy_of(harmless, "right"), digest)
    check_same_base([load_adapter(left), load_adapter(right)], moved)
    # One hash missing: the paths decide, and the moved folder is another path.
    with pytest.raises(ValueError, match="but the SFT model given is"):
        check_same_base([load_adapter(left), load_adapter(harmless)], moved)
    record_hash(right, "0" * 64)
    with pytest.raises(ValueError, match=r"on SFT weights 000000000000, .* one base"):
        check_same_base([load_adapter(left), load_adapter(right)], moved)


def test_a_retrained_sft_model_under_the_same_path_is_noticed(sft, helpful, copy_of):
    changed = copy_of(sft, "sft")
    adapter = load_adapter(record_hash(copy_of(helpful, "policy"), checkpoint_sha256(sft)))
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"was trained on SFT weights .* holds"):
        check_same_base([adapter], changed)


def test_parameters_must_exist_with_their_shape(sft, helpful, copy_of, edit_weights):
    def renamed(tensors):
        return {name.replace("layers.3", "layers.4"): tensor for name, tensor in tensors.items()}

    with pytest.raises(ValueError, match=r"holds no 'model.layers.4.self_attn.k_proj.weight'"):
        check_same_base([load_adapter(edit_weights(copy_of(helpful, "deep"), renamed))], sft)
    wide = edit_weights(copy_of(helpful, "wide"), lambda t: t | {f"{Q0}.lora_A.weight": torch.ones(4, 20)})
    with pytest.raises(ValueError, match=r"residual of shape \(16, 20\), but the SFT model .* has shape \(16, 16\)"):
        check_same_base([load_adapter(wide)], sft)


def test_checkpoint_hash_is_that_of_the_bytes(sft, copy_of):
    import hashlib

    digest = hashlib.sha256((sft / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoint_sha256(sft) == digest
    assert checkpoint_sha256(copy_of(sft)) == digest
    with pytest.raises(FileNotFoundError, match="not a folder"):
        checkpoint_sha256(sft / "nothing")


HEAD = "base_model.model.lm_head.base_layer.weight"


@pytest.fixture
def with_head(sft, tmp_path, save_adapter):
    """A policy that adapts the head, whose base weight PEFT saves beside the factors."""
    folder = save_adapter(sft, tmp_path / "with_head", seed=3, target_modules=["q_proj", "lm_head"])
    assert HEAD in load_file(folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_the_head_is_s_b_a(sft, with_head, edit_weights, dtype):
    """The copy of the base weight may be in a narrower dtype than the SFT model: then rounding is no difference."""
    edit_weights(with_head, lambda tensors: tensors | {HEAD: tensors[HEAD].to(dtype)})
    adapter = load_adapter(with_head)
    check_same_base([adapter], sft)
    residual, expected = lora_residual(adapter), peft_deltas(sft, with_head)
    assert "lm_head.weight" in residual and residual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(residual[name], tensor, rtol=1e-5, atol=1e-6)


def test_an_adapter_on_the_head_is_merged(sft, helpful, with_head, tmp_path, peft_logits, dense_logits):
    spec = MergeSpec("linear", (0.4, 0.6), 0.8, 0.5)
    for save in ("adapter", "dense"):
        merge_policies(sft, [helpful, with_head], spec, save=save, output_dir=tmp_path / save)
    base = load_file(sft / "model.safetensors")
    expected = base["lm_head.weight"] + 0.8 * 0.6 * peft_deltas(sft, with_head)["lm_head.weight"]
    torch.testing.assert_close(load_file(tmp_path / "dense" / "model.safetensors")["lm_head.weight"], expected)
    torch.testing.assert_close(
        peft_logits(sft, tmp_path / "adapter"), dense_logits(tmp_path / "dense"), rtol=1e-4, atol=1e-4
    )


def test_a_head_with_another_base_weight_is_refused(sft, with_head, edit_weights):
    edit_weights(with_head, lambda tensors: tensors | {HEAD: tensors[HEAD] + torch.eye(32, 16) * 1e-6})
    message = r"a base weight of 'lm_head' that is not 'lm_head.weight' of .* save_embedding_layers=False"
    with pytest.raises(ValueError, match=message):
        check_same_base([load_adapter(with_head)], sft)


def test_embeddings_saved_beside_an_adapter_are_left_out_where_they_are_the_sft_models(
    sft, tmp_path, save_adapter, edit_weights, peft_logits
):
    """`save_embedding_layers=True` writes both tables, trained or not."""
    folder = save_adapter(sft, tmp_path / "tables", seed=3, save_embedding_layers=True)
    copied = load_adapter(folder).copied
    assert set(copied.values()) == {"model.embed_tokens.weight", "lm_head.weight"}
    out = merge_policies(sft, [folder], MergeSpec("linear", (1.0,)), save="adapter", output_dir=tmp_path / "out")
    torch.testing.assert_close(peft_logits(sft, out), peft_logits(sft, folder))
    key = next(key for key, name in copied.items() if name == "model.embed_tokens.weight")
    edit_weights(folder, lambda tensors: tensors | {key: tensors[key][:-1].clone()})
    with pytest.raises(
        ValueError, match=r"a base weight of 'model.embed_tokens' that is not 'model.embed_tokens.weight'"
    ):
        check_same_base([load_adapter(folder)], sft)


def test_base_weights_of_modules_that_are_not_adapted_are_refused(copy_of, helpful, edit_weights):
    folder = edit_weights(copy_of(helpful), lambda tensors: tensors | {HEAD: torch.zeros(32, 16)})
    with pytest.raises(ValueError, match=r"holds 'base_model.model.lm_head.base_layer.weight'"):
        load_adapter(folder)


def test_an_adapter_on_the_embedding_is_refused_with_a_way_out(sft, tmp_path, save_adapter):
    folder = save_adapter(sft, tmp_path / "tokens", seed=3, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ValueError, match=r"embed_tokens.lora_embedding_A' .*; merge dense checkpoints"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": math.nan}, "has lora_alpha nan in"),
        ({"r": 0}, "has r 0 in adapter_config.json, expected a number"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"has alpha_pattern {'q_proj': 'x'} in .* expected numbers by regular"),
        ({"alpha_pattern": {"(": 3}}, r"has alpha_pattern {'\(': 3} in"),
        ({"rank_pattern": ["q_proj"]}, r"has rank_pattern \['q_proj'\] in"),
        ({"rank_pattern": {"q_proj": 0}}, "has rank_pattern {'q_proj': 0} in"),
        ({"base_model_name_or_path": 5}, "has base_model_name_or_path 5 in adapter_config.json, expected a name"),
        ({"revision": ["main"]}, r"has revision \['main'\] in"),
        ({"use_rslora": "yes"}, "has use_rslora 'yes' in adapter_config.json, expected true or false; save it again"),
        ({"fan_in_fan_out": 1}, "has fan_in_fan_out 1 in adapter_config.json, expected true or false"),
        ({"r": True}, "has r True in adapter_config.json, expected a number"),
        ({"target_modules": 5}, "has target_modules 5 in adapter_config.json, expected names of modules, or a pattern"),
        ({"exclude_modules": [1]}, r"has exclude_modules \[1\] in"),
        ({"task_type": "SEQ_CLS"}, "has task_type 'SEQ_CLS' in .* expected CAUSAL_LM or SEQ_2_SEQ_LM: it was trained"),
        ({"task_type": ["CAUSAL_LM"]}, r"has task_type \['CAUSAL_LM'\] in"),
    ],
)
def test_damaged_configs_are_one_sentence(copy_of, helpful, edit_config, changes, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(edit_config(copy_of(helpful), **changes))


def test_a_damaged_record_is_one_sentence(copy_of, helpful):
    with pytest.raises(ValueError, match=r"rlhf_lines.json' has sft_sha256 5, expected a hash"):
        load_adapter(record_hash(copy_of(helpful), 5))


def test_an_adapter_of_an_older_peft_says_how_to_save_it_again(harmless, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(harmless, older)
    torch.save(load_file(older / "adapter_model.safetensors"), older / "adapter_model.bin")
    load_adapter(older)  # of both, the safe one is read
    (older / "adapter_model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has adapter_model\.bin, as PEFT before 0\.7 wrote it: .*save it again"
    ):
        load_adapter(older)
