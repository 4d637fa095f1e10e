"""Every rule on the policies of the demo, as a checkpoint and as an adapter: seconds, distances, and what a rank loses.

    rlhf-lines demo
    python benchmarks/merge_rules.py [--demo outputs/demo] [--rank 8]

Statistics come from `rlhf-lines fisher` and `rlhf-lines gram` on the demo's prompts. Every rule then merges, with its
default options and equal weights, into a float32 checkpoint and into an adapter (of `--rank` where the rule is not
linear). Seconds are those of the process, imports included. The distance is ||tau - tau_linear|| / ||tau_linear||
between the checkpoints. Every adapter is loaded by PEFT; where nothing was truncated, its logits must be those of its
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlhf_lines.merge.rules import RULES


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="outputs/demo", help="folder of a finished demo")
    parser.add_argument("--rank", type=int, default=8, help="of adapters of rules that are not linear")
    parser.add_argument("--num_prompts", type=int, default=256, help="for the statistics")
    options = parser.parse_args()
    demo = Path(options.demo)
    sft, policies = demo / "sft", [demo / "policies" / name for name in ("brief", "specific")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        statistics = {rule: [] for rule, entry in RULES.items() if entry.statistics}
        for rule, folders in statistics.items():
            verb = RULES[rule].statistics.verb
            for policy in policies:
                folders.append(folder / f"{verb} {policy.name}")
                flags = ["--sft_model", sft, "--policy", policy, "--dataset_name", "docstrings"]
                flags += ["--num_prompts", options.num_prompts, "--max_new_tokens", 32, "--output_dir", folders[-1]]
                print(f"{verb} of {policy.name}: {_run(verb, *flags)[0]:.1f} s")
        base = load_file(sft / "model.safetensors")
        print("\n| rule | checkpoint, s | adapter, s | distance to linear | rank | lost by truncation | logits |")
        print("|---|---|---|---|---|---|---|")
        linear = None
        for rule, entry in RULES.items():
            if entry.on_factors:
                continue
            flags = ["--sft_model", sft, "--policies", *policies, "--rule", rule]
            flags += ["--statistics", *statistics[rule]] if entry.statistics else []
            dense, adapter = folder / f"{rule} dense", folder / f"{rule} adapter"
            of_dense, _ = _run("merge", *flags, "--save", "dense", "--dtype", "float32", "--output_dir", dense)
            rank = [] if entry.is_linear else ["--rank", options.rank]
            of_adapter, _ = _run("merge", *flags, "--save", "adapter", *rank, "--output_dir", adapter)
            written = load_file(dense / "model.safetensors")
            tau = torch.cat([(written[name].double() - base[name].double()).flatten() for name in base])
            linear = tau if linear is None else linear
            distance = ((tau - linear).norm() / linear.norm()).item()
            record = json.loads((adapter / "merge_spec.json").read_text())
            lost = record.get("truncation", {}).get("lost", 0.0)
            apart = _logits_apart(sft, adapter, dense)
            if not lost and not apart < 1e-4:
                sys.exit(f"{rule}: the adapter's logits differ from the checkpoint's by {apart}")
            print(
                f"| {rule} | {of_dense:.1f} | {of_adapter:.1f} | {distance:.3f} | {record['rank']} | {lost:.1%} "
                f"| {apart:.1e} apart |",
                flush=True,
            )


def _run(verb: str, *flags: object) -> tuple[float, str]:
    command = [sys.executable, "-m", "rlhf_lines.cli", verb, *map(str, flags)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    return time.perf_counter() - start, done.stdout


def _logits_apart(sft: Path, adapter: Path, dense: Path) -> float:
    """The largest difference of logits on one text, adapter against checkpoint."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), adapter).eval()
        whole = AutoModelForCausalLM.from_pretrained(dense).eval()
        return (policy(input_ids=ids).logits - whole(input_ids=ids).logits).abs().max().item()


if __name__ == "__main__":
    main()
