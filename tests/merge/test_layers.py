"""Layer indices are read at one place of the name."""

from __future__ import annotations

import pytest

from rlhf_lines.merge.layers import is_embedding, layer_indices, layer_of


FAMILIES = {
    "llama": (
        "model.layers.{}.self_attn.q_proj.weight",
        ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
    ),
    "llama trunk": ("layers.{}.mlp.up_proj.weight", ["embed_tokens.weight", "norm.weight"]),
    "gemma 3 text": ("model.language_model.layers.{}.mlp.up_proj.weight", ["model.language_model.norm.weight"]),
    "llava": (
        "language_model.model.layers.{}.mlp.up_proj.weight",
        [
            *("language_model.lm_head.weight", "language_model.model.norm.weight", "image_newline"),
            *("vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight", "multi_modal_projector.linear_1.weight"),
        ],
    ),
    "qwen 2.5 vl": ("model.layers.{}.mlp.up_proj.weight", ["visual.blocks.1.attn.qkv.weight", "lm_head.weight"]),
    "gemma 3": (
        "language_model.model.layers.{}.mlp.up_proj.weight",
        ["vision_tower.encoder.layers.1.self_attn.q_proj.weight", "audio_tower.encoder.layers.0.fc1.weight"],
    ),
    "idefics 3": (
        "model.text_model.layers.{}.mlp.up_proj.weight",
        ["model.vision_model.encoder.layers.1.mlp.fc1.weight", "model.connector.modality_projection.proj.weight"],
    ),
    "bart decoder": ("model.decoder.layers.{}.fc1.weight", ["model.decoder.layernorm_embedding.weight"]),
    "led encoder": ("led.encoder.layers.{}.fc1.weight", ["led.encoder.layernorm_embedding.weight"]),
    "t5": ("decoder.block.{}.layer.0.SelfAttention.q.weight", ["decoder.final_layer_norm.weight", "lm_head.weight"]),
    "gpt2": (
        "transformer.h.{}.attn.c_attn.weight",
        ["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias", "lm_head.weight"],
    ),
    "gpt2 trunk": ("h.{}.ln_1.bias", ["wte.weight", "ln_f.weight"]),
    "falcon, bloom": (
        "transformer.h.{}.self_attention.query_key_value.weight",
        ["transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.weight"],
    ),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.query_key_value.weight",
        ["gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "embed_out.weight"],
    ),
    "opt": (
        "model.decoder.layers.{}.fc1.weight",
        ["model.decoder.embed_positions.weight", "model.decoder.final_layer_norm.bias", "lm_head.weight"],
    ),
    "phi": ("model.layers.{}.fc1.weight", ["model.final_layernorm.weight"]),
    "mpt": ("transformer.blocks.{}.ffn.up_proj.weight", ["transformer.wte.weight", "transformer.norm_f.weight"]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_every_family_is_indexed_with_and_without_peft_prefix(family, prefix):
    layer, outside = FAMILIES[family]
    names = [prefix + layer.format(i) for i in (0, 2, 1)] + [prefix + name for name in outside]
    assert list(layer_indices(names).items()) == list(zip(names, [0, 2, 1] + [None] * len(outside), strict=True))


def test_expert_numbers_are_not_layer_numbers():
    names = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight" for i in range(4) for e in range(3)]
    assert [*layer_indices(names).values()] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert layer_indices(["model.layers.3.mlp.experts.0.w1"], num_layers=4) == {"model.layers.3.mlp.experts.0.w1": 3}


def test_two_digits_are_read_whole():
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(12)]
    assert layer_indices(names)["model.layers.11.mlp.up_proj"] == 11


def test_module_names_work_too():
    names = ["model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens"]
    assert [*layer_indices(names).values()] == [0, None, None]


@pytest.mark.parametrize(
    ("names", "num_layers", "message"),
    [
        (["lm_head.weight", "model.norm.weight"], None, "no transformer layer among 2 names"),
        ([], None, "no transformer layer among 0 names"),
        (["vision.blocks.3.mlp.0.weight"], None, "no transformer layer"),
        (["mymodel.layers.0.weight"], None, "no transformer layer"),
        (["model.layers.0.a.weight", "model.layers.2.a.weight"], None, r"gaps: \[1\] are missing below 2"),
        (["model.layers.1.a.weight"], None, r"gaps: \[0\]"),
        (["model.layers.4.a.weight"], 4, r"model.layers.4 is out of range for a model of 4 layers \(0..3\)"),
        (["model.layers.0.a", "transformer.h.0.attn"], None, "belongs to layers transformer.h.<i>"),
        (["model.layers.0.a", "layers.0.b"], None, "'model.layers.0.a' and 'layers.0.b' name their layers differently"),
        (["model.layers.0.a", "base_model.model.model.layers.0.a"], None, "name their layers differently"),
        (["model.layers.0.a", "v_head.summary.weight"], None, "cannot place 'v_head.summary.weight'"),
        (["model.layers.0.a", "model.normalizer.weight"], None, "cannot place 'model.normalizer.weight'"),
        (["model.layers.0.a", "model.layers.x.a"], None, "cannot place 'model.layers.x.a'"),
    ],
)
def test_names_that_cannot_be_placed_stop(names, num_layers, message):
    with pytest.raises(ValueError, match=message):
        layer_indices(names, num_layers=num_layers)


def test_the_encoder_of_a_part_that_sees_is_not_the_model():
    names = [f"vision_tower.encoder.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    assert layer_indices(names, num_layers=3) == dict.fromkeys(names)
    assert [layer_of(name) for name in (*names, "model.encoder.layers.1.fc1")] == [
        None,
        None,
        ("model.encoder.layers.", 1),
    ]


def test_gaps_are_fine_when_the_number_of_layers_is_known():
    assert layer_indices(["model.layers.1.a.weight", "model.layers.3.a.weight"], num_layers=5) == {
        "model.layers.1.a.weight": 1,
        "model.layers.3.a.weight": 3,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_told_from_heads_norms_and_layers(family):
    layer, outside = FAMILIES[family]
    tables = ("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "word_embeddings")
    for name in [*outside, layer.format(3)]:
        expected = any(f"{table}.weight" in name for table in tables)
        assert is_embedding(name) == is_embedding(f"base_model.model.{name}") == expected, name
