"""A study of merged policies: SmolLM2-135M-Instruct, two tasks, several training seeds.

    python scripts/study.py [--tasks docstrings hh] [--seeds 0 1 2] [--jobs 2] [--output_dir outputs/study]

`make study` runs it after scripts/fetch_models.py. For every task and seed it trains an SFT model, a policy for each of
the two rewards, three policies for mixtures of both (MORLHF), and both policies once more with learning rates that
grow with depth and with half of the layers frozen; then one sweep compares all of them, a second one gives every third
of the depth a factor of its own, a third one searches for a front beside LiNeS and one factor tuned at the same cost,
and `learn` fits factors for equal preferences. The configs are those of configs/smollm2 with what a task and a seed
change, and are kept beside the runs, as is what each stage prints. Policies of one SFT model are trained --jobs at a
time, and a sweep has as many processes, one thread each; other stages have all threads. What is complete is skipped,
and a stage that was stopped goes on from its last checkpoint. At the end, sweeps of the same task are compared over
seeds.

What merged policies forget is measured on source code of the standard library and on texts of the other task. hh, as
either, needs the human pairs: --hh_path names them, as dataset_path of a config does; without it docstrings is measured
on source code alone. On a CPU, --bf16 is for those with units for it (AMX): policies are then trained in bfloat16.

`python scripts/evidence --study outputs/study` makes docs/evidence.md of what this leaves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_lines import data
from rlhf_lines.shipped import shipped_configs


COMMAND = (sys.executable, "-m", "rlhf_lines")
LAST_LINES = 15
LAYERS = 30
MIXTURES = (0.25, 0.5, 0.75)
RIVALS = {"layerwise": {"layer_learning_rates": "linear"}, "frozen": {"frozen_layers": LAYERS // 2}}
RULES = ("ties", "slerp", "factor_average", "peft_linear")
HALF_TO_WHOLE = {"alpha": 0.5, "beta": 0.5}  # of LiNeS, for rules whose scaling is not chosen
SWEEP = {
    "validation_prompts": 200,
    "test_prompts": 400,
    "num_weights": 5,
    "validation_weights": 3,
    "edge_extensions": 0,
    "alphas": [0.5, 1.0],
    "betas": [0.5, 1.0],
    "groups": [
        {"name": "ties", "rule": "ties", "options": {"density": 0.2}, "alpha": 1.0},
        {"name": "ties with LiNeS", "rule": "ties", "options": {"density": 0.2}, **HALF_TO_WHOLE},
        {"name": "slerp", "rule": "slerp", "alpha": 1.0},
        {"name": "slerp with LiNeS", "rule": "slerp", **HALF_TO_WHOLE},
        {"name": "averaged factors", "rule": "factor_average", "alpha": 1.0},
        {"name": "PEFT linear", "rule": "peft_linear", "alpha": 1.0},
    ],
    "control_texts": 120,
    "control_tokens": 128,
}
THIRDS = ("first", "middle", "last")  # of the layers
LEVELS = (0.5, 1.0)  # of the factor of a third
ONE_FACTOR = "one factor"
SEARCH = {  # LiNeS, one factor and the search each measure 24 merges on validation prompts
    "sampler": "search",
    "search_points": 24,
    "search_gain": 0.0,
    "alphas": [0.5, 1.0],
    "betas": [0.0, 0.5, 1.0, 2.0],
    "controls": False,
    "groups": [{"name": ONE_FACTOR, "rule": "linear", "alphas": [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0]}],
    "validation_prompts": 100,
    "morlhf": [],
}
LEARNERS = {
    "evolution": {"num_candidates": 46},
    "atlas": {"num_steps": 40, "step_prompts": 8, "learning_rate": 0.05, "compare_grid": False},
    "adamerging": {"num_steps": 40, "step_prompts": 8, "learning_rate": 0.05, "compare_grid": False},
}
LEARNED_AS_SWEPT = (
    "rewards",
    "dataset_name",
    "dataset_path",
    "max_prompt_length",
    "dtype",
    "max_new_tokens",
    "temperature",
)
LEARNING = {"train_prompts": 64, "validation_prompts": 200}
CODE_LINES = 20


class Task(NamedTuple):
    """One task: its two policies, the other task, and the stages before the first seed."""

    policies: tuple[str, str]
    other: str
    before: tuple[tuple[str, str], ...] = ()


TASKS = {
    "docstrings": Task(("faithful", "readable"), "hh"),
    "hh": Task(("harmless", "relevant"), "docstrings", (("reward", "reward_minilm"),)),
}


class Stage(NamedTuple):
    """A verb with its config."""

    verb: str
    name: str
    config: dict[str, Any]


def shipped(task: str, name: str) -> dict[str, Any]:
    """A config of configs/smollm2."""
    return yaml.safe_load((shipped_configs() / "smollm2" / task / f"{name}.yaml").read_text())


def stages(
    task: str,
    seed: int,
    folder: Path,
    changes: dict[str, Any],
    *,
    bf16: bool = False,
    rivals: Sequence[str] = (*RIVALS,),
    rules: Sequence[str] = RULES,
) -> Iterator[Stage]:
    """Yield the stages of one training seed in their order; their outputs lie below `folder`."""
    controlled = {key: SWEEP[key] for key in ("control_texts", "control_tokens")}
    controlled["control"] = f"{folder.parent}/control.jsonl"
    sft = {"output_dir": f"{folder}/sft", "seed": seed}
    yield Stage("sft", "sft", shipped(task, "sft") | sft | changes)
    names = TASKS[task].policies
    trained = {"model_name_or_path": sft["output_dir"], "seed": seed} | changes
    trained |= {"dtype": "bfloat16", "bf16": True} if bf16 else {}

    def ppo(config: str, name: str, **further: Any) -> Stage:
        return Stage("ppo", name, shipped(task, config) | trained | {"output_dir": f"{folder}/{name}"} | further)

    for name in names:
        yield ppo(f"ppo_{name}", name)
    rewards = shipped(task, "ppo_morlhf")["rewards"]
    for share in MIXTURES:
        mixed = [reward | {"weight": weight} for reward, weight in zip(rewards, (share, 1.0 - share), strict=True)]
        yield ppo("ppo_morlhf", f"morlhf_{share:g}_{1.0 - share:g}", rewards=mixed)
    for kind in rivals:
        for name in names:
            yield ppo(f"ppo_{name}", f"{name}_{kind}", **RIVALS[kind])
    compared = {
        "sft_model": sft["output_dir"],
        "policies": [f"{folder}/{name}" for name in names],
        "morlhf": [f"{folder}/morlhf_{share:g}_{1.0 - share:g}" for share in MIXTURES],
        "policy_sets": [
            {"name": kind, "policies": [f"{folder}/{name}_{kind}" for name in names], "alpha": 1.0} for kind in rivals
        ],
        "groups": [group for group in SWEEP["groups"] if group["rule"] in rules],
        "output_dir": f"{folder}/sweep",
    }
    yield Stage("sweep", "sweep", shipped(task, "sweep") | SWEEP | compared | controlled | changes)
    by_third = {
        "policies": compared["policies"],
        "sft_model": sft["output_dir"],
        "output_dir": f"{folder}/thirds",
        "morlhf": [],
        "sampler": "list",
        "weights": ["0.5 0.5"],
        "scalings": ["1.0 0.0"],  # LiNeS as the soup: the groups are what is compared
        "controls": False,
        "groups": [third_group(levels) for levels in itertools.product(LEVELS, repeat=len(THIRDS))],
        "test_prompts": 200,
    }
    unused = {"num_weights", "alphas", "betas", "edge_extensions", "validation_prompts", "validation_weights"}
    swept = {key: value for key, value in shipped(task, "sweep").items() if key not in unused}
    yield Stage("sweep", "thirds", swept | by_third | controlled | changes)
    searched = {"sft_model": sft["output_dir"], "policies": compared["policies"], "output_dir": f"{folder}/search"}
    searched |= {key: SWEEP[key] for key in ("test_prompts", "num_weights", "validation_weights", "edge_extensions")}
    searched |= {"reuse": compared["output_dir"]}
    yield Stage("sweep", "search", shipped(task, "sweep") | searched | SEARCH | changes)
    shared = shipped(task, "sweep")
    shared = {key: shared[key] for key in LEARNED_AS_SWEPT if key in shared} | LEARNING
    for method, options in LEARNERS.items():
        named = {"method": method, "output_dir": f"{folder}/learn_{method}", "seed": seed}
        merged = {"sft_model": sft["output_dir"], "policies": compared["policies"]}
        yield Stage("learn", f"learn_{method}", shared | merged | named | options | changes)


def third_group(levels: Sequence[float]) -> dict[str, Any]:
    """The group of a sweep that gives each third of the depth its factor, the same for both policies."""
    rows = [[level for level in levels for _ in range(LAYERS // len(levels))]] * 2
    name = "thirds " + " ".join(f"{level:g}" for level in levels)
    return {"name": name, "rule": "layerwise", "alpha": 1.0, "options": {"factors": rows, "outside": [1.0, 1.0]}}


def control_texts(task: str, hh_path: str | None, count: int = SWEEP["control_texts"]) -> Iterator[dict[str, str]]:
    """Rows of text outside the task, with their source: half of them code, half of the other task where it can be read.

    Code is the middle of source files of the standard library, evenly among all; the other task is read as
    demonstrations of its test split.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in files[:: len(files) // (count // 2)][: count // 2]:
        lines = path.read_text(encoding="utf-8").splitlines()
        middle = len(lines) // 2
        yield {"source": "code", "text": "\n".join(lines[middle : middle + CODE_LINES])}
    if (other := TASKS[task].other) == "hh":
        if hh_path is None:
            return
        shown = data.load("hh_rlhf", "demonstrations", "test", dataset_path=hh_path, max_samples=count // 2)
    else:
        shown = data.load("docstring_sentences", "demonstrations", "test", max_samples=count // 2)
    for row in shown:
        yield {"source": other, "text": row["prompt"] + row["completion"]}


def run(stage: Stage, folder: Path, *, threads: int, processes: int = 1) -> None:
    """Write the config of a stage and run it in processes of its own, whose output goes into a file.

    Raises:
        SystemExit: it failed; its last lines have been shown.
    """
    path, log = folder / "configs" / f"{stage.name}.yaml", folder / "logs" / f"{stage.name}.txt"
    for file in (path, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(stage.config, sort_keys=False))
    print(f"study: {path}: its output is in {log}", flush=True)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launched = several if processes > 1 else []
    start = time.monotonic()
    with log.open("a") as output:
        status = subprocess.run(
            [sys.executable, *launched, "-m", "rlhf_lines", stage.verb, "--config", str(path), "--resume", "true"],
            env={"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        print(*log.read_text().splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
        sys.exit(f"study: {path} ended with exit status {status}; the whole output is in {log}")
    print(f"study: {path}: {time.monotonic() - start:.0f} s", flush=True)


def run_unless(failed: threading.Event, stage: Stage, folder: Path) -> None:
    """Run a stage in one thread, unless one beside it has failed before it began."""
    if failed.is_set():
        return
    try:
        run(stage, folder, threads=1)
    except SystemExit:
        failed.set()
        raise


def run_all(todo: Iterator[Stage], folder: Path, jobs: int) -> None:
    """Run stages in their order, those of PPO several at a time. What runs beside one that fails is run to its end.

    On a CPU two processes of one thread are faster than one of two; a sweep shares its batches among them.
    """
    for verb, some in itertools.groupby(todo, key=lambda stage: stage.verb):
        if verb == "ppo" and jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                failed = threading.Event()
                running = [pool.submit(run_unless, failed, stage, folder) for stage in some]
                for one in as_completed(running):
                    one.result()
        else:
            for stage in some:
                processes = jobs if verb == "sweep" else 1
                run(stage, folder, threads=max(1, os.cpu_count() // processes), processes=processes)


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
    parser.add_argument(
        "--rivals", nargs="*", choices=RIVALS, default=[*RIVALS], help="other ways to train both policies (all)"
    )
    parser.add_argument(
        "--rules", nargs="*", choices=RULES, default=[*RULES], help="rules beside LiNeS; they are half of a sweep (all)"
    )
    parser.add_argument("--bf16", action="store_true", help="train policies in bfloat16")
    options = parser.parse_args()
    for task in options.tasks:
        control = options.output_dir / task / "control.jsonl"
        if not control.is_file():
            rows = [json.dumps(row) for row in control_texts(task, options.hh_path)]
            control.parent.mkdir(parents=True, exist_ok=True)
            control.write_text("\n".join(rows) + "\n")
        changes = {"dataset_path": options.hh_path} if task == "hh" and options.hh_path else {}
        before = (Stage(verb, name, shipped(task, name) | changes) for verb, name in TASKS[task].before)
        run_all(before, options.output_dir / task, options.jobs)
        for seed in options.seeds:
            folder = options.output_dir / task / f"seed_{seed}"
            some = {"rivals": options.rivals, "rules": options.rules}
            made = stages(task, seed, folder, changes, bf16=options.bf16, **some)
            run_all(made, folder, options.jobs)
        sweeps = [str(options.output_dir / task / f"seed_{seed}" / "sweep") for seed in options.seeds]
        if len(sweeps) > 1:
            compared = str(options.output_dir / task / "comparison")
            command = [*COMMAND, "compare", *sweeps, "--output_dir", compared, "--overwrite"]
            if status := subprocess.run(command).returncode:
                sys.exit(status)


if __name__ == "__main__":
    main()
