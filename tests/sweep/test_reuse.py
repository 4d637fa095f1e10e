"""A sweep that adds to a finished one leaves what a sweep of all of it would have left, and does nothing twice."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines.artifact import partial_folder
from rlhf_lines.pareto.schema import faults
from rlhf_lines.plan import Options, plan
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.store import Store
from tests.sweep.of_a_run import read, strict_json


pytestmark = pytest.mark.usefixtures("without_pictures")
SMALL = {
    **{"num_weights": 3, "test_prompts": 4, "max_new_tokens": 4, "validation_weights": 2, "validation_prompts": 3},
    **{"scalings": ["0.5 1.5", "1 1"], "edge_extensions": 0},
}
BY_LAYER = json.dumps(
    {
        "name": "learned",
        "rule": "layerwise",
        "options": {"factors": [[0.2, 1.0, 0.5, 1.5], [1.0, 0.5, 0.0, 2.0]], "outside": [1.0, 0.5]},
        "alpha": 1.0,
    }
)
BY_PROMPT = (
    "SELECT s.spec, p.split, p.text, c.sample, c.text, c.tokens, c.token_ids FROM completions c "
    "JOIN specs s ON s.id = c.spec JOIN prompts p ON p.id = c.prompt ORDER BY s.spec, p.split, p.text, c.sample"
)


@pytest.fixture
def sweep(flags, tmp_path):
    """A function from a name and changes of the small sweep to its folder."""
    return lambda name, **changes: run_stage("sweep", flags(tmp_path / name, **{**SMALL, **changes}))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of three texts outside the task."""
    path = tmp_path_factory.mktemp("texts") / "control.txt"
    path.write_text("a b c\n\nd e\n\nsome more")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where the small sweeps are kept, which tests only read."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture
def small(flags, made):
    """The small sweep, made by the first test that asks for it."""
    folder = made / "sweep"
    return folder if folder.exists() else run_stage("sweep", flags(folder, **SMALL))


@pytest.fixture
def small_with_texts(flags, made, texts):
    """The same, which read texts outside the task."""
    folder = made / "sweep with texts"
    return folder if folder.exists() else run_stage("sweep", flags(folder, **SMALL, control=texts, control_texts=3))


def scored(rewards) -> list:
    return [pair for pairs in rewards.SCORED for pair in pairs]


@pytest.mark.parametrize(
    "more",
    [
        {"test_prompts": 7},
        {"samples_per_prompt": 3},
        {"num_weights": 5, "validation_prompts": 5},
        {"groups": ['{"name": "ties", "rule": "ties"}'], "controls": "true"},
        {"groups": [BY_LAYER], "num_weights": 2},
        {"scalings": ["0.5 1.5", "2 0"], "wise_ft": "true"},
        {"third": True},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_is_added_leaves_the_front_of_a_sweep_of_all(sweep, small_with_texts, rewards, policies, texts, more):
    more = {**more}
    if more.pop("third", False):  # in front of the others, so that all weights move
        more["policies"] = [policies[2], *policies[:2]]
    rewards.SCORED.clear()
    grown = sweep("grown", control=texts, control_texts=3, reuse=small_with_texts, **more)
    new = len(scored(rewards))
    rewards.SCORED.clear()
    fresh = sweep("fresh", control=texts, control_texts=3, **more)
    assert read(grown, BY_PROMPT) == read(fresh, BY_PROMPT)
    keys = [(spec, text, sample) for spec, _, text, sample, *_ in read(fresh, BY_PROMPT)]
    assert len(keys) == len(scored(rewards)) > new
    ours, theirs = (strict_json(folder / "front.json") for folder in (grown, fresh))
    assert list(faults(ours)) == []
    for front in (ours, theirs):
        for point in front["points"]:
            for name in ("kl", "perplexity"):  # batches of other sizes round differently
                point[name] = {end: pytest.approx(value, rel=1e-5, abs=1e-4) for end, value in point[name].items()}
        for entry in front["comparisons"]:
            for name in ("equal_kl_difference", "kl_budgets", "equal_kl_hypervolumes", "verdict"):
                del entry[name]
        if front["validation"]:
            for tuning in (front["validation"], *front["validation"]["groups"].values()):
                for entry in tuning["grid"]:
                    entry["kl"] = pytest.approx(entry["kl"], rel=1e-5, abs=1e-4)
    assert_equal(ours, theirs)


def test_what_a_stopped_sweep_has_stored_is_taken_by_one_of_other_settings(sweep, rewards, monkeypatch, tmp_path):
    with monkeypatch.context() as stopping:
        batches = iter(range(2))
        add = Store.add
        stopping.setattr(Store, "add", lambda store, rows: add(store, rows[: len(rows) - next(batches)]))
        with pytest.raises((StopIteration, RuntimeError)):
            sweep("stopped", batch_size=8)
    assert not (tmp_path / "stopped").exists()
    rewards.SCORED.clear()
    grown = sweep("grown", reuse=tmp_path / "stopped", scalings=["0.5 1.5", "2 0"])
    new = len(scored(rewards))
    rewards.SCORED.clear()
    fresh = sweep("fresh", scalings=["0.5 1.5", "2 0"])
    assert read(grown, BY_PROMPT) == read(fresh, BY_PROMPT)
    stored = read(partial_folder(tmp_path / "stopped"), BY_PROMPT)
    assert len(stored) == 15, "two batches of 8 less the row that was left out"
    assert len(scored(rewards)) - new == len(set(stored).intersection(read(fresh, BY_PROMPT))) > 0
    for there in (False, True):  # also beside a folder without a store, which was to be replaced
        with pytest.raises(ValueError, match="stopped is also the output_dir, and no finished sweep: choose another"):
            sweep("stopped", reuse=tmp_path / "stopped", overwrite="true")
        assert len(read(partial_folder(tmp_path / "stopped"), BY_PROMPT)) == len(stored)
        (tmp_path / "stopped").mkdir(exist_ok=there)


def test_merges_with_beta_0_of_an_earlier_version_are_taken(sweep, rewards, texts, tmp_path):
    """It told schedules of beta 0 apart, and had some on validation prompts only."""
    changes = {"scalings": ["0.5 1.5", "2 0"], "control": texts, "control_texts": 3, "max_forgetting": 1000.0}
    folder = sweep("before", **changes)
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        for spec, text in database.execute("SELECT id, spec FROM specs").fetchall():
            if (values := json.loads(text))["alpha"] == 2:
                columns = "prompt, sample, text, tokens, token_ids, kl FROM completions"
                old = json.dumps({**values, "schedule": "sqrt"}, sort_keys=True)
                other = database.execute("INSERT INTO specs (spec) VALUES (?)", (old,)).lastrowid
                half = f"WHERE spec = {spec} AND (prompt + sample) % 2 = 0"  # the rest of it is the other's
                copied = database.execute(f"INSERT INTO completions SELECT {other}, {columns} WHERE spec = {spec}")
                assert copied.rowcount > 0
                for table, more in (("scores", "prompt, sample, reward, score"), ("control", "text, nats")):
                    database.execute(f"INSERT INTO {table} SELECT {other}, {more} FROM {table} WHERE spec = {spec}")
                for table in ("scores", "completions"):
                    database.execute(f"DELETE FROM {table} {half}")
    rewards.SCORED.clear()
    again = sweep("again", reuse=folder, **changes)
    assert scored(rewards) == []
    with Store(again, reading=True) as store:
        assert all(spec.schedule == "linear" for spec in store.specs().values())


def test_what_was_stopped_before_it_stored_anything_is_no_sweep(sweep, tmp_path):
    partial_folder(tmp_path / "begun").mkdir()
    Store(partial_folder(tmp_path / "begun")).__exit__()
    with pytest.raises(ValueError, match=r"on its way to .*begun is no sweep, or had stored nothing yet"):
        sweep("grown", reuse=tmp_path / "begun")


def assert_equal(ours, theirs) -> None:
    """Equal, with the numbers of one side, where they are approximate, against the other's."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif hasattr(ours, "expected"):
        assert ours.expected == theirs
    else:
        assert ours == theirs


def test_a_sweep_of_the_same_is_taken_whole_also_in_place(sweep, rewards, texts):
    small = sweep("small", control=texts, control_texts=3)
    before = read(small, BY_PROMPT), strict_json(small / "front.json")
    rewards.SCORED.clear()
    again = sweep("small", control=texts, control_texts=3, reuse=small, overwrite="true")
    assert again == small and scored(rewards) == []
    assert (read(small, BY_PROMPT), strict_json(small / "front.json")) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.5}, "has temperature 1.0, and now it is 0.5: give the same, or leave out reuse"),
        ({"seed": 1}, "has seed 0, and now it is 1"),
        ({"max_new_tokens": 5}, "has max_new_tokens 4, and now it is 5"),
        ({"top_k": 3}, "has top_k None, and now it is 3"),
        ({"rewards": ["tiny_rewards:short", "tiny_rewards:constant"]}, "have no score 'constant': give them one first"),
        ({"reuse": "/nowhere"}, "/nowhere has no run.sqlite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_completions_that_would_be_others_are_not_taken(sweep, small, tmp_path, changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        sweep("grown", **{"reuse": small, **changes})
    assert [path.name for path in tmp_path.glob("*grown*")] == []


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 0.5}, {"reuse": "/nowhere"}], ids=str)
def test_other_sampling_is_told_before_models_are_read_and_by_the_plan(flags, small, tmp_path, monkeypatch, changes):
    monkeypatch.setattr("rlhf_lines.sweep.run.read_inputs", lambda *configs: pytest.fail("models were read"))
    given = flags(tmp_path / "grown", **{**SMALL, "reuse": small, **changes})
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        run_stage("sweep", given)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(refused.value))):
        plan(given, Options(stage="sweep"))


@pytest.mark.parametrize(
    ("before", "now", "taken"),
    [
        ({"quantization": "fp8"}, {"quantization": "fp8"}, True),
        (None, {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.6, "hf_token": "hf_x"}, True),
        (None, {"max_model_len": 512}, False),
        ({"quantization": "fp8"}, None, False),
        (None, {"max_loras": 4, "kv_cache_dtype": "fp8"}, False),
    ],
    ids=str,
)
def test_vllm_may_have_more_devices_and_not_other_numbers(flags, small, tmp_path, monkeypatch, before, now, taken):
    of_vllm = shutil.copytree(small, tmp_path / "of vllm")
    with contextlib.closing(sqlite3.connect(of_vllm / "run.sqlite")) as store, store:
        for key, value in (("engine", "vllm"), ("vllm", before)):
            store.execute("UPDATE meta SET value = ? WHERE key = ?", (json.dumps(value), key))
    monkeypatch.setattr("rlhf_lines.sweep.run.read_inputs", Mock(side_effect=ValueError("it is taken")))
    given = {"reuse": of_vllm, "engine": "vllm", **({} if now is None else {"vllm": json.dumps(now)})}
    words = "it is taken" if taken else "has vllm .*, and now it is"
    with pytest.raises(ValueError, match=words):
        run_stage("sweep", flags(tmp_path / "grown", **{**SMALL, **given}))


def test_another_sft_model_or_policy_shares_nothing(sweep, small, rewards, sft, policies, tmp_path):
    other = tmp_path / "other" / "sft"
    shutil.copytree(sft, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    with pytest.raises(ValueError, match="of another SFT model or tokenizer"):
        sweep("grown", reuse=small, sft_model=other, sft_renamed="true")
    rewards.SCORED.clear()
    sweep("swapped", reuse=small, policies=[policies[0], policies[2]], scalings=["1 0"], num_weights=2)
    texts = {(prompt, spec) for spec, _, prompt, *_ in read(tmp_path / "swapped", BY_PROMPT)}
    weights = {tuple(json.loads(spec)["weights"]) for _, spec in texts}
    assert weights == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)}
    assert len(scored(rewards)) == 4, "only the policy that the other sweep did not have, on four prompts"


def test_a_rule_with_other_statistics_is_sampled_anew(sweep, sft, rewards, tmp_path):
    weights = load_file(sft / "model.safetensors")
    kinds = {"square": torch.square, "alike": torch.ones_like, "copy": torch.square}
    for name, make in kinds.items():
        for policy in ("one", "two"):
            (folder := tmp_path / name / policy).mkdir(parents=True)
            save_file({key: make(tensor) for key, tensor in weights.items()}, folder / "fisher.safetensors")

    def weighted(kind: str, **changes):
        folders = [str(tmp_path / kind / policy) for policy in ("one", "two")]
        group = {"name": "by Fisher", "rule": "fisher", "alpha": 1.0, "statistics": folders}
        rewards.SCORED.clear()
        return sweep(f"of {kind}", groups=[json.dumps(group)], **changes), len(scored(rewards))

    first, of_all = weighted("square")
    assert of_all > weighted("copy", reuse=first)[1] == 0
    assert weighted("alike", reuse=first)[1] == 12, "that group alone: three weights, four prompts"
