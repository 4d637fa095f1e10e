"""The file that a real sweep writes against the schema, key by key."""

from __future__ import annotations

import pytest

from rlhf_lines.pareto.schema import faults, read_front
from rlhf_lines.sweep.store import Store
from tests.sweep.of_a_run import read, strict_json
from tests.tiny import EOS


def test_the_file_has_the_keys_of_the_schema_and_no_other(sweep):
    """Those that are null here are not in other sweeps, which `tests/sweep/test_sweep_ends.py` looks at in this way."""
    front = strict_json(sweep / "front.json")
    assert list(faults(front)) == []
    assert read_front(sweep) == front
    assert {key for key, value in front.items() if value is None} == {"surrogate", "forgetting"}
    assert all(point["perplexity"] is None and point["kl"] for point in front["points"])


def test_points_say_which_policy_they_are_and_how_they_are_made(sweep):
    front = strict_json(sweep / "front.json")
    single = {p["single_policy"]: (p["group"], p["label"]) for p in front["points"] if p["single_policy"] is not None}
    assert single == {0: ("rewarded_soup", "brief"), 1: ("rewarded_soup", "kind")}
    assert [point["group"] for point in front["points"] if point["merge_arguments"] is None] == ["sft"]
    for point in front["points"][1:]:
        arguments = point["merge_arguments"]
        k = arguments.index("--weights") + 1
        assert [float(word) for word in arguments[k : k + 2]] == point["spec"]["weights"]
        assert "--output_dir" not in arguments and front["sft_model"] in arguments


def test_a_sweep_keeps_what_its_policies_look_like_and_what_ends_a_completion(sweep):
    front = strict_json(sweep / "front.json")
    with Store(sweep, reading=True) as store:
        assert store.recall("audit") == front["audit"] and store.recall("end_tokens") == [EOS]
    assert [policy["name"] for policy in front["audit"]["policies"]] == front["policies"]
    assert all(0 < policy["relative_norm"] < 10 for policy in front["audit"]["policies"])


def test_every_point_says_what_its_completions_are_like(sweep):
    rows = read(
        sweep,
        "SELECT o.id, avg(trim(c.text, char(9, 10, 32)) = ''), avg(c.tokens), "
        f"avg(c.tokens = 8 AND json_extract(c.token_ids, '$[7]') != {EOS}) "
        "FROM points o JOIN completions c ON c.spec = o.spec JOIN prompts p ON p.id = c.prompt AND p.split = o.split "
        "WHERE o.split = 'test' GROUP BY o.id",
    )
    front, by_hand = strict_json(sweep / "front.json"), {row[0]: row[1:] for row in rows}
    for point in front["points"]:
        found = [point["metrics"][name]["mean"] for name in ("share_empty", "tokens", "share_cut")]
        assert found == pytest.approx(by_hand[point["id"]])
        assert point["changes"].keys() == {"tokens", "share_empty", "share_cut", "repetition", "distinct"}
