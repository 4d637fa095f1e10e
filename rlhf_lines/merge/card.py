"""The texts that travel with a merged policy: its model card, and the same merge as a mergekit recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from rlhf_lines.merge.low_rank import linear_weights
from rlhf_lines.merge.precision import LostResidual
from rlhf_lines.merge.residuals import Adapter
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.merge.truncate import Truncation


def model_card(
    spec: MergeSpec,
    sft_model: str,
    policies: Sequence[str],
    *,
    save: str,
    dtype: str,
    lost: LostResidual,
    truncation: Truncation | None = None,
) -> str:
    """A README in Markdown: what was merged, how, and how to load it. Names that users chose are escaped."""
    rows = "\n".join(
        f"| {escape_markdown(policy)} | {weight:g} |" for policy, weight in zip(policies, spec.weights, strict=True)
    )
    options = f", options {escape_markdown(json.dumps(spec.options, sort_keys=True))}" if spec.options else ""
    library, load = ("peft", _LOAD_ADAPTER) if save == "adapter" else ("transformers", _LOAD_DENSE)
    unchanged = (
        "" if lost.unchanged is None else f"; {lost.unchanged:.1%} of the changed parameters kept their SFT value"
    )
    cut = "" if truncation is None else f"- {escape_markdown(truncation_text(truncation))}\n"
    return f"""---
library_name: {library}
tags:
- merge
- rlhf-lines
---

# Merged policy

{"A LoRA adapter" if save == "adapter" else "A full model"} made by adding residuals of aligned policies to one
supervised (SFT) model:

    theta = theta_SFT + LiNeS(tau_M),   tau_k = theta_k - theta_SFT
    LiNeS: block l of L is multiplied by alpha + beta (l-1)/(L-1); parameters outside the blocks by alpha

- SFT model: {escape_markdown(sft_model)}
- rule: {spec.rule}{options}
- alpha {spec.alpha:g}, beta {spec.beta:g}, schedule {spec.schedule}
{cut}- written in {dtype}; the cast changed the merged residual by {lost.relative_l2:.2%} (relative L2){unchanged}

| policy | weight |
|---|---|
{rows}

## Load

{load}
`merge_spec.json` holds the same facts for programs, with the hashes of the policies.

Sources: rewarded soups (arXiv 2306.04488), LiNeS (arXiv 2410.17146).
"""


def truncation_text(truncation: Truncation) -> str:
    """What truncation to a rank lost, as one sentence."""
    return (
        f"truncated to rank {truncation.rank}, which lost {truncation.lost:.2%} of the merged residual (relative L2), "
        f"at most {truncation.worst_lost:.2%} in {truncation.worst_module}"
    )


def mergekit_recipe(
    spec: MergeSpec,
    sft_model: str,
    policies: Sequence[str | Adapter],
    *,
    num_layers: int,
    out_dtype: str,
) -> str | None:
    """The same merge as a mergekit configuration, or None where mergekit cannot express it.

    A gradient of two values `[w alpha, w (alpha + beta)]` is interpolated over the blocks and gives the parameters
    outside them its first value, which is LiNeS on the weighted residual. mergekit reads `+` and `@` in a path as its
    own signs.
    """
    paths = [policy.path if isinstance(policy, Adapter) else policy for policy in policies]
    if spec.rule not in ("linear", "sum") or any(sign in path for path in [sft_model, *paths] for sign in "+@"):
        return None
    last = spec.alpha + (spec.beta if num_layers > 1 else 0.0)
    lines = ["merge_method: task_arithmetic", f"base_model: {json.dumps(sft_model)}", "models:"]
    for policy, path, weight in zip(policies, paths, linear_weights(spec), strict=True):
        model = f"{sft_model}+{path}" if isinstance(policy, Adapter) else path
        lines += [
            f"  - model: {json.dumps(model)}",
            "    parameters:",
            f"      weight: [{weight * spec.alpha!r}, {weight * last!r}]",
        ]
    lines += ["parameters:", "  lambda: 1.0", "  normalize: false", "dtype: float32", f"out_dtype: {out_dtype}"]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """`text` on one line, with every character that Markdown or HTML could read as markup made harmless."""
    one_line = " ".join(text.split())
    html = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", html)


_LOAD_ADAPTER = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""

_LOAD_DENSE = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""
