"""Exported points are the merged policies, and their index says which."""

from __future__ import annotations

import json

import pytest

from rlhf_lines import cli
from rlhf_lines.merge.inputs.adapter import dense_residual, load_adapter
from rlhf_lines.pareto import read_front
from rlhf_lines.serve.adapters import INDEX, export_adapters
from tests.serve.conftest import BY_LAYER, LINES


def factor(group: str, policy: int, layer: int) -> float:
    """What a policy's residual is multiplied by in a layer, of four, beside its weight."""
    if group == "by layer":  # K c, with K = 2
        return 2 * BY_LAYER["factors"][policy][layer]
    if group == "others":
        return 0.7
    return LINES["alpha"] + LINES["beta"] * (layer / 3) ** 0.5


@pytest.mark.parametrize("group", ["lines", "by layer", "others", "search", "morlhf"])
def test_every_point_of_a_group_is_exactly_its_policy(group, run, models, tmp_path):
    exported = export_adapters(run, tmp_path / "adapters", group=group)
    index = json.loads((exported.folder / INDEX).read_text())
    points = [point for point in read_front(run)["points"] if point["group"] == group]
    assert [entry["point"] for entry in index["adapters"]] == [point["id"] for point in points]
    assert sorted(path.name for path in exported.folder.iterdir()) == sorted([INDEX, *exported.names])
    policies = [load_adapter(models / name) for name in ("helpful", "harmless", "both", "third")]
    assert index["policies"] == ["helpful", "harmless", "both", "third"]
    for entry, point in zip(index["adapters"], points, strict=True):
        assert (entry["spec"], entry["scores"]) == (point["spec"], point["scores"])
        adapter = load_adapter(exported.folder / entry["folder"])
        weights = entry["spec"]["weights"]
        for module in adapter.modules:
            layer = int(module.split(".")[2])
            scale = {"search": entry["spec"]["alpha"], "morlhf": 1.0}.get(group)
            expected = sum(
                w * (factor(group, k, layer) if scale is None else scale) * dense_residual(policies[k], module).double()
                for k, w in enumerate(weights)
                if w
            )
            assert (dense_residual(adapter, module) - expected).abs().max() < 1e-5


def test_the_command_line(run, tmp_path, capsys):
    folder = tmp_path / "adapters"
    command = ["export", str(run), "--adapters", "rewarded_soup", "--output_dir", str(folder)]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "sft --dtype float32 --enable-lora --max-lora-rank 8 --lora-modules point_" in told
    assert "\non a GPU give --dtype bfloat16 in its place" in told
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert cli.main(command) == 2
    assert f"output_dir {folder} exists" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert cli.main([*command, "--format", "csv"]) == 2
    assert "it is of tables, and --adapters writes none" in capsys.readouterr().err


def test_the_command_has_the_numbers_of_the_sweep(changed, tmp_path):
    run = changed(vllm={"quantization": "fp8", "seed_of_it": 1}, dtype="bfloat16", load_in_8bit=True)
    exported = export_adapters(run, tmp_path / "adapters", group="lines")
    assert " --dtype bfloat16 --quantization fp8 --enable-lora --max-lora-rank 8 " in exported.serving
    bits, others = exported.told
    assert bits.startswith("the sweep held the SFT model in 8 bits (bitsandbytes), this server holds it in bfloat16")
    assert others == "the sweep gave vLLM seed_of_it, too, which this server is not given unless by name"


@pytest.mark.parametrize("place", ["run", "sft", "helpful"])
def test_neither_the_run_nor_a_model_is_replaced(changed, models, place):
    run = changed()
    target = run if place == "run" else models / place
    before = sorted(target.iterdir())
    with pytest.raises(FileExistsError, match="which --overwrite would delete"):
        export_adapters(run, target, group="lines", overwrite=True)
    assert sorted(target.iterdir()) == before


@pytest.mark.parametrize(
    ("group", "told"),
    [("sft", "which is no merge"), ("ties", "group ties has rule ties"), ("none", "unknown group 'none'")],
)
def test_groups_without_exact_adapters_are_refused(group, told, run, tmp_path):
    with pytest.raises(ValueError, match=told):
        export_adapters(run, tmp_path / "adapters", group=group)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_is_gone_is_named(changed, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy \./gone does not exist"):
        export_adapters(changed(["./gone"]), tmp_path / "adapters", group="lines")
