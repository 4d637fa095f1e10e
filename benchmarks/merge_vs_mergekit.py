"""`rlhf-lines merge` beside mergekit on dense checkpoints: time and memory of the same merge.

    python benchmarks/merge_vs_mergekit.py                 a Llama of 1.1 billion parameters; 14 GB of disk
    python benchmarks/merge_vs_mergekit.py --size tiny     the whole script in a minute; its times mean nothing

It makes a second environment with mergekit 0.1.5 (otherwise the same versions) and three random checkpoints, each of
them once. Then, for every merge, it asserts that both sides write the same model, runs them in turn, each in a process
of its own that finds its inputs in the page cache, and prints a table in Markdown. Ours runs twice: with no hash of the
inputs kept, and with those of the run before. The parts are in `merge_sides/`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peer import ENVIRONMENTS, ROOT, machine, met, note, peer_python, versions


SIDES = Path(__file__).parent / "merge_sides"
MERGEKIT = "0.1.5"
PACKAGES = {
    "ours": ("torch", "transformers", "safetensors", "numpy"),
    "theirs": ("mergekit", "torch", "transformers", "safetensors", "numpy"),
}
NAMES = {
    "ours": "rlhf_lines, first merge of these files",
    "again": "rlhf_lines, hashes known",
    "theirs": f"mergekit {MERGEKIT}",
}
GOAL_GB = 1.5  # peak memory of our side
GB = 1e9

sys.path[:0] = [str(ROOT), str(SIDES)]


@dataclass(frozen=True)
class Case:
    """One merge of two policies, as each side is asked for it.

    `config` is mergekit's configuration of the SFT model and the policies; None takes the `mergekit.yaml` that our
    merge writes. Without `peer`, mergekit cannot express the merge.
    """

    title: str
    flags: dict[str, str]
    weights: tuple[float, float]
    peer: bool = True
    config: Callable[[Path, Sequence[Path]], str] | None = None
    density: float | None = None
    goal: float | None = None  # how many times as fast as mergekit


def ties_config(sft: Path, policies: Sequence[Path]) -> str:
    """TIES as mergekit does it, per tensor; its weights of 1 are our weights of 1/K."""
    models = [{"model": str(policy), "parameters": {"weight": 1.0, "density": 0.2}} for policy in policies]
    config = {
        "merge_method": "ties",
        "base_model": str(sft),
        "models": models,
        "parameters": {"normalize": True, "lambda": 1.0},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    return json.dumps(config, indent=2)  # JSON is YAML


CASES = {
    "linear": Case("linear with LiNeS", {"rule": "linear", "alpha": "0.5", "beta": "1"}, weights=(0.3, 0.7), goal=4.0),
    "ties": Case(
        "TIES, per tensor",
        {"rule": "ties", "rule_options": '{"density": 0.2, "granularity": "tensor", "zero_sign": "positive"}'},
        weights=(0.5, 0.5),
        config=ties_config,
        density=0.2,
        goal=4.0,
    ),
    "ties_global": Case(
        "TIES over the whole model",
        {"rule": "ties", "rule_options": '{"density": 0.2}'},
        weights=(0.5, 0.5),
        peer=False,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "1b"), default="1b")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run; runs are one after another")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENTS / f"mergekit-{MERGEKIT}")
    parser.add_argument("--models_dir", type=Path, default=ROOT / "outputs" / "benchmarks" / "merge_inputs")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "benchmarks" / "merge_vs_mergekit")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    pythons = {"ours": Path(sys.executable), "theirs": peer_python(options.environment, "mergekit", MERGEKIT, needs=())}
    models = checkpoints(options.models_dir, options.size)
    bench = Bench(pythons, models, options.output_dir, options.threads)
    agreements, results = {}, {}
    for key in options.cases:
        agreements[key] = bench.agree(CASES[key])
        results[key] = bench.time(CASES[key], options.repeats)
    text = report(agreements, results, bench.floors, options, pythons)
    (options.output_dir / "report.md").write_text(text + "\n")
    print(text)


def checkpoints(folder: Path, size: str) -> list[Path]:
    """The SFT model and the two policies, made if not there."""
    from inputs import CHECKPOINTS, write_inputs

    from rlhf_lines.artifact import new_folder

    made = folder.resolve() / size
    if not made.is_dir():
        note(f"writing {made}")
        with new_folder(made) as partial:
            write_inputs(partial, size)
    return [made / name for name in CHECKPOINTS]


class Bench:
    """Run merges of one set of models; `floors` are the seconds of each `cat` of the inputs and of the output."""

    def __init__(self, pythons: dict[str, Path], models: Sequence[Path], output_dir: Path, threads: int) -> None:
        self._pythons, self._models, self._output_dir, self._threads = pythons, models, output_dir, threads
        self.floors: dict[str, list[float]] = {"read": [], "write": []}
        self._read_inputs()  # into the page cache

    def agree(self, case: Case) -> str:
        """Run both sides once, the warm-up, and return how far their results agree.

        Raises:
            AssertionError: the sides write different models.
        """
        from agreement import assert_agreement

        ours = self._run("ours", case)
        if not case.peer:
            self._remove(ours)
            return "ours alone; mergekit has no such rule"
        theirs_config = case.config(self._models[0], self._models[1:]) if case.config else None
        self._config.write_text(theirs_config or (ours / "mergekit.yaml").read_text())
        theirs = self._run("theirs", case)
        found = str(assert_agreement(ours, theirs, self._models[0], self._models[1:], density=case.density))
        note(f"agreement, {case.title}: {found}")
        self._remove(ours, theirs)
        return found

    def time(self, case: Case, repeats: int) -> dict[str, list[dict]]:
        """What each side took, one entry per repeat; the sides take turns in being first."""
        sides = ["ours", "again", *["theirs"] * case.peer]
        measured: dict[str, list[dict]] = {side: [] for side in sides}
        for turn in range(repeats):
            for side in list(measured)[:: 1 if turn % 2 == 0 else -1]:
                self.floors["read"].append(self._read_inputs())
                folder = self._run(side, case)
                measured[side].append(json.loads(self._result.read_text()))
                self._remove(folder)
                note(f"{case.title}, {side}: {measured[side][-1]['seconds']:.1f} s")
            self.floors["write"].append(self._write_output())
        return measured

    @property
    def _config(self) -> Path:
        return self._output_dir / "mergekit.yaml"

    @property
    def _cache(self) -> Path:
        """Where our side keeps hashes of the inputs."""
        return self._output_dir / "cache"

    @property
    def _result(self) -> Path:
        return self._output_dir / "result.json"

    def _run(self, side: str, case: Case) -> Path:
        """Run one side under the meter and return the folder that it made.

        Raises:
            RuntimeError: it failed; the message ends with its last lines.
        """
        output, log = self._output_dir / side, self._output_dir / f"{side}.txt"
        self._remove(output, *[self._cache] * (side == "ours"))
        if side != "theirs":
            command = [sys.executable, "-m", "rlhf_lines.cli", "merge", "--save", "dense", "--output_dir", output]
            command += ["--sft_model", self._models[0], "--policies", *self._models[1:], "--weights", *case.weights]
            command += [word for key, value in case.flags.items() for word in (f"--{key}", value)]
        else:
            command = [self._pythons[side].with_name("mergekit-yaml"), self._config, output, "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"PYTHONPATH": "" if side == "theirs" else str(ROOT), "RLHF_LINES_CACHE": str(self._cache)}
        os.sync()  # else this run would wait for the pages that the one before it left to be written
        command = [sys.executable, SIDES / "measure.py", self._result, *command]
        with log.open("w") as file:
            done = subprocess.run([str(word) for word in command], env=environment, stdout=file, stderr=file)
        if done.returncode:
            raise RuntimeError(f"{side} failed, see {log}:\n" + "\n".join(log.read_text().splitlines()[-12:]))
        return output

    def _read_inputs(self) -> float:
        start = time.perf_counter()
        with Path(os.devnull).open("wb") as nowhere:
            files = [model / "model.safetensors" for model in self._models]
            subprocess.run(["cat", *files], stdout=nowhere, check=True)
        return time.perf_counter() - start

    def _write_output(self) -> float:
        """The seconds to write as many bytes as a merge writes into a new file, left to the kernel to flush."""
        path = self._output_dir / "floor.bin"
        os.sync()
        start = time.perf_counter()
        with path.open("wb") as file:
            subprocess.run(["cat", self._models[0] / "model.safetensors"], stdout=file, check=True)
        seconds = time.perf_counter() - start
        path.unlink()
        return seconds

    def _remove(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def report(agreements: dict, results: dict, floors: dict, options: argparse.Namespace, pythons: dict) -> str:
    """The table in Markdown, how far the sides agree, whether the goals are met, and what it was measured on."""
    lines = [
        "| merge | by | seconds: median (range) | CPU seconds | peak memory, GB | without pages of files, GB |",
        "|---|---|---|---|---|---|",
    ]
    for key, sides in results.items():
        for side, runs in sides.items():
            cells = [_range([run["seconds"] for run in runs]), f"{_median(runs, 'cpu_seconds'):.1f}"]
            cells += [f"{max(run[field] for run in runs) / GB:.2f}" for field in _MEMORY]
            lines.append(f"| {CASES[key].title} | {NAMES[side]} | " + " | ".join(cells) + " |")
    lines.append(f"| floor: the inputs to `/dev/null` | `cat` | {_range(floors['read'])} | | | |")
    lines.append(f"| floor: as much as the output to a new file | `cat` | {_range(floors['write'])} | | | |")
    lines += ["", *(f"- agreement, {CASES[key].title}: {found}." for key, found in agreements.items())]
    if options.size == "1b":
        lines += [line for key in results for line in _verdicts(CASES[key], results[key])]
    lines += ["", f"Size {options.size}, {options.repeats} runs of each side, {options.threads} threads."]
    lines += ["", machine(), *(f"{side}: {versions(pythons[side], PACKAGES[side])}" for side in pythons)]
    return "\n".join([*lines, "", f"`python {' '.join(sys.argv)}`"])


_MEMORY = ("peak_bytes", "peak_bytes_without_files")


def _verdicts(case: Case, sides: dict[str, list[dict]]) -> list[str]:
    peak = max(run["peak_bytes"] for run in sides["ours"]) / GB
    lines = [f"- {met(peak <= GOAL_GB)}: {case.title} in {peak:.2f} GB (goal: at most {GOAL_GB})."]
    if case.goal:
        faster = _median(sides["theirs"], "seconds") / _median(sides["ours"], "seconds")
        text = f"{case.title} {faster:.2f} times as fast as mergekit (goal: at least {case.goal:g})."
        lines.insert(0, f"- {met(faster >= case.goal)}: {text}")
    return lines


def _median(runs: Sequence[dict], field: str) -> float:
    return statistics.median(run[field] for run in runs)


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
