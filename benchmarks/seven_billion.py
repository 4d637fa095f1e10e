"""LLaMA-2-7B's shape on a CPU, for real: PPO, a sweep, merges, each beside what `rlhf-lines plan` said before.

    python benchmarks/seven_billion.py                       about half an hour on 2 cores; 24 GB memory, 45 GB disk
    python benchmarks/seven_billion.py --layers 2            the same at two layers, to see that all of it runs
    python benchmarks/seven_billion.py --only ppo sweep      some of the stages

Weights are random, in bfloat16, made on the spot. Every stage is the command that a user gives, in its own process.
Two peaks of its memory are measured: of all that is resident, and of that without pages of files. Weights in the dtype
of their files are such pages: transformers maps them, and they are read again if the kernel drops them. The plan
counts weights, so it is compared with the first. It counts what is beside Python and its libraries (but for merges,
where they are a part of the plan), so what is resident after the stage's imports is added to it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from peer import machine, met, note
from random_llama import SIZES, write_adapter, write_base

from rlhf_lines.artifact import versions


RANK = 64
TARGETS = ["q_proj", "v_proj"]
LAYERS = SIZES["num_hidden_layers"]
COMPLETIONS, TOKENS = 4, 8  # of a rollout; of a completion at most
PROMPTS = {
    "train": [
        "Return the number of items in the list.",
        "Open the file and read all of its lines.",
        "Compute the sum of the values, ignoring those that are missing.",
        "Raise an error if the name is not known.",
        "Wait until the thread ends, or the timeout has passed.",
        "Sort the keys of the mapping in reverse.",
        "Write the table to a file in the given format.",
        "Check that both arguments have one shape.",
    ],
    "test": ["Delete the folder with all that is in it.", "Return the square root of a number that is not negative."],
}
MEASURE = Path(__file__).parent / "merge_sides" / "measure.py"
LIMIT = 20e9  # bytes that a stage may take
WITHIN = 0.1  # of the plan


@dataclass
class Stage:
    """A command of a user.

    Attributes:
        name: in the table.
        verb: of `rlhf-lines`.
        flags: of the command and of its plan.
        made: the folder that it makes.
    """

    name: str
    verb: str
    flags: dict[str, object]
    made: Path

    @property
    def words(self) -> list[str]:
        """The flags as words of a command line."""
        words = []
        for key, value in self.flags.items():
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/seven_billion"), help="for models and results")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of the model; LLaMA-2-7B has {LAYERS}")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="names of stages, as the table has them")
    options = parser.parse_args()
    stages = _stages(options.folder)
    if unknown := set(options.only or []) - {stage.name for stage in stages}:
        parser.error(f"--only {' '.join(sorted(unknown))}: expected some of {', '.join(s.name for s in stages)}")
    _write_inputs(options.folder, options.layers)
    print(f"{machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}\n")
    print("| stage | seconds | peak, GB | without pages of files, GB | of it libraries, GB | planned, GB | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = [_run(stage, options.folder) for stage in stages if not options.only or stage.name in options.only]
    kept = [row for row in rows if row is not None]
    print()
    worst = max(kept, key=lambda row: row["peak"])
    print(f"- {met(worst['peak'] <= LIMIT)}: at most {worst['peak'] / 1e9:.1f} GB (goal: {LIMIT / 1e9:.0f}).")
    off = max(kept, key=lambda row: abs(row["ratio"] - 1))
    print(f"- {met(abs(off['ratio'] - 1) <= WITHIN)}: plans within {abs(off['ratio'] - 1):.0%} (goal: {WITHIN:.0%}).")


def _stages(folder: Path) -> list[Stage]:
    sft, first, second = (folder / name for name in ("sft", "ppo", "policy_2"))
    training = {
        "model_name_or_path": sft,
        "dataset_name": folder / "data",
        "rewards": "rule:length",
        "dtype": "bfloat16",
        "bf16": "true",
        "use_cpu": "true",
        "use_peft": "true",
        "lora_r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "lora_target_modules": TARGETS,
        "per_device_train_batch_size": COMPLETIONS,
        "num_iterations": 1,
        "max_steps": 2,
        "max_completion_length": TOKENS,
        "learning_rate": 1e-5,
        "gradient_checkpointing": "false",
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": "false",
    }
    sweep = {
        "sft_model": sft,
        "policies": [first, second],
        "rewards": ["rule:length", "rule:lexical"],
        "dataset_name": folder / "data",
        "num_weights": 3,
        "alphas": [1.0],
        "betas": [1.0],
        "controls": "false",
        "max_new_tokens": TOKENS,
        "dtype": "bfloat16",
    }
    merge = {"sft_model": sft, "policies": [first, second], "weights": [0.5, 0.5], "alpha": 1.0, "beta": 1.0}
    verbs = [
        ("ppo", "ppo", training),
        ("sweep", "sweep", sweep),
        ("merge_adapter", "merge", {**merge, "save": "adapter"}),
        ("merge_dense", "merge", {**merge, "save": "dense", "dtype": "bfloat16"}),
        ("ppo_4bit", "ppo", {**training, "load_in_4bit": "true"}),
    ]
    return [Stage(name, verb, {**flags, "output_dir": folder / name}, folder / name) for name, verb, flags in verbs]


def _write_inputs(folder: Path, layers: int) -> None:
    """The base, the prompts, and the second policy; the first is what PPO trains."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, prompts in PROMPTS.items():
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{split}.jsonl").write_text(rows)
    made = folder / "sft" / "config.json"
    if not made.is_file() or json.loads(made.read_text())["num_hidden_layers"] != layers:
        note(f"making a random Llama of {layers} layers in {folder}")
        shutil.rmtree(folder / "sft", ignore_errors=True)
        start = time.monotonic()
        sft = write_base(folder / "sft", {**SIZES, "num_hidden_layers": layers})
        write_adapter(folder / "policy_2", sft, RANK, TARGETS, seed=2)
        note(f"made in {time.monotonic() - start:.0f} s")


def _run(stage: Stage, folder: Path) -> dict | None:
    """Print the row of a stage, and return its peak and the ratio of plan to measured."""
    shutil.rmtree(stage.made, ignore_errors=True)
    planned, whole = _planned(stage)
    libraries = _libraries(stage)
    command = [sys.executable, "-m", "rlhf_lines", stage.verb, *stage.words]
    log, result = folder / f"{stage.name}.log", folder / f"{stage.name}.json"
    with log.open("w") as stream:
        done = subprocess.run([sys.executable, MEASURE, result, *command], stdout=stream, stderr=stream, check=False)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        print(f"| {stage.name} | stopped: {' '.join(last)} | | | | | |", flush=True)
        return None
    measured = json.loads(result.read_text())
    peak, held = measured["peak_bytes"], measured["peak_bytes_without_files"]
    total = planned if whole else planned + libraries
    sizes = (f"{size / 1e9:.2f}" for size in (peak, held, libraries, total))
    print(f"| {stage.name} | {measured['seconds']:.0f} | {' | '.join(sizes)} | {total / peak:.2f} |", flush=True)
    return {"peak": peak, "ratio": total / peak}


def _planned(stage: Stage) -> tuple[int, bool]:
    """The peak of the plan in bytes, and whether libraries are a part of it."""
    code = (
        "import sys; from rlhf_lines.plan import Options, plan; from rlhf_lines.plan import memory\n"
        "top = memory.peak(plan(sys.argv[2:], Options(stage=sys.argv[1], device='cpu')).phases);"
        "print(top.total, int(memory.LIBRARIES_PART in top.parts))"
    )
    total, whole = _last_line([sys.executable, "-c", code, stage.verb, *stage.words]).split()
    return int(total), whole == "1"


def _libraries(stage: Stage) -> int:
    """What is resident once a stage has imported what it uses, in bytes."""
    model = "peft.tuners.lora, transformers.models.llama.modeling_llama"
    imports = {
        "ppo": f"import {model}, rlhf_lines.train.ppo, torch._dynamo; from trl import GRPOTrainer",
        "sweep": f"import {model}, rlhf_lines.sweep",
        "merge": "import rlhf_lines.merge.stage",
    }[stage.verb]
    if stage.flags.get("load_in_4bit"):
        imports += "\nimport bitsandbytes"
    code = f"{imports}\nprint(*(line for line in open('/proc/self/status') if 'VmRSS' in line))"
    return int(_last_line([sys.executable, "-c", code]).split()[1]) * 1024


def _last_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
