"""What vLLM is told; vLLM itself is not needed for that."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.models import checkpoint_end_token_ids, end_token_ids
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.engines import vllm_arguments
from rlhf_lines.sweep.engines.vllm import VllmEngine
from rlhf_lines.sweep.engines.vllm_arguments import cpu_cache, engine_arguments, request_seed, sampling_arguments
from rlhf_lines.sweep.inputs import read_inputs


SWEEP = {"sft": "sft", "dtype": "bfloat16", "seed": 3, "rank": 10, "modules": ["q_proj"]}


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """The free bytes of a machine without a GPU."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr(vllm_arguments, "free_bytes", lambda device: 4003)
    monkeypatch.setattr(vllm_arguments, "_nodes", lambda: 1)
    return 4003


def test_the_engine_is_told_what_the_config_says():
    arguments = engine_arguments({"tensor_parallel_size": 2, "max_loras": 4}, **SWEEP)
    assert arguments == {
        "model": "sft",
        "dtype": "bfloat16",
        "seed": 3,
        "tensor_parallel_size": 2,
        "max_loras": 4,
        "max_lora_rank": 16,  # the next one that vLLM takes
        "enable_lora": True,
        "lora_target_modules": ["q_proj"],
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "kv_cache_memory_bytes": 500,
    }


def test_on_a_cpu_the_cache_takes_a_quarter_of_what_is_free(free, monkeypatch):
    assert cpu_cache({}, {}) == {"kv_cache_memory_bytes": 1000}
    assert cpu_cache({"tensor_parallel_size": "2", "data_parallel_size": 5}, {}) == {"kv_cache_memory_bytes": 100}
    for wrong in (0, -1, 2.0, "two", None):
        with pytest.raises(
            ValueError, match=r"vllm has tensor_parallel_size .*, expected a whole number of at least 1"
        ):
            cpu_cache({"tensor_parallel_size": wrong}, {})
    for given in ({"kv_cache_memory_bytes": 7}, {"gpu_memory_utilization": 0.5}):
        assert cpu_cache(given, {}) == {}
        assert engine_arguments(given, **SWEEP).items() >= given.items()
    assert cpu_cache({}, {"VLLM_CPU_KVCACHE_SPACE": "1"}) == {}
    monkeypatch.setattr(vllm_arguments, "_nodes", lambda: 2)  # a worker takes the memory of one of them
    assert cpu_cache({}, {}) == {"kv_cache_memory_bytes": 500}
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert cpu_cache({}, {}) == {}


def test_arguments_of_the_sweep_are_refused():
    with pytest.raises(ValueError, match="vllm holds dtype, model, which the sweep sets itself"):
        engine_arguments({"model": "other", "dtype": "float16"}, **SWEEP)


def test_ranks_that_vllm_does_not_take_are_refused():
    assert engine_arguments({}, **{**SWEEP, "rank": 512})["max_lora_rank"] == 512
    with pytest.raises(ValueError, match="adapter of rank 513, the sum of theirs, but vLLM takes 512 at most"):
        engine_arguments({}, **{**SWEEP, "rank": 513})


def test_greedy_requests_have_no_seed():
    settings = {"max_new_tokens": 16, "end_tokens": [1, 37], "seed": 5}
    greedy = sampling_arguments(temperature=0.0, **settings)
    assert "seed" not in greedy
    assert sampling_arguments(temperature=0.7, **settings) == {**greedy, "temperature": 0.7, "seed": 5}
    assert greedy["stop_token_ids"] == [1, 37] and greedy["ignore_eos"] and not greedy["detokenize"]


def test_what_is_drawn_among_is_said_where_it_is_given():
    settings = {"temperature": 1.0, "max_new_tokens": 16, "end_tokens": [1], "seed": 5}
    plain = sampling_arguments(**settings)
    assert not {"top_k", "top_p", "stop"} & plain.keys()
    assert sampling_arguments(**settings, top_k=7, top_p=0.5) == {**plain, "top_k": 7, "top_p": 0.5}


def test_seeds_are_placed():
    """By hand: the first 8 bytes of sha256("0 5 1"), without the sign."""
    assert request_seed(0, 5, 1) == int("5127d714a24f7c38", 16) >> 1
    places = [(seed, prompt_key((prompt,)), sample) for seed in range(3) for prompt in range(3) for sample in range(3)]
    seeds = {request_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("declared", "expected"), [(None, [1]), (5, [1, 5]), ([5, 7], [1, 5, 7])])
def test_end_tokens_are_known_without_the_model(declared, expected, save_sft, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_sft(tmp_path / "sft")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if declared is None:
        (folder / "generation_config.json").unlink()
    else:
        model.generation_config.eos_token_id = declared
        model.generation_config.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert checkpoint_end_token_ids(folder, tokenizer) == end_token_ids(model, tokenizer) == expected


@pytest.fixture
def config(sft, policies):
    return SweepConfig(
        sft_model=str(sft),
        policies=[str(policy) for policy in policies],
        rewards=["rule:length", "rule:words"],
        output_dir="unused",
        engine="vllm",
    )


def test_without_vllm_one_is_told_how_to_get_it(config, sft, policies, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"needs vLLM .*, or use engine local"):
        VllmEngine(config, sft, [load_adapter(policy) for policy in policies], tmp_path)


@pytest.mark.parametrize(
    ("gpu", "dtype"), [(False, "float32"), (True, "bfloat16"), (True, "float16"), (True, "float32")]
)
def test_float32_is_refused_on_a_gpu_before_inputs_are_read(gpu, dtype, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=None))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    config = replace(config, dtype=dtype, sft_model="./gone")
    # The next thing that is wrong is that there is no such model.
    kind, told = FileNotFoundError, "gone"
    if gpu and dtype == "float32":
        kind, told = (
            ValueError,
            "on a GPU vLLM takes adapters in 16 bits only: give dtype: bfloat16, or use engine local",
        )
    with pytest.raises(kind, match=told):
        read_inputs(PromptDataConfig("data"), config)


def test_a_launcher_is_refused(config, sft, policies, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 were started: leave out the launcher"):
        VllmEngine(config, sft, [load_adapter(policy) for policy in policies], tmp_path)
