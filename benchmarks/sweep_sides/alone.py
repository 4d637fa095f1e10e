"""The SFT model alone: as many completions as the points have, by transformers' `generate` in batches of one size."""

from __future__ import annotations

import torch
from common import SAMPLING, Meter, Task, test_prompts
from transformers import AutoModelForCausalLM

from benchmarks.side import arguments, generated
from rlhf_lines.models import load_tokenizer


def main() -> None:
    options = arguments("sweep.py", "size")
    task = Task.read(options.task)
    model = AutoModelForCausalLM.from_pretrained(task.sft_model, dtype=task.dtype).eval()
    tokenizer = load_tokenizer(task.sft_model)
    prompts = sorted(test_prompts(task.sft_model, task.num_prompts), key=len, reverse=True)
    rows = [prompt for prompt in prompts for _ in task.specs()]
    torch.manual_seed(0)
    meter = Meter()
    parts = [rows[start : start + options.size] for start in range(0, len(rows), options.size)]
    completions = [row for part in parts for row in generated(model, tokenizer, part, task, **SAMPLING)]
    meter.write(options.output, tokens=sum(map(len, completions)), completions=len(completions))


if __name__ == "__main__":
    main()
