"""Runs a ppo stage that kills itself: python killed.py METHOD COUNT FLAG...

SIGKILL comes at the end of the COUNT-th call of PPOTrainer.METHOD: nothing can be caught, flushed or cleaned up.
"""

from __future__ import annotations

import os
import signal
import sys

from rlhf_lines.cli import main
from rlhf_lines.train.ppo_trainer import PPOTrainer


method, count, *flags = sys.argv[1:]
original, calls = getattr(PPOTrainer, method), []


def killing(self, *args, **kwargs):
    result = original(self, *args, **kwargs)
    calls.append(method)
    if len(calls) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(PPOTrainer, method, killing)
sys.exit(main(["ppo", *flags]))
