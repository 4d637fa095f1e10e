"""Our PPO beside the last one that TRL had: time, memory and reward on one task, over several seeds.

    python benchmarks/ppo_vs_trl.py

It makes a second environment with TRL 1.12.0 (and otherwise the same versions), the demo's SFT model, and a reward
model with the policy's tokenizer, the only kind that TRL's PPO can use; each of them once. Then it asserts that both
sides start from the same policy and score the same completions equally, runs them in turn, each in a process of its
own, and prints tables in Markdown. The runs are in `ppo_sides/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from peer import ENVIRONMENTS, ROOT, machine, met, note, peer_python, versions


SIDES = Path(__file__).parent / "ppo_sides"
TRL = "1.12.0"
NEEDS = ("torch", "transformers", "peft", "accelerate", "datasets")
PACKAGES = ("trl", "torch", "transformers", "peft", "accelerate")
GOALS = {"faster": 1.6, "memory": 0.8}
CHECKS = 64
TOLERANCE = 1e-3  # of a log-probability of a whole completion, and of a score

sys.path[:0] = [str(ROOT), str(SIDES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--minibatches", type=int, default=1, help="updates per epoch of 64 completions")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run; runs are one after another")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENTS / f"trl-{TRL}")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "benchmarks" / "ppo_vs_trl")
    options = parser.parse_args()

    pythons = {"ours": sys.executable, "theirs": str(peer_python(options.environment, "trl", TRL, needs=NEEDS))}
    sft_model, reward_model = models(options.output_dir / "models")
    task = make_task(sft_model, reward_model, options)
    task_file = options.output_dir / "task.json"
    task.write(task_file)

    def run(side: str, seed: int, *flags: str) -> Path:
        folder = options.output_dir / f"{side}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--task", task_file, "--seed", seed, "--output_dir", folder, *flags]
        call(pythons[side], SIDES / f"{side}.py", *arguments, log=folder / "log.txt", threads=options.threads)
        return folder

    assert_agreement(*(json.loads((run(side, 0, "--check") / "checks.json").read_text()) for side in pythons))
    folders = {side: [] for side in pythons}
    for turn, seed in enumerate(options.seeds):
        for side in list(pythons)[:: 1 if turn % 2 == 0 else -1]:
            folders[side].append(run(side, seed))
            note(f"seed {seed}: {side} done")

    adapters = [folder / "adapter" for side in pythons for folder in folders[side]]
    held_out = options.output_dir / "held_out.json"
    arguments = ["--sft_model", sft_model, "--reward_model", reward_model, "--max_new_tokens", task.max_new_tokens]
    arguments += ["--output", held_out, *adapters]
    log = options.output_dir / "held_out.txt"
    call(sys.executable, SIDES / "held_out.py", *arguments, log=log, threads=options.threads)
    start, *measured = json.loads(held_out.read_text())
    results = {side: [json.loads((folder / "result.json").read_text()) for folder in folders[side]] for side in pythons}
    for side in pythons:
        for result in results[side]:
            result["held_out"] = measured.pop(0)
    print(report(task, results, start, options, pythons))


def call(*command: object, log: Path, threads: int) -> None:
    """Run a command with the same environment variables for all, its output in a file.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    with log.open("w") as file:
        done = subprocess.run([str(part) for part in command], env=environment, stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed, see {log}:\n" + "\n".join(log.read_text().splitlines()[-12:]))


def models(folder: Path) -> tuple[Path, Path]:
    """The SFT model of the demo and a reward model of the demo's preference `brief`, made if not there.

    The reward model is trained on the demo's base: a Llama with the tokenizer of the policy.
    """
    from rlhf_lines.artifact import is_complete
    from rlhf_lines.demo_models import write_untrained_models

    stages = (
        ("sft", "base", "base", folder / "untrained" / "llama"),
        ("sft", "sft", "sft", folder / "base"),
        ("reward", "reward_brief", "reward", folder / "base"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not is_complete(folder / "untrained"):
        write_untrained_models(folder / "untrained")
    for verb, config, name, base in stages:
        if not is_complete(folder / name):
            note(f"training {folder / name}")
            flags = ["--config", ROOT / "configs" / "demo" / f"{config}.yaml", "--model_name_or_path", base]
            flags += ["--output_dir", folder / name, "--overwrite", "true"]
            command = [sys.executable, "-m", "rlhf_lines.cli", verb, *flags]
            call(*command, log=folder / f"{name}.txt", threads=os.cpu_count())
    return folder / "sft", folder / "reward"


def make_task(sft_model: Path, reward_model: Path, options: argparse.Namespace):
    from common import Task

    from rlhf_lines import data

    count = options.rollouts * Task.completions
    return Task(
        sft_model=str(sft_model),
        reward_model=str(reward_model),
        prompts=list(data.load("docstrings", "prompts", "train", max_samples=count)["prompt"]),
        checks=make_checks(sft_model, Task.max_new_tokens),
        rollouts=options.rollouts,
        minibatches=options.minibatches,
        learning_rate=options.learning_rate,
    )


def make_checks(sft_model: Path, length: int) -> list[list[str]]:
    """Pairs of a prompt and a completion: half of them ended before `length` tokens, half were cut there."""
    from rlhf_lines import data
    from rlhf_lines.models import load_tokenizer

    tokenizer = load_tokenizer(sft_model)
    rows = data.load("docstrings", "demonstrations", "validation")
    ended, cut = [], []
    for row in rows:
        prompt, completion = row["prompt"], row["completion"]
        if len(tokenizer(completion).input_ids) < length:
            ended.append([prompt, completion])
        ids = tokenizer(completion * length).input_ids[:length]
        text = tokenizer.decode(ids)
        if tokenizer(text).input_ids == ids:  # else the two sides would read different tokens
            cut.append([prompt, text])
    return ended[: CHECKS // 2] + cut[: CHECKS // 2]


def assert_agreement(ours: dict, theirs: dict) -> None:
    """Raise AssertionError if the policies at the start or the rewards differ on the task's checks."""
    for name in ("logprobs", "scores"):
        difference = max(abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True))
        assert difference < TOLERANCE, f"{name} of the same {len(ours[name])} completions differ by {difference}"
        note(f"agreement: {name} of {len(ours[name])} completions differ by at most {difference:.1e}")


def report(task, results: dict, start: dict, options: argparse.Namespace, pythons: dict) -> str:
    """The tables in Markdown, what they were measured on, and whether the goals are met."""
    rows = {
        "seconds per rollout": [[statistics.median(r["seconds"][1:]) for r in results[s]] for s in pythons],
        "CPU seconds per rollout": [[statistics.median(r["cpu_seconds"][1:]) for r in results[s]] for s in pythons],
        "peak memory above imports, MiB": [[r["peak_mib"] - r["imports_mib"] for r in results[s]] for s in pythons],
        "peak memory in all, MiB": [[r["peak_mib"] for r in results[s]] for s in pythons],
        "score, last 3 rollouts": [[statistics.mean(r["scores"][-3:]) for r in results[s]] for s in pythons],
        "score, held-out prompts": [[r["held_out"]["score"] for r in results[s]] for s in pythons],
        "score - kl_coef KL, held-out prompts": [
            [r["held_out"]["score"] - task.kl_coef * r["held_out"]["kl"] for r in results[s]] for s in pythons
        ],
        "KL to SFT, held-out prompts, nats": [[r["held_out"]["kl"] for r in results[s]] for s in pythons],
    }
    lines = ["| mean over seeds (each seed) | rlhf_lines | TRL " + TRL + " | ours / theirs |", "|---|---|---|---|"]
    for name, (ours, theirs) in rows.items():
        ratio = f"{statistics.mean(ours) / statistics.mean(theirs):.2f}"
        lines.append(f"| {name} | {_cell(ours)} | {_cell(theirs)} | {ratio} |")
    lines += ["", "| rollout | score, ours | score, TRL | KL, ours | KL, TRL |", "|---|---|---|---|---|"]
    for i in range(task.rollouts):
        cells = [statistics.mean(r[key][i] for r in results[s]) for key in ("scores", "kl") for s in pythons]
        lines.append(f"| {i + 1} | " + " | ".join(f"{abs(cell) if abs(cell) < 5e-3 else cell:.2f}" for cell in cells))
        lines[-1] += " |"
    lines += ["", *_verdicts(rows), "", f"The SFT model scores {start['score']:.2f} on the held-out prompts."]
    lines += [
        "",
        f"{task.rollouts} rollouts of {task.completions} completions of at most {task.max_new_tokens} tokens, ",
    ]
    lines[-1] += f"{task.epochs} epochs of {task.minibatches} updates, learning rate {task.learning_rate}, LoRA rank "
    lines[-1] += f"{task.lora_r}; seeds {', '.join(map(str, options.seeds))}; {options.threads} threads."
    lines += ["", machine()]
    lines += [f"{side}: {versions(python, PACKAGES)}" for side, python in pythons.items()]
    return "\n".join([*lines, "", f"`python {' '.join(sys.argv)}`"])


def _cell(values: list[float]) -> str:
    digits = 0 if max(values) >= 100 else 2
    return f"{statistics.mean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def _verdicts(rows: dict) -> list[str]:
    def ratio(name: str) -> float:
        ours, theirs = rows[name]
        return statistics.mean(ours) / statistics.mean(theirs)

    faster, memory = 1 / ratio("seconds per rollout"), ratio("peak memory above imports, MiB")
    ours, theirs = rows["score, held-out prompts"]
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    gain, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return [
        f"- {met(faster >= GOALS['faster'])}: {faster:.2f} times as fast (goal: at least {GOALS['faster']}).",
        f"- {met(memory <= GOALS['memory'])}: {memory:.2f} of the memory (goal: at most {GOALS['memory']}).",
        f"- {met(gain >= 0)}: held-out score {gain:+.2f}, standard error over seeds {error:.2f} (goal: not lower).",
    ]


if __name__ == "__main__":
    main()
