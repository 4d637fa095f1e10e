"""Merge two LoRA adapters of one model into one adapter, and let it answer.

    python examples/merge_two_adapters.py --sft_model HuggingFaceTB/SmolLM2-135M-Instruct \
        --policies dpo-relevant grpo-brief --weights 0.5 0.5 --output_dir merged

The adapters may come from any trainer that writes PEFT folders. The merge is exact: an adapter whose rank is the sum of
theirs. LiNeS (--beta) lets the residual grow with depth; 0 is the plain rewarded soup.
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.models import local_folder


def main() -> None:
    """Merge, load what was written, and generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft_model", required=True, help="the model that both were trained from")
    parser.add_argument("--policies", nargs=2, required=True, help="two PEFT folders, or names on the Hub")
    parser.add_argument("--weights", nargs=2, type=float, default=[0.5, 0.5])
    parser.add_argument("--beta", type=float, default=1.0, help="what the last layer's factor is more than the first's")
    parser.add_argument("--question", default="Why is the sky blue?")
    parser.add_argument("--output_dir", required=True)
    args = parser.parse_args()

    # 1. Merge: theta_SFT + LiNeS(sum_k w_k tau_k). Nothing is loaded but the adapters.
    merged = merge_policies(
        local_folder(args.sft_model),
        [local_folder(policy) for policy in args.policies],
        MergeSpec("linear", weights=tuple(args.weights), alpha=1.0, beta=args.beta),
        save="adapter",
        sft_renamed=True,  # the adapters may call the model by another name: a Hub id, a folder elsewhere
        output_dir=args.output_dir,
    )

    # 2. Load it: transformers reads the adapter's config, and the base that it names.
    model = AutoModelForCausalLM.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)

    # 3. Answer.
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": args.question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main()
