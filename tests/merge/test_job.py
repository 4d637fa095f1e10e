"""A merge as a value: equal where it is the same merge, written and read again, checked without inputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.job import Hashes, Merge, Written
from rlhf_lines.merge.lora.truncate import Truncation
from rlhf_lines.merge.tensors.precision import LostResidual


SPEC = MergeSpec("ties", (0.3, 0.7), "auto", 1.0, "sqrt", {"density": 0.4})
ADAPTER = Merge("sft", ("a", "b"), SPEC, "adapter", rank=4, dtype="bfloat16")
DENSE = Merge(
    "sft",
    ("a", "b"),
    MergeSpec("fisher", (0.3, 0.7)),
    "dense",
    statistics=("fa", "fb"),
    max_shard_size=5000,
    device="cuda:1",
)
WRITTEN = Written(0.5, LostResidual(0.01, None), "bfloat16", 4, Truncation(4, 0.1, "q_proj", 0.2))


def test_paths_lists_and_devices_are_the_texts_that_a_record_holds():
    same = Merge(Path("sft"), [Path("a"), "b"], SPEC, "adapter", 4, "bfloat16", [], None, torch.device("cpu"))
    assert same == ADAPTER and hash(same) == hash(ADAPTER)
    with pytest.raises(dataclasses.FrozenInstanceError):
        same.save = "dense"


@pytest.mark.parametrize("merge", [ADAPTER, DENSE], ids=["adapter", "dense"])
def test_a_record_holds_the_whole_merge(merge):
    weights, configs = (tuple(f"{k}" * 64 for k in range(first, first + 3)) for first in (0, 3))
    hashes = Hashes(weights, configs, tuple(f"{k}" * 64 for k in range(6, 6 + len(merge.statistics))))
    record = json.loads(json.dumps(merge.to_record(hashes, WRITTEN, ["beware"])))
    assert Merge.from_record(record) == merge
    hashed = [*record["policies"], *record["statistics"]]
    assert [record["sft_sha256"], *(folder["sha256"] for folder in hashed)] == [*weights, *hashes.statistics]
    assert (record["sft_config_sha256"], *(policy["config_sha256"] for policy in record["policies"])) == configs
    assert [folder["path"] for folder in hashed] == [*merge.policies, *merge.statistics]
    assert (record["alpha"], record["dtype"], record["rank"]) == (0.5, "bfloat16", 4)
    assert (record["truncation"]["worst_module"], record["warnings"]) == ("q_proj", ["beware"])


def test_a_record_has_a_hash_for_every_input():
    for hashes in (Hashes("012", "01", "01"), Hashes("01", "012", "01"), Hashes("012", "012", "0")):
        with pytest.raises(ValueError, match="zip"):
            DENSE.to_record(hashes, WRITTEN, [])


CHANGES = {
    "sft_model": "other",
    "policies": ("a", "c"),
    "spec": MergeSpec("fisher", (0.7, 0.3)),
    "save": "adapter",
    "rank": 3,
    "dtype": "float16",
    "statistics": ("fa", "fc"),
    "max_shard_size": None,
    "device": "cpu",
    "sft_renamed": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_is_compared(name):
    assert CHANGES.keys() == {entry.name for entry in dataclasses.fields(Merge)}
    other = dataclasses.replace(DENSE, **{name: CHANGES[name]})
    assert other != DENSE
    told, here, there = DENSE.difference(other)
    assert told == name and here != there
    assert json.loads(json.dumps([here, there])) == [here, there]  # as JSON has them


def test_of_several_differences_what_is_merged_how_comes_first():
    assert DENSE.difference(DENSE) is None
    other = dataclasses.replace(DENSE, policies=("a",), spec=MergeSpec("linear", (1.0,)), dtype="float16")
    assert DENSE.difference(other) == ("spec", DENSE.spec.to_dict(), other.spec.to_dict())
    other = dataclasses.replace(DENSE, policies=("a",), dtype="float16")
    assert DENSE.difference(other) == ("policies", ["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"save": "adpter"}, "unknown save 'adpter'; known: adapter, dense; did you mean 'adapter'"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'; known: bfloat16"),
        ({"policies": ("a",)}, "2 weights for 1 policy; give one weight per policy"),
        ({"rank": True}, "rank is True, expected a whole number of at least 1"),
        ({"rank": 0}, "rank is 0, expected a whole number of at least 1"),
        ({"rank": None}, "rule 'ties' is not linear in the residuals, so no adapter holds it exactly; give --rank"),
        ({"save": "dense"}, "rank is 4, but a dense checkpoint has none"),
        ({"device": "mps"}, "device is 'mps', expected cpu, cuda, or one of several GPUs as in cuda:1"),
        ({"device": "cpu:1"}, "device is 'cpu:1', expected cpu"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but torch sees"),
    ],
    ids=str,
)
def test_settings_are_checked_before_any_input_exists(changes, words):
    ADAPTER.check()
    merge = dataclasses.replace(ADAPTER, **changes)
    with pytest.raises(ValueError) as error:
        merge.check()
    assert words in str(error.value)


def test_a_gpu_is_refused_where_nothing_is_computed_on_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rule in ("linear", "sum", "peft_linear"):
        merge = dataclasses.replace(ADAPTER, spec=MergeSpec(rule, (0.3, 0.7)), device="cuda:1")
        message = f"device is 'cuda:1', but an adapter by rule '{rule}' is made of factors, on the CPU; leave it out"
        with pytest.raises(ValueError, match=message):
            merge.check()
    measured = MergeSpec("linear", (0.3, 0.7), "auto")  # on dense residuals, as of rules that are not linear
    for used in (
        {"spec": measured},
        {"spec": SPEC},
        {"spec": MergeSpec("linear", (1, 0)), "save": "dense", "rank": None},
    ):
        dataclasses.replace(ADAPTER, device="cuda:1", **used).check()


@pytest.mark.parametrize("policies", [(), "one", Path("one")])
def test_policies_are_a_list(policies):
    with pytest.raises(ValueError, match="expected a list of one or more folders"):
        Merge("sft", policies, SPEC, "dense")
