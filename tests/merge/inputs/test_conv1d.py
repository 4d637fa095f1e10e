"""Matrices that are stored ``[in, out]``: GPT-2's Conv1D."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from rlhf_lines.merge import MergeSpec, merge_policies, merge_residuals
from rlhf_lines.merge.inputs.checkpoint import Checkpoint
from tests import tiny
from tests.merge.rules.every_rule import inputs_of, stored


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 with square and oblong maps and two policies, on disk, and the names of its Conv1D weights."""
    from transformers.pytorch_utils import Conv1D

    root = tmp_path_factory.mktemp("gpt2")
    model = tiny.gpt2(n_positions=12)
    model.save_pretrained(root / "sft")
    for seed in (1, 2):
        policy = root / str(seed)
        model.save_pretrained(policy)
        generator = torch.Generator().manual_seed(seed)
        noise = {name: torch.randn(t.shape, generator=generator) * 0.02 for name, t in sorted(stored(policy).items())}
        moved = {name: tensor + noise[name] for name, tensor in stored(policy).items()}
        save_file(moved, policy / "model.safetensors", metadata={"format": "pt"})
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    return inputs_of(root / "sft", [root / "1", root / "2"]), names


def test_the_weights_of_conv1d_are_known(gpt2, sft):
    given, names = gpt2
    with Checkpoint(given.sft) as checkpoint:
        matrices = {name for name, shape in checkpoint.shapes.items() if len(shape) == 2}
        assert set(filter(checkpoint.is_transposed, matrices)) == names and len(names) == 8
    with Checkpoint(sft) as checkpoint:
        assert not any(map(checkpoint.is_transposed, checkpoint.shapes))


@pytest.mark.parametrize(("rule", "options"), [("widen", {"calibration": 0.7}), ("opcm", {}), ("doge", {"steps": 5})])
def test_a_stored_transpose_is_merged_as_the_map_it_is(gpt2, tmp_path, rule, options):
    """Not bit for bit: sums run in another order."""
    given, names = gpt2

    def turned(tensors):
        return {name: tensor.T.contiguous() if name in names else tensor for name, tensor in tensors.items()}

    taus = [turned(residual) for residual in given.residuals]
    merged = turned(merge_residuals(taus, rule, weights=[0.6, 0.4], sft=turned(given.theta), **options))
    in_memory = {"sft": given.theta, "transposed": names, **options}
    direct = merge_residuals(given.residuals, rule, weights=[0.6, 0.4], **in_memory)
    spec = MergeSpec(rule, (0.6, 0.4), options=options)
    out = stored(merge_policies(given.sft, given.policies, spec, save="dense", output_dir=tmp_path / "out"))
    for name, tau in merged.items():
        torch.testing.assert_close(direct[name], tau, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out[name].double(), given.theta[name] + tau, rtol=1e-6, atol=1e-6)
