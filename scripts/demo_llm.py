"""The pipeline on a real language model, as `make demo-llm` runs it after scripts/fetch_models.py.

SmolLM2-135M-Instruct says in one sentence what Python functions do, by the configs in configs/smollm2/docstrings. What
is complete is skipped, and a stage that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import sys
import time

from rlhf_lines.cli import main as command
from rlhf_lines.shipped import shipped_configs


STAGES = (
    ("sft", "sft"),
    ("ppo", "ppo_faithful"),
    ("ppo", "ppo_readable"),
    ("ppo", "ppo_morlhf"),
    ("sweep", "sweep"),
)
SWEEP = "outputs/smollm2/docstrings/sweep"


def main() -> int:
    """Run all stages, pick for equal preference and write the page; returns the first exit status that is not 0."""
    start = time.monotonic()
    configs = shipped_configs() / "smollm2" / "docstrings"
    for number, (verb, name) in enumerate(STAGES, 1):
        before = time.monotonic()
        print(f"[{number}/{len(STAGES)}] {name}", flush=True)
        if status := command([verb, "--config", str(configs / f"{name}.yaml"), "--resume", "true"]):
            return status
        print(f"[{number}/{len(STAGES)}] {name}: {time.monotonic() - before:.0f} s", flush=True)
    print(f"all stages: {time.monotonic() - start:.0f} s; the best point for equal preference:", flush=True)
    pick = ["pick", SWEEP, "--preference", "0.5", "0.5", "--scale", "range"]
    return command(pick) or command(["report", SWEEP])


if __name__ == "__main__":
    sys.exit(main())
