"""Shapes and counts: those of the published models, and of what is instantiated for real."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from reward_models import PRESETS
from rlhf_lines import skeleton
from rlhf_lines.plan import counts
from rlhf_lines.plan.shapes import KNOWN, find_shape


# As their cards or the pages of transformers' pretrained models give them; classifiers' heads are added by hand.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "Tristan/gpt2_reward_summarization": 124_439_808,
    "CogComp/bart-faithful-summary-detector": 139_420_416,
    "OpenAssistant/reward-model-deberta-v3-large-v2": 434_012_160,
    "Ray2333/gpt2-large-helpful-reward_model": 774_030_080,
    "Ray2333/gpt2-large-harmless-reward_model": 774_030_080,
    "mohameddhiab/humor-no-humor": 66_362_880,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_shape_has_as_many_parameters_as_the_published_model(name):
    config = find_shape(name).config
    if config.model_type == "llama":
        assert counts.count(skeleton.causal_lm(config)) == PUBLISHED[name]
        return
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    assert counts.count(trunk) == PUBLISHED[name]


def test_every_preset_is_known():
    assert set(KNOWN) == set(PUBLISHED)
    assert {preset.model for preset in PRESETS.values()} <= set(KNOWN)


def test_counts_are_those_of_the_real_model(llama):
    lora = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    planned = skeleton.adapt(skeleton.causal_lm(llama, dtype="bfloat16"), LoraConfig(**lora))
    real = get_peft_model(AutoModelForCausalLM.from_config(llama, dtype=torch.bfloat16), LoraConfig(**lora))
    trainable = [p for p in real.parameters() if p.requires_grad]
    assert counts.count(planned) == sum(p.numel() for p in real.parameters())
    assert counts.count(planned, trainable=True) == sum(p.numel() for p in trainable)
    assert counts.trainable_bytes(planned) == sum(p.nbytes for p in trainable)
    frozen = [*(p for p in real.parameters() if not p.requires_grad), *real.buffers()]
    assert counts.frozen_bytes(planned) == sum(t.nbytes for t in frozen)
    # By hand: q and o 16x16, k and v 16x8, gate, up, down 16x24; rank 4, two layers.
    assert counts.count(planned, trainable=True) == 2 * 4 * (2 * 32 + 2 * 24 + 3 * 40)


def test_eight_bits_are_a_byte_per_weight_of_a_layer_and_the_rest_stays(llama):
    model = skeleton.adapt(
        skeleton.causal_lm(llama, dtype="bfloat16"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    weights = 2 * (2 * 256 + 2 * 128 + 3 * 384)
    rows = 2 * (16 + 16 + 8 + 8 + 24 + 24 + 16)
    rest = counts.frozen_bytes(model) - 2 * weights
    assert counts.frozen_bytes(model, bits=8) == weights + 4 * rows + rest
    assert rest >= 2 * (2 * 64 * 16 + 5 * 16)  # embedding, head, norms


@pytest.mark.parametrize(
    ("stored", "held"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, (4, True)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, (8, False)),
        ({"quant_method": "gptq", "bits": 4}, (4, False)),
        ({"quant_method": "fp8"}, (16, False)),
        (None, (8, False)),
    ],
)
def test_a_stored_quantised_base_is_held_as_it_is_stored(llama, stored, held):
    config = copy.deepcopy(llama)
    if stored is not None:
        config.quantization_config = stored
    assert counts.held_as(config, load_in_4bit=False, load_in_8bit=True, nested=True) == held


@pytest.mark.parametrize("adapted", [False, True])
def test_weights_in_fp8_are_a_byte_and_a_scale_per_block(llama, adapted):
    config = copy.deepcopy(llama)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    model = skeleton.causal_lm(config, dtype="bfloat16").requires_grad_(False)
    linear = [module.weight.shape for name, module in model.named_modules() if "_proj" in name]
    blocks = sum(-(-rows // 8) * -(-columns // 8) for rows, columns in linear)
    plain = counts.frozen_bytes(model)
    if adapted:
        model = skeleton.adapt(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    expected = plain - sum(rows * columns for rows, columns in linear) + 4 * blocks
    assert counts.frozen_bytes(model, device="cuda") == expected
    assert counts.frozen_bytes(model, device="cpu") == plain  # which transformers unpacks


def test_experts_in_mxfp4_are_half_a_byte_and_a_scale_per_32():
    sizes = {"num_local_experts": 4, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = AutoConfig.for_model("gpt_oss", **sizes, vocab_size=64)
    plain = counts.frozen_bytes(skeleton.causal_lm(config, dtype="bfloat16").requires_grad_(False))
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    model = skeleton.causal_lm(config, dtype="bfloat16").requires_grad_(False)
    weights, biases = 2 * 4 * (2 * 96 * 64 + 64 * 96), 2 * 4 * (2 * 96 + 64)  # biases are held in float32
    expected = plain - 2 * weights + weights // 2 + weights // 32 + 2 * biases
    assert counts.frozen_bytes(model, device="cuda") == expected
    assert counts.frozen_bytes(model, device="cpu") == plain


def test_a_folder_that_does_not_exist_has_the_shape_of_what_makes_it(folder):
    (folder / "sft.yaml").write_text("model_name_or_path: ./sft\noutput_dir: outputs/x/theta/\n")
    shape = find_shape("outputs/x/theta", beside=folder)
    assert shape.config.hidden_size == 16
    assert "sft.yaml, which makes it from ./sft" in shape.source
    with pytest.raises(FileNotFoundError, match=r"outputs/y is not known.*--base_model"):
        find_shape("outputs/y", beside=folder)
    assert find_shape("outputs/y", base_model="sft").config.hidden_size == 16
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no config.json"):
        find_shape("empty")
