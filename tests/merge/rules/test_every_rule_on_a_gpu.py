"""`merge_policies` with every rule on a GPU, against the same on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_lines.merge import merge_policies
from rlhf_lines.merge.tensors import order_statistics as order
from tests.merge.rules.every_rule import ON_RESIDUALS, spec_of, statistics_of, stored


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
DEVICE = "cuda"


@pytest.mark.parametrize("searched", [False, True], ids=["sorted", "searched"])
@pytest.mark.parametrize("kind", ["float32", "float64", "adapters"])
@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_the_gpu_writes_what_the_cpu_writes(rule, kind, searched, inputs, tmp_path, monkeypatch):
    """Up to the order of sums; alpha is measured, which takes sums over all of them."""
    if searched:
        monkeypatch.setattr(order, "DIRECT", 0)
    given = inputs(kind)
    statistics, _ = statistics_of(rule, given, tmp_path)
    written, alphas = {}, {}
    for device in ("cpu", DEVICE):
        options = {"save": "dense", "statistics": statistics, "device": device, "output_dir": tmp_path / device}
        out = merge_policies(given.sft, given.policies, spec_of(rule, "auto"), **options)
        written[device] = stored(out)
        record = json.loads((out / "merge_spec.json").read_text())
        assert record["device"] == device
        alphas[device] = record["alpha"]
    tolerance = 1e-12 if kind == "float64" else 2e-6
    assert alphas[DEVICE] == pytest.approx(alphas["cpu"], rel=tolerance)
    assert written[DEVICE].keys() == written["cpu"].keys()
    for name, tensor in written["cpu"].items():
        torch.testing.assert_close(written[DEVICE][name], tensor, rtol=tolerance, atol=tolerance, msg=name)
