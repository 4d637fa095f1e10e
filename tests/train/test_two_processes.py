"""PPO on two processes of one machine: the same run, half the rollout each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from tiny import WORDS


SCRIPT = Path(__file__).parents[2] / "scripts" / "train_ppo.py"


def test_two_processes_train_one_policy(flags, base, write_rows, tmp_path):
    (tmp_path / "tiny_rewards.py").write_text(
        "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS for y in WORDS[:3]])
    settings = {
        **{"model_name_or_path": base, "output_dir": tmp_path / "policy", "dataset_name": data.parent},
        **{"rewards": ["tiny_rewards:letters"], "use_peft": True, "lora_r": 2, "lora_alpha": 4},
        **{"lora_target_modules": "all-linear", "per_device_train_batch_size": 4, "num_iterations": 2},
        **{"max_steps": 4, "max_completion_length": 4, "logging_steps": 1, "learning_rate": 1e-2},
    }
    # `accelerate launch` starts one process on a CPU and does not say so; torchrun starts two.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(SCRIPT), *flags(**settings)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "policy" / "rlhf_lines.json").read_text())
    assert record["processes"] == 2
    # A fresh adapter is the SFT model, on both processes.
    assert abs(record["history"][0]["kl"]) < 1e-5
    # Two updates of 8 completions each: every trained tensor moved, the value head too.
    adapter = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    head = load_file(tmp_path / "policy" / "value_head.safetensors")
    assert head["weight"].shape == (1, 16)
    assert head["weight"].abs().max() > 0
