"""The README that travels with what a stage has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.merge.output.card import escape_markdown
from rlhf_lines.task_rewards import RewardEntry


class OwnCard:
    """Mixin of a TRL trainer: its card speaks of the trainer, and of a base that it does not find; stages write theirs.

    What a stage writes stands in the finished folder, not beside each checkpoint.
    """

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write nothing."""


def sft_card(base: str, versions: Mapping[str, str], *, lora: bool) -> str:
    """A model card of an SFT model in Markdown: what it was trained from, and how to load it.

    Args:
        base: the name of the base model.
        versions: of what it was made with.
        lora: whether an adapter was trained, and merged into the base.
    """
    how = ", by LoRA: `adapter/` is merged into the base here" if lora else ""
    return _card(
        *("transformers", "sft", "SFT model"),
        f"A language model after supervised fine-tuning{how}.",
        base,
        versions,
        """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(THIS_FOLDER)""",
    )


def adapter_card(base: str, versions: Mapping[str, str]) -> str:
    """A model card in Markdown of the adapter that an SFT model was merged from."""
    return _card(
        *("peft", "sft", "Adapter of an SFT model"),
        "A LoRA adapter after supervised fine-tuning. The model in the folder above is its base with it merged.",
        base,
        versions,
        """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
model = PeftModel.from_pretrained(model, THIS_FOLDER)""",
    )


def reward_card(base: str, versions: Mapping[str, str], *, lora: bool, accuracy: float, pairs: int) -> str:
    """A model card of a reward model in Markdown: what it was trained from, how good it is, and how to load it.

    Args:
        base: the name of the base model.
        versions: of what it was made with.
        lora: whether the folder holds an adapter.
        accuracy: on held-out pairs.
        pairs: how many these are.
    """
    return _card(
        *("peft" if lora else "transformers", "reward", "Reward model"),
        f"A classifier of one score{', as a LoRA adapter' if lora else ''}, trained on pairs of a better and a worse "
        f"completion. Of {pairs:,} held-out pairs it prefers the better one in {100 * accuracy:.1f} %.\n\n"
        "`reward_model.json` says what text it is shown.",
        base,
        versions,
        """import reward_models

judge = reward_models.load(THIS_FOLDER)
scores = judge.score([PROMPT], [COMPLETION])""",
    )


def _card(library: str, stage: str, title: str, about: str, base: str, versions: Mapping[str, str], load: str) -> str:
    return f"""---
library_name: {library}
tags:
- {stage}
- rlhf-lines
---

# {title}

{about}

- base model: {escape_markdown(called(base))}
- {_made_with(versions)}

## Load

```python
{load}
```

`config.yaml` holds the settings, `rlhf_lines.json` what was measured.
"""


def _made_with(versions: Mapping[str, str]) -> str:
    return "made with " + ", ".join(f"{name} {version}" for name, version in versions.items())


def policy_card(
    sft_model: str, entries: Sequence[RewardEntry], weights: Sequence[float], versions: Mapping[str, str]
) -> str:
    """A model card in Markdown: what the policy was trained from and for, and how to load it."""
    names = [escape_markdown(entry.name or called(entry.model)) for entry in entries]
    rows = "\n".join(
        f"| {name} | {weight:g} | {'yes' if entry.normalize else 'no'} |"
        for name, entry, weight in zip(names, entries, weights, strict=True)
    )
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
- {_made_with(versions)}

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
