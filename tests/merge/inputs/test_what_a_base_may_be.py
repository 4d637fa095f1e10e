"""SFT models that hold no weight of a module as it is: quantised, tied; and the depth of the part that is adapted."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, lines_scales, merge_policies
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from tests import tiny


SPEC = MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0)


@pytest.fixture(scope="module")
def quantise():
    """A function that packs the linear modules of a model's folder as a library does: other names, shapes and types."""

    def change(folder, method):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for name in [name for name in tensors if "_proj" in name]:
            size = tensors[name].numel()
            if method == "bitsandbytes":
                tensors[name] = torch.zeros(size // 2, 1, dtype=torch.uint8)
                tensors[f"{name}.absmax"] = torch.zeros(4, dtype=torch.uint8)
            elif method == "fp8":
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)
                tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
            else:
                del tensors[name]
                tensors[name.replace(".weight", ".qweight")] = torch.zeros(size // 8, 1, dtype=torch.int32)
        save_file(tensors, path, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return change


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "gptq"])
def test_adapters_on_a_quantised_model_are_merged_as_on_the_plain_one(
    sft, helpful, harmless, copy_of, quantise, tmp_path, method
):
    packed = quantise(copy_of(sft, "packed"), method)
    outs = [
        merge_policies(base, [helpful, harmless], SPEC, save="adapter", output_dir=tmp_path / name, sft_renamed=True)
        for name, base in (("a", sft), ("b", packed))
    ]
    assert (outs[0] / "adapter_model.safetensors").read_bytes() == (outs[1] / "adapter_model.safetensors").read_bytes()
    record = json.loads((outs[1] / "merge_spec.json").read_text())
    assert record["sft_renamed"] is True
    for refused in ({"save": "dense"}, {"save": "adapter", "rank": 2, "spec": MergeSpec("ties", (0.5, 0.5))}):
        with pytest.raises(
            ValueError, match=rf"packed' is quantised \({method}, see quantization_config in config.json"
        ):
            merge_policies(
                packed,
                [helpful, harmless],
                **{"spec": SPEC, "output_dir": tmp_path / "c", "sft_renamed": True, **refused},
            )


def test_a_whole_model_that_is_quantised_is_told_as_such(sft, copy_of, quantise, tmp_path):
    packed, spec = quantise(copy_of(sft, "packed"), "gptq"), MergeSpec("linear", (1.0,))
    for base, policy in ((sft, packed), (packed, sft)):
        with pytest.raises(ValueError, match=r"^'.*packed' is quantised \(gptq, .* give the unquantised model$"):
            merge_policies(base, [policy], spec, save="dense", output_dir=tmp_path / "out")


def test_a_module_of_another_shape_is_refused_on_a_quantised_model(
    sft, helpful, copy_of, quantise, edit_weights, tmp_path
):
    packed = quantise(copy_of(sft, "packed"), "bitsandbytes")
    wide = edit_weights(
        copy_of(helpful, "wide"), lambda t: {k: torch.ones(4, 17) if "q_proj.lora_A" in k else v for k, v in t.items()}
    )
    with pytest.raises(
        ValueError, match=r"residual of shape \(16, 17\), but the SFT model .*packed' has shape \(16, 16\)"
    ):
        merge_policies(
            packed, [wide], MergeSpec("linear", (1,)), save="adapter", output_dir=tmp_path / "out", sft_renamed=True
        )


def gemma():
    """Ties by the default of its class."""
    from transformers import GemmaConfig, GemmaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GemmaForCausalLM(GemmaConfig(vocab_size=32, num_key_value_heads=1, head_dim=8, **shape))


def llava():
    """Its files call the head `language_model.lm_head`, and older configs speak of it in a part, `text_config`."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye = {**shape, "image_size": 8, "patch_size": 4}
    text = LlamaConfig(vocab_size=32, tie_word_embeddings=False, **shape)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**eye)))


@pytest.mark.parametrize(
    ("model", "said", "tied"),
    [
        (gemma, {}, True),
        (gemma, {"tie_word_embeddings": False}, False),
        (tiny.gpt2, {}, True),
        (tiny.llama, {}, False),
        (tiny.llama, {"tie_word_embeddings": True}, True),
        (llava, {}, False),
        (llava, {"text_config": {"tie_word_embeddings": True}}, True),
        (llava, {"text_config": {"tie_word_embeddings": True}, "tie_word_embeddings": False}, True),
    ],
)
def test_a_head_is_tied_as_transformers_ties_it(tmp_path, model, said, tied):
    """Older files hold head and embedding, and older configs leave out what is the default of their class."""
    folder, made = tmp_path / "model", model()
    made.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))
    head = next((name for name in tensors if name.endswith("lm_head.weight")), "lm_head.weight")
    twice = tensors | {head: tensors[embedding].clone()}
    save_file(twice, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for part, changes in ((config, said), (config.get("text_config", {}), said.get("text_config", {}))):
        part.pop("tie_word_embeddings", None)
        part.update({key: value for key, value in changes.items() if key != "text_config"})
    (folder / "config.json").write_text(json.dumps(config))
    loaded = type(made).from_pretrained(folder)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.copies == ({head: embedding} if tied else {})
        assert (head in checkpoint.distinct) is not tied


def test_a_tied_head_is_merged_into_an_adapter_and_into_nothing_else(tmp_path, logits):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tiny.llama(vocab_size=32, tie_word_embeddings=True).save_pretrained(tmp_path / "sft")
    policies = [
        tiny.save_adapter(
            tmp_path / "sft",
            tmp_path / f"p{seed}",
            seed=seed,
            target_modules=["q_proj", "lm_head"],
            save_embedding_layers="auto",
        )
        for seed in (1, 2)
    ]
    out = merge_policies(tmp_path / "sft", policies, SPEC, save="adapter", output_dir=tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, out).eval()
        hidden = adapted(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        found = adapted(input_ids=ids).logits
    # The head lies outside the layers, so its residuals get alpha; the embedding has none.
    head = load_file(tmp_path / "sft" / "model.safetensors")["model.embed_tokens.weight"].clone()
    for weight, policy in zip(SPEC.weights, policies, strict=True):
        factors = load_file(policy / "adapter_model.safetensors")
        A, B = (factors[f"base_model.model.lm_head.lora_{half}.weight"] for half in "AB")
        head += 0.5 * weight * 2 * B @ A
    torch.testing.assert_close(found, hidden @ head.T, rtol=1e-4, atol=1e-4)
    message = "adapts 'lm_head', which .*sft' ties to 'model.embed_tokens.weight': no model holds this residual"
    with pytest.raises(ValueError, match=message):
        merge_policies(tmp_path / "sft", policies, SPEC, save="dense", output_dir=tmp_path / "dense")


def test_a_head_alone_is_scaled_by_alpha(sft, save_adapter, tmp_path, peft_logits):
    policy = save_adapter(sft, tmp_path / "p", seed=1, target_modules=["lm_head"])
    spec = MergeSpec("linear", (1.0,), alpha=1.0, beta=3.0)
    out = merge_policies(sft, [policy], spec, save="adapter", output_dir=tmp_path / "out")
    torch.testing.assert_close(peft_logits(sft, out), peft_logits(sft, policy))


def translator(kind):
    """A BART, Whisper or T5 whose encoder has another depth than its decoder."""
    import transformers

    sizes = {"d_model": 8, "encoder_layers": 5, "decoder_layers": 3, "vocab_size": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    if kind == "bart":
        config = transformers.BartConfig(**sizes, **heads, **tokens, max_position_embeddings=16)
        return transformers.BartForConditionalGeneration(config)
    if kind == "whisper":
        places = {"num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8}
        config = transformers.WhisperConfig(**sizes, **heads, **tokens, **places)
        return transformers.WhisperForConditionalGeneration(config)
    sizes = {
        "d_model": 8,
        "d_ff": 8,
        "d_kv": 4,
        "num_heads": 2,
        "num_layers": 5,
        "num_decoder_layers": 3,
        "vocab_size": 16,
    }
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


@pytest.mark.parametrize("kind", ["bart", "whisper", "t5"])
def test_the_layers_of_the_adapted_part_are_counted(tmp_path, kind):
    model = translator(kind)
    model.save_pretrained(tmp_path / "sft")
    path = tmp_path / "sft" / "config.json"
    config = json.loads(path.read_text())
    if kind != "t5":  # as transformers 4 wrote it
        path.write_text(json.dumps({**config, "num_hidden_layers": config["encoder_layers"]}))
    name = "q" if kind == "t5" else "q_proj"
    for part, depth in (("decoder", 3), ("encoder", 5)):
        base = type(model).from_pretrained(tmp_path / "sft")
        modules = rf"(model\.)?{part}\..*\.{name}"
        policy = tiny.save_adapter(base, tmp_path / part, seed=1, target_modules=modules, task_type="SEQ_2_SEQ_LM")
        spec = MergeSpec("linear", (1.0,), alpha=0.5, beta=1.0)
        out = merge_policies(tmp_path / "sft", [policy], spec, save="adapter", output_dir=tmp_path / f"{part}_out")
        before, after = (load_file(folder / "adapter_model.safetensors") for folder in (policy, out))
        scales = lines_scales(depth, 0.5, 1.0)
        for key in (key for key in before if "lora_B" in key):
            layer = int(key.split(".block." if kind == "t5" else ".layers.")[1].split(".")[0])
            torch.testing.assert_close(after[key], 2 * before[key] * scales[layer].float())
    both = tiny.save_adapter(
        type(model).from_pretrained(tmp_path / "sft"),
        tmp_path / "both",
        seed=1,
        target_modules=[name],
        task_type="SEQ_2_SEQ_LM",
    )
    with pytest.raises(ValueError, match=r"whose depth is another \([35], not [35]\); merge policies that change one"):
        merge_policies(tmp_path / "sft", [both], spec, save="adapter", output_dir=tmp_path / "both_out")


@pytest.mark.parametrize("kind", ["pegasus", "mbart", "t5"])
def test_an_encoder_and_a_decoder_of_one_depth_are_two_stacks_of_layers(tmp_path, kind):
    import transformers

    of_t5 = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 3, "vocab_size": 16}
    sizes = {"d_model": 8, "encoder_layers": 3, "decoder_layers": 3, "vocab_size": 16, "max_position_embeddings": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **(of_t5 if kind == "t5" else {**sizes, **heads, **tokens}))
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path / "sft")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):  # Pegasus' positions are a formula
            parameter += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "policy")
    spec = MergeSpec("linear", (1.0,), alpha=0.5, beta=1.0)
    out = merge_policies(tmp_path / "sft", [tmp_path / "policy"], spec, save="dense", output_dir=tmp_path / "out")
    sft, policy, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("sft", "policy", "out"))
    assert out == tmp_path / "out" and merged.keys() == sft.keys()
    for name, before in sft.items():
        layer = re.search(r"(?:encoder|decoder)\.(?:layers|block)\.(\d)\.", name)
        factor = 0.5 if layer is None else (0.5, 1.0, 1.5)[int(layer[1])]
        torch.testing.assert_close(merged[name], before + factor * (policy[name] - before), rtol=1e-5, atol=1e-6)

    base, adapted = type(model).from_pretrained(tmp_path / "sft"), ["q" if kind == "t5" else "q_proj"]
    lora = tiny.save_adapter(base, tmp_path / "lora", seed=1, target_modules=adapted, task_type="SEQ_2_SEQ_LM")
    merge_policies(tmp_path / "sft", [lora], spec, save="adapter", output_dir=tmp_path / "adapter")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "adapter"))
    for key in (key for key in before if "lora_B" in key):
        factor = (0.5, 1.0, 1.5)[int(re.search(r"\.(?:layers|block)\.(\d)\.", key)[1])]
        torch.testing.assert_close(after[key], 2 * before[key] * factor)


def test_a_config_that_states_more_layers_than_there_are_is_named(sft, copy_of):
    folder = copy_of(sft)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 6}))
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.num_layers() == 6
        with pytest.raises(ValueError, match=r"states 6 layers, but its files hold 4 named model.layers.<i>"):
            checkpoint.num_layers(["model.layers.0.self_attn.q_proj"])


@pytest.mark.parametrize("model_type", [None, "", 5])
@pytest.mark.parametrize("save", ["adapter", "dense"])
def test_a_config_without_a_model_type_is_refused(sft, helpful, copy_of, tmp_path, model_type, save):
    folder = copy_of(sft)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "model_type": model_type}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=rf"config.json' has model_type {model_type!r}, expected the name of an arch"):
        merge_policies(folder, [helpful], MergeSpec("linear", (1.0,)), save=save, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8])
@pytest.mark.parametrize("save", ["adapter", "dense"])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"])
def test_codes_without_their_scales_are_refused(sft, helpful, copy_of, tmp_path, dtype, save, name):
    """Also where no policy changes them: they would be copied, or cast, as if they were numbers."""
    folder = copy_of(sft)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].to(dtype)}, path, metadata={"format": "pt"})
    message = rf"{name!r} has dtype {str(dtype)[6:]} in .*, and no quantization_config in config.json says how"
    with pytest.raises(ValueError, match=message):
        merge_policies(folder, [helpful], MergeSpec("linear", (1.0,)), save=save, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
