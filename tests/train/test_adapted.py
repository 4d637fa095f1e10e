"""Adapters that no later stage takes are refused before training, by sft, ppo and plan, each in one sentence."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MixtralConfig, MixtralForCausalLM

from rlhf_lines import cli
from rlhf_lines.stages import run_stage
from tests import tiny


LORA = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
TARGETS = ["q_proj", "v_proj"]
LINEAR = "name linear modules instead: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
REFUSED = {
    "dora": ({"lora_target_modules": TARGETS, "use_dora": True}, "use_dora is true: DoRA rescales the columns"),
    "saved modules": (
        {"lora_target_modules": TARGETS, "lora_modules_to_save": ["embed_tokens"]},
        "lora_modules_to_save is ['embed_tokens']: whole modules are replaced",
    ),
    "parameters": (
        {"lora_target_modules": TARGETS, "lora_target_parameters": ["mlp.down_proj.weight"]},
        "lora_target_parameters is ['mlp.down_proj.weight']: parameters without a module of their own are adapted",
    ),
    "embedding": (
        {"lora_target_modules": ["q_proj", "embed_tokens"]},
        "lora_target_modules ['q_proj', 'embed_tokens'] hold 'model.embed_tokens', which is an embedding",
    ),
    "head": (
        {"lora_target_modules": ["q_proj", "lm_head"]},
        "lora_target_modules ['q_proj', 'lm_head'] hold the head 'lm_head', but TRL computes log-probabilities",
    ),
    "nothing": ({"lora_target_modules": ["c_attn"]}, "lora_target_modules ['c_attn'] do not fit a llama model"),
    "a name that no module has": (
        {"lora_target_modules": ["q_proj", "v_prj", "c_attn"]},
        "lora_target_modules holds c_attn, v_prj, which no module of a llama model is called: correct or leave out",
    ),
    "a parameter that is not there": (
        {"lora_target_parameters": ["q_proj.weight"]},
        "lora_target_parameters ['q_proj.weight'] do not fit a llama model; name linear modules",
    ),
    "revision": ({"model_revision": "v2"}, "is a folder, which has no revisions: leave it out"),
    "rank": ({"lora_r": 0}, "lora_r is 0, expected at least 1"),
    "attention": ({"attn_implementation": "flash_attention_2"}, "attn_implementation is flash_attention_2, which does"),
}
OUTCOME = {
    "sft": "so the adapter could not be merged into the base",
    "ppo": "so the policy could be neither merged nor swept",
}


@pytest.fixture
def refused(base, flags, write_rows, tmp_path, capsys, monkeypatch):
    """Return a runner of a stage and of its plan, which gives the one sentence of both."""
    monkeypatch.setattr("trl.SFTTrainer.train", lambda *_, **__: pytest.fail("it trained"))
    monkeypatch.setattr("trl.GRPOTrainer.train", lambda *_, **__: pytest.fail("it trained"))
    rows = [{"prompt": f"a {word} c", "completion": " d"} for word in tiny.WORDS]

    def run(verb, model=base, **changes):
        data = write_rows("data/train.jsonl", rows).parent
        settings = {"model_name_or_path": model, "dataset_name": data, "output_dir": tmp_path / "out"}
        if verb == "ppo":
            settings["rewards"] = "rule:length"
        arguments = flags(**settings, **{"use_peft": True, **LORA, **changes})
        (tmp_path / "empty.yaml").write_text("{}\n")
        sentences = []
        for command in ([verb], ["plan", "--stage", verb, "--config", str(tmp_path / "empty.yaml")]):
            capsys.readouterr()
            assert cli.main([*command, *arguments]) == 2
            err = capsys.readouterr().err
            lines = [line for line in err.splitlines() if line.startswith("rlhf-lines ")]
            assert len(lines) == 1 and "Traceback" not in err
            sentences.append(lines[0].partition(": ")[2])
        assert sentences[0] == sentences[1]
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
        return sentences[0]

    return run


@pytest.mark.parametrize("verb", ["sft", "ppo"])
@pytest.mark.parametrize("case", REFUSED)
def test_stage_and_plan_refuse_before_training_in_one_sentence(refused, verb, case):
    changes, words = REFUSED[case]
    sentence = refused(verb, **changes)
    assert words in sentence
    if case in ("dora", "saved modules", "parameters", "embedding"):
        assert OUTCOME[verb] in sentence
    if case in ("embedding", "head"):
        assert LINEAR in sentence
    if verb == "sft" and case == "dora":
        assert sentence.endswith("leave it out, or train all weights (use_peft: false)")


@pytest.fixture(scope="session")
def mixture(tmp_path_factory, tokenizer):
    """Return the folder of a mixture whose experts are one tensor a layer."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=2, eos_token_id=1, pad_token_id=0, **sizes
    )
    return tiny.save(MixtralForCausalLM(config), tokenizer, tmp_path_factory.mktemp("mixture") / "base")


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_fused_experts_are_refused_with_the_modules_that_can_be_adapted(refused, mixture, verb):
    sentence = refused(verb, model=mixture, lora_target_modules="all-linear")
    assert (
        "lora_target_modules 'all-linear' of a mixtral model are parameters without a module of their own" in sentence
    )
    assert "gate_up_proj" in sentence and "because its experts are fused" in sentence
    assert sentence.endswith("name linear modules instead: k_proj, o_proj, q_proj, v_proj")


def test_a_base_that_is_stored_in_4_bits_is_refused_by_sft(refused, llama, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = tiny.save(tiny.llama(tokenizer, hidden_size=64, intermediate_size=64), tokenizer, tmp_path / "wide")
    quantised = AutoModelForCausalLM.from_pretrained(wide, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    folder = tiny.save(quantised, tokenizer, tmp_path / "quantised")
    assert "is quantised" in refused("sft", model=folder)


@pytest.mark.parametrize("kind", ["llama", "mixture"])
def test_without_targets_the_policy_can_be_merged(kind, base, mixture, flags, write_rows, tmp_path):
    model = base if kind == "llama" else mixture
    data = write_rows("data/train.jsonl", [{"prompt": f"a {word}"} for word in tiny.WORDS]).parent
    common = {"model_name_or_path": model, "dataset_name": data, "output_dir": tmp_path / "policy"}
    policy = run_stage("ppo", flags(**common, rewards="rule:length", max_steps=1, max_completion_length=3))
    assert json.loads((policy / "adapter_config.json").read_text())["target_modules"] == TARGETS
    merged = ["--sft_model", str(model), "--policies", str(policy), str(policy), "--save", "adapter"]
    assert cli.main(["merge", *merged, "--output_dir", str(tmp_path / "merged")]) == 0
