"""What vLLM loads in each of its processes, wherever this package is installed: nothing, unless we started it."""

from __future__ import annotations

import os

from rlhf_lines.serve.settings import VARIABLE


NAME = "rlhf_lines"  # of the plugin, as its entry point has it, and of the resolver


def register() -> None:
    """Let vLLM ask for mixes by their names, in a server that `rlhf-lines serve` has started."""
    if VARIABLE in os.environ:
        from vllm.lora.resolver import LoRAResolverRegistry

        from rlhf_lines.serve.resolver import MixResolver

        LoRAResolverRegistry.register_resolver(NAME, MixResolver())
