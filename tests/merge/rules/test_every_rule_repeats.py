"""`--config merge_spec.json` writes every file of a merge again, bit for bit, whatever the rule and the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlhf_lines import cli
from rlhf_lines.merge.rules import RULES
from tests.merge.rules.every_rule import ON_RESIDUALS, WEIGHTS, WITH_STATISTICS, spec_of, statistics_of


def merge(rule: str, given, statistics: list[Path], *flags: str) -> list[str]:
    """The command that merges by flags."""
    options = spec_of(rule).options
    return [
        "merge",
        *("--sft_model", str(given.sft), "--policies", *map(str, given.policies), "--weights", *map(str, WEIGHTS)),
        *("--rule", rule, *(["--rule_options", json.dumps(options)] if options else [])),
        *(["--statistics", *map(str, statistics)] if statistics else []),
        *flags,
    ]


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def assert_repeats(command: list[str]) -> dict:
    """Run the command into `first`, repeat it from its record into `second`, and return the record."""
    assert cli.main([*command, "--output_dir", "first"]) == 0
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 0
    assert contents("second") == contents("first")
    return json.loads(Path("first/merge_spec.json").read_text())


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_a_dense_merge_repeats(rule, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = inputs("mixed")
    folders, _ = statistics_of(rule, given, tmp_path)
    flags = ["--save", "dense", "--alpha", "auto", "--beta", "0.5", "--schedule", "sqrt", "--max_shard_size", "5KB"]
    record = assert_repeats(merge(rule, given, folders, *flags))
    assert record["spec"]["alpha"] == "auto" and record["max_shard_size"] == 5000
    assert len(record["statistics"]) == len(folders)


@pytest.mark.parametrize("rule", ON_RESIDUALS)
def test_an_adapter_repeats(rule, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = inputs("adapters")
    folders, _ = statistics_of(rule, given, tmp_path)
    for name, rank in (("cut", ["--rank", "3"]), ("exact", [])):
        if rank or RULES[rule].is_linear:
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            flags = ["--save", "adapter", "--alpha", "auto", "--beta", "1", *rank]
            record = assert_repeats(merge(rule, given, folders, *flags))
            assert record["rank"] == (3 if rank else 8)


def test_a_merge_with_lines_before_its_rule_repeats_and_is_no_other(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = merge("ties", inputs("float32"), [], "--save", "dense", "--beta", "1", "--lines", "before")
    assert cli.main([*command, "--output_dir", "planned", "--plan"]) == 0
    assert "before the rule" in capsys.readouterr().out
    assert assert_repeats(command)["spec"]["lines"] == "before"
    assert cli.main([*command[:-2], "--output_dir", "first", "--resume"]) == 2
    assert "first was made with" in capsys.readouterr().err
    assert cli.main([*command, "--beta", "0", "--output_dir", "third"]) == 2
    assert "lines is 'before', but alpha 1 and beta 0 scale nothing" in capsys.readouterr().err
    record = json.loads(Path("first/merge_spec.json").read_text())
    del record["spec"]["lines"]  # as all records were before there was a choice
    Path("first/merge_spec.json").write_text(json.dumps(record))
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "after"]) == 0
    assert "lines" not in json.loads(Path("after/merge_spec.json").read_text())["spec"]
    assert Path("after/model.safetensors").read_bytes() != Path("first/model.safetensors").read_bytes()


@pytest.mark.parametrize("rule", WITH_STATISTICS)
def test_statistics_that_changed_are_refused(rule, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = inputs("float32")
    folders, _ = statistics_of(rule, given, tmp_path)
    assert cli.main([*merge(rule, given, folders, "--save", "dense"), "--output_dir", "first"]) == 0
    path = next(folders[1].glob("*.safetensors"))
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    capsys.readouterr()
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("rlhf-lines merge: ")
    assert f"the file of statistics in '{folders[1]}' has changed since first/merge_spec.json was written" in error
    assert error.count("\n") == 1 and not Path("second").exists()


def test_a_folder_with_shards_of_another_size_is_not_kept(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [*merge("linear", inputs("float32"), [], "--save", "dense"), "--output_dir", "first"]
    assert cli.main([*command, "--max_shard_size", "5KB"]) == 0
    assert cli.main([*command, "--max_shard_size", "5000", "--resume"]) == 0
    assert cli.main([*command, "--max_shard_size", "6KB", "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("rlhf-lines merge: ")
    assert "was made with max_shard_size 5000, now it is 6000" in error
