"""Before anything imports torch."""

from __future__ import annotations

import os


# As the command line does: threads that wait sleep, so that a busy machine does not slow the tests down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
