"""The stages on a real chat model and a real sentence encoder; `make test-real` fetches both and runs this."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reward_models import load
from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.stages import run_stage
from tests.tiny import QUIET


MODELS = os.environ.get("RLHF_LINES_REAL_MODELS")
pytestmark = [pytest.mark.real, pytest.mark.skipif(MODELS is None, reason="make test-real fetches the models")]
CHAT, ENCODER = (str(Path(MODELS or "models", name)) for name in ("SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"))
FAITHFUL = {"model": f"similarity:{ENCODER}", "name": "faithful", "options": {"source": "docstring"}}
READABLE = {"model": "rule:readability", "name": "readable", "options": {"target": 4}}


def flags(**settings) -> list[str]:
    words = []
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return words


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an SFT model of one step, two policies of one update each, and a sweep of them."""
    folder = tmp_path_factory.mktemp("real")
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "dtype": "float32"}
    rows = {"dataset_name": "docstring_sentences", "max_prompt_length": 96}
    sft = flags(
        model_name_or_path=CHAT, output_dir=folder / "sft", max_samples=4, max_steps=1, per_device_train_batch_size=4,
        max_length=128, **lora, **rows, **QUIET,
    )  # fmt: skip
    run_stage("sft", sft)
    for reward in (FAITHFUL, READABLE):
        ppo = flags(
            model_name_or_path=folder / "sft", output_dir=folder / reward["name"], rewards=json.dumps(reward),
            max_steps=1, num_iterations=1, per_device_train_batch_size=4, max_completion_length=12, **lora, **rows,
            **QUIET,
        )  # fmt: skip
        run_stage("ppo", ppo)
    sweep = flags(
        sft_model=folder / "sft", policies=[folder / "faithful", folder / "readable"], output_dir=folder / "sweep",
        rewards=[json.dumps(FAITHFUL), json.dumps(READABLE)], num_weights=3, alphas=1, betas=1, controls=False,
        test_prompts=4, max_new_tokens=12, **rows,
    )  # fmt: skip
    run_stage("sweep", sweep)
    return folder


def test_the_encoder_knows_what_is_meant():
    question = "How do I make bread rise?"
    said = ["Knead the dough with yeast and let it rest somewhere warm.", "Paris is the capital of France."]
    near, far = load(f"similarity:{ENCODER}").score([question] * 2, said)
    assert near > far + 0.2


def test_the_first_rollout_is_the_sft_model_s(made):
    for name in ("faithful", "readable"):
        row = next(row for row in read_record(made / name)["history"] if "kl" in row)
        assert row["kl"] == pytest.approx(0, abs=1e-3)


def test_the_sweep_reads_the_chat_template_and_scores_every_point(made):
    front = json.loads((made / "sweep" / "front.json").read_text())
    assert front["rewards"] == ["faithful", "readable"]
    assert {point["group"] for point in front["points"]} == {"sft", "rewarded_soup", "lines"}
    assert all(-1 <= point["scores"]["faithful"]["mean"] <= 1 for point in front["points"])
    page = (made / "sweep" / "report.html").read_text()
    assert "<|im_start|>system" in page or "&lt;|im_start|&gt;system" in page or "\\u003c|im_start|" in page


def test_a_merged_adapter_and_a_merged_checkpoint_agree(made):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policies = [made / "faithful", made / "readable"]
    for save in ("adapter", "dense"):
        spec = MergeSpec("linear", (0.5, 0.5), alpha=1.0, beta=1.0)
        merge_policies(made / "sft", policies, spec, save=save, output_dir=made / save)
    tokenizer = AutoTokenizer.from_pretrained(made / "adapter")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why is the sky blue?"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(made / "sft", dtype=torch.float32).eval()
    dense = AutoModelForCausalLM.from_pretrained(made / "dense", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = dense(**chat).logits
        adapted = PeftModel.from_pretrained(base, made / "adapter").eval()(**chat).logits
    torch.testing.assert_close(adapted, expected, atol=2e-3, rtol=0)


def test_a_point_can_be_picked(made, capsys):
    assert cli.main(["pick", str(made / "sweep"), "--preference", "0.5", "0.5", "--scale", "range"]) == 0
    assert "rlhf-lines merge" in capsys.readouterr().out


def test_the_chat_model_grades_by_its_own_probabilities():
    """The expected grade of whole questions, in float64 and one by one, whatever the batch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = ["Why is the sky blue?", "Name a fruit."]
    said = ["Because air scatters blue light more than red light.", "Bananas are yellow, and so on and on."]
    options = {"rubric": "A good answer is correct and short.", "grades": [1, 2, 3, 4, 5]}
    made = load(f"generative:{CHAT}", options=options, system="You grade answers.")
    found = made.score(asked, said)
    assert made.strayed == 0, "it answers with a grade"
    exact = AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(CHAT)
    for prompt, completion, score in zip(asked, said, found, strict=True):
        question = made.encoder.grading.text(prompt, completion, {})
        turns = [{"role": "system", "content": "You grade answers."}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) + "Grade: "
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = exact(ids).logits[0, -1].softmax(dim=0)[[tokenizer.encode(grade)[0] for grade in "12345"]]
        assert score == pytest.approx(float((p * torch.arange(1, 6)).sum() / p.sum()), abs=1e-3)
