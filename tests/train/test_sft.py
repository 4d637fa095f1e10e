"""The stage ``sft``: what it trains on, and that its dense result is base + adapter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lines.artifact import read_record
from rlhf_lines.stages import run_stage
from rlhf_lines.train.settings import SFTSettings


EOS = 1
DEMONSTRATIONS = [
    {"prompt": "a b", "completion": " c d e"},
    {"prompt": "c", "completion": " d"},
    {"prompt": "j i h g", "completion": " f e d c b"},
    {"prompt": "e f g", "completion": " a"},
]
TEXTS = ["a b c d e", "j i", "h g f e d c b a", "c c c", "e"]
# One step of plain gradient descent: what is written is theta - 0.5 * gradient.
ONE_STEP = {
    **{"optim": "sgd", "learning_rate": 0.5, "max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0},
    **{"weight_decay": 0.0, "per_device_train_batch_size": 16},
}
LORA = {"use_peft": True, "lora_r": 3, "lora_alpha": 6, "lora_target_modules": "all-linear", "lora_dropout": 0.0}


@pytest.fixture
def run_sft(flags, base, write_rows, tmp_path):
    """Return a runner of the stage on rows, which gives the folder that it made."""

    def run(rows, **settings):
        data = write_rows("data/train.jsonl", rows).parent
        output = {"model_name_or_path": base, "dataset_name": data, "output_dir": tmp_path / "out" / "sft"}
        return run_stage("sft", flags(**{**output, "logging_steps": 1, **settings}))

    return run


def descended(model, sequences):
    """Return the parameters after one step on the mean loss of the wanted tokens of (ids, first wanted position)."""
    model = model.double()
    losses = []
    for ids, first in sequences:
        logits = model(torch.tensor([ids])).logits[0, first - 1 : -1]
        losses.append(-logits.log_softmax(-1)[range(len(ids) - first), ids[first:]])
    torch.cat(losses).mean().backward()
    with torch.no_grad():
        return {name: p - 0.5 * p.grad for name, p in model.named_parameters()}, torch.cat(losses).mean().item()


def test_rows_without_room_for_a_completion_are_refused_or_recorded(run_sft, tmp_path):
    with pytest.raises(ValueError, match=r"each of the 1 demonstrations of .* has a prompt of at least 3 tokens"):
        run_sft([{"prompt": "a b c", "completion": " d"}], max_length=3, **ONE_STEP)
    rows = [{"prompt": "a b c", "completion": " d"}, {"prompt": "a b", "completion": " c d"}]
    record = read_record(run_sft([*rows, {"prompt": "a", "completion": " b"}], max_length=3, **ONE_STEP))
    assert [record[key] for key in ("train_rows", "train_rows_left_out", "train_rows_cut")] == [2, 1, 1]


def test_only_completions_and_their_end_are_trained_on(run_sft, llama, tokenizer):
    out = run_sft(DEMONSTRATIONS, **ONE_STEP)
    sequences = []
    for row in DEMONSTRATIONS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        sequences.append((tokenizer(row["prompt"] + row["completion"])["input_ids"] + [EOS], len(prompt)))
    expected, loss = descended(llama(), sequences)
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, before in llama().named_parameters():
        torch.testing.assert_close(written[name].double(), expected[name], rtol=0, atol=1e-6)
        assert (expected[name] - before.double()).abs().max() > 1e-4, name
    assert read_record(out)["loss"] == [pytest.approx(loss, abs=1e-5)]
    # Trained on the prompts too, it would be another model.
    other, _ = descended(llama(), [(ids, 1) for ids, _ in sequences])
    assert max((other[name] - expected[name]).abs().max() for name in other) > 1e-2


def test_the_first_lines_show_a_row_and_what_is_learned_of_it(run_sft, caplog):
    caplog.set_level("INFO", logger="rlhf_lines")
    run_sft(DEMONSTRATIONS[:1], max_steps=1)
    assert "policy     'a b c d e <eos>'" in caplog.text and "it learns  'c d e <eos>'" in caplog.text


def test_packed_texts_are_trained_on_from_end_to_end(run_sft, llama, tokenizer):
    out = run_sft(
        [{"text": text} for text in TEXTS], packing=True, packing_strategy="wrapped", max_length=6, **ONE_STEP
    )
    stream = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], EOS]]
    assert len(stream) == 24  # 5 + 2 + 8 + 3 + 1 words and 5 ends: four sequences of 6
    expected, loss = descended(llama(), [(stream[start : start + 6], 1) for start in range(0, 24, 6)])
    written = load_file(out / "model.safetensors")
    for name in expected:
        torch.testing.assert_close(written[name].double(), expected[name], rtol=0, atol=1e-6)
    assert read_record(out)["loss"] == [pytest.approx(loss, abs=1e-5)]


def test_full_fine_tuning_writes_a_checkpoint_and_no_adapter(run_sft, base, tmp_path):
    out = run_sft(DEMONSTRATIONS, use_peft=False, max_steps=2, learning_rate=1e-2)
    assert out == tmp_path / "out" / "sft"
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "config.yaml", "rlhf_lines.json"} <= names
    assert not {"adapter", "training_args.bin", "adapter_model.safetensors"} & names
    assert sorted(path.name for path in out.parent.iterdir()) == ["sft"]
    record = read_record(out)
    assert record["stage"] == "sft" and record["base_model"] == str(base) and record["lost_residual"] is None
    assert len(record["loss"]) == 2


def test_the_dense_result_is_the_base_and_the_adapter(run_sft, base, llama, tokenizer):
    out = run_sft(DEMONSTRATIONS, **LORA, max_steps=6, learning_rate=3e-2)
    dense, adapter = load_file(out / "model.safetensors"), load_file(out / "adapter" / "adapter_model.safetensors")
    theta = {name: parameter.double() for name, parameter in llama().named_parameters()}
    scale = json.loads((out / "adapter" / "adapter_config.json").read_text())["lora_alpha"] / 3
    assert scale == 2.0 and len(adapter) == 2 * 2 * 7  # A and B of 7 matrices in 2 layers
    changed = 0
    for name, value in theta.items():
        factors = [f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight" for x in "AB"]
        residual = torch.zeros_like(value)
        if factors[0] in adapter:
            a, b = (adapter[factor].double() for factor in factors)
            residual = scale * b @ a
            assert residual.abs().max() > 1e-2
            changed += 1
        torch.testing.assert_close(dense[name].double(), value + residual, rtol=0, atol=1e-6)
    assert changed == 14 and dense.keys() == theta.keys()

    # With the tokenizer of the folder, the folder answers as PEFT does with base and adapter.
    merged = AutoModelForCausalLM.from_pretrained(out)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "adapter")
    ids = AutoTokenizer.from_pretrained(out)("a b c j i", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [tokenizer("a b c j i")["input_ids"]]
    with torch.no_grad():
        expected = policy(ids).logits
        torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)
        assert (llama()(ids).logits - expected).abs().max() > 0.1
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))
    lost = read_record(out)["lost_residual"]
    assert lost and json.dumps(lost)


@pytest.mark.parametrize("lora", [False, True])
def test_the_card_is_ours_and_names_the_base(run_sft, lora):
    out = run_sft(DEMONSTRATIONS, **ONE_STEP, **(LORA if lora else {}), save_strategy="epoch")
    cards = sorted(path.relative_to(out).as_posix() for path in out.rglob("README.md") if "checkpoint" not in str(path))
    assert cards == ["README.md", *(["adapter/README.md"] if lora else [])]
    for card in cards:
        text = (out / card).read_text()
        assert "base model: base\n" in text and "None" not in text and "THIS_FOLDER" in text
        assert ("library_name: peft" in text) == (card != "README.md")
    assert ("`adapter/` is merged" in (out / "README.md").read_text()) is lora


def test_training_lowers_the_loss(run_sft):
    out = run_sft(DEMONSTRATIONS, max_steps=30, learning_rate=2e-2)
    losses = read_record(out)["loss"]
    assert losses[-1] < 0.5 < 2.0 < losses[0]


def test_max_samples_keeps_the_first_rows(run_sft, llama, tokenizer):
    out = run_sft(DEMONSTRATIONS, **ONE_STEP, max_samples=1)
    expected, _ = descended(llama(), [([*tokenizer("a b c d e")["input_ids"], EOS], 2)])
    written = load_file(out / "model.safetensors")
    for name in expected:
        torch.testing.assert_close(written[name].double(), expected[name], rtol=0, atol=1e-6)


def test_the_config_is_written_and_parses_again(run_sft, tmp_path):
    first = run_sft(DEMONSTRATIONS, **ONE_STEP)
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert config["optim"] == "sgd" and config["learning_rate"] == 0.5
    assert "warmup_steps" not in config  # what was not given keeps its default
    second = run_stage("sft", ["--config", str(first / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        (
            DEMONSTRATIONS,
            {"model_name_or_path": "/nowhere/base"},
            FileNotFoundError,
            "base model /nowhere/base does not",
        ),
        (DEMONSTRATIONS, {"packing": True}, ValueError, "lacks the column text for text; it has prompt, completion"),
        ([{"text": "a"}], {}, ValueError, "lacks the columns prompt, completion for demonstrations; it has text"),
        (DEMONSTRATIONS, {"learning_rate": "fast"}, ValueError, "learning_rate"),
        (DEMONSTRATIONS, {"chat_template_path": "here"}, ValueError, "chat_template_path is here, but the rows are"),
        (DEMONSTRATIONS, {"learning_rat": 1}, ValueError, "unknown flag '--learning_rat'"),
    ],
    ids=["base", "packing", "columns", "value", "template", "flag"],
)
def test_wrong_input_leaves_nothing(run_sft, tmp_path, rows, settings, error, message):
    with pytest.raises(error) as caught:
        run_sft(rows, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_evaluation_measures_what_a_checkpoint_may_be_the_best_by(run_sft, write_rows, tmp_path):
    rows = write_rows("own/train.jsonl", DEMONSTRATIONS)
    write_rows("own/validation.jsonl", [{"prompt": "a", "completion": " b"}])
    settings = {**ONE_STEP, "eval_strategy": "epoch", "dataset_name": rows.parent}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lines.train.sft.SFTTrainer", lambda **_: pytest.fail("the model is loaded"))
        with pytest.raises(ValueError, match="metric_for_best_model is aux_loss, which only a mixture of experts has"):
            run_sft(DEMONSTRATIONS, **settings, metric_for_best_model="aux_loss")
    assert not (tmp_path / "out" / "sft").exists()
    (row,) = read_record(run_sft(DEMONSTRATIONS, **settings, metric_for_best_model="entropy"))["history"]
    assert {f"eval_{name}" for name in SFTSettings.metrics if name != "aux_loss"} <= row.keys()


KILLED = """
import os, signal, sys
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.stages import run_stage

DenseMerge.write = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
run_stage("sft", sys.argv[1:])
"""


@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_a_run_without_checkpoints_goes_on_from_what_it_trained(run_sft, flags, base, tmp_path, monkeypatch, how):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    settings = {**LORA, "max_steps": 3, "learning_rate": 3e-2, "save_strategy": "no"}
    whole = run_sft(DEMONSTRATIONS, **settings)
    assert not list(whole.rglob("checkpoint-*")) and not list(whole.rglob("*.pt"))
    expected = load_file(whole / "model.safetensors")
    shutil.rmtree(whole)
    if how == "fails":
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr("rlhf_lines.merge.dense.DenseMerge.write", fail)
            run_sft(DEMONSTRATIONS, **settings)
    else:
        given = {"model_name_or_path": base, "dataset_name": tmp_path / "data", "output_dir": whole, "logging_steps": 1}
        command = [sys.executable, "-c", KILLED, *flags(**given, **settings)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert subprocess.run(command, check=False, env=environment, timeout=300).returncode == -signal.SIGKILL
    assert not whole.exists()
    with pytest.raises(FileExistsError, match="was begun by a run that stopped after checkpoint-3: add --resume"):
        run_sft(DEMONSTRATIONS, **settings)
    monkeypatch.setattr("rlhf_lines.train.sft.SFTTrainer.training_step", lambda *_: 1 / 0)  # nothing is trained again
    written = load_file(run_sft(DEMONSTRATIONS, resume=True, **settings) / "model.safetensors")
    assert written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in written)
    assert not list(whole.rglob("checkpoint-*")) and [path.name for path in whole.parent.iterdir()] == ["sft"]


def test_a_run_that_was_stopped_behind_its_merge_is_resumed(run_sft, tmp_path, monkeypatch):
    saving = {**LORA, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    rows = [{"prompt": "a b", "completion": " c d"}] * 4 + [{"prompt": "c d", "completion": " e"}] * 4
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lines.train.sft.write_record", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_sft(rows, **saving)
    stopped = load_file(tmp_path / "out" / ".sft.partial" / "model.safetensors")
    resumed = load_file(run_sft(rows, resume=True, **saving) / "model.safetensors")
    assert all(torch.equal(resumed[name], stopped[name]) for name in stopped) and resumed.keys() == stopped.keys()


def test_target_modules_are_written_in_order(run_sft):
    out = run_sft(DEMONSTRATIONS, **LORA, max_steps=1)
    written = json.loads((out / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(written) and len(written) == 2 * 7


def test_a_quantised_base_is_not_trained_in_full(run_sft, base, tmp_path):
    folder = tmp_path / "quantised"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"quantised is quantised \(quantization_config in config.json\), and such"):
        run_sft(DEMONSTRATIONS, model_name_or_path=folder)


def test_an_existing_folder_is_refused(run_sft, tmp_path):
    (tmp_path / "out" / "sft").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="exists: choose another folder, or add --overwrite"):
        run_sft(DEMONSTRATIONS)
    assert list((tmp_path / "out" / "sft").iterdir()) == []
