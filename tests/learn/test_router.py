"""A router learned from a finished sweep: its numbers by hand, its worth on prompts left out, a group of it."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.learn.router import _scaling, read_measured
from rlhf_lines.learn.router_config import RouterConfig
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.router import Router, text_sha256
from rlhf_lines.sweep.store import Store
from tests.learn.test_ridge import by_normal_equations
from tests.sweep.conftest import dataset, flags, policies, rewards, sft  # noqa: F401 - fixtures


pytestmark = pytest.mark.usefixtures("without_pictures")
SETTINGS = {
    **{"num_weights": 2, "test_prompts": 4, "max_new_tokens": 4, "validation_weights": 3, "validation_prompts": 12},
    **{"scalings": ["0.5 1.5", "1 0"], "alphas": [0.5], "betas": [1.5]},
}
REWARDS = ["short", "early"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the sweep is kept, which tests only read."""
    return tmp_path_factory.mktemp("swept")


@pytest.fixture
def swept(flags, made):  # noqa: F811
    """A finished sweep of two scalings, made by the first test that asks for it."""
    folder = made / "sweep"
    return folder if folder.exists() else run_stage("sweep", flags(folder, **SETTINGS))


def test_a_router_predicts_what_was_measured_and_tells_what_that_is_worth(swept, sft, tmp_path, capsys):  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert cli.main(["router", "--sweep", str(swept), "--output_dir", str(tmp_path / "router")]) == 0
    folder, record = tmp_path / "router", read_record(tmp_path / "router")
    chosen = read_record(swept)
    scaling = [chosen[name] for name in ("alpha", "beta", "schedule")]
    with Store(swept, reading=True) as store:
        points = {
            p.spec.weights: p for p in store.points("validation") if p.group == f"lines {' '.join(map(str, scaling))}"
        }
        in_order = sorted(points.values(), key=lambda point: point.spec_id)  # a single policy is an anchor, too
        scores = np.stack([store.scores(point.spec_id, "validation", REWARDS) for point in in_order], axis=1)
        anchors = [p for p in store.points("validation") if p.group in ("sft", "rewarded_soup")]
        means = np.stack([store.scores(point.spec_id, "validation", REWARDS).mean(axis=0) for point in anchors])
        prompts = [prompt.text for prompt in store.prompts("validation").values()]
    low, high = means.min(axis=0), means.max(axis=0)
    utilities = (scores - low + 0.1 * (high - low)) / (1.1 * (high - low))
    router = Router.read(folder)
    assert len(anchors) == 3 and len(points) == 3
    assert [points[weights].spec_id for weights in router.points] == sorted(point.spec_id for point in points.values())
    assert [router.card[name] for name in ("alpha", "beta", "schedule")] == scaling
    assert router.card["prompts_sha256"] == list(map(text_sha256, prompts))

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32),
        AutoTokenizer.from_pretrained(sft),
    )
    with torch.no_grad():
        read = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in prompts]
    features = np.stack([output.hidden_states[-1][0, -1].double().numpy() for output in read])
    targets = (utilities - utilities.mean(axis=1, keepdims=True)).reshape(12, 6)
    rows, penalty = np.arange(12), 1e12 if record["penalty"] is None else record["penalty"]
    bias, coefficients = by_normal_equations(features, targets, rows, penalty)
    np.testing.assert_allclose(
        router.predict(features).reshape(12, 6), bias + features @ coefficients, rtol=1e-4, atol=1e-5
    )
    fits = [by_normal_equations(features, targets, rows[rows != i], penalty) for i in rows]
    left_out = np.stack([bias + features[i] @ of for i, (bias, of) in enumerate(fits)])
    by_mean = np.stack([targets[rows != i].mean(axis=0) for i in rows])
    unexplained = np.square(left_out - targets).sum() / np.square(by_mean - targets).sum()
    assert record["explained"] == pytest.approx(1 - unexplained, rel=1e-3, abs=1e-4)
    assert [row["preference"] for row in record["gains"]] == [[1 - w, w] for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for row in record["gains"]:
        values = utilities @ row["preference"]
        best = values.mean(axis=0).argmax()
        assert row["fixed"]["weights"] == list(router.points[best])
        assert row["fixed"]["value"] == pytest.approx(values[:, best].mean(), rel=1e-9)
        routed = values[rows, (left_out.reshape(12, 3, 2) @ row["preference"]).argmax(axis=1)]
        assert row["routed"] == pytest.approx(routed.mean(), rel=1e-9)
        assert row["gain"]["value"] == pytest.approx((routed - values[:, best]).mean(), rel=1e-9, abs=1e-12)
        low, value, high = (row["gain"][key] for key in ("low", "value", "high"))
        assert (low is high is None) if low is None else low <= value <= high  # none where few of 12 prompts differ
    shown = capsys.readouterr().out
    assert "3 merges of lines on 12 prompts" in shown and "best for all" in shown
    assert run_stage("router", ["--sweep", str(swept), "--output_dir", str(folder), "--resume"]) == folder


def test_a_group_takes_what_was_learned(swept, flags, tmp_path):  # noqa: F811
    router = run_stage(
        "router", ["--sweep", str(swept), "--group", "rewarded_soup", "--output_dir", str(tmp_path / "r")]
    )
    assert Router.read(router).card["alpha"] == 1.0 and Router.read(router).card["beta"] == 0.0
    entry = json.dumps({"name": "routed", "rule": "twin", "router": str(router), "options": {"rank": 2}})
    folder = run_stage("sweep", flags(tmp_path / "again", groups=[entry], **{**SETTINGS, "scalings": ["1 0"]}))
    assert [row["preference"] for row in read_record(folder)["routed"]["routed"]] == [[1.0, 0.0], [0.0, 1.0]]


def test_an_sft_model_that_has_changed_is_refused(swept, sft, tmp_path):  # noqa: F811
    other = shutil.copytree(sft, tmp_path / "other")
    (other / "generation_config.json").write_text('{"eos_token_id": 1}')
    with pytest.raises(ValueError, match=r"SFT model .* has changed since the sweep in .* \(generation_config\.json\)"):
        run_stage("router", ["--sweep", str(swept), "--sft_model", str(other), "--output_dir", str(tmp_path / "out")])


def test_what_cannot_be_learned_is_refused(swept, flags, policies, tmp_path):  # noqa: F811
    out = ["--output_dir", str(tmp_path / "out")]
    for arguments, message in [
        (
            ["--sweep", str(swept), "--group", "scaled"],
            "group is 'scaled', but the sweep in .* chose for rewarded_soup, lines",
        ),
        (["--sweep", str(tmp_path / "nowhere")], "has no run.sqlite"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_stage("router", [*arguments, *out])
    with pytest.raises(FileExistsError, match="which --overwrite would delete"):
        run_stage("router", ["--sweep", str(swept), "--output_dir", str(policies[0]), "--overwrite", "true"])
    with Store(swept, reading=True) as store:
        kept = {key: store.recall(key) for key in ("policies", "validation")}

        class Other:
            """The store with a fact that is otherwise."""

            def __init__(self, **facts):
                self.facts = facts

            def __getattr__(self, name):
                return getattr(store, name)

            def recall(self, key, *default):
                return self.facts[key] if key in self.facts else store.recall(key, *default)

        config, auto = RouterConfig("S", "out"), {**kept["validation"], "chosen": {"alpha": "auto", "beta": 0.0}}
        for facts, message in [
            ({"policies": ["a", "b", "c"]}, "has 3 policies and 2 objectives"),
            ({"validation": None}, "measured nothing on validation prompts"),
            ({"validation": auto}, "has alpha auto, which differs from merge to merge"),
            (
                {"validation": {**kept["validation"], "chosen": {"alpha": 7.0, "beta": 0.0, "schedule": "linear"}}},
                "has measured 0 merges of group lines on validation prompts, expected two or more",
            ),
        ]:
            with pytest.raises(ValueError, match=re.escape(message)):
                read_measured(Other(**facts), config)
        one_prompt = Other()
        one_prompt.prompts = lambda split: dict(list(store.prompts(split).items())[:1])
        with pytest.raises(ValueError, match="has 1 validation prompt, expected two or more"):
            read_measured(one_prompt, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"groups": [{"name": "mine", "rule": "ties", "alphas": [0.5, 1.0]}]}, "rule ties"),
        ({"groups": ['{"name": "mine", "rule": "sum"}']}, "rule sum"),
        ({"policy_sets": [{"name": "mine", "policies": ["c", "d"], "alphas": [0.5, 1.0]}]}, "other policies"),
        ({"groups": [{"name": "mine", "alphas": [0.5, 1.0]}, {"name": "other", "rule": "ties"}]}, None),
    ],
)
def test_a_group_of_another_rule_or_of_other_policies_is_refused(settings, told):
    """It learned on linear merges of the sweep's own policies that happened to have the scaling of the group."""
    chosen = {"alpha": 0.5, "beta": 0.0, "schedule": "linear"}
    known = {"validation": {"chosen": chosen, "groups": {"mine": {"chosen": chosen}}}, **settings}
    store = SimpleNamespace(recall=lambda key, default: known.get(key, default))
    config = RouterConfig(sweep="swept", output_dir="out", group="mine")
    if told is None:
        assert _scaling(store, config) == Scaling(0.5, 0.0)
        return
    with pytest.raises(ValueError, match=rf"^group is 'mine', whose merges in the sweep in swept are of {told}, and a"):
        _scaling(store, config)
