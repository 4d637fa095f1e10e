"""Before anything imports torch: how many threads a test has, in its own process and in those that it starts."""

from __future__ import annotations

import os

import pytest


# pytest runs two processes side by side. Two torch threads beside another process are up to 20 times slower than
# one, and add up in another order.
os.environ["OMP_NUM_THREADS"] = "1"
# As the command line does: threads that wait sleep, so that a busy machine does not slow the tests down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def set_threads():
    """The function that sets the number of torch's threads for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
