"""What a sweep hands to vLLM: the arguments of its engine, and those of one request."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_lines.merge.output.summary import VLLM_RANKS, max_lora_rank
from rlhf_lines.sweep.engines.batches import free_bytes


MAX_LORAS = 8
INSTEAD = "dtype: bfloat16, or use engine local"  # of a dtype that a GPU does not take
CACHE = "kv_cache_memory_bytes"
# Of the engine, and of the environment: what says how much memory vLLM takes.
_SAYS_MEMORY = {CACHE, "gpu_memory_utilization"}
_OLDER_CACHE = "VLLM_CPU_KVCACHE_SPACE"
_WORKERS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def engine_arguments(
    given: Mapping[str, Any], *, sft: str | Path, dtype: str, seed: int, rank: int, modules: Sequence[str]
) -> dict[str, Any]:
    """The arguments of `vllm.LLM`.

    Prompts are token ids and nothing is detokenised, so vLLM loads no tokenizer. Log-probabilities are "processed":
    those of softmax(logits / temperature), as the local engine has them. vLLM's default leaves the temperature out.

    Args:
        given: what the config holds under `vllm`.
        sft: the SFT model.
        dtype: of its weights.
        seed: of the sweep.
        rank: the largest rank of an adapter.
        modules: the last part of the names of adapted modules; vLLM has room for adapters nowhere else.

    Raises:
        ValueError: an argument that is not free, or a rank that vLLM does not take.
    """
    fixed = {
        "model": str(sft),
        "dtype": dtype,
        "seed": seed,
        "enable_lora": True,
        "lora_target_modules": list(modules),
        "max_lora_rank": max_lora_rank(rank),
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
    }
    if taken := sorted(fixed.keys() & given.keys()):
        raise ValueError(f"vllm holds {', '.join(taken)}, which the sweep sets itself: leave it out there")
    if fixed["max_lora_rank"] is None:
        raise ValueError(
            f"the policies need an adapter of rank {rank}, the sum of theirs, but vLLM takes {VLLM_RANKS[-1]} at most: "
            "use engine local, or policies of a smaller rank"
        )
    return {"max_loras": MAX_LORAS, **cpu_cache(given), **given, **fixed}


def check_dtype(dtype: str, *, cpu: bool, instead: str) -> None:
    """Stop where vLLM would load everything and then end: its kernels for adapters on a GPU take 16 bits alone.

    Source: the assertions of `_lora_shrink` in vllm/lora/ops/triton_ops, and vLLM's issue 14827.

    Args:
        dtype: of the SFT model and of adapters.
        cpu: whether vLLM runs on a CPU.
        instead: what to set.

    Raises:
        ValueError: the dtype is float32, and there is a GPU.
    """
    if dtype == "float32" and not cpu:
        raise ValueError(f"dtype is float32, but on a GPU vLLM takes adapters in 16 bits only: give {instead}")


def cpu_cache(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The size of a worker's cache where vLLM runs on a CPU and nothing says it, of all a quarter of the free memory.

    Nothing are `gpu_memory_utilization`, `kv_cache_memory_bytes` and, in the environment, VLLM_CPU_KVCACHE_SPACE. Left
    alone vLLM wants 92 % of all memory there, and ends where others use some of it. A worker takes the memory of one
    NUMA node.

    Args:
        given: arguments of vLLM.
        environment: that it is started in.

    Raises:
        ValueError: a number of workers that is none.
    """
    if _SAYS_MEMORY & given.keys() or environment.get(_OLDER_CACHE) or torch.accelerator.is_available():
        return {}
    workers = math.prod(_count(name, given.get(name, 1)) for name in _WORKERS)
    return {CACHE: free_bytes(torch.device("cpu")) // (4 * max(workers, _nodes()))}


def _count(name: str, value: object) -> int:
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise ValueError(f"vllm has {name} {value!r}, expected a whole number of at least 1")
    return int(str(value))


def _nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def sampling_arguments(
    *,
    temperature: float,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` for one completion, the log-probability of each token included.

    It ends with one of `end_tokens`, which is part of it, and with nothing else: stop texts, for which vLLM would need
    a tokenizer, cut it later. Greedy requests have no seed.
    """
    return {
        "temperature": temperature,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(end_tokens),
        "ignore_eos": True,  # what vLLM itself takes for the end token
        "logprobs": 0,  # of the chosen token alone
        "detokenize": False,
        **({"seed": seed} if temperature > 0 else {}),
        **{name: value for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None},
    }


def reading_arguments() -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` that give log softmax(logits) of the tokens of a prompt.

    vLLM has to write one token, which is not looked at.
    """
    return {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}


def next_token_arguments(token: int, *, temperature: float) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` that give log softmax(logits / temperature) of one next token."""
    return {"temperature": temperature, "max_tokens": 1, "logprob_token_ids": [token], "detokenize": False}


def request_seed(seed: int, prompt_key: int, sample: int) -> int:
    """The seed of one completion, 63 bits: the same for every spec, so that specs share their noise."""
    digest = hashlib.sha256(f"{seed} {prompt_key} {sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
