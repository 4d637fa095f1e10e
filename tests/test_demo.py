"""The whole pipeline on a scaled-down setting: the demo's own stages and configs, with smaller numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from reward_models import load
from rlhf_lines import demo
from rlhf_lines.artifact import is_complete, read_record
from rlhf_lines.merge import MergeSpec, merge_policies


ROOT = Path(__file__).parents[1]
SMALLER = {
    "base": {"max_samples": 1500, "num_train_epochs": 1},
    "sft": {"max_samples": 320},
    "reward_brief": {"max_samples": 640},
    "reward_specific": {"max_samples": 640},
    "ppo_brief": {"max_steps": 24, "per_device_train_batch_size": 32},
    "ppo_specific": {"max_steps": 4, "per_device_train_batch_size": 32},
    "sweep": {"num_weights": 3, "validation_weights": 2, "validation_prompts": 8, "test_prompts": 24, "betas": [1.0]},
}
COMMAND = [sys.executable, "-m", "rlhf_lines.cli"]


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    for _, name in demo.STAGES:
        config = yaml.safe_load((ROOT / "configs" / "demo" / f"{name}.yaml").read_text())
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**config, **SMALLER[name]}))
    return folder


def test_paths_move_at_any_depth(tmp_path, monkeypatch):
    settings = {
        "sft_model": "outputs/demo/sft",
        "policies": ["outputs/demo/policies/brief", "org/outputs/demo/policy"],
        "rewards": [
            "similarity:outputs/demo/encoder",
            {"model": "outputs/demo/reward_models/brief", "batch_size": 8},
            '{"model": "outputs/demo/reward_models/specific"}',
        ],
        "vllm": {"nested": [{"path": "outputs/demo"}]},
        "seed": 1,
        "control": "outputs/demonstrations",
    }
    for _, name in demo.STAGES:
        (tmp_path / f"{name}.yaml").write_text(json.dumps(settings if name == "sweep" else {"seed": 1}))
    ran = {}
    monkeypatch.setattr(demo, "run_stage", lambda _, arguments: ran.update({Path(arguments[1]).stem: arguments[2:]}))
    monkeypatch.setattr(demo, "write_untrained_models", lambda folder: None)
    monkeypatch.setattr(demo, "summary", lambda *_: "")
    list(demo.run("my out", tmp_path))
    assert ran["base"] == ["--resume", "true"]
    assert ran["sweep"] == [
        "--sft_model", "my out/sft",
        "--policies", "my out/policies/brief", "org/outputs/demo/policy",
        "--rewards", "similarity:my out/encoder", '{"model": "my out/reward_models/brief", "batch_size": 8}',
        '{"model": "my out/reward_models/specific"}',
        "--vllm", '{"nested": [{"path": "my out"}]}',
        "--resume", "true",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(configs, tmp_path_factory) -> tuple[Path, list[str]]:
    """A demo that was killed after its first stage and then started again: its folder, and what it said."""
    output = tmp_path_factory.mktemp("demo") / "out"
    killed = subprocess.Popen(
        [*COMMAND, "demo", "--output_dir", str(output), "--config_dir", str(configs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not is_complete(output / "base"):
        assert killed.poll() is None, "the demo ended before its first stage"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    base_made = (output / "base" / "model.safetensors").stat().st_mtime_ns
    texts = list(demo.run(str(output), configs))
    assert (output / "base" / "model.safetensors").stat().st_mtime_ns == base_made
    return output, texts


@pytest.mark.slow
def test_every_stage_left_a_complete_folder(finished):
    output, texts = finished
    folders = ["untrained", "base", "sft", "reward_models/brief", "reward_models/specific", "policies/brief"]
    for folder in [*folders, "policies/specific", "sweep"]:
        assert is_complete(output / folder), folder
    assert [path.name for path in output.rglob(".*.partial")] == []
    assert list(output.rglob("*.bin")) == []  # nothing pickled
    assert "For these policies, " in texts[-2] and f"rlhf-lines pick {output}/sweep " in texts[-2]


@pytest.mark.slow
def test_a_second_run_does_nothing_again(finished, configs):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    list(demo.run(str(output), configs))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_reward_models_judge_by_their_wish(finished):
    output, _ = finished
    prompts = ["json.dumps:"] * 2
    lengths = [" Dump.", " Serialize obj to a str if it is given."]
    brief = load(output / "reward_models" / "brief").score(prompts, lengths)
    assert brief[0] > brief[1]
    wordy = [" Return the value of the given object here.", " Return None if x_y is True, else int 3 (see FOO_BAR)."]
    specific = load(output / "reward_models" / "specific").score(prompts, wordy)
    assert specific[1] > specific[0]
    for name in ("brief", "specific"):
        assert read_record(output / "reward_models" / name)["accuracy"] >= 0.85


@pytest.mark.slow
def test_the_policy_learned(finished):
    history = [row for row in read_record(finished[0] / "policies" / "brief")["history"] if "reward" in row]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)  # the fresh adapter is the SFT model
    # Six rollouts of 32: the score of the last is above that of the first by more than their joint standard error.
    first, last = history[0], history[-1]
    error = ((first["reward_std"] ** 2 + last["reward_std"] ** 2) / 32) ** 0.5
    assert last["reward"] > first["reward"] + 1.96 * error


@pytest.mark.slow
def test_the_front_holds_every_group_and_weight(finished):
    output, _ = finished
    front = json.loads((output / "sweep" / "front.json").read_text())
    weights = {group: [p["spec"]["weights"] for p in front["points"] if p["group"] == group] for group in
               ("sft", "rewarded_soup", "lines")}  # fmt: skip
    ends = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert weights == {"sft": [[0.0, 0.0]], "rewarded_soup": ends, "lines": ends}
    assert all(point["prompts"] == 24 for point in front["points"])
    assert front["rewards"] == ["brief", "specific"]
    assert (output / "sweep" / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_policies_merge_and_reload_in_peft(finished, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output, _ = finished
    policies = [output / "policies" / name for name in ("brief", "specific")]
    spec = MergeSpec("linear", (0.3, 0.7), alpha=1.0, beta=1.0)
    for save in ("adapter", "dense"):
        merge_policies(output / "sft", policies, spec, save=save, output_dir=tmp_path / save)
    ids = torch.arange(40).reshape(2, 20)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    base = AutoModelForCausalLM.from_pretrained(output / "sft").eval()
    with torch.no_grad():
        merged, plain = dense(ids).logits, base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=0)
    assert (merged - plain).abs().max() > 0.1  # the policies did move


@pytest.mark.slow
def test_accelerate_launches_the_script(finished, configs, tmp_path):
    output, _ = finished
    script = ROOT / "scripts" / "train_ppo.py"
    flags = ["--model_name_or_path", f"{output}/sft", "--rewards", f"{output}/reward_models/brief"]
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(script),
         "--config", str(configs / "ppo_brief.yaml"), *flags, "--max_steps", "2",
         "--output_dir", str(tmp_path / "policy")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "policy" / "adapter_model.safetensors").is_file()
    assert read_record(tmp_path / "policy")["stage"] == "ppo"
