"""Tiny random models of the architectures that are tested: drawn by tests, and listed in docs/architectures.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.tiny import EOS, PAD, widened


VOCABULARY = 16
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
OLD_SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
HYBRID = ["linear_attention", "full_attention"]
LINEAR = {
    "layer_types": HYBRID,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0]}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Architecture:
    """One architecture at a size that takes milliseconds.

    Attributes:
        name: `model_type` of its config.
        title: what people call it, where that is not the name.
        changes: settings of its config beside `SIZES`; those that it does not know are left out.
        targets: the modules that the policies adapt, by the last part of their names.
        refused: what merges and sweeps say of it; empty where they work.
        not_trained: what PPO says of it; empty where it works.
    """

    name: str
    title: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ATTENTION
    refused: str = ""
    not_trained: str = ""

    @property
    def label(self) -> str:
        """The title, or the name."""
        return self.title or self.name

    def model(self, seed: int = 0):
        """The model in float32, with weights that matter and an end token that does not come at once."""
        from transformers import AutoConfig, AutoModelForCausalLM

        kind = type(AutoConfig.for_model(self.name))
        usual = kind()
        known = {
            name: value
            for name, value in SIZES.items()
            if hasattr(usual, name) and not isinstance(getattr(kind, name, None), property)
        }
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(kind(**{**known, **self.changes}))
        return widened(model, 0.3)


ARCHITECTURES = [
    Architecture("llama", "Llama 2 and 3", targets=(*ATTENTION, "gate_proj", "up_proj", "down_proj")),
    Architecture("mistral", "Mistral, with a window", {"sliding_window": 6}),
    Architecture("qwen2", "Qwen 2 and 2.5"),
    Architecture("qwen3", "Qwen 3"),
    Architecture("qwen3_5_text", "Qwen 3.5", LINEAR, (*ATTENTION, "in_proj_qkv", "out_proj", "down_proj")),
    Architecture("gemma2", "Gemma 2", {"sliding_window": 6, "query_pre_attn_scalar": 4}),
    Architecture("gemma3_text", "Gemma 3", {"sliding_window": 6, "query_pre_attn_scalar": 4}),
    Architecture("phi", "Phi 1 and 2", targets=("q_proj", "v_proj", "dense", "fc1", "fc2")),
    Architecture(
        "phi3",
        "Phi 3 and 4",
        {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    Architecture("gpt2", "GPT-2", OLD_SIZES, ("c_attn", "c_proj", "c_fc")),
    Architecture("openai-gpt", "GPT", OLD_SIZES, ("c_attn", "c_proj", "c_fc")),
    Architecture("gptj", "GPT-J", {**OLD_SIZES, "rotary_dim": 4}, ("q_proj", "v_proj", "fc_in", "fc_out")),
    Architecture("gpt_bigcode", "StarCoder", {**OLD_SIZES, "attn_pdrop": 0.0}, ("c_attn", "c_proj", "c_fc")),
    Architecture("gpt_neox", "Pythia", {}, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    Architecture(
        "opt",
        "OPT",
        {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
        ("q_proj", "v_proj", "out_proj", "fc1", "fc2"),
    ),
    Architecture("bloom", "BLOOM", {"n_layer": 2, "n_head": 4}, ("query_key_value", "dense", "dense_h_to_4h")),
    Architecture(
        "mpt",
        "MPT",
        {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        ("Wqkv", "out_proj", "up_proj", "down_proj"),
    ),
    Architecture("falcon", "Falcon", {"hidden_size": 16}, ("query_key_value", "dense", "dense_h_to_4h")),
    Architecture("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "qwen2_moe",
        "Qwen 1.5 and 2 MoE",
        {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
        (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
    ),
    Architecture("qwen3_moe", "Qwen 3 MoE", {**EXPERTS, "num_experts": 4}),
    Architecture("gpt_oss", "gpt-oss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture(
        "deepseek_v3",
        "DeepSeek V3 and R1",
        {
            **EXPERTS,
            **LATENT,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    ),
    Architecture("olmo2", "OLMo 2"),
    Architecture("granite", "Granite 3"),
    Architecture(
        "granitemoehybrid",
        "Granite 4",
        {**MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16, "num_local_experts": 0},
        (*ATTENTION, "in_proj", "out_proj", "input_linear", "output_linear"),
    ),
    Architecture(
        "lfm2",
        "LFM 2",
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        ("q_proj", "v_proj", "in_proj", "out_proj", "w1", "w2"),
    ),
    Architecture(
        "jamba",
        "Jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "num_experts": 4,
        },
        (*ATTENTION, "in_proj", "x_proj", "down_proj"),
    ),
    Architecture("bamba", "Bamba", {**MAMBA, "attn_layer_indices": [1]}, (*ATTENTION, "in_proj", "out_proj")),
    Architecture("falcon_h1", "Falcon H1", {**MAMBA, "mamba_d_ssm": 32}, (*ATTENTION, "in_proj", "down_proj")),
    Architecture("mamba", "Mamba", {"state_size": 8}, ("in_proj", "x_proj")),
    Architecture("mamba2", "Mamba 2", {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 8}, ("in_proj",)),
    Architecture(
        "recurrent_gemma",
        "RecurrentGemma",
        {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8},
        ("q_proj", "v_proj", "linear_x", "linear_out", "up_proj"),
        not_trained="TRL does not make the logits",
    ),
    Architecture("smollm3", "SmolLM 3"),
    Architecture("cohere", "Command R"),
    Architecture("starcoder2", "StarCoder 2", targets=(*ATTENTION, "c_fc", "c_proj")),
    Architecture("stablelm", "StableLM 2"),
    Architecture(
        "bart",
        "BART's decoder",
        {
            "d_model": 16,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 24,
            "dropout": 0.0,
            "forced_eos_token_id": None,
        },
        ("q_proj", "v_proj", "out_proj", "fc1", "fc2"),
    ),
]
