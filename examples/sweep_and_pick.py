"""Measure the merges of two adapters by two rewards, pick one, and write it.

    python examples/sweep_and_pick.py --sft_model HuggingFaceTB/SmolLM2-135M-Instruct \
        --policies dpo-relevant grpo-brief --dataset_name prompts.jsonl --preference 0.5 0.5 --output_dir outputs/pick

prompts.jsonl has lines such as {"prompt": [{"role": "user", "content": "Why is the sky blue?"}]}.
One of the rewards is a function in this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_lines.pareto import merge_arguments, pick_point, read_front
from rlhf_lines.stages import run_stage


def short(prompts: list[str], completions: list[str]) -> list[int]:
    """Minus the number of words: higher is shorter."""
    return [-len(completion.split()) for completion in completions]


def main() -> None:
    """Sweep, read the front, pick, merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft_model", required=True, help="the model that both were trained from")
    parser.add_argument("--policies", nargs=2, required=True, help="two PEFT folders, or names on the Hub")
    parser.add_argument("--dataset_name", required=True, help="a file of prompts")
    parser.add_argument("--test_prompts", default="200")
    parser.add_argument("--num_weights", default="11")
    parser.add_argument("--preference", nargs=2, type=float, default=[0.5, 0.5], help="for relevant, and for short")
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()
    sweep, merged = Path(args.output_dir) / "sweep", Path(args.output_dir) / "merged"

    # 1. Sweep: all merges of a group at all weights, on one loaded base. Flags are those of `rlhf-lines sweep`.
    models = ["--sft_model", args.sft_model, "--policies", *args.policies, "--sft_renamed", "true"]
    rewards = ["--rewards", "rule:lexical", "sweep_and_pick:short"]  # python finds this file, which it runs from here
    data = ["--dataset_name", args.dataset_name, "--test_size", "all", "--test_prompts", args.test_prompts]
    scaling = ["--num_weights", args.num_weights, "--alphas", "1", "--betas", "1"]
    run_stage("sweep", [*models, *rewards, *data, *scaling, "--max_new_tokens", "48", "--output_dir", str(sweep)])

    # 2. The front, as front.json has it: points with scores, KL and what makes them.
    front = read_front(sweep)
    for point in front["points"]:
        scores = "  ".join(f"{name} {score['mean']:8.3f}" for name, score in point["scores"].items())
        print(f"{point['group']:15} {point['label']:40} {scores}")

    # 3. Pick the best LiNeS for a preference, each reward scaled to what was seen, and merge it. (Without `group` it is
    # the best of all groups but the controls, which may be the SFT model itself.)
    point = pick_point(front, preference=args.preference, scale="range", group="lines")
    run_stage("merge", merge_arguments(front, point, merged))
    print(f"{point['label']} is in {merged}; {sweep / 'report.html'} shows what it writes")


if __name__ == "__main__":
    main()
