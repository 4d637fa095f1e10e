"""Our PPO beside the last one that TRL had: time, memory and reward on one task, over several seeds.

    python benchmarks/ppo_vs_trl.py                    # the demo's model of 1.5 million parameters
    python benchmarks/ppo_vs_trl.py --model smollm2 [--sft_model FOLDER] --threads 1

It makes a second environment with TRL 1.12.0 (and otherwise the same versions), the demo's SFT model, and a reward
model with the policy's tokenizer, the only kind that TRL's PPO can use; each of them once. Then it asserts that both
sides start from the same policy and score the same completions equally, runs them in turn, each in a process of its
own, and prints tables in Markdown. The runs are in `ppo_sides/`. Below our seconds stands what the matrix
products of our passes take, at the speed measured for their shapes: see `ppo_sides/limit.py`. `--bf16` adds one run of
ours with weights and passes in bfloat16.

`smollm2` is HuggingFaceTB/SmolLM2-135M-Instruct, or a local copy of it, and reads chats. In a copy of its folder its
padding token becomes another than its end token: TRL hides all padding tokens of a text, and a chat holds end tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from peer import ENVIRONMENTS, ROOT, call, machine, met, note, peer_python, versions


SIDES = Path(__file__).parent / "ppo_sides"
TRL = "1.12.0"
NEEDS = ("torch", "transformers", "peft", "accelerate", "datasets")
PACKAGES = ("trl", "torch", "transformers", "peft", "accelerate")
CHECKS = 64
TOLERANCE = 1e-3  # of a log-probability of a whole completion, and of a score

sys.path[:0] = [str(ROOT), str(SIDES)]


@dataclass(frozen=True)
class Setting:
    """What is trained on, and what is to be reached; the limit is our seconds over those of the products."""

    task: dict
    rollouts: int
    learning_rate: float
    held_out: int
    faster: float
    memory: float
    limit: float | None = None


SETTINGS = {
    "demo": Setting({}, rollouts=10, learning_rate=1e-3, held_out=512, faster=1.6, memory=0.8),
    "smollm2": Setting(
        {"completions": 32, "epochs": 2, "max_new_tokens": 24},
        rollouts=5,
        learning_rate=1e-4,
        held_out=64,
        faster=2.5,
        memory=0.6,
        limit=1.6,
    ),
}
BF16 = 2.0  # times as fast as in float32, on processors with units for it
PADDING = "<|endoftext|>"  # of smollm2, in place of its end token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", choices=SETTINGS, default="demo")
    parser.add_argument("--sft_model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="of smollm2: id or folder")
    parser.add_argument("--rollouts", type=int, help="10, or 5 of smollm2")
    parser.add_argument("--minibatches", type=int, default=1, help="updates per epoch of a rollout")
    parser.add_argument("--learning_rate", type=float, help="1e-3, or 1e-4 of smollm2")
    parser.add_argument("--bf16", action="store_true", help="a run of ours in bfloat16, too, with the first seed")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run; runs are one after another")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENTS / f"trl-{TRL}")
    parser.add_argument("--output_dir", type=Path, help="outputs/benchmarks/ppo_vs_trl, and the model's name")
    options = parser.parse_args()
    setting = SETTINGS[options.model]
    options.rollouts = options.rollouts or setting.rollouts
    options.learning_rate = options.learning_rate or setting.learning_rate
    name = "ppo_vs_trl" if options.model == "demo" else f"ppo_vs_trl_{options.model}"
    options.output_dir = options.output_dir or ROOT / "outputs" / "benchmarks" / name

    pythons = {"ours": sys.executable, "theirs": str(peer_python(options.environment, "trl", TRL, needs=NEEDS))}
    if options.model == "demo":
        sft_model, reward_model = models(options.output_dir / "models")
    else:
        sft_model, reward_model = smollm2(options.output_dir / "models", options.sft_model)
    task = make_task(sft_model, reward_model, options)
    task_file = options.output_dir / "task.json"
    task.write(task_file)

    def run(side: str, seed: int, *flags: str, folder: Path | None = None) -> Path:
        folder = folder or options.output_dir / f"{side}-{seed}"
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

    if options.bf16:
        in_bf16 = options.output_dir / "ours-bf16"
        run("ours", options.seeds[0], "--bf16", folder=in_bf16)
        note("bfloat16: ours done")

    adapters = [folder / "adapter" for side in pythons for folder in folders[side]]
    held_out = options.output_dir / "held_out.json"
    arguments = ["--task", task_file, "--output", held_out, *adapters]
    log = options.output_dir / "held_out.txt"
    call(sys.executable, SIDES / "held_out.py", *arguments, log=log, threads=options.threads)
    start, *measured = json.loads(held_out.read_text())
    results = {side: [json.loads((folder / "result.json").read_text()) for folder in folders[side]] for side in pythons}
    for side in pythons:
        for result in results[side]:
            result["held_out"] = measured.pop(0)
    tokens = statistics.mean(result["tokens"] for result in results["ours"])
    arguments = ["--task", task_file, "--tokens", tokens, "--output", options.output_dir / "limit.json"]
    call(sys.executable, SIDES / "limit.py", *arguments, log=options.output_dir / "limit.txt", threads=options.threads)
    limit = json.loads((options.output_dir / "limit.json").read_text())
    print(report(task, results, start, limit, options, pythons))
    if options.bf16:
        print(_in_bf16(results["ours"][0], json.loads((in_bf16 / "result.json").read_text())))


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


def smollm2(folder: Path, name: str) -> tuple[Path, Path]:
    """The chat model with a padding token of its own, and a reward model on it, made if not there."""
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    from rlhf_lines.artifact import is_complete

    sft, reward = folder / "sft", folder / "reward"
    if not (sft / "tokenizer.json").is_file():
        source = Path(name).resolve() if Path(name).is_dir() else Path(snapshot_download(name))
        sft.mkdir(parents=True, exist_ok=True)
        for weights in source.glob("*.safetensors*"):
            (sft / weights.name).unlink(missing_ok=True)
            (sft / weights.name).symlink_to(weights)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.pad_token = PADDING
        for file in ("config.json", "generation_config.json"):
            config = json.loads((source / file).read_text())
            (sft / file).write_text(json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}))
        tokenizer.save_pretrained(sft)
    if not is_complete(reward):
        note(f"training {reward}")
        settings = {"model_name_or_path": sft, "output_dir": reward, "overwrite": "true", "learning_rate": 2e-5}
        settings |= {"max_steps": 40, "per_device_train_batch_size": 16, "logging_steps": 5}
        flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
        config = ROOT / "configs" / "demo" / "reward_brief.yaml"
        command = [sys.executable, "-m", "rlhf_lines.cli", "reward", "--config", config, *flags]
        call(*command, log=folder / "reward.txt", threads=os.cpu_count())
    return sft, reward


def make_task(sft_model: Path, reward_model: Path, options: argparse.Namespace):
    from common import Task

    from rlhf_lines import data
    from rlhf_lines.models import load_tokenizer

    setting, tokenizer = SETTINGS[options.model], load_tokenizer(sft_model)

    def prompts(split: str, count: int) -> list[str]:
        return list(data.load("docstrings", "prompts", split, tokenizer=tokenizer, max_samples=count)["prompt"])

    task = Task(
        sft_model=str(sft_model),
        reward_model=str(reward_model),
        prompts=[],
        checks=[],
        held_out=prompts("test", setting.held_out),
        rollouts=options.rollouts,
        minibatches=options.minibatches,
        learning_rate=options.learning_rate,
        **setting.task,
    )
    checks = make_checks(tokenizer, prompts("validation", 2000), task.max_new_tokens)
    return replace(task, prompts=prompts("train", task.rollouts * task.completions), checks=checks)


def make_checks(tokenizer, prompts: list[str], length: int) -> list[list[str]]:
    """Pairs of a prompt and a completion: half of them ended before `length` tokens, half were cut there."""
    from rlhf_lines import data

    rows = data.load("docstrings", "demonstrations", "validation", max_samples=len(prompts))
    ended, cut = [], []
    for prompt, row in zip(prompts, rows, strict=True):
        completion = row["completion"]
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


def report(task, results: dict, start: dict, limit: dict, options: argparse.Namespace, pythons: dict) -> str:
    """The tables in Markdown, what they were measured on, the limit, and whether the goals are met."""
    rows = {
        "seconds per rollout": [[statistics.median(r["seconds"][1:]) for r in results[s]] for s in pythons],
        "CPU seconds per rollout": [[statistics.median(r["cpu_seconds"][1:]) for r in results[s]] for s in pythons],
        "peak memory above imports and weights, MiB": [
            [r["peak_mib"] - r["imports_mib"] - r["weights_mib"] for r in results[s]] for s in pythons
        ],
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
    lines += ["", *_limit(rows, limit, options.threads), "", *_verdicts(rows, limit, SETTINGS[options.model])]
    lines += ["", f"The SFT model scores {start['score']:.2f} on the held-out prompts."]
    lines += [
        "",
        f"{task.rollouts} rollouts of {task.completions} completions of at most {task.max_new_tokens} tokens, ",
    ]
    lines[-1] += f"{task.epochs} epochs of {task.minibatches} updates, learning rate {task.learning_rate}, LoRA rank "
    lines[-1] += f"{task.lora_r}; seeds {', '.join(map(str, options.seeds))}; {options.threads} threads."
    lines += ["", machine()]
    lines += [f"{side}: {versions(python, PACKAGES)}" for side, python in pythons.items()]
    return "\n".join([*lines, "", f"`python {' '.join(sys.argv)}`"])


def _in_bf16(full: dict, half: dict) -> str:
    """A run in bfloat16 beside that of the same seed in float32."""
    lines = ["", "| ours, one seed | float32 | bfloat16 | float32 / bfloat16 |", "|---|---|---|---|"]
    rows = {
        "seconds per rollout": lambda r: statistics.median(r["seconds"][1:]),
        "CPU seconds per rollout": lambda r: statistics.median(r["cpu_seconds"][1:]),
        "peak memory above imports, MiB": lambda r: r["peak_mib"] - r["imports_mib"],
        "score, last 3 rollouts": lambda r: statistics.mean(r["scores"][-3:]),
    }
    for name, value in rows.items():
        a, b = value(full), value(half)
        lines.append(f"| {name} | {a:.2f} | {b:.2f} | {a / b:.2f} |")
    faster = rows["seconds per rollout"](full) / rows["seconds per rollout"](half)
    return "\n".join([*lines, "", f"- {met(faster >= BF16)}: {faster:.2f} times as fast in bfloat16 (goal: {BF16})."])


def _cell(values: list[float]) -> str:
    digits = 0 if max(values) >= 100 else 2
    return f"{statistics.mean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"


def _limit(rows: dict, limit: dict, threads: int) -> list[str]:
    """What the products of our passes take, and our seconds over that."""
    parts, seconds = limit["seconds"], sum(limit["seconds"].values())
    lines = ["| products of one rollout of ours | seconds |", "|---|---|"]
    lines += [f"| {name} | {each:.2f} |" for name, each in parts.items()]
    lines += [f"| all: the limit, at {limit['operations'] / seconds / 1e9:.0f} GFLOP/s | {seconds:.2f} |"]
    wall, cpu = (statistics.mean(rows[name][0]) for name in ("seconds per rollout", "CPU seconds per rollout"))
    lines += [f"| our seconds over the limit | {wall / seconds:.2f} |"]
    return [*lines, f"| our CPU seconds over the limit's | {cpu / seconds / threads:.2f} |"]


def _verdicts(rows: dict, limit: dict, setting: Setting) -> list[str]:
    def ratio(name: str) -> float:
        ours, theirs = rows[name]
        return statistics.mean(ours) / statistics.mean(theirs)

    # Where weights are most of the memory, ours are fewer by the critic: what comes on top is compared.
    above = "imports" if setting.limit is None else "imports and weights"
    faster, memory = 1 / ratio("seconds per rollout"), ratio(f"peak memory above {above}, MiB")
    over = statistics.mean(rows["seconds per rollout"][0]) / sum(limit["seconds"].values())
    ours, theirs = rows["score, held-out prompts"]
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    gain, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    lines = [
        f"- {met(faster >= setting.faster)}: {faster:.2f} times as fast (goal: at least {setting.faster}).",
        f"- {met(memory <= setting.memory)}: {memory:.2f} of memory above {above} (goal: at most {setting.memory}).",
        f"- {met(gain >= 0)}: held-out score {gain:+.2f}, standard error over seeds {error:.2f} (goal: not lower).",
    ]
    if setting.limit is not None:
        lines.append(f"- {met(over <= setting.limit)}: {over:.2f} times the limit (goal: at most {setting.limit}).")
    return lines


if __name__ == "__main__":
    main()
