"""The inputs and outputs of public reference implementations, as tests read them (origin.json says whose they are)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rlhf_lines.merge.inputs.adapter import Adapter, load_adapter


FOLDER = Path(__file__).parent.parent / "reference" / "merge"
ORIGIN = json.loads((FOLDER / "origin.json").read_text())
COMPARED: set[str] = set()  # the cases whose tensors, tolerance or numbers a test of this process has asked for


class _Case(dict):
    """A case of origin.json that knows whether something was compared with it."""

    def __init__(self, name: str, entries: dict) -> None:
        super().__init__(entries)
        self._name = name

    def __getitem__(self, key: str):
        if key in ("tol", "scalars"):
            COMPARED.add(self._name)
        return super().__getitem__(key)


CASES = {name: _Case(name, entries) for name, entries in ORIGIN["cases"].items()}
NUM_LAYERS = 6
WIDTHS = [torch.float64, torch.float32]
TALL_THRESHOLDS = [0.4, 0.2, 0.6]


def tensors(name: str, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """The tensors of one file."""
    COMPARED.add(name)
    return {key: tensor.to(dtype) for key, tensor in load_file(FOLDER / f"{name}.safetensors").items()}


def task_vectors(count: int, dtype) -> list[dict[str, torch.Tensor]]:
    """The residuals of the first `count` fine-tuned models, subtracted in float64."""
    base = tensors("model_base")
    policies = [tensors(f"model_ft{i}") for i in range(count)]
    return [{name: (policy[name] - base[name]).to(dtype) for name in base} for policy in policies]


def of_each_policy(masks: dict[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """The masks of a file, whose keys are task{k}.{parameter}."""
    split = [key.split(".", 1) for key in masks]
    return [{name: masks[f"{task}.{name}"] for task, name in split if task == f"task{k}"} for k in range(count)]


def plus_base(residual: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that a residual makes of the base."""
    return {name: tensor.to(residual[name].dtype) + residual[name] for name, tensor in tensors("model_base").items()}


def assert_case(case: str, got: dict[str, torch.Tensor]) -> None:
    """Same names and, element by element, the case's tolerance (float64) or 1e-5 (float32)."""
    expected = tensors(case)
    assert got.keys() == expected.keys()
    wide = next(iter(got.values())).dtype == torch.float64
    rtol, atol = (CASES[case]["tol"]["rtol"], CASES[case]["tol"]["atol"]) if wide else (1e-5, 1e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name].double(), tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def reference_adapters(parent: Path) -> list[Adapter]:
    """The two LoRA policies of the reference vectors, float64, written as PEFT folders below `parent`."""
    loaded = []
    for k in range(2):
        folder = parent / f"lora{k}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes((FOLDER / f"lora{k}.safetensors").read_bytes())
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        loaded.append(load_adapter(folder))
    return loaded
