"""The model card that travels with a merged policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from rlhf_lines.merge.inputs.model_names import CAUSAL_LM, SEEING
from rlhf_lines.merge.inputs.provenance import called, hub_id
from rlhf_lines.merge.output.summary import SERVED, loaded_by, loss_text, max_lora_rank, truncation_text, vllm_hint
from rlhf_lines.merge.rules import RULES, profile_of
from rlhf_lines.merge.rules.profile import options_text
from rlhf_lines.merge.schedules import SCHEDULES


def model_card(record: Mapping[str, Any]) -> str:
    """A README in Markdown from a merge's record: what was merged, how, how to load it, and how to repeat it.

    Names that users chose are escaped. The header has what the Hub reads; models are named there only by a Hub id, the
    one kind of name that it takes, and no license is claimed.
    """
    spec, adapter = record["spec"], record["save"] == "adapter"
    rows = [("SFT model", "", record["sft_model"], record["sft_sha256"])]
    rows += [
        (f"policy {number}", f"{weight:zg}", policy["path"], policy["sha256"])
        for number, (policy, weight) in enumerate(zip(record["policies"], spec["weights"], strict=True), start=1)
    ]
    rows += [
        (f"statistics of policy {number}", "", folder["path"], folder["sha256"])
        for number, folder in enumerate(record["statistics"], start=1)
    ]
    inputs = "\n".join(
        f"| {what} | {escape_markdown(called(name))} | {weight} | `{sha}` |" for what, weight, name, sha in rows
    )
    options = f", options {escape_markdown(options_text(spec['options']))}" if spec["options"] else ""
    measured = " (measured on the residuals)" if spec["alpha"] == "auto" else ""
    facts = [
        f"rule: {spec['rule']}{options}",
        *_profile_lines(spec),
        f"alpha {record['alpha']:zg}{measured}, beta {spec['beta']:zg}, schedule {spec['schedule']}",
        *([escape_markdown(truncation_text(record["truncation"]))] if "truncation" in record else []),
        loss_text(record["dtype"], record["lost_residual"]),
        "made with " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    ]
    listed = "\n".join(f"- {fact}" for fact in facts)
    warned = "".join(f"- warning: {escape_markdown(warning)}\n" for warning in record["warnings"])
    return f"""---
{_header(record)}---

# Merged policy

{"A LoRA adapter" if adapter else "A full model"} made by adding residuals of aligned policies to one
supervised (SFT) model:

    {_formula(spec)},   tau_k = theta_k - theta_SFT
    LiNeS: layer l of L is multiplied by {_factor(spec["schedule"])}; parameters outside the layers by alpha

{listed}
{warned}
| input | name | weight | SHA-256 of its tensors |
|---|---|---|---|
{inputs}

## Load

{_load(record)}
## Repeat

`merge_spec.json` holds the same facts for programs; this writes the same weights again, and refuses inputs whose
weights have changed. Where its paths do not lead to the inputs, name them with `--sft_model` and `--policies`:

```bash
rlhf-lines merge --config merge_spec.json --output_dir repeated
```

Sources: rule {spec["rule"]}: {RULES[spec["rule"]].source}; LiNeS: arXiv 2410.17146.
"""


def escape_markdown(text: str) -> str:
    """`text` on one line, with every character that Markdown or HTML could read as markup made harmless."""
    one_line = " ".join(text.split())
    html = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html)


def _profile_lines(spec: Mapping[str, Any]) -> list[str]:
    """The factors of every policy, of a rule that has them by layer."""
    profile = profile_of(spec["rule"], spec["options"])
    rows = [] if profile is None else zip(profile.factors, profile.outside, strict=True)
    return [
        f"factors of policy {number}, by layer: {', '.join(f'{factor:z.4g}' for factor in row)}; outside the layers: "
        f"{outside:z.4g}"
        for number, (row, outside) in enumerate(rows, start=1)
    ]


def _header(record: Mapping[str, Any]) -> str:
    names = [record["sft_model"], *(policy["path"] for policy in record["policies"])]
    on_hub = [name for name in map(hub_id, names) if name is not None]
    content = {
        **({"base_model": on_hub, "base_model_relation": "merge"} if on_hub else {}),
        "library_name": "peft" if record["save"] == "adapter" else "transformers",
        **_PIPELINES.get(loaded_by(record), {}),
        "tags": ["merge", "rlhf-lines"],
    }
    return yaml.safe_dump(content, sort_keys=False)


def _load(record: Mapping[str, Any]) -> str:
    """How to load the model or the adapter, and how to serve it where vLLM does."""
    loader, is_adapter = loaded_by(record), record["save"] == "adapter"
    adapters_of = _LOAD_TEXT_ADAPTER if loader == CAUSAL_LM else _LOAD_ADAPTER
    text = (adapters_of if is_adapter else _LOAD_DENSE).format(loader=loader)
    if loader not in SERVED:
        return text
    if not is_adapter:
        return f"{text}\n```bash\nvllm serve path/to/this/folder\n```\n"
    serve = vllm_hint("path/to/the/sft/model", "path/to/this/folder", record["rank"])
    return f"{text}\n{serve}\n" if max_lora_rank(record["rank"]) is None else f"{text}\n```bash\n{serve}\n```\n"


def _formula(spec: Mapping[str, Any]) -> str:
    """Where LiNeS is; records of before there was a choice do not say it."""
    if spec.get("lines", "after") == "before":
        return "theta = theta_SFT + rule(LiNeS(tau_1), LiNeS(tau_2), ...)"
    return "theta = theta_SFT + LiNeS(tau_M)"


def _factor(schedule: str) -> str:
    return "alpha + beta " + SCHEDULES[schedule].formula.replace("d", "(l-1)/(L-1)")


_PIPELINES = {CAUSAL_LM: {"pipeline_tag": "text-generation"}, SEEING: {"pipeline_tag": "image-text-to-text"}}

_LOAD_TEXT_ADAPTER = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""

_LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import {loader}

model = {loader}.from_pretrained("path/to/the/sft/model")
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```
"""

_LOAD_DENSE = """```python
from transformers import {loader}

model = {loader}.from_pretrained("path/to/this/folder")
```
"""
