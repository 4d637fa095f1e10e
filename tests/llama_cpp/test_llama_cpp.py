"""The recipe of docs/serve.md: single policies, each with a scale, are the mix in the arithmetic of llama.cpp."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, load_adapter
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.pareto import read_front
from rlhf_lines.serve.adapters import export_adapters
from rlhf_lines.sha256 import sha256_of
from tests import tiny
from tests.sweep.small_run import write_run


SCALING = {"alpha": 0.5, "beta": 1.0}
MIXES = [(0.3, 0.7), (1.0, 0.0), (0.0, 0.0), (0.55, 0.45)]
TOKENS = [504, 2365, 6354, 16438, 27003, 690, 260, 23790]  # of SmolLM2's vocabulary, any
TOLERATED = 1e-3  # of the spread of a row of logits: float32 throughout, sums in another order


@pytest.fixture(scope="module")
def sft() -> Path:
    return Path(os.environ["RLHF_LINES_REAL_MODELS"]).resolve() / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def policies(sft, tmp_path_factory) -> list[Path]:
    root, modules = (
        tmp_path_factory.mktemp("policies"),
        ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    )
    return [
        tiny.save_adapter(sft, root / name, seed=seed, std=0.03, r=4 - seed, lora_alpha=8, target_modules=modules)
        for seed, name in enumerate(("helpful", "harmless"))
    ]


@pytest.fixture(scope="module")
def logits(sft, policies, tmp_path_factory):
    """A function from the scales of the policies to llama.cpp's logits ``[tokens, vocab]``."""
    import llama_cpp

    root = tmp_path_factory.mktemp("gguf")
    groups = {
        "sft": [MergeSpec("linear", (0.0, 0.0))],
        "rewarded_soup": [MergeSpec("linear", weights) for weights in ((1.0, 0.0), (0.0, 1.0))],
        "lines": [MergeSpec("linear", weights, **SCALING) for weights in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0))],
    }
    facts = {"sft_model": str(sft), "policies": list(map(str, policies)), "morlhf": [], "dtype": "float32"}
    facts["sft_sha256"] = checkpoint_sha256(sft)
    facts["policies_sha256"] = [sha256_of([policy / WEIGHTS_FILE]) for policy in policies]
    run = write_run(root / "run", ["rule:length"], groups={"test": groups}, **facts)
    exported = export_adapters(run, root / "adapters", group="lines")
    points = {tuple(p["spec"]["weights"]): p["id"] for p in read_front(run)["points"] if p["group"] == "lines"}
    convert("convert_hf_to_gguf.py", str(sft), "--outtype", "f32", "--outfile", str(root / "sft.gguf"))
    paths = [root / "helpful.gguf", root / "harmless.gguf"]
    for weights, path in zip(((1.0, 0.0), (0.0, 1.0)), paths, strict=True):
        adapter = exported.folder / f"point_{points[weights]}"
        convert("convert_lora_to_gguf.py", "--base", str(sft), str(adapter), "--outtype", "f32", "--outfile", str(path))
    model = llama_cpp.Llama(
        str(root / "sft.gguf"),
        n_ctx=64,
        n_gpu_layers=0,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    adapters = [llama_cpp.llama_adapter_lora_init(model._model.model, str(path).encode()) for path in paths]
    assert all(adapters)

    def read(scales: tuple[float, float]) -> np.ndarray:
        array = (llama_cpp.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
        set_scales = (ctypes.c_float * len(adapters))(*scales)
        assert llama_cpp.llama_set_adapters_lora(model._ctx.ctx, array, len(adapters), set_scales) == 0
        model.reset()
        model.eval(TOKENS)
        return np.array(model.scores[: len(TOKENS)], dtype=np.float64)

    return read


def convert(script: str, *arguments: str) -> None:
    command = [sys.executable, str(Path(os.environ["LLAMA_CPP"]) / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def merged(sft, policies):
    """A function from weights to our logits of the merged model."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.sweep.engines.multi_lora import MultiLoRA

    model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
    multi_lora = MultiLoRA(model, list(map(load_adapter, policies)))

    def read(weights: tuple[float, float]) -> np.ndarray:
        with multi_lora.rows([MergeSpec("linear", weights, **SCALING)]), torch.no_grad():
            return model(input_ids=torch.tensor([TOKENS])).logits[0].double().numpy()

    return read


@pytest.mark.parametrize("weights", MIXES)
def test_scales_are_weights(weights, logits, merged):
    found, expected = logits(weights), merged(weights)
    spread = expected.std(axis=1, keepdims=True)
    assert (np.abs(found - expected) / spread).max() < TOLERATED
    others = [merged(other) for other in MIXES if other != weights]
    assert min((np.abs(found - other) / spread).max() for other in others) > 100 * TOLERATED, "mixes hardly differ"
