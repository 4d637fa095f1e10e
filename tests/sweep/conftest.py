"""A tiny SFT model with a tokenizer of single characters, and LoRA policies with random factors, on disk."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.sweep import of_a_run


CHARACTERS = "abcdefghijklmnopqrstuvwxyz '\"<>&.\n"


def _save_sft(folder: Path, **changes) -> Path:
    tokenizer = tiny.character_tokenizer(CHARACTERS)
    return tiny.save(tiny.llama(tokenizer, **changes), tokenizer, folder)


@pytest.fixture(scope="session")
def save_sft():
    """The function that saves an SFT model."""
    return _save_sft


@pytest.fixture(scope="session")
def save_policy():
    """The function that saves a policy with random factors."""
    return tiny.save_adapter


@pytest.fixture(scope="session")
def sft(tmp_path_factory) -> Path:
    """The folder of the SFT model."""
    return _save_sft(tmp_path_factory.mktemp("models") / "sft")


@pytest.fixture(scope="session")
def policies(sft) -> list[Path]:
    """Three policies: ranks 4, 3 and 2, one with rsLoRA, one that adapts the head, which lies outside the layers."""
    modules = ["q_proj", "v_proj", "down_proj"]
    return [
        tiny.save_adapter(sft, sft.parent / "brief", seed=1),
        tiny.save_adapter(sft, sft.parent / "kind", seed=2, r=3, lora_alpha=5, use_rslora=True, target_modules=modules),
        tiny.save_adapter(sft, sft.parent / "plain", seed=3, r=2, lora_alpha=3, target_modules=["up_proj", "lm_head"]),
    ]


@pytest.fixture(scope="session")
def four_policies(sft, policies) -> list[Path]:
    """These three, and a fourth of rank 5."""
    options = {"r": 5, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"]}
    return [*policies, tiny.save_adapter(sft, sft.parent / "fourth", seed=4, **options)]


@pytest.fixture(scope="session")
def load_multi_lora(sft, four_policies):
    """A function from the number of policies to a `MultiLoRA` on a freshly loaded SFT model."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.merge.inputs.adapter import load_adapter
    from rlhf_lines.sweep.engines.multi_lora import MultiLoRA

    def load(num_policies: int) -> MultiLoRA:
        model = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
        return MultiLoRA(model, [load_adapter(policy) for policy in four_policies[:num_policies]])

    return load


@pytest.fixture(scope="session")
def multi_lora(load_multi_lora):
    """The `MultiLoRA` of the first two policies."""
    return load_multi_lora(2)


@pytest.fixture(scope="session")
def dense_model(sft, four_policies, tmp_path_factory):
    """A function from a spec to the model that `merge_policies` wrote for it, the weights added up one by one."""
    from transformers import AutoModelForCausalLM

    from rlhf_lines.merge import merge_policies

    models, root = {}, tmp_path_factory.mktemp("dense")

    def load(spec):
        if spec not in models:
            folder = root / spec.digest()
            merge_policies(sft, four_policies[: len(spec.weights)], spec, save="dense", output_dir=folder)
            models[spec] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return models[spec]

    return load


@pytest.fixture
def rewards(tmp_path_factory, monkeypatch):
    """The module of the reward functions, fresh for every test."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "tiny_rewards.py").write_text(of_a_run.REWARDS)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("tiny_rewards", None)
    yield importlib.import_module("tiny_rewards")
    sys.modules.pop("tiny_rewards", None)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A JSONL file of 200 different prompts of one to five characters."""
    prompts = ["abcdefghijklmnopqrstuvwxyz"[i % 26] * (1 + i % 4) + "xyz'\n .<"[i // 26] for i in range(200)]
    assert len(set(prompts)) == 200
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@pytest.fixture
def flags(sft, policies, dataset, rewards):
    """A function from an output folder and changes to the flags of a sweep without ablations."""

    def make(output_dir: Path, **changes) -> list[str]:
        settings = {
            "sft_model": sft,
            "policies": policies[:2],
            "rewards": ["tiny_rewards:short", "tiny_rewards:early"],
            "dataset_name": dataset,
            "output_dir": output_dir,
            "alphas": of_a_run.ALPHAS,
            "betas": of_a_run.BETAS,
            "controls": "false",
            "edge_extensions": 0,
            "num_weights": of_a_run.WEIGHTS,
            "validation_weights": 3,
            "validation_prompts": of_a_run.VALIDATION,
            "test_prompts": of_a_run.TEST,
            "max_new_tokens": 8,
            "batch_size": 32,
            **changes,
        }
        return of_a_run.words(settings)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> dict:
    """Where a finished sweep is kept for the tests that only read it."""
    return {"folder": tmp_path_factory.mktemp("sweeps") / "sweep"}


@pytest.fixture
def sweep(finished, flags, rewards) -> Path:
    """A finished sweep, made by the first test that asks for it."""
    from rlhf_lines.stages import run_stage

    if not finished["folder"].exists():
        run_stage("sweep", flags(finished["folder"]))
        assert sum(map(len, rewards.SCORED)) == of_a_run.ROWS
        rewards.SCORED.clear()
        assert (finished["folder"] / "front.png").is_file(), "it comes before without_pictures"
    return finished["folder"]
