"""What importing the package does."""

from __future__ import annotations

import logging

import rlhf_lines  # noqa: F401


def test_of_bitsandbytes_only_the_kernel_that_it_can_do_without_is_not_told(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("the library is %s", "broken")
    assert caplog.messages == ["the library is broken"]
