"""The README that travels with a policy."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.merge.output.card import escape_markdown
from rlhf_lines.task_rewards import RewardEntry


def policy_card(sft_model: str, entries: Sequence[RewardEntry], weights: Sequence[float], versions: dict) -> str:
    """A model card in Markdown: what the policy was trained from and for, and how to load it."""
    names = [escape_markdown(entry.name or called(entry.model)) for entry in entries]
    rows = "\n".join(
        f"| {name} | {weight:g} | {'yes' if entry.normalize else 'no'} |"
        for name, entry, weight in zip(names, entries, weights, strict=True)
    )
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""---
library_name: peft
tags:
- ppo
- lora
- rlhf-lines
---

# PPO policy

A LoRA adapter trained with PPO from one supervised (SFT) model, to please

| reward | weight | normalised |
|---|---|---|
{rows}

- SFT model: {escape_markdown(called(sft_model))}
- made with {made_with}

## Load

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(SFT_MODEL)
model = PeftModel.from_pretrained(model, THIS_FOLDER)
```

`config.yaml` holds the settings, `rlhf_lines.json` what was measured. `value_head.safetensors` is the value function of
training; the policy does not need it.
"""
