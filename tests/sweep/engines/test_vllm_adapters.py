"""The adapters that a sweep writes for vLLM are the merged policies, and each is written once."""

from __future__ import annotations

import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import dense_residual, load_adapter
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters, largest_rank


BY_LAYER = {
    "factors": [[0.2, 1.0, 0.0, 0.5], [1.0, 0.3, 0.6, -0.4], [0.0, 0.8, 0.1, 1.2]],
    "outside": [0.5, 0.0, 2.0],
}


@pytest.fixture(scope="module")
def loaded(policies):
    return [load_adapter(policy) for policy in policies]


@pytest.fixture
def spec_adapters(tmp_path, loaded, sft):
    return SpecAdapters(tmp_path, loaded, sft, "float32")


@pytest.mark.parametrize(
    ("spec", "rank"),
    [
        (MergeSpec("linear", (0.2, 0.3, 0.5), alpha=0.5, beta=1.5), 4 + 3 + 2),
        (MergeSpec("linear", (0.0, 1.0, 0.0), alpha=0.4), 3),
        (MergeSpec("linear", (0.5, 0.5)), 4 + 3),  # the third counts as 0
        (MergeSpec("layerwise", (0.2, 0.3, 0.5), options=BY_LAYER), 4 + 3 + 2),
        (MergeSpec("layerwise", (0.2, 0.0, 0.5), alpha=0.7, beta=0.3, options=BY_LAYER), 4 + 2),
        (MergeSpec("sum", (0.2, 0.0, 0.5), alpha=0.7, beta=0.3), 4 + 2),  # K is 3, whatever the weights are
    ],
)
def test_an_adapter_is_the_merged_policy(spec, rank, spec_adapters, sft, dense_model):
    path = spec_adapters.path(spec)
    adapter = load_adapter(path)
    assert path.name == spec.digest()
    assert {factors.A.shape[0] for factors in adapter.modules.values()} == {rank}
    merged, base = dense_model(spec).state_dict(), dense_model(MergeSpec("linear", (0.0,) * 3)).state_dict()
    for name, weight in merged.items():
        module = name.removesuffix(".weight")
        expected = weight - base[name]
        residual = dense_residual(adapter, module) if module in adapter.modules else torch.zeros_like(expected)
        torch.testing.assert_close(residual, expected, rtol=0, atol=1e-6)


def test_the_sft_model_needs_no_adapter(spec_adapters, tmp_path):
    assert spec_adapters.path(MergeSpec("linear", (0.0, 0.0))) is None
    assert not list(tmp_path.iterdir())


def test_a_complete_adapter_is_used_and_half_a_one_is_written_again(spec_adapters, tmp_path, loaded, sft, monkeypatch):
    complete, killed = MergeSpec("linear", (0.2, 0.8)), MergeSpec("linear", (0.4, 0.6))
    path = spec_adapters.path(complete)

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rlhf_lines.merge.output.adapter._target_modules", kill)  # after the weights, before the config
        with pytest.raises(KeyboardInterrupt):
            spec_adapters.path(killed)
    (tmp_path / "adapters" / f".{killed.digest()}.partial").mkdir(exist_ok=True)  # what SIGKILL leaves
    assert not (tmp_path / "adapters" / killed.digest()).exists()
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    resumed = SpecAdapters(tmp_path, loaded, sft, "float32")
    assert resumed.path(complete) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert load_adapter(resumed.path(killed)).modules.keys() == load_adapter(path).modules.keys()
    assert {folder.name for folder in (tmp_path / "adapters").iterdir()} == {complete.digest(), killed.digest()}


@pytest.mark.parametrize("spec", [MergeSpec("ties", (0.5, 0.5)), MergeSpec("linear", (0.5, 0.5), alpha="auto")])
def test_other_specs_are_refused(spec, spec_adapters, tmp_path):
    with pytest.raises(ValueError, match="so vLLM has no"):
        spec_adapters.path(spec)
    assert not list(tmp_path.iterdir())


def test_the_largest_rank(loaded):
    assert largest_rank(loaded, mixed=[[0, 1, 2]]) == 4 + 3 + 2
    assert largest_rank(loaded, mixed=[[0, 1]]) == 4 + 3
    assert largest_rank(loaded, mixed=[[1, 2], [2, 0]]) == 2 + 4
    assert largest_rank([loaded[2], loaded[0]], mixed=[[0]]) == 4
