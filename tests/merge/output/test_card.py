"""The model card: its header, its facts, and how to load."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.output.card import model_card
from rlhf_lines.merge.output.summary import outcome_lines, vllm_hint
from rlhf_lines.merge.rules import RULES
from tests import tiny
from tests.merge.rules.cases import options_needed


SPEC = MergeSpec("linear", (0.25, 0.75), 0.5, 1.0, "quadratic")


@pytest.fixture(scope="module")
def record(sft, helpful, harmless, tmp_path_factory) -> dict:
    """What a merge into an adapter of rank 10 recorded."""
    output = tmp_path_factory.mktemp("merged") / "out"
    merge_policies(sft, [helpful, harmless], SPEC, save="adapter", output_dir=output)
    return json.loads((output / "merge_spec.json").read_text())


def header(card: str) -> dict:
    _, content, _ = card.split("---\n", 2)
    return yaml.safe_load(content)


def test_the_header_claims_no_license_and_names_no_local_path(record):
    assert header(model_card(record)) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "rlhf-lines"],
    }


def test_models_of_the_hub_are_named_in_the_header(record):
    from huggingface_hub import ModelCard

    cached = {**record, "sft_model": "/cache/hub/models--org--sft/snapshots/9be4410"}
    card = model_card(cached)
    assert header(card)["base_model"] == ["org/sft"] and header(card)["base_model_relation"] == "merge"
    assert ModelCard(card).data.base_model == ["org/sft"]  # as the Hub's own library reads it


def test_inputs_have_their_hashes(record):
    card = model_card(record)
    for entry in record["policies"]:
        assert entry["sha256"] in card
    assert f"`{record['sft_sha256']}`" in card
    assert "alpha 0.5, beta 1, schedule quadratic" in card and "alpha + beta ((l-1)/(L-1))^2" in card
    assert f"torch {record['versions']['torch']}" in card
    assert "rlhf-lines merge --config merge_spec.json --output_dir repeated" in card


def test_an_adapter_says_what_a_server_needs(record):
    assert record["rank"] == 10
    assert "--max-lora-rank 16 " in model_card(record)  # the next one that vLLM has
    assert "vllm serve path/to/this/folder\n" in model_card({**record, "save": "dense"})
    assert "this adapter has 600" in model_card({**record, "rank": 600})


def test_the_serving_command_is_that_of_the_output(record):
    command = vllm_hint("path/to/the/sft/model", "path/to/this/folder", record["rank"])
    assert f"```bash\n{command}\n```" in model_card(record)


def test_statistics_have_their_hashes(record):
    assert "statistics of policy" not in model_card(record)
    folders = [{"path": f"fisher_{k}", "sha256": f"{k}" * 64} for k in (1, 2)]
    card = model_card({**record, "statistics": folders})
    for k in (1, 2):
        assert f"| statistics of policy {k} | fisher\\_{k} |  | `{str(k) * 64}` |" in card


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_its_source(record, rule):
    options = options_needed(rule) if RULES[rule].by_layer else {}
    card = model_card({**record, "spec": {**record["spec"], "rule": rule, "options": options}})
    assert f"Sources: rule {rule}: {RULES[rule].source}; LiNeS: arXiv 2410.17146." in card


def test_what_truncation_lost_is_said(record):
    truncation = {"rank": 4, "lost": 0.125, "worst_module": "model.layers.0.mlp", "worst_lost": 0.5}
    assert "truncated to rank 4, which lost 12.50%" in model_card({**record, "truncation": truncation})


def test_names_of_options_and_warnings_are_escaped(record):
    spec = {**record["spec"], "options": {"x": "<b>"}}
    card = model_card({**record, "spec": spec, "warnings": ["<script>\n# heading"]})
    assert "&lt;b&gt;" in card and "- warning: &lt;script&gt; \\# heading\n" in card and "<script>" not in card


def test_a_checkpoint_has_another_library(sft, helpful, tmp_path):
    policy = shutil.copytree(helpful, tmp_path / "policy")
    out = merge_policies(sft, [policy], MergeSpec("linear", (1,)), save="dense", output_dir=tmp_path / "out")
    assert header((out / "README.md").read_text())["library_name"] == "transformers"


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 2, "vocab_size": 16}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 16, "num_mel_bins": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    places = {"max_source_positions": 8, "max_target_positions": 8}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **tokens, **places))


def gemma3():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 16, "num_key_value_heads": 1, "head_dim": 4}
    eye = {**sizes, "image_size": 8, "patch_size": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eye, mm_tokens_per_image=4))


@pytest.mark.parametrize(
    ("make", "loader", "pipeline", "task_type"),
    [
        (tiny.llama, "AutoModelForCausalLM", "text-generation", "CAUSAL_LM"),
        (gemma3, "AutoModelForImageTextToText", "image-text-to-text", "CAUSAL_LM"),
        (t5, "AutoModelForSeq2SeqLM", None, "SEQ_2_SEQ_LM"),
        (whisper, "WhisperForConditionalGeneration", None, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_card_says_of_loading_is_what_loads(tmp_path, make, loader, pipeline, task_type):
    """Whatever the policies say of their task, which is often nothing."""
    model = make()
    model.save_pretrained(tmp_path / "sft")
    targets = ["q", "v"] if make is t5 else r".*(layers|decoder).*\.(q_proj|v_proj)"
    policies = []
    for seed in range(2):
        base = type(model).from_pretrained(tmp_path / "sft")
        folder = tmp_path / f"p{seed}"
        policies.append(tiny.save_adapter(base, folder, seed=seed, target_modules=targets, task_type=None))
    loaded = {}
    for save in ("adapter", "dense"):
        out = merge_policies(tmp_path / "sft", policies, SPEC, save=save, output_dir=tmp_path / save)
        card = (out / "README.md").read_text()
        assert json.loads((out / "merge_spec.json").read_text())["loaded_by"] == loader
        assert header(card).get("pipeline_tag") == pipeline and ("vllm serve" in card) == (pipeline is not None)
        code = card.partition("```python\n")[2].partition("```")[0]
        code = code.replace("path/to/this/folder", str(out)).replace("path/to/the/sft/model", str(tmp_path / "sft"))
        names = {}
        exec(code, names)
        loaded[save] = names["model"]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == task_type
    adapted = dict(loaded["adapter"].merge_and_unload().named_parameters())
    assert adapted.keys() == dict(loaded["dense"].named_parameters()).keys()
    for name, tensor in loaded["dense"].named_parameters():
        torch.testing.assert_close(adapted[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    changed = dict(type(model).from_pretrained(tmp_path / "sft").named_parameters())
    assert any(not torch.equal(adapted[name], tensor) for name, tensor in changed.items())


def test_the_task_of_a_model_that_hears_is_that_of_a_policy(tmp_path):
    whisper().save_pretrained(tmp_path / "sft")
    policies = []
    for seed, task_type in enumerate((None, "SEQ_2_SEQ_LM")):
        base = type(whisper()).from_pretrained(tmp_path / "sft")
        folder = tmp_path / f"p{seed}"
        modules = r".*decoder.*\.q_proj"
        policies.append(tiny.save_adapter(base, folder, seed=seed, target_modules=modules, task_type=task_type))
    out = merge_policies(tmp_path / "sft", policies, SPEC, save="adapter", output_dir=tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize(
    ("changes", "loader"),
    [
        ({"architectures": ["T5WithLMHeadModel"]}, "AutoModelForSeq2SeqLM"),  # what the class was called once
        ({"architectures": ["OursForWriting"], "model_type": "ours"}, "AutoModelForCausalLM"),
    ],
)
def test_what_transformers_does_not_know_is_what_its_policies_say(tmp_path, changes, loader):
    sft, policy = tmp_path / "sft", tmp_path / "policy"
    t5().save_pretrained(sft)
    base = type(t5()).from_pretrained(sft)
    tiny.save_adapter(base, policy, seed=0, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    config = json.loads((sft / "config.json").read_text())
    (sft / "config.json").write_text(json.dumps(config | changes))
    out = merge_policies(sft, [policy], MergeSpec("linear", (0.5,)), save="adapter", output_dir=tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert json.loads((out / "merge_spec.json").read_text())["loaded_by"] == loader


def test_what_vllm_does_not_serve_has_no_command(record):
    heard = {**record, "loaded_by": "WhisperForConditionalGeneration"}
    assert any(line.startswith("serve: vllm serve") for line in outcome_lines(record, "out"))
    assert not any("vllm" in line for line in outcome_lines(heard, "out"))
    older = {key: value for key, value in record.items() if key != "loaded_by"}
    assert model_card(older) == model_card(record) and outcome_lines(older, "o") == outcome_lines(record, "o")
