"""Policies in float64 that PEFT or transformers assembled, for numbers that share no code with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.config import DataConfig
from rlhf_lines.models import load_tokenizer
from rlhf_lines.statistics.samples import Sample, read_prompts, sample_completions, samples_sha256


def made(verb: str, flags: list[str], output_dir: str = "./out") -> dict:
    """Run the command and return its record."""
    assert cli.main([verb, *flags]) == 0
    return read_record(output_dir)


def policy_model(sft: str, policy: str, dtype: torch.dtype = torch.float64):
    """Return the policy as PEFT merges it, or as transformers loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not Path(policy, "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(policy, dtype=dtype).eval()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft, dtype=dtype), policy)
    return model.to(dtype).merge_and_unload().eval().requires_grad_(True)


def samples_of(record: dict, sft: str, policy: str, *, max_new_tokens: int = 12, seed: int = 0) -> list[Sample]:
    """Return the texts that the stage took, sampled again, one prompt at a time, from the policy of PEFT."""
    tokenizer = load_tokenizer(sft)
    prompts = read_prompts(DataConfig("./prompts"), "train", 256, tokenizer)
    samples = sample_completions(
        policy_model(sft, policy, torch.float32),
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=1,
        seed=seed,
        description="oracle",
    )
    assert samples_sha256(samples) == record["samples_sha256"]
    return samples
