"""The tutorials run: every block of theirs, in the order of a reader, on tiny models in place of real ones."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

from rlhf_lines import cli
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.pareto import read_front
from tests.tiny import CHAT_MODEL
from tests.tutorial import ROOT, blocks, read


def weights(front: dict, group: str) -> list[list[float]]:
    """The weights of a group's points, sorted."""
    return sorted(point["spec"]["weights"] for point in front["points"] if point["group"] == group)


def rank(adapter: str) -> int:
    """The largest rank of an adapter's modules."""
    return max(factors.A.shape[0] for factors in load_adapter(adapter).modules.values())


def test_two_adapters_and_a_third_reward(reader, without_pictures):
    read("own_adapters.md")
    point = next(point for point in read_front("sweep")["points"] if point["merge_arguments"])
    assert cli.main(["merge", *point["merge_arguments"], "--output_dir", "picked"]) == 0  # of adapters that are renamed
    assert weights(read_front("sweep"), "lines") == [[w / 4, 1 - w / 4] for w in range(5)]
    assert (rank("dpo-relevant"), rank("grpo-brief"), rank("merged")) == (4, 4, 8)
    assert Path("merged-dense/model.safetensors").is_file()
    read("serve_it.md")  # what needs no server; the rest is run in tests/vllm_engine
    exported = json.loads(Path("sweep/export/adapters/adapters.json").read_text())
    assert exported["policies"] == ["dpo-relevant", "grpo-brief"]
    assert [entry["spec"]["weights"] for entry in exported["adapters"]] == [
        [w / 4, 1 - w / 4] for w in range(4, -1, -1)
    ]
    assert {rank(f"sweep/export/adapters/{entry['folder']}") for entry in exported["adapters"]} == {4, 8}
    read("third_reward.md")
    two, three = read_front("sweep"), read_front("sweep-of-three")
    assert two["objectives"] == three["objectives"] == ["lexical", "length", "plain"]
    assert len(weights(three, "rewarded_soup")) == 6


def test_dpo_and_ppo(reader, without_pictures):
    read("dpo_and_ppo.md")
    assert load_adapter("dpo-brief").base == load_adapter("ppo-brief").base == CHAT_MODEL
    assert any(factors.B.abs().max() > 0 for factors in load_adapter("dpo-brief").modules.values())
    front = read_front("sweep")
    assert weights(front, "rewarded_soup") == [[w / 4, 1 - w / 4] for w in range(5)]
    assert weights(front, "brief by DPO") == [[w / 4, 0.0, 1 - w / 4] for w in range(5)]  # behind the merged policies
    assert rank("merged") == rank("ppo-relevant") + rank("dpo-brief")


def test_what_is_said_of_plans_is_what_they_say(tmp_path, monkeypatch, capsys):
    """Every line behind a command is one that it prints; `...` stands for others."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    compared = 0
    for (before, command), (language, shown) in itertools.pairwise(blocks("seven_billion.md")):
        if (before, language) == ("bash", "text"):
            assert cli.main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
            printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
            for line in shown.splitlines():
                assert line.strip() == "..." or " ".join(line.split()) in printed, line
            compared += 1
    assert compared == 1
