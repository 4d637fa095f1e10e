"""Runs a script of the ppo stage on CPUs as on GPUs that share out a model: torchrun sharded.py SCRIPT ARGUMENT...

accelerate looks at the settings of FSDP on GPUs only, and on a CPU passes over them without a word; FSDP2 itself runs
on both. So this tells accelerate that its processes are those of several GPUs. The device stays the CPU, and
everything after that is what happens on GPUs.

Where nothing is shared out, rollouts come from the generation of transformers, as they do where something is: two such
runs differ in nothing but the sharing.
"""

from __future__ import annotations

import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from trl import GRPOTrainer

from rlhf_lines.train.ppo_trainer import PPOTrainer


original = PartialState.__init__


def on_several_gpus(self, *args, **kwargs):
    original(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if "ACCELERATE_USE_FSDP" in os.environ:
    PartialState.__init__ = on_several_gpus
elif "ACCELERATE_USE_DEEPSPEED" not in os.environ:
    PPOTrainer._generate_single_turn = GRPOTrainer._generate_single_turn
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
