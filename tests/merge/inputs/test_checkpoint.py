"""A checkpoint in shards is read only where its index and the files agree, however many there are."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.merge.inputs.checkpoint import Checkpoint


INDEX = "model.safetensors.index.json"


def shard(number: int, of: int) -> str:
    return f"model-{number + 1:05d}-of-{of:05d}.safetensors"


def in_shards(folder: Path, seed: int, shards: int) -> Path:
    """A model of one small tensor a layer and file."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(shards)]
    for i, name in enumerate(names):
        save_file({name: torch.randn(4, 4, generator=generator)}, folder / shard(i, shards), {"format": "pt"})
    write_index(folder, {name: shard(i, shards) for i, name in enumerate(names)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": shards}))
    return folder


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_index(folder: Path, change) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change(weight_map)
    write_index(folder, weight_map)


Q = "model.layers.{}.self_attn.q_proj.weight"
DISAGREEMENTS = {
    "a tensor that no shard holds": (
        lambda folder: change_index(folder, lambda names: names.update({"lm_head.weight": shard(1, 3)})),
        rf"1 of the tensors \('lm_head.weight' should be in {shard(1, 3)}, which does not hold it\)",
    ),
    "a tensor in another shard": (
        lambda folder: change_index(folder, lambda names: names.update({Q.format(0): shard(1, 3)})),
        r"should be in model-00002-of-00003\.safetensors, which does not hold it",
    ),
    "a tensor that the index does not name": (
        lambda folder: save_file(
            {Q.format(1): torch.zeros(4, 4), "more": torch.zeros(2)}, folder / shard(1, 3), {"format": "pt"}
        ),
        r"1 of the tensors \(model-00002-of-00003\.safetensors holds 'more', which should not be there\)",
    ),
    "a tensor twice": (
        lambda folder: save_file(
            {Q.format(1): torch.zeros(4, 4), Q.format(2): torch.zeros(4, 4)}, folder / shard(1, 3), {"format": "pt"}
        ),
        r"model-00002-of-00003\.safetensors holds 'model\.layers\.2\..*', which should not be there",
    ),
    "a shard that the index does not name": (
        lambda folder: change_index(folder, lambda names: names.pop(Q.format(1))),
        "names 2 of the 3 shards that model-00001-of-00003.safetensors is one of: copy the model again",
    ),
    "no shard": (lambda folder: (folder / shard(1, 3)).unlink(), "has no 'model-00002-of-00003.safetensors', which"),
    "half a shard": (
        lambda folder: (folder / shard(1, 3)).write_bytes((folder / shard(1, 3)).read_bytes()[:-9]),
        "cannot read .*model-00002-of-00003.safetensors.*copy or save it again",
    ),
    "an empty index": (lambda folder: write_index(folder, {}), "has no weight_map"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
@pytest.mark.parametrize("which", ["sft", "policy"])
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path, case, which):
    folders = {name: in_shards(tmp_path / name, seed, 3) for seed, name in enumerate(("sft", "policy"))}
    spoil, words = DISAGREEMENTS[case]
    spoil(folders[which])
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        merge_policies(
            folders["sft"], [folders["policy"]], MergeSpec("linear", (0.5,)), save="dense", output_dir=tmp_path / "out"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy", "sft"]


def test_files_that_the_index_does_not_name_are_no_part_of_the_model(tmp_path):
    folder = in_shards(tmp_path / "model", 0, 3)
    (folder / shard(0, 2)).write_bytes(b"left from an earlier save")
    with Checkpoint(folder) as checkpoint:
        assert list(checkpoint.shapes) == [Q.format(i) for i in range(3)]


def test_more_shards_than_the_system_opens_at_once(tmp_path):
    """3 models of 40 shards, read by threads while 40 are written, with 80 files open at most."""
    sft, one, other = (in_shards(tmp_path / str(seed), seed, 40) for seed in range(3))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, before[1]))
    try:
        out = merge_policies(
            sft, [one, other], MergeSpec("linear", (0.3, 0.7)), save="dense", output_dir=tmp_path / "out"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for i in range(40):
        theta, first, second, merged = (
            load_file(d / shard(i, 40))[Q.format(i)].double() for d in (sft, one, other, out)
        )
        torch.testing.assert_close(merged, theta + 0.3 * (first - theta) + 0.7 * (second - theta), rtol=0, atol=1e-6)
