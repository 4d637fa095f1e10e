"""A study of merged policies: SmolLM2-135M-Instruct, two tasks, several training seeds.

    python scripts/study.py [--tasks docstrings hh] [--seeds 0 1 2] [--jobs 2] [--output_dir outputs/study]

`make study` runs it after scripts/fetch_models.py. For every task and seed it trains an SFT model, a policy for each of
the two rewards, three policies for mixtures of both (MORLHF), and both policies once more with learning rates that
grow with depth and with half of the layers frozen; then one sweep compares all of them. The configs are those of
configs/smollm2 with what a task and a seed change, and are kept beside the runs, as is what each stage prints. Policies
of one SFT model are trained --jobs at a time, one thread each; other stages have all threads. What is complete is
skipped, and a stage that was stopped goes on from its last checkpoint. At the end, sweeps of the same task are compared
over seeds.

hh needs the human pairs: --hh_path names them, as dataset_path of a config does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lines.shipped import shipped_configs


COMMAND = (sys.executable, "-c", "import sys; from rlhf_lines.cli import main; sys.exit(main())")
LAST_LINES = 15
LAYERS = 30
MIXTURES = (0.25, 0.5, 0.75)
RIVALS = {"layerwise": {"layer_learning_rates": "linear"}, "frozen": {"frozen_layers": LAYERS // 2}}
LINES = {"alphas": [0.5, 1.0], "betas": [0.5, 1.0]}
SWEEP = {
    "validation_prompts": 200,
    "test_prompts": 400,
    "num_weights": 5,
    "validation_weights": 3,
    "edge_extensions": 2,
    **LINES,
    "groups": [
        {"name": "ties", "rule": "ties", "options": {"density": 0.2}},
        {"name": "ties with LiNeS", "rule": "ties", "options": {"density": 0.2}, **LINES},
        {"name": "slerp", "rule": "slerp", "alpha": 1.0},
        {"name": "slerp with LiNeS", "rule": "slerp", **LINES},
        {"name": "averaged factors", "rule": "factor_average", "alpha": 1.0},
        {"name": "PEFT linear", "rule": "peft_linear", "alpha": 1.0},
    ],
    "control": "docstrings",
    "control_texts": 100,
    "control_tokens": 128,
}


class Task(NamedTuple):
    """One task: its folder in configs/smollm2, its two policies, and the stages before the first seed."""

    policies: tuple[str, str]
    before: tuple[tuple[str, str], ...] = ()


TASKS = {
    "docstrings": Task(("faithful", "readable")),
    "hh": Task(("harmless", "relevant"), (("reward", "reward_minilm"),)),
}


class Stage(NamedTuple):
    """A verb with its config."""

    verb: str
    name: str
    config: dict[str, Any]


def shipped(task: str, name: str) -> dict[str, Any]:
    """A config of configs/smollm2."""
    return yaml.safe_load((shipped_configs() / "smollm2" / task / f"{name}.yaml").read_text())


def stages(task: str, seed: int, folder: Path, changes: dict[str, Any]) -> Iterator[Stage]:
    """Yield the stages of one training seed in their order; their outputs lie below `folder`."""
    sft = {"output_dir": f"{folder}/sft", "seed": seed}
    yield Stage("sft", "sft", shipped(task, "sft") | sft | changes)
    names = TASKS[task].policies
    trained = {"model_name_or_path": sft["output_dir"], "seed": seed} | changes

    def ppo(config: str, name: str, **further: Any) -> Stage:
        return Stage("ppo", name, shipped(task, config) | trained | {"output_dir": f"{folder}/{name}"} | further)

    for name in names:
        yield ppo(f"ppo_{name}", name)
    rewards = shipped(task, "ppo_morlhf")["rewards"]
    for share in MIXTURES:
        mixed = [reward | {"weight": weight} for reward, weight in zip(rewards, (share, 1.0 - share), strict=True)]
        yield ppo("ppo_morlhf", f"morlhf_{share:g}_{1.0 - share:g}", rewards=mixed)
    for kind, setting in RIVALS.items():
        for name in names:
            yield ppo(f"ppo_{name}", f"{name}_{kind}", **setting)
    compared = {
        "sft_model": sft["output_dir"],
        "policies": [f"{folder}/{name}" for name in names],
        "morlhf": [f"{folder}/morlhf_{share:g}_{1.0 - share:g}" for share in MIXTURES],
        "policy_sets": [{"name": kind, "policies": [f"{folder}/{name}_{kind}" for name in names]} for kind in RIVALS],
        "output_dir": f"{folder}/sweep",
    }
    yield Stage("sweep", "sweep", shipped(task, "sweep") | SWEEP | compared | changes)


def run(stage: Stage, folder: Path, threads: int) -> None:
    """Write the config of a stage and run it in a process of its own, whose output goes into a file.

    Raises:
        SystemExit: it failed; its last lines have been shown.
    """
    path, log = folder / "configs" / f"{stage.name}.yaml", folder / "logs" / f"{stage.name}.txt"
    for file in (path, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(stage.config, sort_keys=False))
    print(f"study: {path}: its output is in {log}", flush=True)
    start = time.monotonic()
    with log.open("a") as output:
        status = subprocess.run(
            [*COMMAND, stage.verb, "--config", str(path), "--resume", "true"],
            env={"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        print(*log.read_text().splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
        sys.exit(f"study: {path} ended with exit status {status}; the whole output is in {log}")
    print(f"study: {path}: {time.monotonic() - start:.0f} s", flush=True)


def run_all(todo: Iterator[Stage], folder: Path, jobs: int) -> None:
    """Run stages in their order, those of PPO several at a time. What runs beside one that fails is run to its end."""
    for verb, some in groupby(todo, key=lambda stage: stage.verb):
        if verb == "ppo" and jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                running = [pool.submit(run, stage, folder, 1) for stage in some]
                try:
                    for one in as_completed(running):
                        one.result()
                except SystemExit:
                    pool.shutdown(cancel_futures=True)
                    raise
        else:
            for stage in some:
                run(stage, folder, os.cpu_count())


def main() -> None:
    """Run all stages of the tasks and seeds that are asked for, and compare the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="policies that are trained at once; 1 on a GPU (2)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument(
        "--hh_path", help="the human pairs: a file, a folder or a Hub id; as in the configs if left out"
    )
    options = parser.parse_args()
    for task in options.tasks:
        changes = {"dataset_path": options.hh_path} if task == "hh" and options.hh_path else {}
        before = (Stage(verb, name, shipped(task, name) | changes) for verb, name in TASKS[task].before)
        run_all(before, options.output_dir / task, options.jobs)
        for seed in options.seeds:
            folder = options.output_dir / task / f"seed_{seed}"
            run_all(stages(task, seed, folder, changes), folder, options.jobs)
        sweeps = [str(options.output_dir / task / f"seed_{seed}" / "sweep") for seed in options.seeds]
        if len(sweeps) > 1:
            compared = str(options.output_dir / task / "comparison")
            command = [*COMMAND, "compare", *sweeps, "--output_dir", compared, "--overwrite"]
            if status := subprocess.run(command).returncode:
                sys.exit(status)


if __name__ == "__main__":
    main()
