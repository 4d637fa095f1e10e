"""How a merge is cut into chunks, threads and files changes no bit of what it writes, whatever the rule."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import merge_policies
from rlhf_lines.merge.inputs import policies as streamed
from rlhf_lines.merge.tensors import order_statistics as order
from tests import tiny
from tests.merge.rules.every_rule import ON_RESIDUALS, Inputs, inputs_of, spec_of, statistics_of, stored


INDEX = "model.safetensors.index.json"


def merge(rule: str, given: Inputs, out: Path, **options) -> dict[str, torch.Tensor]:
    """The tensors of the merge. alpha is measured, which takes sums over all of them."""
    statistics, _ = statistics_of(rule, given, out.parent)
    options |= {"save": "dense", "output_dir": out, "statistics": statistics}
    return stored(merge_policies(given.sft, given.policies, spec_of(rule, "auto"), **options))


def alpha_of(folder: Path) -> float:
    return json.loads((folder / "merge_spec.json").read_text())["alpha"]


def assert_same_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


@pytest.mark.parametrize("kind", ["bfloat16", "an adapter and a checkpoint"])
@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_chunks_and_threads_change_no_bit(rule, kind, inputs, tmp_path, monkeypatch):
    given = inputs(kind)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    expected = merge(rule, given, tmp_path / "whole", dtype="float32")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    assert_same_bits(merge(rule, given, tmp_path / "threads", dtype="float32"), expected)
    if kind != "bfloat16":
        return  # a product of factors rounds by how many rows it has
    monkeypatch.setattr(streamed, "ELEMENTS", 50)
    monkeypatch.setattr(order, "DIRECT", 0)  # so that quantiles are searched, not sorted
    assert_same_bits(merge(rule, given, tmp_path / "chunks", dtype="float32"), expected)


def shard(folder: Path, out: Path, files: int) -> Path:
    """The checkpoint in so many files, the tensors dealt out in turn, so that none is where it was."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(folder / "model.safetensors")
    weight_map = {name: f"model-{1 + i % files:05d}-of-{files:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        held = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(held, out / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    (out / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return out


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_files_of_inputs_and_output_change_no_bit(rule, inputs, tmp_path):
    given = inputs("float32")
    expected = merge(rule, given, tmp_path / "one file")
    folders = [shard(policy, tmp_path / policy.name, 4 + k) for k, policy in enumerate(given.policies)]
    sharded = replace(given, sft=shard(given.sft, tmp_path / "sft", 3), policies=tuple(folders))
    for name, size in (("as the SFT model", None), ("of 4 kB", 4000), ("in one", 10**9)):
        assert_same_bits(merge(rule, sharded, tmp_path / name, max_shard_size=size), expected)
        assert alpha_of(tmp_path / name) == alpha_of(tmp_path / "one file")
    assert not (tmp_path / "in one" / INDEX).exists()


@pytest.mark.parametrize("tied", [False, True])
def test_shards_of_a_size_are_loaded_by_transformers(tied, tmp_path, dense_logits):
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in range(3):
        folders.append(tmp_path / str(seed))
        model = tiny.llama(seed=seed, std=None, vocab_size=32, num_hidden_layers=2, tie_word_embeddings=tied)
        model.save_pretrained(folders[-1], max_shard_size="3KB")
    given = inputs_of(folders[0], folders[1:])
    whole, out = (tmp_path / name for name in ("whole", "out"))
    expected = merge("ties", given, whole, max_shard_size=10**9)
    assert_same_bits(merge("ties", given, out, max_shard_size=5000), expected)
    index = json.loads((out / INDEX).read_text())
    files = {path.name: load_file(path) for path in out.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert len(files) > 2
    assert all(sum(tensor.nbytes for tensor in tensors.values()) <= 5000 for tensors in files.values())
    assert ("lm_head.weight" in expected) != tied
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert_same_bits({name: model.get_parameter(name).data for name in expected}, expected)
    assert torch.equal(dense_logits(out), dense_logits(whole))
