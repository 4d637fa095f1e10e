"""One tensor may have one name in the files and another in the model, and files may hold more than parameters."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, lines_scales, merge_policies
from rlhf_lines.merge.inputs.adapter import load_adapter, renamed
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.model_names import CAUSAL_LM, SEEING
from rlhf_lines.merge.inputs.provenance import with_names_of_one
from tests import tiny


TEXT = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32},
}
EYE = {
    **{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 8, "patch_size": 4},
}
SPEC = MergeSpec("linear", (0.7, -0.2), alpha=0.6, beta=0.9)


def gemma3():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, vision_config=EYE, mm_tokens_per_image=4))


def llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(vision_config=CLIPVisionConfig(**EYE), text_config=LlamaConfig(**TEXT), image_token_id=30)
    return LlavaForConditionalGeneration(config)


def qwen2_5_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    eye = {"depth": 2, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4}
    tokens = {"image_token_id": 28, "video_token_id": 29, "vision_start_token_id": 30, "vision_end_token_id": 31}
    text = {**TEXT, "rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config={**eye, "fullatt_block_indexes": [1]}, **tokens)
    )


@pytest.fixture(scope="module", params=[gemma3, llava, qwen2_5_vl], ids=lambda make: make.__name__)
def seeing(request, tmp_path_factory):
    """A model with eyes, its folder, and two adapters on queries and values of all that it has."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    model = tiny.widened(request.param())
    model.save_pretrained(folder / "sft")
    adapters = []
    for seed, modules in ((1, r".*language_model.*\.(q_proj|v_proj)"), (2, ["q_proj", "v_proj", "down_proj"])):
        base = type(model).from_pretrained(folder / "sft")
        adapters.append(tiny.save_adapter(base, folder / f"p{seed}", seed=seed, target_modules=modules))
    return model, folder / "sft", adapters


def merged_by_hand(model, adapters, spec):
    """The parameters of the model with every residual scaled by the depth of its layer in the language model."""
    parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    scales = lines_scales(TEXT["num_hidden_layers"], spec.alpha, spec.beta).tolist()
    for weight, folder in zip(spec.weights, adapters, strict=True):
        for module, factors in load_adapter(folder).modules.items():
            _, in_text, rest = module.partition("language_model.layers.")
            scale = scales[int(rest.split(".")[0])] if in_text else spec.alpha
            parameters[f"{module}.weight"] += weight * scale * factors.scale * factors.B @ factors.A
    return parameters


def assert_close(found, expected):
    assert found.keys() >= expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(12).reshape(2, 6)).logits


def test_a_model_with_eyes_is_merged_under_the_names_of_its_files(seeing, tmp_path):
    model, sft, adapters = seeing
    expected = merged_by_hand(model, adapters, SPEC)
    dense = merge_policies(sft, adapters, SPEC, save="dense", output_dir=tmp_path / "dense")
    assert load_file(dense / "model.safetensors").keys() == load_file(sft / "model.safetensors").keys()
    read = type(model).from_pretrained(dense)
    assert_close(dict(read.named_parameters()), expected)
    adapter = merge_policies(sft, adapters, SPEC, save="adapter", output_dir=tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(type(model).from_pretrained(sft), adapter)
    torch.testing.assert_close(logits(adapted), logits(read), rtol=1e-4, atol=1e-4)
    assert_close(dict(adapted.merge_and_unload().named_parameters()), expected)


def as_in_files(adapter, model, sft, folder):
    """A copy of an adapter as transformers 4 saved it: with the names that the files have."""
    with Checkpoint(sft) as checkpoint:
        names = {key: checkpoint.parameter(key) for key, _ in model.named_parameters()}
    old = shutil.copytree(adapter, folder)
    path, prefix = old / "adapter_model.safetensors", "base_model.model."
    renamed = {}
    for key, tensor in load_file(path).items():
        module, _, factor = key.removeprefix(prefix).partition(".lora_")
        renamed[f"{prefix}{names[f'{module}.weight'].removesuffix('.weight')}.lora_{factor}"] = tensor
    save_file(renamed, path)
    return old


@pytest.mark.parametrize("older", [(True, False), (True, True)], ids=["one", "both"])
def test_adapters_of_either_naming_are_one(seeing, tmp_path, older):
    """Also where all have the older names, which the model that is loaded has not."""
    model, sft, adapters = seeing
    given = [
        as_in_files(adapter, model, sft, tmp_path / adapter.name) if old else adapter
        for adapter, old in zip(adapters, older, strict=True)
    ]
    outs = [
        merge_policies(sft, policies, SPEC, save="adapter", output_dir=tmp_path / name)
        for name, policies in (("a", adapters), ("b", given))
    ]
    one, other = (load_file(out / "adapter_model.safetensors") for out in outs)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert {key.partition(".lora_")[0] for key in other} <= {
        f"base_model.model.{name}" for name, _ in model.named_modules()
    }


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, gemma3], ids=lambda make: make.__name__)
def test_adapters_of_a_trunk_get_the_names_of_the_model(tmp_path, make):
    """AutoModel makes the model without its head: what it calls `layers.0` is `model.layers.0` of the whole one."""
    from transformers import AutoModel

    torch.manual_seed(0)
    whole = tiny.widened(make() if make is gemma3 else make(vocab_size=16))
    whole.save_pretrained(tmp_path / "sft")
    targets = ["c_attn"] if make is tiny.gpt2 else ["q_proj", "v_proj"]
    policies = []
    for seed in (1, 2):
        trunk = AutoModel.from_pretrained(tmp_path / "sft")
        folder = tmp_path / f"p{seed}"
        policies.append(tiny.save_adapter(trunk, folder, seed=seed, target_modules=targets, task_type=None))
    dense, adapter = (
        merge_policies(tmp_path / "sft", policies, SPEC, save=save, output_dir=tmp_path / save)
        for save in ("dense", "adapter")
    )
    load = type(whole).from_pretrained
    found, expected = logits(PeftModel.from_pretrained(load(tmp_path / "sft"), adapter)), logits(load(dense))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - logits(load(tmp_path / "sft"))).abs().max() > 0.1


def test_experts_of_an_older_version_keep_their_names(tmp_path):
    """They are parts of one parameter now; PEFT reads an adapter with all of the older names."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=2, num_experts_per_tok=1)).save_pretrained(
        tmp_path / "sft"
    )
    policy = tmp_path / "policy"
    base = MixtralForCausalLM.from_pretrained(tmp_path / "sft")
    tiny.save_adapter(base, policy, seed=1, target_modules=["q_proj"])
    older = {
        f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{name}.lora_{half}.weight": torch.randn(
            shape
        )
        for expert in range(2)
        for name in ("w1", "w3")
        for half, shape in (("A", (4, 16)), ("B", (24, 4)))
    }
    path = policy / "adapter_model.safetensors"
    save_file(load_file(path) | older, path)
    with Checkpoint(tmp_path / "sft") as checkpoint:
        (kept,) = with_names_of_one([load_adapter(policy)], checkpoint)
        assert kept.modules.keys() == load_adapter(policy).modules.keys()
        reading = next(iter(checkpoint.readings))
        assert renamed(load_adapter(policy), reading).modules.keys() >= {
            f"model.layers.0.block_sparse_moe.experts.{expert}.{name}" for expert in range(2) for name in ("w1", "w3")
        }


def test_what_sees_lies_outside_the_layers_for_adapter_and_dense(seeing, tmp_path):
    """Its own layers are none of the language model's, whatever files and modules call them."""
    model, sft, _ = seeing
    base, modules = type(model).from_pretrained(sft), r".*(vision_tower|visual).*attn\.(q_proj|v_proj|qkv)"
    policy = tiny.save_adapter(base, tmp_path / "policy", seed=3, target_modules=modules)
    spec = MergeSpec("linear", (0.7,), alpha=0.5, beta=1.0)
    expected = merged_by_hand(model, [policy], MergeSpec("linear", (0.35,)))
    for save in ("adapter", "dense"):
        out = merge_policies(sft, [policy], spec, save=save, output_dir=tmp_path / save)
        read = type(model).from_pretrained(out if save == "dense" else sft)
        read = read if save == "dense" else PeftModel.from_pretrained(read, out).merge_and_unload()
        assert_close(dict(read.named_parameters()), expected)


def test_dense_policies_of_either_naming_are_one(seeing, tmp_path):
    model, sft, _ = seeing
    policy = shutil.copytree(sft, tmp_path / "policy")
    stored = load_file(sft / "model.safetensors")
    with Checkpoint(sft) as checkpoint:
        held = {name: key for key, _ in model.named_parameters() if (name := checkpoint.parameter(key))}
    assert held.keys() == stored.keys() and held.items() != {(name, name) for name in held}
    moved = {name: tensor + 0.5 for name, tensor in stored.items()}
    save_file({held[name]: tensor for name, tensor in moved.items()}, policy / "model.safetensors", {"format": "pt"})
    out = merge_policies(sft, [policy], MergeSpec("linear", (0.5,)), save="dense", output_dir=tmp_path / "out")
    assert_close(load_file(out / "model.safetensors"), {name: tensor + 0.25 for name, tensor in stored.items()})


def test_a_text_model_within_one_that_sees_is_read_by_its_own_names(tmp_path):
    """AutoModelForCausalLM makes a text model of Qwen3.5's folder, whose modules have shorter names."""
    from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    eye = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4}
    text = {**TEXT, "layer_types": ["full_attention"] * 3, "linear_num_key_heads": 1, "linear_num_value_heads": 1}
    torch.manual_seed(0)
    config = Qwen3_5Config(text_config=text, vision_config={**eye, "num_position_embeddings": 4})
    tiny.widened(Qwen3_5ForConditionalGeneration(config)).save_pretrained(tmp_path / "sft")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    policy = tiny.save_adapter(base, tmp_path / "p", seed=1, target_modules=["q_proj"])
    spec = MergeSpec("linear", (0.5,), beta=1.0)
    for save, loader in (("adapter", CAUSAL_LM), ("dense", SEEING)):
        out = merge_policies(tmp_path / "sft", [policy], spec, save=save, output_dir=tmp_path / save)
        assert json.loads((out / "merge_spec.json").read_text())["loaded_by"] == loader
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "sft"), tmp_path / "adapter")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(adapted), logits(read), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(adapted), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "sft")))


def test_a_model_that_transformers_does_not_know_keeps_its_names(sft, copy_of):
    folder = copy_of(sft)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "unheard", "architectures": ["Of"]}))
    with Checkpoint(folder) as checkpoint:
        assert list(checkpoint.readings) == [] and checkpoint.readings.loaded_by(CAUSAL_LM) is None
        assert checkpoint.parameter("model.norm.weight") == "model.norm.weight"
        assert checkpoint.parameter("model.language_model.norm.weight") is None
        assert not checkpoint.left_out("model.norm.weight")


# --- what is no parameter ---


def change(folder, function):
    path = folder / "model.safetensors"
    save_file(function(load_file(path)), path, metadata={"format": "pt"})
    return folder


def moved(tensors):
    return {
        name: tensor + 1 if tensor.is_floating_point() and tensor.ndim else tensor for name, tensor in tensors.items()
    }


def buffers_of_gpt2(tensors):
    return tensors | {
        f"transformer.h.{i}.attn.{name}": value
        for i in range(2)
        for name, value in (("bias", torch.ones(1, 1, 16, 16)), ("masked_bias", torch.tensor(-torch.inf)))
    }


def buffers_of_llama(tensors):
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(2) for i in range(4)}


def layer_behind_the_last(tensors):
    return tensors | {"model.layers.4.eh_proj.weight": torch.ones(4, 8), "model.layers.4.enorm.weight": torch.ones(4)}


@pytest.mark.parametrize("holders", ["sft", "policy", "both"])
@pytest.mark.parametrize(
    ("make", "more"),
    [(tiny.gpt2, buffers_of_gpt2), (tiny.llama, buffers_of_llama), (tiny.llama, layer_behind_the_last)],
    ids=lambda value: value.__name__,
)
def test_what_is_no_parameter_is_copied_and_does_not_stop_a_merge(tmp_path, make, more, holders):
    make(vocab_size=16).save_pretrained(tmp_path / "sft")
    policy = shutil.copytree(tmp_path / "sft", tmp_path / "policy")
    change(policy, moved)
    plain = load_file(tmp_path / "sft" / "model.safetensors")
    for name in ("sft", "policy"):
        if holders in (name, "both"):
            change(tmp_path / name, more)
    held = load_file(tmp_path / "sft" / "model.safetensors")
    out = merge_policies(
        tmp_path / "sft", [policy], MergeSpec("linear", (0.5,)), save="dense", output_dir=tmp_path / "o"
    )
    found = load_file(out / "model.safetensors")
    assert found.keys() == held.keys()
    assert_close(found, {name: tensor + 0.5 for name, tensor in plain.items()})
    if holders == "sft":
        assert all(torch.equal(found[name], held[name]) for name in held.keys() - plain.keys())


def test_a_parameter_that_the_sft_model_has_not_still_stops(tmp_path):
    """A bias of attention is trained; a model without one does not load it, which no merge passes over."""
    tiny.llama(vocab_size=16).save_pretrained(tmp_path / "sft")
    tiny.llama(vocab_size=16, attention_bias=True).save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"for 'model.layers.0.self_attn.k_proj.bias', but the SFT"):
        merge_policies(
            tmp_path / "sft", [tmp_path / "policy"], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "o"
        )


def test_experts_that_one_version_splits_and_another_holds_as_one_are_told(tmp_path):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **experts))
    model.save_pretrained(tmp_path / "split")
    fused = shutil.copytree(tmp_path / "split", tmp_path / "fused")
    state = dict(model.state_dict())
    save_file(state, fused / "model.safetensors", metadata={"format": "pt"})
    spec = MergeSpec("linear", (1.0,))
    with pytest.raises(
        ValueError, match=r"holds \d+ tensors that the SFT model .* holds as \d+ others .* save it again"
    ):
        merge_policies(tmp_path / "split", [fused], spec, save="dense", output_dir=tmp_path / "out")


def test_layers_that_predict_further_tokens_are_copied_under_any_name(tmp_path):
    """Qwen3-Next's files have `mtp.*`, which transformers passes over; both sides may be copies from the Hub."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    linear = {"linear_num_key_heads": 1, "linear_num_value_heads": 1, "layer_types": ["full_attention"] * 3}
    experts = {
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    Qwen3NextForCausalLM(Qwen3NextConfig(**TEXT, **linear, **experts)).save_pretrained(tmp_path / "sft")
    plain = load_file(tmp_path / "sft" / "model.safetensors")
    policy = change(shutil.copytree(tmp_path / "sft", tmp_path / "policy"), moved)
    for folder in (tmp_path / "sft", policy):
        change(
            folder,
            lambda tensors: tensors | {"mtp.fc.weight": torch.ones(4, 8), "mtp.layers.0.q.weight": torch.ones(4, 4)},
        )
    spec = MergeSpec("linear", (0.5,), beta=1.0, alpha=0.0)
    out = merge_policies(tmp_path / "sft", [policy], spec, save="dense", output_dir=tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["mtp.fc.weight"], torch.ones(4, 8)) and found.keys() > plain.keys()
    key = "model.layers.2.self_attn.q_proj.weight"
    torch.testing.assert_close(found[key], plain[key] + 0.5)


def test_modules_that_end_in_a_number_are_named_whole(tmp_path):
    """Gemma 3n's `altup_projections.0`: PEFT would take the end `0` for `layers.0`, too."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    small = {"vocab_size_per_layer_input": 32, "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0}
    layers = {"layer_types": ["full_attention"] * 3, "activation_sparsity_pattern": [0.0] * 3, "laurel_rank": 2}
    torch.manual_seed(0)
    Gemma3nForCausalLM(Gemma3nTextConfig(**{**TEXT, **small, **layers, "intermediate_size": [24] * 3})).save_pretrained(
        tmp_path / "sft"
    )
    base = Gemma3nForCausalLM.from_pretrained(tmp_path / "sft")
    policy = tiny.save_adapter(base, tmp_path / "p", seed=1, target_modules="all-linear")
    out = merge_policies(
        tmp_path / "sft", [policy], MergeSpec("linear", (1.0,)), save="adapter", output_dir=tmp_path / "o"
    )
    one, other = (
        logits(PeftModel.from_pretrained(Gemma3nForCausalLM.from_pretrained(tmp_path / "sft"), folder))
        for folder in (policy, out)
    )
    torch.testing.assert_close(one, other)
