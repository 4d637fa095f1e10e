"""The file that a real sweep writes against the schema, key by key."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.merge.outliers import two_policies
from rlhf_lines.pareto.intervals import share_estimate
from rlhf_lines.pareto.schema import faults, read_front
from rlhf_lines.sweep.finished.front import front_of, trace_front
from rlhf_lines.sweep.store import Store
from tests.sweep.of_a_run import read, strict_json
from tests.sweep.small_run import write_run
from tests.tiny import EOS


def test_the_file_has_the_keys_of_the_schema_and_no_other(sweep):
    """Those that are null here are not in other sweeps, which `tests/sweep/test_sweep_ends.py` looks at in this way."""
    front = strict_json(sweep / "front.json")
    assert list(faults(front)) == []
    assert read_front(sweep) == front
    assert {key for key, value in front.items() if value is None} == {"surrogate", "forgetting", "not_compared"}
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


@pytest.mark.parametrize("verb", ["front", "report", "export"])
def test_a_run_of_learn_is_named_as_what_it_is(run, capsys, verb):
    """Of a run without front.json it was said that its run store lacks a key."""
    (run / "front.json").unlink(missing_ok=True)
    record = run / "rlhf_lines.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "stage": "learn"}))
    told = printed(capsys, verb, run, status=2)
    assert told == f"rlhf-lines {verb}: {run} is of rlhf-lines learn: expected the output_dir of rlhf-lines sweep\n"


# --- objectives and reference point ---

UNITS = {"length": "words", "second": "characters"}
REWARDS = ["rule:length", {"model": "rule:length", "name": "second", "options": {"unit": "characters"}}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished sweep with two scores, to be copied."""
    return write_run(tmp_path_factory.mktemp("written") / "run", REWARDS)


@pytest.fixture
def run(written, tmp_path):
    """The same, of a test's own."""
    return shutil.copytree(written, tmp_path / "run")


def printed(capsys, *arguments, status=0):
    assert cli.main([*map(str, arguments)]) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


def of_an_earlier_version(run):
    """What `front.json` has, once with a mean that no run store has; of a version that did not write `answers`."""
    front = strict_json(run / "front.json")
    earlier = json.loads(json.dumps(front))
    del earlier["answers"]
    earlier["points"][1]["metrics"]["tokens"]["mean"] = 99.5
    (run / "front.json").write_text(json.dumps(earlier))
    return front, earlier


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("verb", ["pick", "compare", "report"])
def test_a_front_of_an_earlier_version_is_made_anew_by_what_reads_it(run, capsys, verb, tmp_path):
    """What was mended since stood in an export of it, and not in these."""
    front, _ = of_an_earlier_version(run)
    other = shutil.copytree(run, tmp_path / "other")
    more = {"pick": ["--point", "2"], "compare": [other, "--output_dir", tmp_path / "compared"], "report": []}
    printed(capsys, verb, run, *more[verb])
    assert strict_json(run / "front.json") == front
    if verb == "compare":
        assert strict_json(other / "front.json") == front


@pytest.mark.usefixtures("without_pictures")
def test_a_front_of_an_earlier_version_keeps_its_split(run):
    validation = trace_front(run, split="validation")
    of_an_earlier_version(run)
    assert front_of(run) == validation == strict_json(run / "front.json")


@pytest.mark.parametrize("why", ["no run store", "not to be written"])
def test_a_front_of_an_earlier_version_that_cannot_be_made_anew_is_read(run, why, monkeypatch):
    _, earlier = of_an_earlier_version(run)
    if why == "no run store":
        (run / "run.sqlite").unlink()
    else:
        monkeypatch.setattr("os.access", lambda path, mode: False)
    assert front_of(run) == {**earlier, "answers": None}
    assert strict_json(run / "front.json") == earlier


def test_objectives_are_set_and_set_back(run, capsys):
    before = strict_json(run / "front.json")
    assert before["objectives"] == ["length", "second"]
    printed(capsys, "front", run, "--objectives", "second")
    one = strict_json(run / "front.json")
    assert list(faults(one)) == []
    assert (one["objectives"], one["rewards"], one["metrics"]) == (["second"], ["second"], ["length"])
    for point, old in zip(one["points"], before["points"], strict=True):
        assert point["metrics"]["length"] == old["scores"]["length"]
        assert point["scores"] == {"second": old["scores"]["second"]}
    assert "Which policy for which preference" in (page := (run / "report.html").read_text())
    assert f"rlhf-lines pick {run} --preference 1 --scale range" in page  # a number for the one objective
    assert "second" in printed(capsys, "front", run) and strict_json(run / "front.json") == one  # it is kept
    printed(capsys, "front", run, "--objectives", "length", "second")
    assert strict_json(run / "front.json") == before


def test_gains_are_those_of_the_objectives_that_there_are(run, capsys):
    """They were those that the sweep had recorded, whatever had become an objective since."""

    def told(*arguments) -> list[list[str]]:
        lines = printed(capsys, "front", run, *arguments).partition("gain over the SFT model")[2].splitlines()[2:]
        return [[*line.split()[::2][:2], line.split()[4]] for line in lines]

    def by_hand(policy: int, unit: str) -> str:
        rows = read(run, "SELECT s.spec, c.text FROM completions c JOIN specs s ON s.id = c.spec JOIN prompts p "
                         "ON p.id = c.prompt WHERE p.split = 'test' ORDER BY c.prompt, c.sample")  # fmt: skip
        means = []
        for weights in ([0.0, 0.0], [float(k == policy) for k in range(2)]):
            mine = [text for spec, text in rows if _is_linear(json.loads(spec), weights)]
            sizes = [-len(text if unit == "characters" else text.split()) for text in mine]
            means.append(np.reshape(sizes, (3, 2)).mean(axis=1))
        return f"{((means[1] - means[0]) / means[0].std()).mean():z.2f}"

    both = [[name, score, by_hand(k, unit)] for k, name in enumerate("ab") for score, unit in UNITS.items()]
    assert told() == both and len({gain for _, _, gain in both}) == 2
    assert told("--objectives", "second") == told() == [row for row in both if row[1] == "second"]
    printed(capsys, "score", run, "--rewards", "rule:readability", "--as_objectives")
    assert [row[:2] for row in told()] == [[name, score] for name in "ab" for score in ("second", "readability")]


def _is_linear(spec: dict, weights: list[float]) -> bool:
    return (spec["rule"], spec["weights"], spec["alpha"], spec["beta"]) == ("linear", weights, 1.0, 0.0)


def test_a_reference_point_is_set_and_the_rule_comes_back(run, capsys):
    before = strict_json(run / "front.json")
    printed(capsys, "front", run, "--reference_point", "-1e3", "-2000")
    given = strict_json(run / "front.json")
    assert (given["reference_point"], given["reference_point_rule"]) == ([-1000.0, -2000.0], "given")
    for point in given["points"]:
        if point["group"] == "lines":  # the front holds the box of each of its points
            box = (point["scores"]["length"]["mean"] + 1000) * (point["scores"]["second"]["mean"] + 2000)
            assert given["fronts"]["lines"]["hypervolume"]["value"] >= box * (1 - 1e-12) > 1e6
    printed(capsys, "front", run)
    assert strict_json(run / "front.json") == given
    printed(capsys, "front", run, "--reference_point", "anchors")
    assert strict_json(run / "front.json") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objectives", "lenght"], "unknown reward 'lenght'; known: length, second; did you mean 'length'?"),
        (["--objectives", "length", "length"], "objectives has 'length' twice: give every reward once"),
        (["--objectives"], "argument --objectives: expected at least one argument"),
        (
            ["--reference_point", "1"],
            "reference_point is 1, expected one finite number for each objective: length",
        ),
        (["--reference_point", "1", "nan"], "reference_point is 1 nan, expected one finite number"),
        (["--reference_point", "1", "x"], "--reference_point is 1 x, expected a number per objective, or anchors"),
        (["--objectives", "length", "--reference_point", "1", "2"], "one finite number for each objective: length"),
    ],
)
def test_what_cannot_be_set_is_one_sentence_and_nothing_changes(run, capsys, arguments, words):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    sentence = printed(capsys, "front", run, *arguments, status=2)
    assert words in sentence and len(sentence.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_other_objectives_need_another_reference_point_than_the_one_given(run, capsys):
    printed(capsys, "front", run, "--reference_point", "1", "2")
    before = strict_json(run / "front.json")
    words = "the reference point 1 2 was given for length, second: with other objectives it is another one"
    for objectives in (["second", "length"], ["length"]):
        assert words in printed(capsys, "front", run, "--objectives", *objectives, status=2)
    assert strict_json(run / "front.json") == before
    printed(capsys, "front", run, "--objectives", "length", "--reference_point", "-3")
    assert strict_json(run / "front.json")["reference_point"] == [-3.0]


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}])
def test_log_ratios_of_completions_that_are_no_samples_of_the_policy_are_not_called_kl(tmp_path, run, settings):
    other = write_run(tmp_path / "other", REWARDS, **settings)
    front, plain = (strict_json(folder / "front.json") for folder in (other, run))
    assert list(faults(front)) == []
    for point, old in zip(front["points"], plain["points"], strict=True):
        assert point["kl"] is None and point["metrics"]["log_ratio"] == old["kl"]
        assert old["kl"] is not None and "log_ratio" not in old["metrics"]
    assert [entry["equal_kl_difference"] for entry in front["comparisons"]] == [None]
    figures = [{path.name for path in folder.glob("kl.*")} for folder in (run, other)]
    assert figures == [{"kl.png", "kl.pdf"}, set()]


def test_settings_that_change_nothing_leave_a_kl(tmp_path, run):
    other = write_run(tmp_path / "other", REWARDS, temperature=0.7, top_p=1.0, top_k=None)
    assert strict_json(other / "front.json") == strict_json(run / "front.json")


def test_a_reward_of_0_and_1_has_the_interval_of_a_share_at_every_point(run):
    """Two samples of three prompts, whose means are 0, 1/2 or 1, also of a run of an earlier version."""
    with Store(run) as store, store._db as database:
        database.execute(
            "UPDATE scores SET score = (spec * 7 + prompt * 3 + sample * 5) % 3 > 0 WHERE reward = 'second'"
        )
        assert store.are_answers("second") and not store.are_answers("length")
    front = trace_front(run)
    with Store(run, reading=True) as store:
        means = {point.id: store.scores(point.spec_id, "test", ["second"])[:, 0] for point in store.points("test")}
    assert {0.5, 1.0} <= {mean for values in means.values() for mean in values.tolist()}
    for point in front["points"]:
        share = share_estimate(means[point["id"]])
        assert point["scores"]["second"] == {"mean": pytest.approx(share.value), "low": share.low, "high": share.high}


def test_anchors_of_a_run_are_its_sft_model_and_its_single_policies(run):
    front = strict_json(run / "front.json")
    with Store(run, reading=True) as store:
        texts = {(row.spec, row.prompt, row.sample): row.text for row in store.rows("test", ())}
        specs = store.specs()
    means = []
    for spec, of in specs.items():
        if of.rule == "linear" and of.weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)) and (of.alpha, of.beta) == (1, 0):
            mine = [text for key, text in texts.items() if key[0] == spec]
            means.append([-np.mean([len(text.split()) for text in mine]), -np.mean([len(text) for text in mine])])
    low, high = np.min(means, axis=0), np.max(means, axis=0)
    assert len(means) == 3 and (high > low).any()
    np.testing.assert_allclose(front["ideal_point"], high, rtol=1e-12)
    np.testing.assert_allclose(front["reference_point"], low - 0.1 * (high - low), rtol=1e-12)


def test_a_sweep_keeps_what_its_policies_look_like_and_what_ends_a_completion(sweep):
    front = strict_json(sweep / "front.json")
    with Store(sweep, reading=True) as store:
        assert {**store.recall("audit"), "of_two": two_policies(front["audit"])} == front["audit"]
        assert front["audit"]["of_two"] is not None  # worked out from what the store has, also of earlier versions
        assert store.recall("end_tokens") == [EOS]
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


def test_a_choice_of_an_earlier_version_is_read(run):
    """It knew no limits, and chose for LiNeS alone."""
    grid = [
        {"alpha": alpha, "beta": 0.0, "schedule": "linear", "hypervolume": {"value": alpha, "low": 0.0, "high": 2.0}}
        for alpha in (0.5, 1.0)
    ]
    chosen = {"alpha": 1.0, "beta": 0.0, "schedule": "linear"}
    with Store(run) as store:
        store.replace(
            validation={"prompts": 3, "weights": 2, "reference_point": [0.0, 0.0], "grid": grid, "chosen": chosen}
        )
    assert cli.main(["front", str(run)]) == 0
    front = read_front(run)
    assert list(faults(front)) == []
    assert front["validation"]["at_edge"] and front["validation"]["groups"] == {}
    assert [entry["within_limits"] for entry in front["validation"]["grid"]] == [True, True]
    assert [entry["lowest"] for entry in front["validation"]["grid"]] == [{}, {}]


def test_a_choice_of_a_version_without_minima_is_read(run):
    entry = {"alpha": 1.0, "beta": 0.0, "schedule": "linear", "kl": 0.5, "forgetting": None, "within_limits": True}
    entry["hypervolume"] = {"value": 1.0, "corrected": 0.9, "low": 0.0, "high": 2.0}
    tuning = {"grid": [entry], "chosen": {"alpha": 1.0, "beta": 0.0, "schedule": "linear"}, "at_edge": False}
    validation = {**tuning, "prompts": 3, "weights": 2, "reference_point": [0.0, 0.0], "max_kl": 2.0}
    validation |= {"max_forgetting": None, "groups": {"scaled": tuning}}
    with Store(run) as store:
        store.replace(validation=validation)
    assert cli.main(["front", str(run)]) == 0
    found = read_front(run)
    assert list(faults(found)) == []
    expected = {**tuning, "grid": [{**entry, "lowest": {}}]}
    assert found["validation"] == {**validation, **expected, "minimum": {}, "groups": {"scaled": expected}}
