"""Train one LoRA policy per reward, merge them with LiNeS, and trace the Pareto front of all rewards."""

from __future__ import annotations

import logging


__version__ = "0.1.0"

# PEFT imports bitsandbytes wherever it is installed, which then tells on some CPUs that it lacks an optional kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)
