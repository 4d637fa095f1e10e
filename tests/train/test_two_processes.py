"""PPO on two processes of one machine: half of every rollout each; with FSDP and DeepSpeed half of the base each."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from pytest import approx
from safetensors.torch import load_file

from tests import forked
from tests.launched import launched
from tests.tiny import WORDS
from tests.torchrun import torchrun


pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "train_ppo.py"
SHARDED, KILLED = (Path(__file__).parent / name for name in ("sharded.py", "killed.py"))
WEIGHTS = ("adapter_model.safetensors", "value_head.safetensors")
TIMINGS = {"step_time", "tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
OF_ONE_PROCESS = {"train_loss"}  # transformers adds to it what one process alone has not logged yet


@pytest.fixture
def train(flags, base, write_rows, tmp_path):
    """Return a function that runs a script on so many processes and returns the folder of the policy."""
    (tmp_path / "tiny_rewards.py").write_text(
        "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    data = write_rows("data/train.jsonl", [{"prompt": f"{x} {y}"} for x in WORDS for y in WORDS[:3]])

    def run(processes, name, *script, environment=None, succeeds=True, torchrun=False, **changes):
        settings = {
            **{"model_name_or_path": base, "output_dir": tmp_path / name, "dataset_name": data.parent},
            **{"rewards": ["tiny_rewards:letters"], "normalization_samples": 21},
            **{"use_peft": True, "lora_r": 2, "lora_alpha": 4, "lora_target_modules": "all-linear", "kl_target": 1.0},
            # 8 completions in a rollout, 4 in a minibatch, 2 epochs: four updates of each of three rollouts.
            **{"per_device_train_batch_size": 4 // processes, "steps_per_generation": 2, "num_iterations": 2},
            **{"max_steps": 12, "max_completion_length": 5, "logging_steps": 1, "learning_rate": 1e-2},
        }
        path = [str(tmp_path), *sys.path]  # the checkout that is tested, wherever it is installed from
        arguments = [*map(str, script or [SCRIPT]), *flags(**{**settings, **changes})]
        variables = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **(environment or {})}
        start = launch if torchrun else forked.run
        statuses, said = start(processes, arguments, {**os.environ, **variables})
        assert (statuses == [0] * len(statuses)) == succeeds, said[-3000:]
        return settings["output_dir"]

    return run


def launch(processes, arguments, environment):
    """By torchrun: `accelerate launch` starts one process on a CPU and does not say so."""
    result = torchrun(arguments, environment, processes=processes)
    return [result.returncode], result.stderr


def test_two_processes_train_the_policy_of_one(train, short_reader):
    settings = {
        "rewards": ['{"model": "tiny_rewards:letters", "normalize": true}', short_reader],
        "value_lora": True,
        "use_cpu": False,  # as it is where nobody says it: a machine without a GPU knows
    }
    one, two = train(1, "one", **settings), train(2, "two", **settings, torchrun=True)
    assert json.loads((one / "normalization.json").read_text()) == json.loads((two / "normalization.json").read_text())
    assert_same_run(one, two, relative=1e-5, weights=1e-6)
    assert [record(folder)["processes"] for folder in (one, two)] == [1, 2]
    assert record(one)["truncated"] == record(two)["truncated"] != {"letters": 0, "short": 0}
    rewards = {row["reward"] for row in record(one)["history"] if "reward" in row}
    assert len(rewards) == 3, "three rollouts that differ"


def record(folder):
    return json.loads((folder / "rlhf_lines.json").read_text())


def assert_same_run(a, b, *, relative, weights):
    """Everything that is measured is measured over the whole rollout and the whole model, and is the same."""
    histories = (record(folder)["history"] for folder in (a, b))
    for row, other in zip(*histories, strict=True):
        assert row.keys() - TIMINGS == other.keys() - TIMINGS
        for name in row.keys() - TIMINGS - OF_ONE_PROCESS:
            assert other[name] == approx(row[name], rel=relative, abs=relative / 10), name
    assert (a / "ppo_state.json").read_text() == (b / "ppo_state.json").read_text()
    files = sorted(path.relative_to(a) for path in a.rglob("*.safetensors") if "checkpoint" not in str(path))
    assert set(map(str, files)) >= set(WEIGHTS)
    for file in files:
        whole, other = load_file(a / file), load_file(b / file)
        assert whole.keys() == other.keys()
        for name in whole:
            assert (whole[name] - other[name]).abs().max() < weights, name
            assert whole[name].abs().max() > 0, name


# --- a base that is shared out


@pytest.fixture
def sharing():
    """Return a function that gives environment and settings of a CPU run as a file of configs/accelerate says."""

    def make(file):
        environment = {**launched(file)[0], "ACCELERATE_MIXED_PRECISION": "no", "DS_ACCELERATOR": "cpu"}
        if file == "fsdp.yaml":
            return {"environment": environment}
        if importlib.util.find_spec("deepspeed") is None:
            pytest.skip("needs deepspeed")
        return {"environment": environment, "use_cpu": False, "ddp_backend": "gloo"}  # where accelerate looks at it

    return make


@pytest.mark.parametrize("file", ["fsdp.yaml", "zero2.yaml", "zero3.yaml"])
def test_a_base_that_is_shared_out_trains_the_same_policy(train, sharing, file):
    shared = {**sharing(file), "save_strategy": "steps", "save_steps": 4}
    whole = train(2, "whole", SHARDED, SCRIPT)
    train(2, "shared", SHARDED, KILLED, "training_step", 10, **shared, succeeds=False)
    assert (whole.parent / ".shared.partial" / "checkpoint-8").is_dir()
    resumed = train(2, "shared", SHARDED, SCRIPT, **shared, resume=True)
    assert_same_run(whole, resumed, relative=1e-4, weights=1e-6)
    assert record(resumed)["processes"] == 2
    assert [path for path in resumed.rglob("*") if path.suffix in (".bin", ".pt", ".pth")] == []


def test_fsdp_computes_values_and_log_probabilities_in_float32(train, sharing):
    settings = {"bf16": True, "dtype": "bfloat16", "max_steps": 1}
    shared = {"environment": {**sharing("fsdp.yaml")["environment"], "ACCELERATE_MIXED_PRECISION": "bf16"}}
    folders = train(2, "whole", SHARDED, SCRIPT, **settings), train(2, "shared", SHARDED, SCRIPT, **settings, **shared)
    # Before the first update no rounding has been amplified. In bfloat16 the entropy would be off by 4e-4.
    first, other = (record(folder)["history"][0] for folder in folders)
    for name in ("reward_minus_kl", "kl", "entropy", "value_loss", "loss"):
        assert other[name] == approx(first[name], rel=5e-5, abs=1e-6), name
