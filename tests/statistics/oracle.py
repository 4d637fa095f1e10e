"""Policies in float64 that PEFT or transformers assembled, for numbers that share no code with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.sampling import prompt_key, sample_tokens
from rlhf_lines.statistics.samples import Sample, samples_sha256


CHARACTERS = "abcdefghijklmnopqrstuvwxyz "  # in the vocabulary, after padding, end and unknown
PAD, EOS = 0, 1
PROMPTS = ["ab", "the cat", "a dog", "it is", "zebra crossing", "no", "some more words"]


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


def samples_of(record: dict, sft: str, policy: str) -> list[Sample]:
    """Return the texts that the stage took, sampled again, one prompt at a time, from the policy of PEFT."""
    samples = []
    for text in sorted(PROMPTS, key=len):
        prompt = tuple(3 + CHARACTERS.index(character) for character in text)
        tokens, lengths, _ = sample_tokens(
            policy_model(sft, policy, torch.float32),
            [prompt],
            [(prompt_key(prompt), 0)],
            max_new_tokens=12,
            temperature=1.0,
            eos_token_ids=[EOS],
            pad_token_id=PAD,
            seed=0,
        )
        samples.append(Sample(prompt, tuple(tokens[0, : lengths[0]].tolist())))
    assert samples_sha256(samples) == record["samples_sha256"]
    return samples
