"""What both sides of ppo_vs_trl.py share: the task, the clock, the memory meter; nothing of rlhf_lines or TRL."""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from transformers import TrainerCallback


@dataclass(frozen=True)
class Task:
    """One PPO task in numbers that both trainers have a setting for.

    `minibatches` are the updates of one epoch over a rollout of `completions`. The learning rate is that of all
    that is trained, the critic included: TRL 1.12 has only one.
    """

    sft_model: str
    reward_model: str
    prompts: list[str]  # rollouts * completions of them: each is seen once
    checks: list[list[str]]  # prompt, completion: where both sides must agree before the clock starts
    held_out: list[str]  # prompts that no side trains on
    rollouts: int = 10
    completions: int = 64
    epochs: int = 4
    minibatches: int = 1
    max_new_tokens: int = 32
    learning_rate: float = 1e-3
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    vf_coef: float = 0.1
    lora_r: int = 16
    lora_alpha: int = 32

    @classmethod
    def read(cls, path: str | Path) -> Task:
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self)))


def shared_arguments(task: Task, seed: int, output_dir: str) -> dict:
    """The settings that both config classes inherit from transformers' TrainingArguments."""
    return {
        "output_dir": output_dir,
        "seed": seed,
        "per_device_train_batch_size": task.completions,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "gamma": task.gamma,
        "lam": task.lam,
        "vf_coef": task.vf_coef,
        "kl_coef": task.kl_coef,
        "temperature": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
    }


def lora_config(task: Task):
    from peft import LoraConfig

    return LoraConfig(
        r=task.lora_r,
        lora_alpha=task.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class RolloutClock(TrainerCallback):
    """Read the clocks when training begins and whenever the updates of one more rollout are done."""

    def __init__(self, steps_per_rollout: int) -> None:
        self._steps = steps_per_rollout
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self._read()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._steps == 0:
            self._read()

    def _read(self) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def seconds(self) -> dict[str, list[float]]:
        """The seconds of each rollout with its updates: by the clock on the wall, and of the processor."""
        return {
            "seconds": [after - before for before, after in pairwise(self._wall)],
            "cpu_seconds": [after - before for before, after in pairwise(self._cpu)],
        }


def resident_mib() -> float:
    """The memory of this process that is in RAM now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_resident_mib() -> float:
    """The most memory of this process that was ever in RAM, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def weights_mib(*models) -> float:
    """The memory of all parameters that models have before training, shared ones once, in MiB."""
    parameters = {p for model in models for name, p in model.named_parameters() if ".lora_" not in name}
    return sum(p.nbytes for p in parameters) / 2**20


@torch.no_grad()
def completion_logprobs(model, tokenizer, pairs: list[list[str]]) -> list[float]:
    """Log pi(completion and its end token | prompt) of each pair, in nats, one unpadded text at a time."""
    result = []
    for prompt, completion in pairs:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([[*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        result.append(logprobs.gather(1, ids[0, 1:, None])[start - 1 :].sum().item())
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One side of ppo_vs_trl.py, which calls it.")
    parser.add_argument("--task", required=True, help="the task, as Task.write writes it")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output_dir", required=True, help="gets checks.json, result.json and adapter/")
    parser.add_argument("--bf16", action="store_true", help="weights and passes in bfloat16: ours only")
    parser.add_argument("--check", action="store_true", help="stop after checks.json, before training")
    return parser.parse_args()


def write_checks(output_dir: str, *, logprobs: list[float], scores: list[float]) -> None:
    """Write `checks.json`: what both sides must agree on before anything is timed, for each of the task's checks."""
    Path(output_dir, "checks.json").write_text(json.dumps({"logprobs": logprobs, "scores": scores}))


def write_result(
    output_dir: str,
    *,
    clock: RolloutClock,
    imports_mib: float,
    weights_mib: float,
    scores: list[float],
    kl: list[float],
    tokens: float | None = None,
) -> None:
    """Write `result.json`: memory, and of each rollout its seconds, its mean raw score and its mean KL in nats.

    `tokens` is the mean length of all completions.
    """
    result = {
        **clock.seconds(),
        "imports_mib": imports_mib,
        "weights_mib": weights_mib,
        "tokens": tokens,
        "peak_mib": peak_resident_mib(),
        "scores": scores,
        "kl": kl,
    }
    Path(output_dir, "result.json").write_text(json.dumps(result))
