"""A sweep of SmolLM2 beside its SFT model alone and beside an adapter per point, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from peer import call, machine, met, note, versions


SIDES = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft")
GOAL, GOAL_BARE, FASTER, MEMORY = 0.7, 0.85, 3.0, 1.3


@dataclass(frozen=True)
class Found:
    """The results of one dtype: those of each side by its name, a list of runs each."""

    agreement: dict
    runs: dict[str, list[dict]]

    def rate(self, side: str, seconds: str = "cpu_seconds") -> float:
        """Tokens per second of the processor, or of the clock (`seconds`), the median of its runs.

        With one thread on an idle machine they are the same; what else runs touches the first less.
        """
        return statistics.median(run["tokens"] / run[seconds] for run in self.runs[side])

    def peak(self, side: str) -> float:
        """Most memory, in MiB."""
        return max(run["peak_mib"] for run in self.runs[side])


def beside_peers(options: argparse.Namespace) -> None:
    """Assert agreement, run all sides in turn, and print a table and the goals of every dtype."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; {versions(sys.executable, PACKAGES)}; {options.threads} threads")
    print(f"`python {' '.join(sys.argv)}`", flush=True)
    for dtype in options.dtypes:
        print(f"\n{dtype}:\n")
        print("\n".join(_lines(_measure(options, dtype), options.sizes, dtype)), flush=True)


def _measure(options: argparse.Namespace, dtype: str) -> Found:
    folder = options.output_dir
    task = folder / f"{dtype}.json"
    policies = options.policies or [options.sft_model.parent / "policies" / name for name in ("faithful", "readable")]
    fields = {
        "sft_model": str(options.sft_model),
        "policies": [str(policy) for policy in policies],
        "encoder": str(options.encoder),
        "num_weights": options.num_weights,
        "num_prompts": options.num_prompts,
        "max_new_tokens": options.max_new_tokens,
        "dtype": dtype,
        "batch_size": options.batch_size,
    }
    task.write_text(json.dumps(fields))

    def run(side: str, *flags: object) -> dict:
        output = folder / "result.json"
        note(f"{dtype}: {side} {' '.join(map(str, flags))}")
        arguments = ["--task", task, "--output", output, *flags]
        call(sys.executable, SIDES / f"{side}.py", *arguments, log=folder / "log.txt", threads=options.threads)
        return json.loads(output.read_text())

    agreement = run("agreement")
    runs: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        runs.setdefault("sweep", []).append(run("ours", "--bare", 0))
        runs.setdefault("bare", []).append(run("ours", "--bare", 1))
        own = runs["sweep"][0]["batch_size"]
        for size in sorted({*options.sizes, own}):
            runs.setdefault(f"alone {size}", []).append(run("alone", "--size", size))
        runs.setdefault("unmerged", []).append(run("unmerged", "--size", own))
    return Found(agreement, runs)


def _lines(found: Found, sizes: list[int], dtype: str) -> list[str]:
    own = found.runs["sweep"][0]["batch_size"]
    names = {
        "sweep": f"sweep, batches of {own}, KL, scores and run store included",
        "bare": f"sweep, batches of {own}, completions alone",
        **{f"alone {size}": f"SFT model alone, batches of {size}" for size in sorted({*sizes, own})},
        "unmerged": f"PEFT adapter per point, not merged, batches of {own}",
    }
    lines = ["| side | completions | tokens | tokens/s of the clock | of the processor | peak memory, MiB |"]
    lines.append("|---|---|---|---|---|---|")
    for side, name in names.items():
        run, rates = found.runs[side][0], (found.rate(side, kind) for kind in ("seconds", "cpu_seconds"))
        cells = [name, f"{run['completions']:,}", f"{run['tokens']:,}", *(f"{rate:.0f}" for rate in rates)]
        lines.append(f"| {' | '.join(cells)} | {found.peak(side):.0f} |")
    best = max(found.rate(f"alone {size}") for size in sorted({*sizes, own}))
    whole, bare, faster = (found.rate("sweep") / best, found.rate("bare") / best, found.rate("sweep"))
    faster /= found.rate("unmerged")
    memory = found.peak("sweep") / found.peak(f"alone {own}")
    agreed = found.agreement
    return [
        *lines,
        "",
        f"- agreement: {agreed['prompts'] - agreed['parted']} of {agreed['prompts']} greedy completions are those of "
        f"`generate`, the others part where two tokens are as likely; logits of a mixed point are {agreed['off']:.1e} "
        f"(root mean square) from the merged model in float32, those of the merged model in {dtype} "
        f"{agreed['off_merged']:.1e}.",
        f"- {met(whole >= GOAL)}: {whole:.2f} of the SFT model's tokens/s at its best batch (goal: {GOAL}).",
        f"- {met(bare >= GOAL_BARE)}: {bare:.2f} without KL, scores and store (goal: {GOAL_BARE}).",
        f"- {met(faster >= FASTER)}: {faster:.1f} times an adapter per point (goal: {FASTER:.0f}).",
        f"- {met(memory <= MEMORY)}: {memory:.2f} of the memory of the SFT model alone in the same batches "
        f"(goal: at most {MEMORY}).",
    ]
