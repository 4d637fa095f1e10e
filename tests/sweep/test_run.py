"""The sweep stage from flags to front.json, with every number worked out again from the run store."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from rlhf_lines import cli
from rlhf_lines.artifact import partial_folder
from rlhf_lines.data.splits import split_of
from rlhf_lines.merge import MergeSpec
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.finished.front import gains
from rlhf_lines.sweep.store import Store, StoredPoint
from tests.sweep.conftest import CHARACTERS
from tests.sweep.of_a_run import (
    ALPHAS,
    BETAS,
    ROWS,
    TEST,
    VALIDATION,
    WEIGHTS,
    area,
    assert_same_store,
    means_by_hand,
    read,
    strict_json,
)


# --- what a finished sweep holds ---


FILES = {f"{figure}{suffix}" for figure in ("front", "kl", "validation") for suffix in (".png", ".pdf")}
TABLES = ("table.tex", "front.csv")


def test_the_folder_and_the_keys_of_the_contract(sweep):
    names = {path.name for path in sweep.iterdir()}
    assert names == {"run.sqlite", "front.json", "report.html", "config.yaml", "rlhf_lines.json", *TABLES} | FILES
    for name in FILES:
        assert (sweep / name).read_bytes().startswith(b"\x89PNG" if name.endswith(".png") else b"%PDF")
    front = strict_json(sweep / "front.json")
    contract = {"format", "rewards", "split", "reference_point", "seed", "points", "fronts", "comparisons"}
    assert front.keys() >= contract | {"ideal_point", "policies", "sft_model", "validation", "surrogate", "forgetting"}
    assert (front["format"], front["rewards"], front["split"], front["seed"]) == (1, ["short", "early"], "test", 0)
    assert front["surrogate"] is front["forgetting"] is None
    for point in front["points"]:
        assert point.keys() >= {"id", "group", "spec", "scores", "kl", "prompts", "samples_per_prompt"}
        assert point["spec"].keys() == {"rule", "weights", "alpha", "beta", "schedule", "options"}
        assert (point["prompts"], point["samples_per_prompt"], point["perplexity"]) == (TEST, 1, None)
        for estimate in (*point["scores"].values(), point["kl"]):
            assert estimate.keys() == {"mean", "low", "high"}
            # A score that nearly all of these few prompts have alike has none.
            assert estimate["low"] is None or estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert front["fronts"].keys() == {"rewarded_soup", "lines"}
    assert [(c["a"], c["b"]) for c in front["comparisons"]] == [("lines", "rewarded_soup")]
    assert strict_json(sweep / "rlhf_lines.json")["stage"] == "sweep"


def test_the_models_are_named(sweep, sft, policies):
    front = strict_json(sweep / "front.json")
    assert (front["sft_model"], front["policies"]) == (str(sft), list(map(str, policies[:2])))


def test_the_groups_and_their_weights(sweep):
    front, record = strict_json(sweep / "front.json"), strict_json(sweep / "rlhf_lines.json")
    groups: dict[str, list] = {}
    for point in front["points"]:
        groups.setdefault(point["group"], []).append(point["spec"])
    assert groups.keys() == {"sft", "rewarded_soup", "lines"}
    grid = [[(4 - i) / 4, i / 4] for i in range(5)]
    plain = {"rule": "linear", "alpha": 1.0, "beta": 0.0, "schedule": "linear", "options": {}}
    assert groups["sft"] == [{**plain, "weights": [0.0, 0.0]}]
    assert groups["rewarded_soup"] == [{**plain, "weights": weights} for weights in grid]
    chosen = {"alpha": record["alpha"], "beta": record["beta"], "schedule": record["schedule"]}
    assert groups["lines"] == [{**plain, **chosen, "weights": weights} for weights in grid]


def test_scores_are_those_of_the_stored_completions(sweep, rewards):
    front, expected = strict_json(sweep / "front.json"), means_by_hand(sweep, "test", rewards)
    assert len(front["points"]) == len(expected) == 1 + 2 * WEIGHTS
    for point in front["points"]:
        got = [point["scores"][name]["mean"] for name in ("short", "early")]
        np.testing.assert_allclose(got, expected[point["id"]], rtol=1e-12)
    anchors = [point for point in front["points"] if point["group"] == "sft" or point["single_policy"] is not None]
    means = np.array([expected[point["id"]] for point in anchors])
    assert len(means) == 3
    low, high = means.min(axis=0), means.max(axis=0)
    assert (high > low).all()
    reference = low - 0.1 * (high - low)
    np.testing.assert_allclose(front["reference_point"], reference, rtol=1e-12)
    for group, entry in front["fronts"].items():
        points = np.array([expected[p["id"]] for p in front["points"] if p["group"] == group])
        assert entry["hypervolume"]["value"] == pytest.approx(area(points, reference), rel=1e-9)
    kl = dict(read(sweep, "SELECT o.id, AVG(kl) FROM points o JOIN completions c ON c.spec = o.spec "
                   "JOIN prompts p ON p.id = c.prompt AND p.split = o.split GROUP BY o.id"))  # fmt: skip
    for point in front["points"]:
        assert point["kl"]["mean"] == pytest.approx(kl[point["id"]], abs=1e-12)
        assert (abs(point["kl"]["mean"]) < 1e-5) == (point["group"] == "sft")


def test_stored_completions_are_those_of_the_merged_models(sweep, sft, dense_model):
    """Every stored row of some points is sampled again: alone, from the dense merge of the point's spec."""
    from rlhf_lines.merge import MergeSpec
    from rlhf_lines.models import load_tokenizer
    from rlhf_lines.sampling import gumbel, prompt_key

    tokenizer, seen = load_tokenizer(sft), 0
    rows = read(
        sweep,
        "SELECT s.spec, p.text, c.text, c.tokens, c.token_ids FROM completions c JOIN specs s ON s.id = c.spec "
        "JOIN prompts p ON p.id = c.prompt WHERE p.split = 'test' AND c.spec % 4 = 0 ORDER BY c.spec",
    )
    for spec, prompt, text, count, stored in rows:
        model = dense_model(MergeSpec.from_dict(json.loads(spec)))
        ids = tokenizer(prompt)["input_ids"]
        start, key = len(ids), prompt_key(ids)
        for step in range(8):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            noise = gumbel(0, torch.tensor([key]), torch.tensor([0]), step, len(logits))[0]
            ids.append(int((logits + noise).argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert (json.loads(stored), count) == (ids[start:], len(ids) - start)
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        seen += 1
    assert seen >= 2 * TEST


def test_the_report_shows_the_first_prompt_as_it_was_read(sweep):
    ((known,),) = read(sweep, "SELECT value FROM meta WHERE key = 'example'")
    example = dict(json.loads(known))
    prompt, text = read(
        sweep,
        "SELECT p.text, c.text FROM completions c JOIN prompts p ON p.id = c.prompt WHERE p.split = 'test' "
        "ORDER BY c.spec, c.prompt, c.sample LIMIT 1",
    )[0]
    assert example["policy"] == repr(prompt) and len(example) == 3
    assert all(repr(prompt) in seen and repr(text) in seen for reader, seen in example.items() if reader != "policy")
    page = (sweep / "report.html").read_text()
    shown = page[page.index('<dl id="example">') :].partition("</dl>")[0]
    assert html.unescape(re.findall("<pre>(.*?)</pre>", shown, re.DOTALL)[0]) == repr(prompt)


def test_alpha_and_beta_have_the_largest_validation_hypervolume(sweep, rewards):
    record = strict_json(sweep / "rlhf_lines.json")
    means = means_by_hand(sweep, "validation", rewards)
    specs = {i: (g, json.loads(s)) for i, g, s in read(sweep, 'SELECT o.id, "group", s.spec FROM points o JOIN specs s '
             "ON s.id = o.spec WHERE split = 'validation'")}  # fmt: skip
    anchors = {i: spec for i, (group, spec) in specs.items() if group in ("sft", "rewarded_soup")}
    assert sorted((spec["weights"], spec["alpha"], spec["beta"]) for spec in anchors.values()) == [
        ([0.0, 0.0], 1.0, 0.0), ([0.0, 1.0], 1.0, 0.0), ([1.0, 0.0], 1.0, 0.0)
    ]  # fmt: skip
    assert len(specs) == len(means) == len(ALPHAS) * len(BETAS) * 3 + len(anchors)
    of_anchors = np.array([means[i] for i in anchors])
    low, high = of_anchors.min(axis=0), of_anchors.max(axis=0)
    specs = {i: spec for i, (_, spec) in specs.items() if i not in anchors}
    grid = []
    for alpha in ALPHAS:
        for beta in BETAS:
            ids = [i for i, spec in specs.items() if (spec["alpha"], spec["beta"]) == (alpha, beta)]
            assert sorted(specs[i]["weights"] for i in ids) == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
            points = np.array([means[i] for i in ids])
            grid.append((area(points, low - 0.1 * (high - low)), alpha, beta))
    validation = record["validation"]
    assert validation == strict_json(sweep / "front.json")["validation"]
    assert (validation["prompts"], validation["weights"]) == (VALIDATION, 3)
    np.testing.assert_allclose(validation["reference_point"], low - 0.1 * (high - low), rtol=1e-12)
    got = [(row["hypervolume"]["value"], row["alpha"], row["beta"]) for row in validation["grid"]]
    np.testing.assert_allclose(got, grid, rtol=1e-9)
    for row in validation["grid"]:
        assert row["schedule"] == "linear"
        low, middle, high = (row["hypervolume"][key] for key in ("low", "corrected", "high"))
        assert low is high is None or low <= middle <= high
    best = max(grid)
    assert len({row[0] for row in grid}) == len(grid) and (record["alpha"], record["beta"]) == best[1:]
    assert validation["chosen"] == {"alpha": best[1], "beta": best[2], "schedule": "linear"}
    assert validation["at_edge"] and validation["groups"] == {}  # of two values each is an edge
    assert validation["max_kl"] is validation["max_forgetting"] is None and validation["minimum"] == {}
    for row in validation["grid"]:
        assert row["kl"] > 0 and row["forgetting"] is None and row["lowest"] == {} and row["within_limits"]


def test_gains_are_the_distance_of_the_policies_to_the_sft_model(sweep, rewards, policies):
    record, front = strict_json(sweep / "rlhf_lines.json"), strict_json(sweep / "front.json")
    ids = {(p["group"], tuple(p["spec"]["weights"])): p["id"] for p in front["points"]}
    scores = {
        (point, reward): np.array([s for (s,) in read(sweep, "SELECT score FROM points o JOIN scores c ON c.spec = "
                                  "o.spec JOIN prompts p ON p.id = c.prompt AND p.split = o.split WHERE "
                                  f"o.id = {point} AND reward = '{reward}' ORDER BY prompt")])
        for point in ids.values() for reward in ("short", "early")
    }  # fmt: skip
    sft = ids["sft", (0.0, 0.0)]
    assert [(g["policy"], g["reward"]) for g in record["gains"]] == [
        (str(policy), reward) for policy in policies[:2] for reward in ("short", "early")
    ]
    for gain, weights in zip(record["gains"], [(1.0, 0.0)] * 2 + [(0.0, 1.0)] * 2, strict=True):
        name = gain["reward"]
        base = scores[sft, name]
        differences = (scores[ids["rewarded_soup", weights], name] - base) / np.sqrt(((base - base.mean()) ** 2).mean())
        assert gain["value"] == pytest.approx(differences.mean(), abs=1e-12)
        _, counts = np.unique(differences, return_counts=True)
        if len(counts) > 1 and counts.max() > len(differences) / 2 and len(differences) - counts.max() < 10:
            assert gain["low"] is gain["high"] is None
        else:
            assert gain["low"] <= gain["value"] <= gain["high"]


def test_a_gain_in_a_reward_that_the_sft_model_has_alike_everywhere_is_in_its_own_unit():
    groups = {(0.0, 0.0): "sft", (1.0, 0.0): "rewarded_soup", (0.0, 1.0): "rewarded_soup"}
    points = [StoredPoint(i, group, MergeSpec("linear", row), i) for i, (row, group) in enumerate(groups.items())]
    store = SimpleNamespace(
        recall=lambda key, *default: {"policies": ["a", "b"], "objectives": ["r"]}[key],
        points=lambda split: points,
        scores=lambda spec, split, names: np.full((200, 1), [0.3, 0.8, 0.3][spec]),
    )
    assert [gain["value"] for gain in gains(store)] == [0.5, 0.0]


def test_validation_and_test_prompts_are_disjoint(sweep):
    prompts = {split: {t for (t,) in read(sweep, f"SELECT text FROM prompts WHERE split = '{split}'")}
               for split in ("validation", "test")}  # fmt: skip
    assert (len(prompts["validation"]), len(prompts["test"])) == (VALIDATION, TEST)
    assert not prompts["validation"] & prompts["test"]
    assert all(split_of(text) == split for split, texts in prompts.items() for text in texts)


def test_the_front_is_computed_again_byte_for_byte(sweep, tmp_path, capsys):
    before = (sweep / "front.json").read_bytes()
    (tmp_path / "run.sqlite").write_bytes((sweep / "run.sqlite").read_bytes())
    assert cli.main(["front", str(tmp_path)]) == 0
    assert (tmp_path / "front.json").read_bytes() == before
    for name in ("front.png", "validation.png"):
        assert (tmp_path / name).read_bytes() == (sweep / name).read_bytes()
    assert "rewarded soup" in capsys.readouterr().out


def test_the_written_config_makes_the_same_sweep(sweep, tmp_path, rewards, without_pictures):
    written = yaml.safe_load((sweep / "config.yaml").read_text())
    assert written["betas"] == BETAS and "temperature" not in written  # what was given, no defaults
    again = tmp_path / "again"
    run_stage("sweep", ["--config", str(sweep / "config.yaml"), "--output_dir", str(again)])
    assert (again / "front.json").read_bytes() == (sweep / "front.json").read_bytes()


def test_a_complete_sweep_is_not_run_again(sweep, flags, rewards):
    before = {path.name: path.read_bytes() for path in sweep.iterdir()}
    assert run_stage("sweep", [*flags(sweep), "--resume"]) == sweep
    with pytest.raises(FileExistsError, match="exists: choose another folder"):
        run_stage("sweep", flags(sweep))
    assert {path.name: path.read_bytes() for path in sweep.iterdir()} == before
    assert rewards.SCORED == []


def test_a_sweep_keeps_which_of_its_longest_completions_a_stop_text_ended(flags, tmp_path, without_pictures):
    folder, letters = tmp_path / "sweep", "efghijk"
    run_stage("sweep", flags(folder, stop=[*letters], max_new_tokens=3, num_weights=2, alphas=[1.0], betas=[0.5]))
    query = "SELECT spec, prompt, sample, token_ids FROM completions WHERE tokens = 3 ORDER BY 1, 2, 3"
    longest = [(*key, json.loads(ids)) for *key, ids in read(folder, query)]
    ended = [key for *key, ids in longest if CHARACTERS[ids[-1] - 3] in letters]
    with Store(folder, reading=True) as store:
        assert store.recall("stopped") == ended
    assert 0 < len(ended) < len(longest)


# --- killed and resumed ---


@pytest.mark.parametrize(
    ("fail_at", "error", "first"),
    [(1, KeyboardInterrupt, []), (2, RuntimeError, ["--resume"]), (4, KeyboardInterrupt, ["--resume", "true"])],
    ids=["while choosing", "at the end of choosing", "on test prompts"],
)
def test_a_killed_sweep_goes_on_where_it_was(sweep, flags, rewards, tmp_path, fail_at, error, first, without_pictures):
    final = tmp_path / "sweep"
    rewards.FAIL_AT, rewards.ERROR = fail_at, error
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError, match="stop"):
        run_stage("sweep", [*flags(final), *first])
    assert not final.exists()
    before = sum(map(len, rewards.SCORED))
    assert 0 < before < ROWS
    rewards.FAIL_AT = None
    run_stage("sweep", [*flags(final), "--resume"])
    assert (final / "front.json").read_bytes() == (sweep / "front.json").read_bytes()
    # Every row was scored once, in one run or the other; nothing is left beside the folder.
    assert sum(map(len, rewards.SCORED)) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def test_a_sweep_may_go_on_with_another_batch_size(sweep, flags, rewards, tmp_path, without_pictures):
    final = tmp_path / "sweep"
    rewards.FAIL_AT, rewards.ERROR = 3, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(final))
    rewards.FAIL_AT = None
    run_stage("sweep", [*flags(final, batch_size=11), "--resume"])
    assert_same_store(final, sweep, kl=1e-4)
    fronts = [strict_json(folder / "front.json") for folder in (final, sweep)]
    for one, other in zip(*(front["points"] for front in fronts), strict=True):
        assert one["scores"] == other["scores"]
        assert one["kl"]["mean"] == pytest.approx(other["kl"]["mean"], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "had seed 0, now it is 1"),
        ({"temperature": 0.5}, "had temperature 1.0, now it is 0.5"),
        ({"controls": "true"}, "had controls false, now it is true"),
        ({"groups": ['{"name": "sum", "rule": "sum"}']}, r"had groups \[\], now it is"),
        ({"alphas": [0.5]}, r'had alphas \["0.5", "1.0"\], now it is \["0.5"\]'),
        ({"max_new_tokens": 9}, "had max_new_tokens 8, now it is 9"),
        ({"minimum": '{"early": 0}'}, r'had minimum {}, now it is {"early": 0.0}'),
        ({"test_prompts": 9}, "had test_prompts 8, now it is 9"),
        (
            {"rewards": ["tiny_rewards:early", "tiny_rewards:short"]},
            r'had objectives \["short", "early"\], now it is \["early", "short"\]',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_sweep_does_not_go_on_with_other_settings(flags, rewards, tmp_path, changes, message):
    final = tmp_path / "sweep"
    rewards.FAIL_AT, rewards.ERROR = 1, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(final))
    rewards.FAIL_AT = None
    rewards.SCORED.clear()
    with pytest.raises(ValueError, match=f"{message}.*: give the settings of that run, or start again"):
        run_stage("sweep", [*flags(final, **changes), "--resume"])
    assert rewards.SCORED == [] and not final.exists()


@pytest.mark.parametrize("further", [[], ["--resume"]])
def test_what_stops_before_the_first_completion_leaves_nothing(flags, tmp_path, monkeypatch, further):
    def stop(read):
        raise ValueError("stop")

    monkeypatch.setattr("rlhf_lines.sweep.run._told_of_models", stop)  # when there is a store
    with pytest.raises(ValueError, match=r"^stop$"):
        run_stage("sweep", [*flags(tmp_path / "sweep"), *further])
    assert [path.name for path in tmp_path.iterdir() if "sweep" in path.name] == []


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sweep_does_not_go_on_with_other_inputs(sft, policies, flags, dataset, rewards, tmp_path):
    """Each is changed in turn, and told by name; names and settings are the same all the time."""
    source = Path(rewards.__file__)
    own = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in [("sft", sft), ("a", policies[0])]}
    other = Path(shutil.copytree(policies[1], tmp_path / "b"))
    for policy in (own["a"], other):
        edit_json(policy / "adapter_config.json", base_model_name_or_path=str(own["sft"]))
    copy, control = tmp_path / "prompts.jsonl", tmp_path / "texts.txt"
    copy.write_text(dataset.read_text())
    control.write_text("abc\n\nxyz\n")
    settings = flags(
        tmp_path / "sweep", sft_model=own["sft"], policies=[own["a"], other], dataset_name=copy, control=control
    )
    rewards.FAIL_AT, rewards.ERROR = 1, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", settings)
    rewards.FAIL_AT = None
    rewards.SCORED.clear()
    store = partial_folder(tmp_path / "sweep") / "run.sqlite"
    kept = store.read_bytes()

    def reverse(path):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))

    for path, change, words in (
        (own["a"] / "adapter_config.json", lambda path: edit_json(path, lora_alpha=160), r"policy 1 \(a\) has changed"),
        (other / "adapter_config.json", lambda path: edit_json(path, use_rslora=False), r"policy 2 \(b\) has changed"),
        (
            own["sft"] / "config.json",
            lambda path: edit_json(path, rms_norm_eps=0.1),
            r"SFT model sft has .*\(config.json\)",
        ),
        (
            own["sft"] / "chat_template.jinja",
            lambda path: path.write_text("<{{ messages[0]['content'] }}>"),
            r"\(chat_template.jinja\)",
        ),
        (source, lambda path: path.write_text(path.read_text() + "# new\n"), r"reward model 1 .* has .*\(source\)"),
        (copy, reverse, r"validation split of prompts.jsonl has .*; \(2\) test split of prompts.jsonl has changed"),
        (control, lambda path: path.write_text("abc\n\nxyw\n"), "control texts.txt has changed"),
    ):
        before = path.read_bytes() if path.exists() else None
        change(path)
        with pytest.raises(
            ValueError, match=r"since the sweep into .* was begun .*: restore it, or start again"
        ) as told:
            run_stage("sweep", [*settings, "--resume"])
        assert re.search(words, str(told.value)), words
        path.unlink() if before is None else path.write_bytes(before)
        assert store.read_bytes() == kept and not (tmp_path / "sweep").exists()
    assert rewards.SCORED == []


def test_a_finished_sweep_is_not_kept_for_one_of_other_inputs(copy, flags, rewards):
    record = json.loads((copy / "rlhf_lines.json").read_text())
    record["inputs_sha256"]["policy 1 (brief)"]["adapter_config.json"] = "0"
    (copy / "rlhf_lines.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"policy 1 \(brief\) has changed since .*sweep was made \(adapter_config.json\)"
    ):
        run_stage("sweep", [*flags(copy), "--resume"])


def test_a_stopped_sweep_is_not_thrown_away_unless_asked(sweep, flags, rewards, tmp_path, without_pictures):
    final = tmp_path / "sweep"
    rewards.FAIL_AT, rewards.ERROR = 3, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags(final, seed=1))
    rewards.FAIL_AT = None
    rewards.SCORED.clear()
    with pytest.raises(FileExistsError, match=r"was stopped after \d+ completions: add --resume .*, or --overwrite"):
        run_stage("sweep", flags(final))
    assert rewards.SCORED == []
    run_stage("sweep", flags(final, overwrite="true"))
    assert sum(map(len, rewards.SCORED)) == ROWS
    assert (final / "front.json").read_bytes() == (sweep / "front.json").read_bytes()


# --- other inputs ---


def test_three_policies_several_samples_and_repeated_prompts(flags, policies, rewards, dataset, tmp_path):
    lines = dataset.read_text().splitlines(keepends=True)
    doubled = tmp_path / "prompts.jsonl"
    doubled.write_text("".join(line + line for line in lines))
    changes = {"policies": policies, "num_weights": 3, "validation_weights": 2, "samples_per_prompt": 2}
    run_stage("sweep", flags(tmp_path / "sweep", dataset_name=doubled, **changes))
    front = strict_json(tmp_path / "sweep" / "front.json")
    assert Counter(point["group"] for point in front["points"]) == {"sft": 1, "rewarded_soup": 6, "lines": 6}
    assert {(point["prompts"], point["samples_per_prompt"]) for point in front["points"]} == {(TEST, 2)}
    assert len(read(tmp_path / "sweep", "SELECT * FROM completions")) == ((4 * 3 + 4) * VALIDATION + 13 * TEST) * 2
    expected = means_by_hand(tmp_path / "sweep", "test", rewards)
    for point in front["points"]:
        got = [point["scores"][name]["mean"] for name in ("short", "early")]
        np.testing.assert_allclose(got, expected[point["id"]], rtol=1e-12)
    texts = read(tmp_path / "sweep", "SELECT spec, prompt, COUNT(DISTINCT token_ids) FROM completions GROUP BY 1, 2")
    assert sum(count == 2 for *_, count in texts) > len(texts) / 2


def test_a_reward_without_spread_gives_numbers_nonetheless(flags, tmp_path):
    changes = {"rewards": ["tiny_rewards:short", "tiny_rewards:constant"], "num_weights": 2}
    run_stage("sweep", flags(tmp_path / "sweep", **changes))
    gains = strict_json(tmp_path / "sweep" / "rlhf_lines.json")["gains"]
    assert [gain["value"] for gain in gains if gain["reward"] == "constant"] == [0.0, 0.0]


def test_policies_of_another_base_are_refused(sft, policies, save_sft, save_policy, flags, tmp_path):
    other = save_sft(tmp_path / "other", seed=5)
    stranger = save_policy(other, tmp_path / "stranger", seed=6)
    before = sorted(path.name for path in tmp_path.iterdir())
    for changes in ({"policies": [policies[0], stranger]}, {"sft_model": other}):
        with pytest.raises(ValueError, match="residuals add up only on one base"):
            run_stage("sweep", flags(tmp_path / "sweep", **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_weights": 1}, "num_weights is 1, expected at least 2"),
        ({"temperature": "nan"}, "temperature is nan, expected a number >= 0"),
        ({"betas": [0.5, "inf"]}, "betas or scalings hold beta inf, expected finite numbers"),
        ({"alphas": [1.0, 1.0]}, r"alphas is \[1.0, 1.0\], expected every value once"),
        ({"dtype": "float31"}, "dtype is 'float31', expected float32, bfloat16 or float16"),
        ({"stop": [""]}, "stop is empty, expected a value"),
        ({"rewards": ["tiny_rewards:short", "tiny_rewards.short"]}, "names short, short"),
        ({"rewards": ["tiny_rewards:short", "tiny_rewards:tall"]}, "'tall', which is no function of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named_before_anything_is_written(flags, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_stage("sweep", flags(tmp_path / "sweep", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_chat_template_is_for_the_policy_and_not_for_its_judges(
    flags, save_sft, save_policy, rewards, tmp_path, without_pictures
):
    from transformers import AutoTokenizer

    chat = save_sft(tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    tokenizer.save_pretrained(chat)
    policies = [save_policy(chat, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    run_stage("sweep", flags(tmp_path / "sweep", sft_model=chat, policies=policies, max_new_tokens=2))
    read_by_policy = {text for (text,) in read(tmp_path / "sweep", "SELECT text FROM prompts")}
    shown = {prompt for batch in rewards.SCORED for prompt, _ in batch}
    assert len(shown) == VALIDATION + TEST
    assert read_by_policy == {f"<{prompt}>" for prompt in shown}


@pytest.fixture
def copy(sweep, tmp_path):
    """A finished sweep of a test's own."""
    return shutil.copytree(sweep, tmp_path / "sweep")


@pytest.mark.parametrize("named", [True, False], ids=["after the folder got its name", "before"])
def test_a_sweep_that_lacks_only_its_report_gets_it(copy, flags, rewards, named):
    (copy / "report.html").unlink()
    if not named:
        copy.rename(partial_folder(copy))
    assert run_stage("sweep", [*flags(copy), "--resume"]) == copy
    assert f"rlhf-lines pick {copy} " in (copy / "report.html").read_text()
    assert rewards.SCORED == []


def test_a_sweep_that_replaces_another_goes_on(copy, flags, rewards, without_pictures):
    (copy / "mark").touch()
    rewards.FAIL_AT, rewards.ERROR = 2, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", [*flags(copy), "--overwrite"])
    rewards.FAIL_AT = None
    with pytest.raises(FileExistsError, match=r"a run that was to replace it stopped .*: add --overwrite to --resume"):
        run_stage("sweep", [*flags(copy), "--resume"])
    run_stage("sweep", [*flags(copy), "--resume", "--overwrite"])
    assert not (copy / "mark").exists() and not partial_folder(copy).exists()


def test_a_report_of_fewer_rewards_is_written_again(copy, rewards, capsys):
    old = (copy / "report.html").read_bytes()
    asked = ["score", str(copy), "--rewards", "tiny_rewards:constant"]
    assert cli.main(asked) == 0
    new = (copy / "report.html").read_bytes()
    assert new != old
    # As if the process had been killed between front and report.
    (copy / "report.html").write_bytes(old)
    os.utime(copy / "report.html", ns=(0, 0))
    assert cli.main(asked) == 0
    assert (copy / "report.html").read_bytes() == new
