"""The memory of a streamed merge: it does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


WIDTH = 1024
MERGE = """
import sys
from rlhf_lines.merge import MergeSpec, merge_policies
sft, first, second, output, rule = sys.argv[1:]
merge_policies(sft, [first, second], MergeSpec(rule, (0.5, 0.5), 0.5, 1.0), save="dense", output_dir=output)
status = open("/proc/self/status").read()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def write_models(folder: Path, num_layers: int) -> list[Path]:
    """Three random checkpoints of square matrices, and of an embedding that is as large as four layers."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (WIDTH, WIDTH) for i in range(num_layers)}
    shapes["model.embed_tokens.weight"] = (4 * WIDTH, WIDTH)
    models = []
    for name in ("sft", "a", "b"):
        model = folder / f"{name}{num_layers}"
        model.mkdir()
        tensors = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        (model / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": num_layers}))
        models.append(model)
    return models


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("rule", ["linear", "ties"])
def test_a_model_of_eight_times_the_size_takes_no_more(tmp_path, rule):
    peaks = []
    for num_layers in (4, 60):
        models = write_models(tmp_path, num_layers)
        command = [sys.executable, "-c", MERGE, *map(str, models), str(tmp_path / f"out{num_layers}"), rule]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.split()[-1]) * 1024)
    # 8 and 64 million parameters: a copy of the large SFT model would be 128 MB, in float32 256 MB.
    assert peaks[1] - peaks[0] < 30e6, peaks
