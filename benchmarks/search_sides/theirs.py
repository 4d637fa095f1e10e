"""Candidates as merged checkpoints, as mergekit-evolve has them: written, loaded by transformers, `generate`.

The merge is ours, which is faster than mergekit's (merge_vs_mergekit.py) and takes adapters as they are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import Meter, Task, Tokens, arguments
from transformers import AutoModelForCausalLM

from rlhf_lines.merge import merge_policies
from rlhf_lines.models import end_token_ids, load_tokenizer
from rlhf_lines.reading import left_pad


@torch.no_grad()
def generated(model, tokenizer, prompts: list[Tokens], max_new_tokens: int) -> list[Tokens]:
    """Greedy completions of all prompts in one batch, each with its end token."""
    ends = end_token_ids(model, tokenizer)
    ids, mask = left_pad(prompts, tokenizer.pad_token_id, model.device)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(
        input_ids=ids, attention_mask=mask, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, **settings
    )
    completions = output[:, ids.shape[1] :].tolist()
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in completions]
    return [tuple(row[:stop]) for row, stop in zip(completions, stops, strict=True)]


def main() -> None:
    options = arguments()
    task, meter = Task.read(options.task), Meter()
    prompts, tokenizer = task.prompts(), load_tokenizer(task.sft_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found, model = [], None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "merged"
        for spec in task.candidates():
            merge = {"save": "dense", "output_dir": folder, "overwrite": True, "device": device}
            meter.timed(
                "merge", lambda spec=spec, merge=merge: merge_policies(task.sft_model, task.policies, spec, **merge)
            )

            def load():
                return AutoModelForCausalLM.from_pretrained(folder, dtype=task.dtype).eval().to(device)

            model = None  # before the next one
            model = meter.timed("load", load)
            found.append(meter.timed("generate", lambda m=model: generated(m, tokenizer, prompts, task.max_new_tokens)))
    meter.write(options.output, found, batch_size=len(prompts))


if __name__ == "__main__":
    main()
