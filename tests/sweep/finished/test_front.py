"""The file that a real sweep writes against the schema, key by key."""

from __future__ import annotations

from rlhf_lines.pareto.schema import faults, read_front
from tests.sweep.of_a_run import strict_json


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
