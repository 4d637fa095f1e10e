"""Candidates as merged checkpoints, as mergekit-evolve has them: written, loaded by transformers, `generate`.

The merge is ours, which is faster than mergekit's (merge_vs_mergekit.py) and takes adapters as they are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import Meter, Task
from transformers import AutoModelForCausalLM

from benchmarks.side import arguments, generated
from rlhf_lines.merge import merge_policies
from rlhf_lines.models import load_tokenizer


GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def main() -> None:
    options = arguments("search_cost.py")
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
            found.append(meter.timed("generate", lambda m=model: generated(m, tokenizer, prompts, task, **GREEDY)))
    meter.write(options.output, found, batch_size=len(prompts))


if __name__ == "__main__":
    main()
