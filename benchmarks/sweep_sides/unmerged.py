"""An adapter per point, as PEFT serves it: both policies loaded and combined, not merged, then `generate`.

Two points are enough to know the speed of one. Each has one batch, of as many prompts as a batch of the sweep has rows.
"""

from __future__ import annotations

import itertools

import torch
from common import SAMPLING, Meter, Task, test_prompts
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.side import arguments, generated
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.lines import lines_scales
from rlhf_lines.models import load_tokenizer


POINTS = [MergeSpec("linear", (0.5, 0.5)), MergeSpec("linear", (0.5, 0.5), 1.0, 1.0)]


def main() -> None:
    options = arguments("sweep.py", "size")
    task = Task.read(options.task)
    base = AutoModelForCausalLM.from_pretrained(task.sft_model, dtype=task.dtype).eval()
    tokenizer = load_tokenizer(task.sft_model)
    prompts = test_prompts(task.sft_model, options.size)
    rows = sorted(itertools.islice(itertools.cycle(prompts), options.size), key=len, reverse=True)
    torch.manual_seed(0)
    meter, tokens = Meter(), 0
    for spec in POINTS:
        model = combined(base, task.policies, spec)
        tokens += sum(map(len, generated(model, tokenizer, rows, task, **SAMPLING)))
        model.unload()
    meter.write(options.output, tokens=tokens, completions=len(POINTS) * options.size)


def combined(base, policies: list[str], spec: MergeSpec) -> PeftModel:
    """The base with the policy of a spec as an adapter."""
    model = PeftModel.from_pretrained(base, policies[0], adapter_name="0")
    model.load_adapter(policies[1], adapter_name="1")
    model.add_weighted_adapter(["0", "1"], list(spec.weights), "merged", combination_type="cat")
    model.set_adapter("merged")
    scales = lines_scales(base.config.num_hidden_layers, spec.alpha, spec.beta, spec.schedule)
    for name, parameter in model.named_parameters():
        if "lora_B.merged" in name:
            parameter.data *= scales[int(name.split(".layers.")[1].split(".")[0])].item()
    return model.eval()


if __name__ == "__main__":
    main()
