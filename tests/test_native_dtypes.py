"""Which dtypes a machine computes in, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForSequenceClassification

from rlhf_lines.models import LOAD_DTYPES
from rlhf_lines.native_dtypes import computes_in, tell_if_slow
from rlhf_lines.statistics.policy import load_policy
from rlhf_lines.sweep.engines.local import load_base
from rlhf_lines.task_rewards import load_reward_models, reward_entries
from rlhf_lines.train.progress import tell_chosen
from tests import tiny


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
    for _ in range(2):
        tell_if_slow("bfloat16")
        tell_if_slow("bfloat16", what="reward kind", instead="dtype: float32 of kind")
        tell_if_slow("float32")
    first, second = caplog.messages
    assert first.startswith("the model computes in bfloat16, for which") and first.endswith("(dtype: float32)")
    assert second.startswith("reward kind computes in bfloat16") and second.endswith("(dtype: float32 of kind)")


@pytest.mark.parametrize(
    ("dtype", "bf16", "instead"),
    [
        (torch.bfloat16, True, "(bf16: false, dtype: float32)"),
        (torch.float32, True, "(bf16: false)"),
        (torch.bfloat16, False, "(dtype: float32)"),  # also where the config says auto: it is the model that counts
        (torch.float32, False, None),
    ],
)
def test_training_says_what_to_set(machine, caplog, dtype, bf16, instead):
    machine(avx2=True)
    training = SimpleNamespace(chosen={}, without_effect=[], bf16=bf16, use_cpu=True)
    tell_chosen(training, SimpleNamespace(dtype="auto"), SimpleNamespace(dtype=dtype))
    assert [message[message.index(" (") + 1 :] for message in caplog.messages] == ([instead] if instead else [])


def test_a_sweep_and_statistics_say_it_of_the_sft_model(machine, caplog, tmp_path):
    machine(avx2=True)
    tiny.llama().save_pretrained(tmp_path)
    load_base(SimpleNamespace(dtype="bfloat16", quantized=False), tmp_path)
    assert len(caplog.messages) == 1
    tell_if_slow.cache_clear()
    load_policy(tmp_path, tmp_path, dtype="bfloat16")
    assert len(caplog.messages) == 2


def test_a_reward_says_it_only_where_it_has_weights(machine, caplog, tmp_path):
    machine(avx2=True)
    load_reward_models(reward_entries(["rule:length"]))
    assert not caplog.messages
    tokenizer = tiny.word_tokenizer()
    model = LlamaForSequenceClassification(tiny.llama_config(tokenizer, num_labels=1))
    folder = tiny.save(model, tokenizer, tmp_path / "kind")
    load_reward_models(reward_entries([{"model": str(folder), "dtype": "bfloat16"}]))
    assert [message.endswith("(dtype: float32 of kind)") for message in caplog.messages if "bfloat16" in message] == [
        True
    ]


def test_a_gpu_beside_a_slow_processor_says_nothing_of_it(machine, monkeypatch, caplog):
    machine(avx2=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    tell_if_slow("bfloat16")
    assert not caplog.messages
    tell_if_slow("bfloat16", cpu=True)
    assert len(caplog.messages) == 1
