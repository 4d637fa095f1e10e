"""PPO on two processes of one machine: the same run as on one, half of every rollout each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest import approx
from safetensors.torch import load_file
from tiny import WORDS


SCRIPT = Path(__file__).parents[2] / "scripts" / "train_ppo.py"


@pytest.fixture
def train(flags, base, write_rows, tmp_path):
    """Return a function that trains on so many processes and returns the folder of the policy."""
    (tmp_path / "tiny_rewards.py").write_text(
        "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS for y in WORDS[:3]])

    def run(processes, **changes):
        settings = {
            **{"model_name_or_path": base, "output_dir": tmp_path / f"on_{processes}", "dataset_name": data.parent},
            **{"rewards": ['{"model": "tiny_rewards:letters", "normalize": true}'], "normalization_samples": 21},
            **{"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_target_modules": "all-linear", "kl_target": 1.0},
            # 8 completions in a rollout, 4 in a minibatch, 2 epochs: four updates of each of three rollouts.
            **{"per_device_train_batch_size": 4 // processes, "steps_per_generation": 2, "num_iterations": 2},
            **{"max_steps": 12, "max_completion_length": 5, "logging_steps": 1, "learning_rate": 1e-2},
        }
        # `accelerate launch` starts one process on a CPU and does not say so; torchrun starts two.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        result = subprocess.run(
            [*command, str(SCRIPT), *flags(**{**settings, **changes})],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return settings["output_dir"]

    return run


def test_two_processes_train_the_policy_of_one(train):
    one, two = train(1), train(2)
    records = [json.loads((folder / "rlhf_lines.json").read_text()) for folder in (one, two)]
    assert [record["processes"] for record in records] == [1, 2]
    # Everything that is measured is measured over the whole rollout, on one process or on two.
    timings = {"step_time", "tokens_per_second", "train_runtime"}
    for on_one, on_two in zip(*(record["history"] for record in records), strict=True):
        assert on_one.keys() == on_two.keys()
        for name in on_one.keys() - timings:
            assert on_two[name] == approx(on_one[name], rel=1e-5, abs=1e-6), name
    rewards = {row["reward"] for row in records[0]["history"]}
    assert len(rewards) == 3, "three rollouts that differ"
    assert json.loads((one / "normalization.json").read_text()) == json.loads((two / "normalization.json").read_text())
    for file in ("adapter_model.safetensors", "value_head.safetensors"):
        a, b = load_file(one / file), load_file(two / file)
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max() < 1e-6, name
            assert a[name].abs().max() > 0, name
