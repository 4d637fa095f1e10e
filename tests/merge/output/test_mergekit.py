"""mergekit's configuration of a merge: what it says, and that mergekit, where installed, writes the same from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.output.mergekit import mergekit_config


NUM_LAYERS = 4
BUILT = Path(__file__).parents[3] / "benchmarks" / ".environments" / "mergekit-0.1.5" / "bin" / "python"
MERGEKIT = Path(os.environ.get("MERGEKIT_PYTHON", BUILT))
# What `mergekit-yaml --lora-merge-dtype float32` does, for several folders.
RUN_MERGEKIT = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
cache, *folders = sys.argv[1:]
options = MergeOptions(lora_merge_cache=cache, lora_merge_dtype="float32", copy_tokenizer=False)
for ours, output in zip(folders[::2], folders[1::2]):
    config = MergeConfiguration.model_validate(yaml.safe_load(open(ours + "/mergekit.yaml")))
    run_merge(config, output, options)
"""
PER_TENSOR = {"granularity": "tensor", "zero_sign": "positive"}
CRUMBS = {"granularity": "tensor", "keep": 0.3}
EXPRESSIBLE = [
    ("linear", (0.3, 0.7), 0.5, 1.0, "linear", {}),
    ("linear", (0.3, 0.7), 0.5, 1.0, "sqrt", {}),
    ("sum", (0.5, 0.5), 0.4, 0.3, "quadratic", {}),
    ("layerwise", (0.3, 0.7), 0.5, 1.0, "linear", {"factors": [[0.5, 0, 1, 2], [1, 1, 0.2, 0.1]], "outside": [0.5, 1]}),
    ("ties", (0.5, 0.5), 0.5, 1.0, "sqrt", {"density": 0.3, **PER_TENSOR}),
    ("ties", (0.8, 0.8), 1.0, 0.5, "linear", PER_TENSOR),
    ("ties", (0.3, 0.7), 0.5, 1.0, "linear", {"reduction": "sum", **PER_TENSOR}),
    ("breadcrumbs", (0.3, 0.7), 0.5, 1.0, "linear", {"scale": 0.5, **CRUMBS}),
    ("slerp", (0.3, 0.7), 1.0, 0.0, "linear", {"of": "weights"}),
]


def config(spec: MergeSpec, num_layers: int = NUM_LAYERS) -> dict | None:
    policies = [f"p{k}" for k in range(len(spec.weights))]
    text = mergekit_config(spec, "sft", policies, num_layers=num_layers, out_dtype="bfloat16")
    return None if text is None else yaml.safe_load(text)


def test_other_schedules_have_a_value_for_every_layer():
    # Depths 0, 1/3, 2/3, 1; of layer l the factor is 0.5 + depth^2.
    weights = [0.25 * (0.5 + depth**2) for depth in (0, 1 / 3, 2 / 3, 1)]
    found = config(MergeSpec("linear", (0.25,), 0.5, 1.0, "quadratic"))
    assert found["models"][0]["parameters"]["weight"] == pytest.approx(weights, rel=1e-15)
    assert len(config(MergeSpec("linear", (1,), 0.5, 1.0, "sqrt"))["models"][0]["parameters"]["weight"]) == NUM_LAYERS


def test_ties_has_lines_in_lambda():
    spec = MergeSpec("ties", (1.0, 1.0), 0.5, 1.0, options={"density": 0.5, **PER_TENSOR})
    found = config(spec)
    assert found["merge_method"] == "ties" and found["base_model"] == "sft"
    assert [model["parameters"] for model in found["models"]] == [{"weight": 1.0, "density": 0.5}] * 2
    assert found["parameters"] == {"lambda": [2 * 0.5, 2 * 1.5], "normalize": True}  # K w = 2
    added = config(MergeSpec("ties", (0.3, 0.7), options={"reduction": "sum", **PER_TENSOR}))
    assert [model["parameters"]["weight"] for model in added["models"]] == [2 * 0.3, 2 * 0.7]
    assert added["parameters"] == {"lambda": [1.0, 1.0], "normalize": False}


def test_factors_by_layer_are_gradients_with_a_value_for_every_layer():
    rows = [[0.5, 0.0, 1.0, 2.0], [1.0, 1.0, 0.2, 0.1]]
    spec = MergeSpec("layerwise", (0.3, 0.7), 0.5, 1.0, options={"factors": rows, "outside": [0.5, 1.0]})
    weights = [model["parameters"]["weight"] for model in config(spec)["models"]]
    # K w_k c (0.5 + depth)
    expected = [[2 * w * c * (0.5 + i / 3) for i, c in enumerate(row)] for w, row in zip((0.3, 0.7), rows, strict=True)]
    assert weights == [pytest.approx(row, rel=1e-15) for row in expected]


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec("layerwise", (1,), options={"factors": [[0.5, 1, 1, 1]], "outside": [1]}),
        MergeSpec("linear", (1,), 0.5, 1.0, "reversed"),  # outside the layers mergekit has the first layer's factor
        MergeSpec("ties", (0.5, 0.5)),
        MergeSpec("ties", (0.5, 0.5), options={"granularity": "tensor"}),
        MergeSpec("ties", (0.3, 0.7), options=PER_TENSOR),
        MergeSpec("ties", (-0.5, -0.5), options=PER_TENSOR),
        MergeSpec("ties", (0.5, 0.5), options={"reduction": "max", **PER_TENSOR}),
        MergeSpec("ties", (0.5, 0.5), options={"density": 0, **PER_TENSOR}),
    ],
    ids=str,
)
def test_what_mergekit_computes_differently_has_no_config(spec):
    assert config(spec) is None


def test_reversed_without_a_slope_or_with_one_layer_is_expressible():
    assert config(MergeSpec("linear", (1,), 0.5, 0.0, "reversed")) is not None
    assert config(MergeSpec("linear", (1,), 0.5, 1.0, "reversed"), num_layers=1) is not None


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
def test_other_rules_that_mergekit_computes_differently_have_no_config(rule, weights, options):
    assert config(MergeSpec(rule, weights, options=options)) is None


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


@pytest.mark.skipif(not MERGEKIT.is_file(), reason="mergekit is not installed (set MERGEKIT_PYTHON to its Python)")
def test_mergekit_writes_the_same_tensors(sft, helpful, harmless, dense_policies, tmp_path):
    """All merges in one process of mergekit, which takes seconds to start."""
    specs = [MergeSpec(*each) for each in EXPRESSIBLE]
    merges = [(spec, dense_policies) for spec in specs] + [(specs[1], [helpful, harmless])]
    made = [
        merge_policies(sft, policies, spec, save="dense", output_dir=tmp_path / f"ours{number}")
        for number, (spec, policies) in enumerate(merges)
    ]
    assert "--lora-merge-dtype float32" in (made[-1] / "mergekit.yaml").read_text().splitlines()[0]
    theirs = [tmp_path / f"theirs{number}" for number in range(len(merges))]
    arguments = [str(path) for ours, output in zip(made, theirs, strict=True) for path in (ours, output)]
    done = subprocess.run(
        [MERGEKIT, "-c", RUN_MERGEKIT, tmp_path / "cache", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    base = load_file(sft / "model.safetensors")
    for (spec, _), ours, output in zip(merges, made, theirs, strict=True):
        left = load_file(ours / "model.safetensors")
        right = {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert left.keys() == right.keys()
        assert max((left[name] - base[name]).abs().max() for name in left) > 0.01  # the merge moved something
        for name, tensor in left.items():
            torch.testing.assert_close(
                tensor, right[name], rtol=1e-5, atol=2e-6, msg=lambda text, s=spec: f"{s}: {text}"
            )
