"""How many completions a batch holds."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines import batches
from rlhf_lines.sweep.engines.batches import in_halves, most_rows, rows_in_memory, rows_that_fit
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.merges import Merges
from tests import tiny


SIZES = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        # Keys and values of 3 layers, 2 heads of 6 numbers; the others have as many heads of keys as of queries.
        (tiny.llama(**SIZES), 2 * 3 * 2 * 6),
        (tiny.llama(**SIZES, num_key_value_heads=1, head_dim=16), 2 * 3 * 1 * 16),
        (tiny.gpt2(vocab_size=50, n_embd=24, n_layer=3, n_head=4), 2 * 3 * 4 * 6),
    ],
    ids=["grouped", "head_dim", "gpt2"],
)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_rows_follow_the_formula(monkeypatch, model, numbers, dtype, size):
    row = numbers * 10 * size + 32 * 50
    for free, rows in ((100 * row, 60), (row, 1), (0, 1), (2**60, 768)):
        monkeypatch.setattr(batches, "free_bytes", lambda device, free=free: free)
        assert rows_in_memory(model.to(dtype), 10) == rows
    monkeypatch.setattr(batches, "free_bytes", lambda device: 100 * row)
    assert rows_in_memory(model, 20) < 60


def test_a_gpu_takes_more_rows():
    config = tiny.llama_config(**SIZES, num_key_value_heads=4)
    assert rows_that_fit(config, 10, 2, free=2**60, device="cuda") == 1024


@pytest.mark.parametrize(
    ("layers", "width", "rows"),
    [
        (6, 128, 768),  # the demo's: 847
        (6, 160, 542),  # 1e9 / (12 * 6 * 25600) = 542.5
        (12, 256, 105),  # 105.9
        (30, 576, 64),  # SmolLM2-135M: 8.4
        (32, 4096, 64),  # Llama-2-7B
    ],
)
def test_a_cpu_takes_fewer_rows_of_a_larger_model(layers, width, rows):
    config = tiny.llama_config(**{**SIZES, "num_hidden_layers": layers, "hidden_size": width})
    assert rows_that_fit(config, 10, 4, free=2**60, device="cpu") == most_rows(config, "cpu") == rows
    assert rows_that_fit(config, 10, 4, free=2**60, device="cuda") == 1024
    assert rows_that_fit(config, 10, 4, free=0, device="cpu") == 1


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 3000}))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert batches.free_bytes(torch.device("cpu")) == 3000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert batches.free_bytes(torch.device("cpu")) == 1000


def test_a_batch_size_that_is_given_is_taken(sft, policies, monkeypatch):
    def engine(**settings) -> LocalEngine:
        config = SweepConfig(
            sft_model=str(sft), policies=["a", "b"], rewards=["m:a", "m:b"], output_dir="never", **settings
        )
        adapters = [load_adapter(policy) for policy in policies[:2]]
        return LocalEngine(config, Merges(sft, adapters), adapters)

    row = 2 * 4 * 2 * 4 * (20 + 12) * 4 + 32 * 37  # 4 layers, 2 heads of 4 numbers; a vocabulary of 37
    monkeypatch.setattr(batches, "free_bytes", lambda device: 50 * row)
    assert engine(batch_size=3000).rows(20) == 3000
    assert engine(max_new_tokens=12).rows(20) == 30


# --- halves ---


@pytest.mark.parametrize(("count", "most"), [(1, 1), (7, 1), (7, 2), (8, 3), (20, 7), (20, 100)])
def test_halves_give_what_the_whole_gives(count, most):
    sizes = []

    def work(items):
        sizes.append(len(items))
        if len(items) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [item * item for item in items]

    items = list(range(count))
    assert in_halves(work, items) == [item * item for item in items]
    assert sizes[0] == count and sum(size for size in sizes if size <= most) == count


def test_one_item_that_does_not_fit_is_an_error():
    def work(items):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        in_halves(work, [1, 2, 3])


def test_other_errors_are_not_halved():
    calls = []

    def work(items):
        calls.append(items)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        in_halves(work, [1, 2])
    assert len(calls) == 1


def test_a_container_bounds_what_is_free(tmp_path):
    assert batches._free_in_container(tmp_path) == math.inf  # no cgroup v2
    for name, text in {"max": "1000", "current": "700", "stat": "anon 400\nfile 250\ninactive_file 200"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert batches._free_in_container(tmp_path) == 1000 - 700 + 250  # pages of files can be dropped
    (tmp_path / "memory.max").write_text("max\n")
    assert batches._free_in_container(tmp_path) == math.inf
