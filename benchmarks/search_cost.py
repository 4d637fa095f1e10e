"""What a candidate of a search costs: a row of a batch on one loaded base, beside a merged checkpoint each.

    python benchmarks/search_cost.py                    SmolLM2-135M-Instruct with two random adapters of rank 16
    python benchmarks/search_cost.py --sft_model DIR --policies DIR DIR

A generation of candidates, drawn around the soup as `rlhf-lines learn` and `sampler: search` draw them, completes the
same prompts greedily on both sides, which run in turn, each in a process of its own:

- ours: one base with the adapters; a batch mixes all candidates, and every completion has its KL to the SFT model.
- theirs: as mergekit-evolve (arXiv 2403.13187) has it, for every candidate a merged checkpoint is written, loaded by
  transformers, and completes all prompts in one batch by `generate`.

Both must write the same completions; that is asserted of every run. What is loaded once is told beside, as a search has
hundreds of candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from peer import ROOT, call, machine, met, note, versions


SIDES = Path(__file__).parent / "search_sides"
PACKAGES = ("torch", "transformers", "peft")
NAMES = {"ours": "rows of one loaded base, KL included", "theirs": "merged checkpoint per candidate"}
GOAL = 10.0
TOLERATED = 0.002  # of completions may differ: two sums in another order, where two tokens are as likely as each other
RANK = 16

sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft_model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--policies", type=Path, nargs="+", help="adapters; left out, two random ones are made")
    parser.add_argument("--num_candidates", type=int, default=9, help="of a generation")
    parser.add_argument("--num_prompts", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=28)
    parser.add_argument("--dtype", default="float32", help="in bfloat16 the sides round apart, and tokens with them")
    parser.add_argument("--batch_size", type=int, help="of ours; found from memory if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side; sides are one after another")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "benchmarks" / "search_cost")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    runs = measured(options)
    text = report(runs, options)
    (options.output_dir / "report.md").write_text(text + "\n")
    print(text)


def measured(options: argparse.Namespace) -> dict[str, list[dict]]:
    """The results of both sides, run in turn; they end here if completions differ."""
    folder = options.output_dir
    task, output = folder / "task.json", folder / "result.json"
    task.write_text(json.dumps(the_task(options)))
    runs: dict[str, list[dict]] = {side: [] for side in NAMES}
    for turn in range(options.rounds):
        for side in NAMES:
            note(f"round {turn + 1}: {side}")
            flags = ["--task", task, "--output", output]
            call(sys.executable, SIDES / f"{side}.py", *flags, log=folder / "log.txt", threads=options.threads)
            runs[side].append(json.loads(output.read_text()))
        apart = differing(runs)
        count = options.num_candidates * len(runs["ours"][0]["completions"][0])
        if apart > TOLERATED * count:
            sys.exit(f"{apart} of {count} greedy completions differ between the sides")
    return runs


def the_task(options: argparse.Namespace) -> dict:
    """What both sides are given; policies are made where none are given."""
    from random_llama import write_adapter
    from transformers import AutoConfig

    policies = options.policies
    if policies is None:
        policies = [options.output_dir / "policies" / f"policy_{seed}" for seed in (1, 2)]
        for seed, policy in enumerate(policies, start=1):
            if not (policy / "adapter_model.safetensors").is_file():
                write_adapter(policy, options.sft_model, RANK, ["q_proj", "o_proj"], seed)
    names = ("num_candidates", "num_prompts", "max_new_tokens", "dtype", "batch_size")
    return {
        "sft_model": str(options.sft_model),
        "policies": list(map(str, policies)),
        "num_layers": AutoConfig.from_pretrained(options.sft_model).num_hidden_layers,
        **{name: getattr(options, name) for name in names},
    }


def differing(runs: dict[str, list[dict]]) -> int:
    """How many completions of the last runs differ between the sides, at most."""
    ours, theirs = (runs[side][-1]["completions"] for side in NAMES)
    return sum(a != b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def report(runs: dict[str, list[dict]], options: argparse.Namespace) -> str:
    """A table of seconds per candidate, and how the goal ended."""
    count, apart = options.num_candidates, differing(runs)
    tokens = sum(len(tokens) for rows in runs["ours"][0]["completions"] for tokens in rows)
    completions = sum(map(len, runs["ours"][0]["completions"]))
    lines = [
        f"{machine()}; {versions(sys.executable, PACKAGES)}; {options.threads} threads",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"{count} candidates, {completions:,} greedy completions ({apart} differ), {tokens:,} tokens",
        "",
        "| side | merge, s | load, s | generate, s | a candidate, s | of the processor, s | once, s | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, name in NAMES.items():
        parts = {part: part_of(runs[side], part) for part in ("merge", "load", "generate", "load once")}
        cells = [f"{parts[part] / count:.2f}" for part in ("merge", "load", "generate")]
        cells += [f"{per_candidate(runs[side], kind, count):.2f}" for kind in ("seconds", "cpu_seconds")]
        cells += [f"{parts['load once']:.1f}", f"{max(run['peak_mib'] for run in runs[side]):.0f}"]
        lines.append(f"| {name}, batches of {runs[side][0]['batch_size']} | {' | '.join(cells)} |")
    ratio = per_candidate(runs["theirs"], "seconds", count) / per_candidate(runs["ours"], "seconds", count)
    beside = part_of(runs["theirs"], "merge") + part_of(runs["theirs"], "load")
    share = beside / (beside + part_of(runs["theirs"], "generate"))
    return "\n".join(
        [
            *lines,
            "",
            f"- {met(ratio >= GOAL)}: a candidate costs 1/{ratio:.1f} of a checkpoint's (goal: 1/{GOAL:.0f}).",
            f"- {share:.0%} of what a checkpoint costs is not generation.",
        ]
    )


def part_of(runs: list[dict], part: str, kind: str = "seconds") -> float:
    """Seconds of a part, the median of the runs."""
    return statistics.median(run[kind].get(part, 0.0) for run in runs)


def per_candidate(runs: list[dict], kind: str, count: int) -> float:
    """Seconds of a candidate, without what is loaded once, the median of the runs."""
    totals = (sum(seconds for part, seconds in run[kind].items() if part != "load once") for run in runs)
    return statistics.median(totals) / count


if __name__ == "__main__":
    main()
