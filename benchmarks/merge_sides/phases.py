"""Where the time of a dense merge goes: CPU seconds of each part, one thread, and of the parts beside the merge.

python benchmarks/merge_sides/phases.py MODELS_DIR       a folder that merge_vs_mergekit.py filled: .../1b
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.dense import DenseMerge
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from rlhf_lines.merge.inputs.policies import DensePolicy
from rlhf_lines.sha256 import contents_sha256


SPECS = {
    "linear with LiNeS": MergeSpec("linear", (0.3, 0.7), 0.5, 1.0),
    "TIES, per tensor": MergeSpec("ties", (0.5, 0.5), options={"granularity": "tensor", "zero_sign": "positive"}),
    "TIES over the whole model": MergeSpec("ties", (0.5, 0.5)),
}


def main() -> None:
    """Print the table."""
    folders = [Path(sys.argv[1]) / name for name in ("sft", "policy_1", "policy_2")]
    show_help = [sys.executable, "-m", "rlhf_lines.cli", "merge", "--help"]
    started = _wall(lambda: subprocess.run(show_help, stdout=subprocess.DEVNULL, check=True))
    imported = _wall(lambda: subprocess.run([sys.executable, "-c", "import rlhf_lines.merge.stage"], check=True))
    print(f"start of the command until it knows its flags: {started:.1f} s; import of what merges: {imported:.1f} s")
    hashed = _cpu(lambda: contents_sha256(folder / "model.safetensors" for folder in folders))
    print(f"SHA-256 of the inputs: {hashed:.1f} s of one core\n")
    print("| merge | read | measure | read and merge | read, merge, add, cast, compare and write |")
    print("|---|---|---|---|---|")
    for title, spec in SPECS.items():
        print(f"| {title} | " + " | ".join(f"{seconds:.1f}" for seconds in _phases(folders, spec)) + " |")


def _phases(folders: list[Path], spec: MergeSpec) -> list[float]:
    checkpoints = [Checkpoint(folder) for folder in folders]
    sft, *policies = checkpoints
    merge = DenseMerge(sft, [DensePolicy(policy, sft) for policy in policies], spec, workers=1)
    read = _cpu(lambda: _go_over(merge.residuals.map(lambda chunk: None)))
    measure = _cpu(lambda: merge.merged)
    scaled = merge.scaled
    compute = _cpu(lambda: _go_over(scaled.residuals.map(lambda chunk: scaled.compute(chunk).numel(), scaled.unit)))
    with tempfile.TemporaryDirectory(dir=folders[0].parent) as folder:
        write = _cpu(lambda: merge.write(Path(folder)))
    for checkpoint in checkpoints:
        checkpoint.__exit__()
    return [read, measure, compute, write]


def _go_over(results: object) -> None:
    for _ in results:
        pass


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _wall(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
