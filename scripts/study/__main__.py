"""A study of merged policies: SmolLM2-135M-Instruct, two tasks, several training seeds; and the demo's tiny model.

    python scripts/study [--tasks docstrings hh demo] [--seeds 0 1 2] [--jobs 2] [--output_dir outputs/study]

`make study` runs it after scripts/fetch_models.py. For every task and seed it trains an SFT model, a policy for each of
the two rewards, three policies for mixtures of both (MORLHF), and both policies once more with learning rates that
grow with depth and with half of the layers frozen; then one sweep compares all of them, a second one gives every third
of the depth a factor of its own, a third one searches for a front beside LiNeS and one factor tuned at the same cost,
and `learn` fits factors for equal preferences. Task demo is the search and `learn` alone. The configs are the shipped
ones with what a task and a seed change, and are kept beside the runs, as is what each stage prints. Policies of one SFT
model are trained --jobs at a time; sweeps and `learn` have as many processes, one thread each; others have all threads.
What is complete is skipped, and a stage that was stopped goes on from its last checkpoint. At the end, sweeps of the
same task are compared over seeds.

What merged policies forget is measured on source code of the standard library and on texts of the other task. hh, as
either, needs the human pairs: --hh_path names them, as dataset_path of a config does; without it docstrings is measured
on source code alone. On a CPU, --bf16 is for those with units for it (AMX): policies are then trained and measured in
bfloat16. With --parts only what is named is measured, and no policies are trained that it does not need.

`python scripts/evidence --study outputs/study` makes docs/evidence.md of what this leaves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from control import control_texts
from processes import run_all
from stages import PARTS, RIVALS, RULES, TASKS, Choices, before, stages

from rlhf_lines.artifact import is_complete
from rlhf_lines.demo_models import write_untrained_models


COMMAND = (sys.executable, "-m", "rlhf_lines")
CONTROLLED = {"comparison", "thirds"}  # parts that read texts outside the task
FRONTS = {"comparison": "sweep", "search": "search"}  # of the parts with fronts, the folder below that of a seed
UNTRAINED = Path("outputs/demo/untrained")  # where the demo's configs read its base and reward models


def main() -> None:
    """Run all stages of the tasks and seeds that are asked for, and compare the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="all that have the parts, if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="policies that are trained at once; 1 on a GPU (2)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"))
    parser.add_argument(
        "--hh_path", help="the human pairs: a file, a folder or a Hub id; as in the configs if left out"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="what is measured (all)")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, help="other ways to train both policies (all)")
    parser.add_argument(
        "--rules", nargs="*", choices=RULES, help="rules beside LiNeS; they are half of a comparison (all)"
    )
    parser.add_argument("--bf16", action="store_true", help="train and measure policies in bfloat16")
    options = parser.parse_args()
    parts = {name: task.parts(options.parts) for name, task in TASKS.items()}
    for name in options.tasks or []:
        if not parts[name]:
            parser.error(f"task {name} has none of the parts {' '.join(options.parts)}: leave it out of --tasks")
    tasks = options.tasks or [name for name in TASKS if parts[name]]
    if not any("comparison" in parts[name] for name in tasks) and (options.rivals, options.rules) != (None, None):
        parser.error("--rivals and --rules are of the comparison, which is not measured: leave them out")
    rivals = [*RIVALS] if options.rivals is None else options.rivals
    rules = RULES if options.rules is None else options.rules
    for name in tasks:
        task, there = TASKS[name], options.output_dir / name
        if name == "demo" and not is_complete(UNTRAINED):
            write_untrained_models(UNTRAINED)
        if CONTROLLED.intersection(parts[name]) and not (control := there / "control.jsonl").is_file():
            rows = [json.dumps(row) for row in control_texts(task.other, options.hh_path)]
            control.parent.mkdir(parents=True, exist_ok=True)
            control.write_text("\n".join(rows) + "\n")
        changes = {"dataset_path": options.hh_path} if name == "hh" and options.hh_path else {}
        run_all(before(task, changes), there, options.jobs)
        for seed in options.seeds:
            choices = Choices(changes, options.bf16, options.parts, rivals, rules)
            run_all(stages(task, seed, there / f"seed_{seed}", choices), there / f"seed_{seed}", options.jobs)
        for sweep in (sweep for part, sweep in FRONTS.items() if part in parts[name] and len(options.seeds) > 1):
            sweeps = [str(there / f"seed_{seed}" / sweep) for seed in options.seeds]
            command = [*COMMAND, "compare", *sweeps, "--output_dir", str(there / f"compared_{sweep}"), "--overwrite"]
            if status := subprocess.run(command).returncode:
                sys.exit(status)


if __name__ == "__main__":
    main()
