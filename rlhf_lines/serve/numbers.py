"""In which numbers a sweep held its SFT model, and what of that a server is given or its user is told."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from rlhf_lines.sweep.swept import Swept


# Of a sweep's arguments of vLLM, what a server is given, too. Others may name code to run, which nobody gives unseen.
ALIKE = ("quantization", "kv_cache_dtype", "hf_overrides")


def alike(swept: Swept) -> dict[str, Any]:
    """The arguments of vLLM that make a server hold the SFT model as the sweep's vLLM did."""
    return {name: swept.vllm[name] for name in ALIKE if name in swept.vllm}


def unlike(swept: Swept, dtype: str, given: Container[str] = ()) -> list[str]:
    """What to tell of a server that holds the SFT model in other numbers than the sweep did, a line each.

    Args:
        swept: the models of the sweep.
        dtype: of the server.
        given: names of arguments of vLLM that its user gives.
    """
    lines = []
    if swept.quantized and "quantization" not in given:
        lines.append(
            f"the sweep held the SFT model in {4 if swept.load_in_4bit else 8} bits (bitsandbytes), this server holds "
            f"it in {dtype}, and answers a little otherwise: a quantization of vLLM is given to it by name"
        )
    if others := sorted(name for name in swept.vllm if name not in ALIKE and name not in given):
        lines.append(f"the sweep gave vLLM {', '.join(others)}, too, which this server is not given unless by name")
    return lines
