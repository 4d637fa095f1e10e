"""Whole sweeps with every sampler, with further groups, MORLHF runs, texts to forget, and other ways to sample."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec
from rlhf_lines.models import load_tokenizer
from rlhf_lines.pareto.schema import faults
from rlhf_lines.pareto.surrogate import design
from rlhf_lines.sampling import prompt_key
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.engines.protocol import Request
from tests.sweep.by_hand import complete_by_hand, cross_entropy
from tests.sweep.of_a_run import TEST, VALIDATION, assert_same_store, means_by_hand, read, strict_json


ONE = {"scalings": ["0.5 1.5"]}  # nothing to choose
CHOOSING = {"scalings": ["0.5 1.5", "1 1"], "validation_weights": 2, "validation_prompts": 3}


@pytest.fixture
def run(flags, tmp_path):
    """A function from changes of the small sweep to the folder and the front."""

    def make(name: str = "sweep", **changes):
        folder = run_stage(
            "sweep", flags(tmp_path / name, **{**ONE, "test_prompts": 4, "max_new_tokens": 4, **changes})
        )
        front = strict_json(folder / "front.json")
        assert list(faults(front)) == []  # no key more or less than the schema has
        return folder, front

    return make


def groups_of(front) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for point in front["points"]:
        found.setdefault(point["group"], []).append(point)
    return found


def weights_of(points) -> list[list[float]]:
    return [point["spec"]["weights"] for point in points]


# --- samplers ---


def test_a_list_is_swept_with_the_single_policies(run, without_pictures, caplog):
    _, front = run(sampler="list", weights=["0.3 0.7", "1.5 -0.5"])
    groups = groups_of(front)
    expected = [[1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [1.5, -0.5]]
    assert groups.keys() == {"sft", "rewarded_soup", "lines"}
    assert weights_of(groups["rewarded_soup"]) == weights_of(groups["lines"]) == expected
    assert front["validation"] is None  # one scaling: chosen without validation prompts
    told = [message for message in caplog.messages if "no effect" in message]
    assert [message.partition(" no effect")[0] for message in told] == [
        "num_weights 5 has",
        "validation_weights and validation_prompts have",
    ]
    assert {(p["spec"]["alpha"], p["spec"]["beta"]) for p in groups["lines"]} == {(0.5, 1.5)}


def test_dirichlet_weights_are_those_of_the_seed(run, without_pictures):
    folder, front = run(sampler="dirichlet", num_weights=3, seed=5)
    drawn = np.random.Generator(np.random.PCG64(5)).dirichlet([1.0, 1.0], size=3).tolist()
    groups = groups_of(front)
    assert weights_of(groups["lines"]) == weights_of(groups["rewarded_soup"]) == [[1.0, 0.0], [0.0, 1.0], *drawn]
    assert read(folder, "SELECT COUNT(*) FROM points WHERE split = 'validation'") == [(0,)]


def test_map_measures_what_a_quadratic_predicts(run, rewards):
    folder, front = run(sampler="map", num_weights=4, map_points=3, test_prompts=6)
    means, groups, names = means_by_hand(folder, "test", rewards), groups_of(front), ["short", "early"]
    sampled_weights = [list(row) for row in design(2, 4)]
    assert front["surrogate"].keys() == {"rewarded_soup", "lines"}
    for name, report in front["surrogate"].items():
        specs = {point["id"]: point["spec"]["weights"] for point in groups[name]}
        sampled, predicted = report["sampled"], report["predicted"]
        assert [specs[i] for i in sampled] == sampled_weights
        assert 1 <= len(predicted) <= 3 and len(specs) == 4 + len(predicted)
        first = np.array([specs[i][0] for i in sampled])  # the last weight is one minus the first
        fits = [np.polyfit(first, [means[i][j] for i in sampled], deg=2) for j in (0, 1)]
        assert report["monomials"] == ["w1^2", "w1", "1"]
        for j, reward in enumerate(names):
            np.testing.assert_allclose(report["coefficients"][reward], fits[j], rtol=1e-6, atol=1e-9)
        for entry in predicted:
            w = specs[entry["id"]][0]
            assert specs[entry["id"]] not in sampled_weights and 0 <= w <= 1
            for j, reward in enumerate(names):
                assert entry["predicted"][reward] == pytest.approx(np.polyval(fits[j], w), rel=1e-6, abs=1e-9)
                assert entry["measured"][reward] == pytest.approx(means[entry["id"]][j], rel=1e-12)
        found = {point["id"]: point for point in front["points"]}
        for entry in predicted:
            assert found[entry["id"]]["scores"]["short"]["mean"] == entry["measured"]["short"]


# --- groups ---


def test_controls_of_length_and_depth(run):
    """With one candidate for LiNeS each has the one that it stands for, and nothing is measured to choose it."""
    _, front = run(controls="true", num_weights=3)
    groups = groups_of(front)
    assert front["validation"] is None
    assert groups.keys() == {"sft", "rewarded_soup", "lines", "scaled", "reversed"}
    mean = sum(0.5 + 1.5 * layer / 3 for layer in range(4)) / 4
    for point, lines in zip(groups["scaled"], groups["lines"], strict=True):
        assert point["spec"] == {**lines["spec"], "alpha": pytest.approx(mean, rel=1e-14), "beta": 0.0}
    for point, lines in zip(groups["reversed"], groups["lines"], strict=True):
        assert point["spec"] == {**lines["spec"], "schedule": "reversed"}
    pairs = [(c["a"], c["b"]) for c in front["comparisons"]]
    assert pairs[0] == ("lines", "rewarded_soup") and set(pairs[1:3]) == {("lines", "scaled"), ("lines", "reversed")}
    assert len(pairs) == 6


def test_alpha_auto_is_measured_at_every_weight(run, sft, policies, without_pictures):
    from rlhf_lines.merge.inputs.adapter import load_adapter
    from rlhf_lines.sweep.merges import Merges

    merges = Merges(sft, [load_adapter(policy) for policy in policies[:2]])
    _, front = run(scalings=["auto 1"], num_weights=3, controls="true")
    groups = groups_of(front)
    alphas = []
    for lines, scaled, upside_down in zip(groups["lines"], groups["scaled"], groups["reversed"], strict=True):
        spec = MergeSpec("linear", tuple(lines["spec"]["weights"]), "auto", 1.0)
        alphas.append(merges.resolved(spec).alpha)
        assert lines["spec"]["alpha"] == upside_down["spec"]["alpha"] == alphas[-1]
        assert scaled["spec"]["alpha"] == 1.5  # of auto what it is at equal weights, 1, and half of beta
    assert len(set(alphas)) == 3


def test_further_groups_and_morlhf_runs_are_those_of_the_merged_models(run, sft, policies, dense_model):
    """Every stored completion of theirs, token by token from dense merges: ties, and the third policy as a run."""
    ties = {"name": "sparse", "rule": "ties", "alpha": "auto", "beta": 1.0, "options": {"density": 0.4}}
    folder, front = run(groups=[json.dumps(ties)], morlhf=[policies[2]], num_weights=3)
    groups, tokenizer = groups_of(front), load_tokenizer(sft)
    assert Counter(p["group"] for p in front["points"]) == {
        "sft": 1, "morlhf": 1, "rewarded_soup": 3, "lines": 3, "sparse": 3,
    }  # fmt: skip
    assert [point["spec"]["weights"] for point in groups["morlhf"]] == [[0.0, 0.0, 1.0]]
    assert front["policies"] == list(map(str, policies)) and "sparse" in front["fronts"]
    single = {(p["group"], p["single_policy"], p["label"]) for p in front["points"] if p["single_policy"] is not None}
    assert single == {("rewarded_soup", 0, "brief"), ("rewarded_soup", 1, "kind"), ("morlhf", 2, "plain")}
    assert {p["spec"]["options"]["density"] for p in groups["sparse"]} == {0.4}
    assert all(isinstance(p["spec"]["alpha"], float) for p in groups["sparse"])
    rows = read(
        folder,
        "SELECT s.spec, p.text, c.sample, c.token_ids FROM points o JOIN specs s ON s.id = o.spec "
        "JOIN completions c ON c.spec = s.id JOIN prompts p ON p.id = c.prompt WHERE \"group\" IN ('sparse', 'morlhf')",
    )
    assert len(rows) == 4 * 4
    for spec, prompt, sample, token_ids in rows:
        ids = tuple(tokenizer(prompt)["input_ids"])
        request = Request(MergeSpec.from_dict(json.loads(spec)), ids, prompt_key(ids), sample)
        settings = {"eos": tokenizer.eos_token_id, "max_new_tokens": 4, "temperature": 1.0, "seed": 0}
        assert tuple(json.loads(token_ids)) == complete_by_hand(dense_model(request.spec), request, **settings)


BONE = [[0.75, 0.25], [0.25, 0.75]]


def test_sets_of_other_policies_are_those_of_the_merged_models(run, sft, four_policies, dense_model):
    """A soup of the third and fourth policy, a Bone Soup of the second and fourth, and one that is the soup itself."""
    ours = list(map(str, four_policies))
    sets = [
        {"name": "slow", "policies": ours[2:]},
        {"name": "bone", "policies": [ours[1], ours[3]], "mixing": BONE},
        {"name": "same", "policies": ours[:2], "mixing": [[1, 0], [0, 1]]},
    ]
    folder, front = run(policy_sets=[json.dumps(entry) for entry in sets], num_weights=5)
    groups = groups_of(front)
    assert front["policies"] == ours and {"slow", "bone", "same"} < front["fronts"].keys()
    grid = [(4 - i) / 4 for i in range(5)]
    assert weights_of(groups["slow"]) == [[0.0, 0.0, w, 1 - w] for w in grid]
    # (w, 1 - w) B^-1 with B^-1 = [[1.5, -0.5], [-0.5, 1.5]].
    assert weights_of(groups["bone"]) == [[0.0, 2 * w - 0.5, 0.0, 1.5 - 2 * w] for w in grid]
    for ours_, soup in zip(groups["same"], groups["rewarded_soup"], strict=True):
        assert {**ours_, "id": 0, "group": ""} == {**soup, "id": 0, "group": ""}
    single = {(p["group"], p["single_policy"], p["label"]) for p in front["points"] if p["single_policy"] is not None}
    assert single >= {("slow", 2, "plain"), ("slow", 3, "fourth"), ("bone", 1, "kind"), ("bone", 3, "fourth")}
    rows = read(
        folder,
        "SELECT s.spec, p.text, c.sample, c.token_ids FROM points o JOIN specs s ON s.id = o.spec "
        "JOIN completions c ON c.spec = s.id JOIN prompts p ON p.id = c.prompt WHERE \"group\" IN ('slow', 'bone')",
    )
    assert len(rows) == 2 * 5 * 4
    tokenizer = load_tokenizer(sft)
    for spec, prompt, sample, token_ids in rows:
        ids = tuple(tokenizer(prompt)["input_ids"])
        request = Request(MergeSpec.from_dict(json.loads(spec)), ids, prompt_key(ids), sample)
        settings = {"eos": tokenizer.eos_token_id, "max_new_tokens": 4, "temperature": 1.0, "seed": 0}
        assert tuple(json.loads(token_ids)) == complete_by_hand(dense_model(request.spec), request, **settings)


def test_the_command_of_a_bone_soup_makes_its_policy(run, four_policies, dense_model, tmp_path, without_pictures):
    bone = {"name": "bone", "policies": list(map(str, four_policies[2:])), "mixing": BONE}
    _, front = run(policy_sets=[json.dumps(bone)], num_weights=2)
    point = groups_of(front)["bone"][0]
    assert point["spec"]["weights"] == [0.0, 0.0, 1.5, -0.5]
    assert (
        cli.main(["merge", *point["merge_arguments"], "--save", "dense", "--output_dir", str(tmp_path / "made")]) == 0
    )
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32).state_dict()
    expected = dense_model(MergeSpec("linear", (0.0, 0.0, 1.5, -0.5))).state_dict()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_a_set_is_predicted_at_preferences_of_its_own(run, four_policies, without_pictures):
    bone = {"name": "bone", "policies": list(map(str, four_policies[2:])), "mixing": BONE}
    _, front = run(policy_sets=[json.dumps(bone)], sampler="map", num_weights=4, map_points=2)
    report = front["surrogate"]["bone"]
    points = {point["id"]: point for point in front["points"]}
    for found in report["predicted"]:
        weights = np.array(points[found["id"]]["spec"]["weights"])
        w1 = (weights[2:] @ np.array(BONE))[0]  # the preference again
        assert 0 <= w1 <= 1 and weights[:2].tolist() == [0.0, 0.0]
        for name, coefficients in report["coefficients"].items():
            by_hand = np.dot([w1**2, w1, 1.0], coefficients)
            assert found["predicted"][name] == pytest.approx(by_hand, abs=1e-9)
    assert report["predicted"] and report["monomials"] == ["w1^2", "w1", "1"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "lines"}, "policy_sets: 'lines' is the name of a group that a sweep has anyway"),
        ({"policies": ["a", "b", "c"]}, "policy_sets: bone has 3 policies, expected 2, as many as policies"),
        ({"policies": ["/nowhere/a", "/nowhere/b"]}, "policy of a set /nowhere/a does not exist"),
        ({"mixing": [[0.5, 0.5], [1, 1]]}, "which is singular"),
    ],
)
def test_a_set_that_is_none_is_refused_before_anything_is_made(run, four_policies, tmp_path, changes, sentence):
    bone = {"name": "bone", "policies": list(map(str, four_policies[2:])), **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
        run(policy_sets=[json.dumps(bone)])
    assert not list(tmp_path.glob("*sweep*"))


# --- one policy, one reward, policies alone ---


def test_one_policy_is_scaled_and_moved_back(run, policies, rewards):
    """The soup is the policy, LiNeS scales it, and WiSE-FT goes to it from the SFT model."""
    folder, front = run(policies=[policies[0]], num_weights=3, controls="true", **CHOOSING)
    groups = groups_of(front)
    assert groups.keys() == {"sft", "rewarded_soup", "lines", "scaled", "reversed", "wise_ft"}
    assert front["validation"]["groups"].keys() == {"scaled", "reversed"}
    for name, points in groups.items():
        assert weights_of(points) == {"sft": [[0.0]], "wise_ft": [[0.0], [0.5], [1.0]]}.get(name, [[1.0]])
    assert [point["single_policy"] for point in groups["rewarded_soup"]] == [0]
    assert front["fronts"].keys() == {"wise_ft"}
    # What is the same is measured once: the ends of WiSE-FT are the SFT model and the soup.
    ends = [point["scores"] for point in groups["wise_ft"]]
    assert ends[0] == groups["sft"][0]["scores"] and ends[2] == groups["rewarded_soup"][0]["scores"]
    means = means_by_hand(folder, "test", rewards)
    for point in front["points"]:
        got = [point["scores"][name]["mean"] for name in ("short", "early")]
        np.testing.assert_allclose(got, means[point["id"]], rtol=1e-12)


def test_one_policy_at_given_weights(run, policies, without_pictures):
    _, front = run(policies=[policies[0]], sampler="list", weights=["0.5", "2"])
    groups = groups_of(front)
    assert weights_of(groups["rewarded_soup"]) == weights_of(groups["lines"]) == [[1.0], [0.5], [2.0]]
    assert front["fronts"].keys() == {"rewarded_soup", "lines", "wise_ft"}


def test_policies_alone_are_those_of_the_dense_interpolation(run, sft, policies, dense_model):
    """theta_SFT + a (theta - theta_SFT), tensor by tensor of the single policy as it was merged."""
    import torch

    _, front = run(wise_ft="true", num_weights=3)
    groups = groups_of(front)
    assert weights_of(groups["wise_ft brief"]) == [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    assert weights_of(groups["wise_ft kind"]) == [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]
    for k, name in enumerate(("wise_ft brief", "wise_ft kind")):
        start, half, end = (
            dense_model(MergeSpec.from_dict(point["spec"])).state_dict() for point in groups[name]
        )  # fmt: skip
        single = dense_model(MergeSpec("linear", tuple(float(j == k) for j in range(2)))).state_dict()
        for key in half:
            torch.testing.assert_close(half[key], (start[key] + single[key]) / 2, rtol=1e-5, atol=1e-6)
            assert torch.equal(end[key], single[key])


def test_one_reward_has_a_front_of_one_number(run, rewards):
    """A hypervolume is the length between the best point and the reference point."""
    folder, front = run(rewards=["tiny_rewards:early"], num_weights=3, controls="true", **CHOOSING)
    assert front["rewards"] == ["early"] and front["fronts"].keys() == {"rewarded_soup", "lines", "scaled", "reversed"}
    means = {i: row[1] for i, row in means_by_hand(folder, "test", rewards).items()}
    (reference,) = front["reference_point"]
    for group, entry in front["fronts"].items():
        best = max(means[point["id"]] for point in front["points"] if point["group"] == group)
        assert entry["hypervolume"]["value"] == pytest.approx(max(best - reference, 0.0), abs=1e-12)
    assert (folder / "report.html").is_file()


# --- texts that end a completion ---


def test_completions_end_at_stop_texts_and_are_scored_without_them(run, rewards, sft, without_pictures):
    """Against the sweep without: the tokens up to the one that completes a stop text, the text before it."""
    plain, _ = run("plain", num_weights=2, max_new_tokens=12)
    stopped, _ = run("stopped", num_weights=2, max_new_tokens=12, stop=["e", "t"])
    query = "SELECT spec, prompt, sample, text, tokens, token_ids FROM completions ORDER BY spec, prompt, sample"
    tokenizer, ended = load_tokenizer(sft), 0
    for one, other in zip(read(plain, query), read(stopped, query), strict=True):
        ids, kept = json.loads(one[5]), json.loads(other[5])
        letters = [tokenizer.decode([token]) for token in ids]
        length = next((n for n, letter in enumerate(letters, start=1) if letter in "et"), len(ids))
        assert one[:3] == other[:3] and (kept, other[4]) == (ids[:length], length)
        assert other[3] == one[3].partition("e")[0].partition("t")[0]
        ended += length < len(ids)
    assert ended > 0
    for prompt, text, score in read(
        stopped,
        "SELECT p.scored_text, c.text, s.score FROM scores s JOIN completions c USING (spec, prompt, sample) "
        "JOIN prompts p ON p.id = c.prompt WHERE reward = 'early'",
    ):
        assert rewards.early([prompt], [text]) == [score]


# --- texts outside the task ---


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {"temperature": 0.0}, {"top_k": 3}], ids=str)
def test_a_policy_whose_numbers_overflow_ends_the_sweep_with_a_sentence(
    flags, sft, policies, save_policy, rewards, tmp_path, capsys, changes
):
    """Its logits are NaN, by which token 0 was drawn; the store then refused a KL that is none, also with --resume."""
    diverged = save_policy(sft, tmp_path / "diverged", seed=9, std=1e18)
    settings = {**ONE, "policies": [policies[0], diverged], "test_prompts": 4, "max_new_tokens": 4, **changes}
    for resume in ("false", "true"):
        assert cli.main(["sweep", *flags(tmp_path / "sweep", resume=resume, **settings)]) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert "sweep: the linear merge with weights 0.75 / 0.25, alpha 1.0 and beta 0.0 writes a completion" in told
        assert "with a log-probability that is not finite" in told and told.endswith("into another folder with --reuse")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_text_that_is_read_with_no_finite_probability_ends_the_sweep(run, monkeypatch, tmp_path, value):
    (tmp_path / "control.txt").write_text("abc def\n\nghi jkl\n")
    monkeypatch.setattr(LocalEngine, "nll", lambda engine, specs, rows: [1.0] * (len(rows) - 1) + [value])
    with pytest.raises(ValueError, match="reads a text outside the task with a log-probability that is not finite"):
        run(control=tmp_path / "control.txt")


def test_perplexity_of_control_texts_is_that_of_the_merged_models(run, sft, dense_model, tmp_path):
    texts = ["the quick brown fox", "ab.", "zz top <and> below", "not read: only three are asked for"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    ties = '{"name": "sparse", "rule": "ties"}'
    folder, front = run(
        control=tmp_path / "texts.txt", control_texts=3, control_tokens=12, num_weights=2, groups=[ties]
    )
    rows = [load_tokenizer(sft)(text)["input_ids"][:12] for text in texts[:3]]
    tokens = sum(len(row) - 1 for row in rows)
    assert front["forgetting"] == {"texts": 3, "tokens": tokens, "source": str(tmp_path / "texts.txt")}
    found = []
    for point in front["points"]:
        model = dense_model(MergeSpec.from_dict(point["spec"]))
        nll = sum(cross_entropy(model, row) for row in rows)
        assert point["perplexity"]["mean"] == pytest.approx(np.exp(nll / tokens), rel=1e-5)
        assert point["perplexity"]["low"] <= point["perplexity"]["mean"] <= point["perplexity"]["high"]
        found.append(round(point["perplexity"]["mean"], 6))
    assert len(set(found)) == len(found) == 7
    assert {"forgetting.png", "forgetting.pdf"} < {path.name for path in folder.iterdir()}


# --- completions do not depend on batches ---


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_batches_change_no_token(run, rewards, temperature, without_pictures):
    """Two samples of a prompt; batches of five across specs, rules and lengths, against all at once."""
    changes = {
        "temperature": temperature,
        "samples_per_prompt": 2,
        "num_weights": 3,
        "groups": ['{"name": "sparse", "rule": "ties"}'],
        "scalings": ["0.5 1.5", "1 1 sqrt"],
        "validation_weights": 2,
        "validation_prompts": 3,
    }
    small, _ = run("small", batch_size=5, **changes)
    assert max(map(len, rewards.SCORED)) == 5
    rewards.SCORED.clear()
    large, _ = run("large", batch_size=1000, **changes)
    assert max(map(len, rewards.SCORED)) > 40
    assert_same_store(small, large, kl=1e-4)
    samples = read(small, "SELECT COUNT(DISTINCT token_ids) FROM completions GROUP BY spec, prompt")
    assert max(count for (count,) in samples) == (1 if temperature == 0 else 2)


def test_without_a_batch_size_memory_decides(flags, rewards, tmp_path, monkeypatch, without_pictures):
    from rlhf_lines.sweep.engines import batches

    row = 2 * 4 * 2 * 4 * 6 * 4  # 4 layers, 2 heads of 4 numbers, two tokens and four new ones
    monkeypatch.setattr(batches, "free_bytes", lambda device: 20 * (row + 32 * 37))
    arguments = flags(tmp_path / "sweep", **ONE, max_new_tokens=4, test_prompts=TEST, validation_prompts=VALIDATION)
    position = arguments.index("--batch_size")
    run_stage("sweep", arguments[:position] + arguments[position + 2 :])
    lengths = {}
    for batch in rewards.SCORED:
        lengths.setdefault(max(len(prompt) for prompt, _ in batch), []).append(len(batch))
    assert sum(map(len, rewards.SCORED)) == 11 * TEST
    # Six tenths of what is free, by the longest prompt of a batch: shorter ones are more in a batch.
    for length, sizes in lengths.items():
        fitting = int(0.6 * 20 * (row + 32 * 37) / (2 * 4 * 2 * 4 * (length + 4) * 4 + 32 * 37))
        assert max(sizes) <= fitting
