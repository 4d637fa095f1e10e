"""The files of configs/accelerate, read as ``accelerate launch`` reads them."""

from __future__ import annotations

import pytest

from tests.launched import CONFIGS, launched


ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
}
EXPECTED = {
    "multi_gpu.yaml": {},
    "fsdp.yaml": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_SYNC_MODULE_STATES": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
    "zero2.yaml": {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"},
    "zero3.yaml": {
        **ZERO,
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    },
}
SWITCHES = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}


def test_every_file_is_tested():
    assert {path.name for path in CONFIGS.glob("*")} == set(EXPECTED)


@pytest.mark.parametrize("file", EXPECTED)
def test_accelerate_takes_what_a_file_says(file):
    environment, unknown = launched(file)
    # What accelerate does not know inside fsdp_config and deepspeed_config it drops without a word.
    assert unknown == set()
    expected = {"ACCELERATE_MIXED_PRECISION": "bf16", **EXPECTED[file]}
    assert {name: environment[name] for name in expected} == expected
    assert environment.keys() & SWITCHES == expected.keys() & SWITCHES
