"""The mergekit recipe: what it says, and that mergekit, where it is installed, writes the same tensors from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.recipe import mergekit_recipe
from rlhf_lines.merge.rules import RULES


NUM_LAYERS = 4
BUILT = Path(__file__).parents[2] / "benchmarks" / ".environments" / "mergekit-0.1.5" / "bin" / "mergekit-yaml"
MERGEKIT = Path(os.environ.get("MERGEKIT_YAML", BUILT))
PER_TENSOR = {"granularity": "tensor", "zero_sign": "positive"}
CRUMBS = {"granularity": "tensor", "keep": 0.3}


def recipe(spec: MergeSpec, num_layers: int = NUM_LAYERS) -> dict | None:
    policies = [f"p{k}" for k in range(len(spec.weights))]
    text = mergekit_recipe(spec, "sft", policies, num_layers=num_layers, out_dtype="bfloat16")
    return None if text is None else yaml.safe_load(text)


def spec_of(rule: str, *args, **kwargs) -> MergeSpec:
    if rule not in RULES:
        pytest.skip(f"there is no rule {rule}")
    return MergeSpec(rule, *args, **kwargs)


def test_other_schedules_have_a_value_for_every_block():
    # Depths 0, 1/3, 2/3, 1; of block l the factor is 0.5 + depth^2.
    weights = [0.25 * (0.5 + depth**2) for depth in (0, 1 / 3, 2 / 3, 1)]
    found = recipe(MergeSpec("linear", (0.25,), 0.5, 1.0, "quadratic"))
    assert found["models"][0]["parameters"]["weight"] == pytest.approx(weights, rel=1e-15)
    assert len(recipe(MergeSpec("linear", (1,), 0.5, 1.0, "sqrt"))["models"][0]["parameters"]["weight"]) == NUM_LAYERS


def test_ties_has_lines_in_lambda():
    spec = MergeSpec("ties", (1.0, 1.0), 0.5, 1.0, options={"density": 0.5, **PER_TENSOR})
    found = recipe(spec)
    assert found["merge_method"] == "ties" and found["base_model"] == "sft"
    assert [model["parameters"] for model in found["models"]] == [{"weight": 1.0, "density": 0.5}] * 2
    assert found["parameters"] == {"lambda": [2 * 0.5, 2 * 1.5], "normalize": True}  # K w = 2
    added = recipe(MergeSpec("ties", (0.3, 0.7), options={"reduction": "sum", **PER_TENSOR}))
    assert [model["parameters"]["weight"] for model in added["models"]] == [2 * 0.3, 2 * 0.7]
    assert added["parameters"] == {"lambda": [1.0, 1.0], "normalize": False}


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec("linear", (1,), 0.5, 1.0, "reversed"),  # outside the blocks mergekit has the first block's factor
        MergeSpec("ties", (0.5, 0.5)),
        MergeSpec("ties", (0.5, 0.5), options={"granularity": "tensor"}),
        MergeSpec("ties", (0.3, 0.7), options=PER_TENSOR),
        MergeSpec("ties", (-0.5, -0.5), options=PER_TENSOR),
        MergeSpec("ties", (0.5, 0.5), options={"reduction": "max", **PER_TENSOR}),
        MergeSpec("ties", (0.5, 0.5), options={"density": 0, **PER_TENSOR}),
    ],
    ids=str,
)
def test_what_mergekit_computes_differently_has_no_recipe(spec):
    assert recipe(spec) is None


def test_reversed_without_a_slope_or_with_one_block_is_expressible():
    assert recipe(MergeSpec("linear", (1,), 0.5, 0.0, "reversed")) is not None
    assert recipe(MergeSpec("linear", (1,), 0.5, 1.0, "reversed"), num_layers=1) is not None


@pytest.mark.parametrize(
    ("rule", "weights", "options"),
    [
        ("breadcrumbs", (0.5, 0.5), {}),  # rows
        ("breadcrumbs", (0.5, 0.5), {**CRUMBS, "order": "keep_first"}),
        ("breadcrumbs", (0.5, 0.5), {"granularity": "tensor", "keep": 0.95}),
        ("slerp", (0.5, 0.5), {}),  # of residuals
        ("slerp", (0.5, 0.6), {"of": "weights"}),
    ],
)
def test_other_rules_that_mergekit_computes_differently_have_no_recipe(rule, weights, options):
    assert recipe(spec_of(rule, weights, options=options)) is None


@pytest.fixture(scope="module")
def dense_policies(sft, tmp_path_factory) -> list[Path]:
    """Two full checkpoints that differ from the SFT model everywhere, all in float32."""
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("dense") / f"policy{seed}"
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(sft / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_bytes((sft / "config.json").read_bytes())
        made.append(folder)
    return made


@pytest.mark.skipif(not MERGEKIT.is_file(), reason="mergekit is not installed (set MERGEKIT_YAML to mergekit-yaml)")
@pytest.mark.parametrize(
    ("rule", "weights", "alpha", "beta", "schedule", "options"),
    [
        ("linear", (0.3, 0.7), 0.5, 1.0, "linear", {}),
        ("linear", (0.3, 0.7), 0.5, 1.0, "sqrt", {}),
        ("sum", (0.5, 0.5), 0.4, 0.3, "quadratic", {}),
        ("ties", (0.5, 0.5), 0.5, 1.0, "sqrt", {"density": 0.3, **PER_TENSOR}),
        ("ties", (0.8, 0.8), 1.0, 0.5, "linear", PER_TENSOR),
        ("ties", (0.3, 0.7), 0.5, 1.0, "linear", {"reduction": "sum", **PER_TENSOR}),
        ("breadcrumbs", (0.3, 0.7), 0.5, 1.0, "linear", {"scale": 0.5, **CRUMBS}),
        ("slerp", (0.3, 0.7), 1.0, 0.0, "linear", {"of": "weights"}),
    ],
)
def test_mergekit_writes_the_same_tensors(sft, dense_policies, tmp_path, rule, weights, alpha, beta, schedule, options):
    spec = spec_of(rule, weights, alpha, beta, schedule, options)
    ours = merge_policies(sft, dense_policies, spec, save="dense", output_dir=tmp_path / "ours")
    theirs = run_mergekit(ours / "mergekit.yaml", tmp_path / "theirs")
    compare(load_file(ours / "model.safetensors"), theirs, load_file(sft / "model.safetensors"))


@pytest.mark.skipif(not MERGEKIT.is_file(), reason="mergekit is not installed (set MERGEKIT_YAML to mergekit-yaml)")
def test_mergekit_merges_the_same_adapters(sft, helpful, harmless, tmp_path):
    spec = MergeSpec("linear", (0.3, 0.7), 0.5, 1.0, "sqrt")
    ours = merge_policies(sft, [helpful, harmless], spec, save="dense", output_dir=tmp_path / "ours")
    flags = ["--lora-merge-dtype", "float32", "--lora-merge-cache", str(tmp_path / "cache")]
    assert " ".join(flags[:3]) in (ours / "mergekit.yaml").read_text().splitlines()[0]
    theirs = run_mergekit(ours / "mergekit.yaml", tmp_path / "theirs", *flags)
    compare(load_file(ours / "model.safetensors"), theirs, load_file(sft / "model.safetensors"))


def run_mergekit(config: Path, output: Path, *flags: str) -> dict[str, torch.Tensor]:
    command = [MERGEKIT, config, output, "--no-copy-tokenizer", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}


def compare(ours, theirs, sft) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=2e-6)
    assert max((ours[name] - sft[name]).abs().max() for name in ours) > 0.01  # the merge moved something
