"""In which dtypes this machine computes, and a word for models that are loaded in another.

A processor without instructions for 16 bits multiplies by way of float32: matrix products of bfloat16 took 8 times as
long as those of float32 on an AMD EPYC with AVX2 alone.
"""

from __future__ import annotations

import functools
import logging

from rlhf_lines.distributed import leads, on_cpu


INSTRUCTIONS = {  # of processors, as torch names them, for x86 and for ARM
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
logger = logging.getLogger(__name__)


def computes_in(dtype: str, *, cpu: bool) -> bool:
    """Whether this machine has instructions for products in a dtype.

    Args:
        dtype: as torch names it.
        cpu: whether it computes on the processor, although there may be something faster.
    """
    import torch

    if not cpu and torch.cuda.is_available():
        return dtype != "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if not cpu and not on_cpu():  # an accelerator of another kind
        return True
    found = torch.cpu.get_capabilities()
    return dtype not in INSTRUCTIONS or any(found.get(name) for name in INSTRUCTIONS[dtype])


@functools.cache
def tell_if_slow(dtype: str, *, what: str = "the model", instead: str = "dtype: float32", cpu: bool = False) -> None:
    """Say once, in the process that speaks, that a model computes in a dtype that this machine is slow in.

    Args:
        dtype: as torch names it.
        what: the model.
        instead: what to set.
        cpu: as in `computes_in`.
    """
    if leads() and not computes_in(dtype, cpu=cpu):
        logger.warning(
            "%s computes in %s, for which this machine has no instructions: in float32 it is several times faster, and "
            "takes more memory (%s)",
            what,
            dtype,
            instead,
        )
