"""Which dtypes a machine computes in, and what is said of the others."""

from __future__ import annotations

import logging

import pytest
import torch

from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.native_dtypes import computes_in, tell_if_slow


@pytest.fixture
def machine(monkeypatch):
    """Return a setter of what the CPU says that it can, where there is no GPU."""
    tell_if_slow.cache_clear()

    def be(**capabilities):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    yield be
    tell_if_slow.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "computed"),
    [
        ({"avx2": True, "avx512_bf16": False}, {"float32"}),
        ({"avx512_bf16": True}, {"float32", "bfloat16"}),
        ({"amx_bf16": True, "amx_fp16": True}, {"float32", "bfloat16", "float16"}),
        ({"neon": True, "bf16": True, "fp16_arith": True}, {"float32", "bfloat16", "float16"}),
        ({"neon": True, "fp16_arith": True}, {"float32", "float16"}),
    ],
)
def test_a_processor_computes_in_what_it_has_instructions_for(machine, capabilities, computed):
    machine(**capabilities)
    assert {dtype for dtype in LOAD_DTYPES if computes_in(dtype, cpu=False)} == computed


def test_a_slow_dtype_is_told_once_with_what_to_set(machine, caplog):
    machine(avx2=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tell_if_slow("bfloat16")
            tell_if_slow("bfloat16", given="bf16: true", instead="bf16: false")
            tell_if_slow("float32")
    first, second = caplog.messages
    assert first.startswith("dtype: bfloat16 is slow here") and first.endswith("(dtype: float32)")
    assert second.startswith("bf16: true is slow here") and second.endswith("(bf16: false)")


def test_a_gpu_beside_a_slow_processor_says_nothing_of_it(machine, monkeypatch, caplog):
    machine(avx2=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    tell_if_slow("bfloat16")
    assert not caplog.messages
    tell_if_slow("bfloat16", cpu=True)
    assert len(caplog.messages) == 1
