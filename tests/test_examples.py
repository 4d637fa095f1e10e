"""The examples run, as a reader starts them, on tiny models."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.pareto import read_front
from tests.tiny import CHAT_MODEL


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(reader, monkeypatch, capsys):
    """A function that runs an example with flags, and returns what it printed."""
    subjects = ("the sky", "bread", "a lens", "rain", "a cell", "salt", "the moon", "an atom")
    questions = [f"{start} {subject}?" for subject in subjects for start in ("What is", "Who needs")]
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in questions]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(EXAMPLES)  # as python does for the script that it runs

    def start(name: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *flags])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield start
    sys.modules.pop("sweep_and_pick", None)


INPUTS = ["--sft_model", CHAT_MODEL, "--policies", "dpo-relevant", "grpo-brief"]


def test_no_example_is_left_out():
    names = {"merge_two_adapters.py", "sweep_and_pick.py", "train_ppo_lora.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names


def test_two_adapters_are_merged(run):
    printed = run("merge_two_adapters.py", *INPUTS, "--weights", "0.3", "0.7", "--output_dir", "merged")
    assert printed.strip()
    record = json.loads(Path("merged/merge_spec.json").read_text())
    assert (record["spec"]["weights"], record["rank"]) == ([0.3, 0.7], 8)


def test_the_pick_of_a_sweep_is_written(run, without_pictures):
    flags = ["--dataset_name", "prompts.jsonl", "--num_weights", "3", "--preference", "0", "1", "--output_dir", "out"]
    printed = run("sweep_and_pick.py", *INPUTS, *flags)
    lines = [point for point in read_front("out/sweep")["points"] if point["group"] == "lines"]
    best = max(lines, key=lambda point: [point["scores"][name]["mean"] for name in ("short", "lexical")])
    assert f"{best['label']} is in out/merged" in printed
    assert json.loads(Path("out/merged/merge_spec.json").read_text())["spec"]["weights"] == best["spec"]["weights"]


def test_a_policy_is_trained(run):
    flags = ["--model_name_or_path", CHAT_MODEL, "--dataset_name", "prompts.jsonl", "--max_steps", "2"]
    run("train_ppo_lora.py", *flags, "--max_completion_length", "8", "--output_dir", "policy")
    factors = load_adapter("policy").modules.values()
    assert all(one.A.shape[0] == 16 for one in factors) and any(one.B.abs().max() > 0 for one in factors)
