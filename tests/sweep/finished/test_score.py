"""Scores that are added later are those of a sweep that had the reward model from the start."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from rlhf_lines import cli
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.finished import score as verb
from rlhf_lines.sweep.finished.score import score
from rlhf_lines.sweep.store import Store
from tests.sweep.small_run import ROWS, write_run


pytestmark = pytest.mark.usefixtures("without_pictures")
REWARDS = '''
"""Rewards that see both texts; one can stop, and counts what it is asked."""

SCORED = []
FAIL_AT, ERROR = None, None


def long(prompts, completions):
    return [float(len(text)) for text in completions]


def digits(prompts, completions):
    return [sum(c.isdigit() for c in text) - 0.1 * len(prompt) for prompt, text in zip(prompts, completions)]


def late(prompts, completions, scale=1.0):
    for pair in zip(prompts, completions):
        if FAIL_AT is not None and len(SCORED) >= FAIL_AT:
            raise ERROR("stop")
        SCORED.append(pair)
    return [scale * sum(map(ord, prompt + text)) / (1 + len(text)) for prompt, text in zip(prompts, completions)]


def broken(prompts, completions):
    return [float("nan") for _ in completions]
'''
FIRST = ["late_rewards:long", "late_rewards:digits"]
LATE = "late_rewards:late"


@pytest.fixture
def rewards(tmp_path_factory, monkeypatch):
    """The module of the reward functions, fresh for every test."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "late_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("late_rewards", None)
    yield importlib.import_module("late_rewards")
    sys.modules.pop("late_rewards", None)


@pytest.fixture
def run(rewards, tmp_path):
    """A finished sweep with two rewards."""
    return write_run(tmp_path / "run", FIRST)


def everything(folder) -> dict:
    """The tables of a run store, and its front."""
    database = sqlite3.connect(folder / "run.sqlite")
    tables = ("meta", "specs", "points", "prompts", "completions", "scores")
    found = {table: sorted(database.execute(f"SELECT * FROM {table}").fetchall()) for table in tables}
    database.close()
    return {**found, "front": json.loads((folder / "front.json").read_text())}


@pytest.mark.parametrize("as_objectives", [False, True])
def test_scores_are_those_of_a_sweep_that_had_the_reward_from_the_start(run, rewards, tmp_path, as_objectives):
    before = everything(run)
    outcome = score(run, [LATE], as_objectives=as_objectives)
    assert outcome.scored == {"late": ROWS}
    scored_texts = {prompt: scored_text for prompt, _, _, scored_text in before["prompts"]}
    pairs = [(scored_texts[prompt], text) for _, prompt, _, text, *_ in before["completions"]]
    assert sorted(rewards.SCORED) == sorted(pairs) and len(pairs) == ROWS
    rewards.SCORED.clear()
    objectives, metrics = (["long", "digits", "late"], []) if as_objectives else (["long", "digits"], ["late"])
    from_the_start = write_run(tmp_path / "other", [*FIRST, LATE], objectives)
    after = everything(run)
    assert after == everything(from_the_start)
    assert after["front"] == outcome.front
    assert (after["front"]["rewards"], after["front"]["metrics"]) == (objectives, metrics)
    if not as_objectives:  # a metric changes nothing but the points, which have one number more
        assert after["front"]["comparisons"] == before["front"]["comparisons"]
        assert after["front"]["fronts"] == before["front"]["fronts"]
    assert len(after["scores"]) == 3 * ROWS == 1.5 * len(before["scores"])
    assert after["completions"] == before["completions"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_stopped_goes_on_without_repeating_rows(run, rewards, tmp_path, monkeypatch, error):
    monkeypatch.setattr(verb, "CHUNK", 8)
    before = everything(run)
    rewards.FAIL_AT, rewards.ERROR = 19, error
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError, match="stop"):
        score(run, [LATE], batch_size=4)
    half = everything(run)
    assert len(half["scores"]) == len(before["scores"]) + 16  # two whole chunks of 8
    # Until all completions have it, the reward does not belong to the run.
    with Store(run) as store:
        assert store.recall("reward_names") == ["long", "digits"]
    assert half["front"] == before["front"]
    rewards.FAIL_AT = None
    rewards.SCORED.clear()
    assert score(run, [LATE], batch_size=4).scored == {"late": ROWS - 16}
    assert len(rewards.SCORED) == ROWS - 16
    assert everything(run) == everything(write_run(tmp_path / "other", [*FIRST, LATE], ["long", "digits"]))


def test_scores_of_a_reward_model_that_has_changed_are_not_mixed(run, rewards):
    assert score(run, [LATE]).scored == {"late": ROWS}
    with Path(rewards.__file__).open("a") as file:
        file.write("# another function, perhaps\n")
    before = everything(run)
    with pytest.raises(ValueError, match=r"has scores 'late' by late_rewards:late, which has changed since \(source\)"):
        score(run, [LATE])
    assert everything(run) == before


def test_nothing_is_left_to_do_a_second_time(run, rewards, capsys):
    assert cli.main(["score", str(run), "--rewards", LATE]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith(f"late: scored {ROWS} completions\n") and "lines" in out
    rewards.SCORED.clear()
    after = everything(run)
    stamp = (run / "front.json").stat().st_mtime_ns
    assert cli.main(["score", str(run), "--rewards", LATE, FIRST[1]]) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[:2] == [f"{name}: all completions have this score already" for name in ("late", "digits")]
    assert rewards.SCORED == [] and everything(run) == after and (run / "front.json").stat().st_mtime_ns == stamp


def test_a_front_of_an_older_version_is_written_again(run, rewards, capsys):
    front = json.loads((run / "front.json").read_text())
    old = {**front, "points": [{key: value for key, value in p.items() if key != "label"} for p in front["points"]]}
    (run / "front.json").write_text(json.dumps(old))
    assert cli.main(["score", str(run), "--rewards", FIRST[1]]) == 0
    assert "digits: all completions have this score already" in capsys.readouterr().out
    assert json.loads((run / "front.json").read_text()) == front


def test_a_front_that_was_not_written_before_the_end_is_written_the_next_time(run, rewards, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(verb, "trace_front", killed)
        with pytest.raises(KeyboardInterrupt):
            score(run, [LATE])
    assert everything(run)["front"]["metrics"] == []
    score(run, [LATE])
    assert everything(run)["front"]["metrics"] == ["late"]


def test_several_reward_models_as_texts_and_mappings(run, rewards):
    items = ['{"model": "late_rewards:late", "name": "double", "options": {"scale": 2.0}}', {"model": LATE}]
    assert score(run, items).scored == {"double": ROWS, "late": ROWS}
    database = sqlite3.connect(run / "run.sqlite")
    query = (
        "SELECT count(*) FROM scores a JOIN scores b USING (spec, prompt, sample) "
        "WHERE a.reward = 'double' AND b.reward = 'late' AND a.score = 2 * b.score"
    )
    assert database.execute(query).fetchone() == (ROWS,)
    database.close()


def refused(capsys, *arguments) -> str:
    assert cli.main(["score", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    *bars, sentence = err.splitlines()
    assert (
        out == ""
        and sentence.startswith("rlhf-lines score: ")
        and all(line.startswith("score: ") for line in bars if line)
    )
    return sentence


def test_another_reward_model_of_a_name_is_refused(run, rewards, capsys, monkeypatch):
    other = '{"model": "late_rewards:late", "name": "digits"}'
    sentence = refused(capsys, run, "--rewards", other)
    assert sentence.startswith('rlhf-lines score: the run has scores \'digits\' by {"model": "late_rewards:digits"')
    scaled = '{"model": "late_rewards:late", "options": {"scale": 2.0}}'
    # The same holds for a reward that was stopped on its way, but not for one that has no score.
    monkeypatch.setattr(verb, "CHUNK", 8)
    for stop, status in ((10, 2), (0, 0)):
        rewards.SCORED.clear()
        rewards.FAIL_AT, rewards.ERROR = stop, KeyboardInterrupt
        item = LATE if stop else '{"model": "late_rewards:late", "name": "never"}'
        assert cli.main(["score", str(run), "--rewards", item, "--batch_size", "8"]) == 130
        assert "interrupted; the scores so far are kept" in capsys.readouterr().err
        rewards.FAIL_AT = None
        again = scaled if stop else '{"model": "late_rewards:late", "name": "never", "options": {"scale": 2.0}}'
        assert cli.main(["score", str(run), "--rewards", again]) == status
        err = capsys.readouterr().err
        assert ("give it another name" in err) == (status == 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--rewards", LATE, LATE], "rewards have the names late, late: two are equal"),
        (["{run}", "--rewards", '{"model": "late_rewards:late", "weight": 2.0}'], "here raw scores are read"),
        (["{run}", "--rewards", '{"model": "late_rewards:late", "normalize": true}'], "here raw scores are read"),
        (["{run}", "--rewards", '{"model": "late_rewards:late", "clip": 1.0}'], "here raw scores are read"),
        (["{run}", "--rewards", '{"model": "late_rewards:late", "wieght": 2.0}'], "did you mean 'weight'?"),
        (["{run}", "--rewards", "late_rewards:later"], "which is no function of 'late_rewards'"),
        (["{run}", "--rewards", "late_rewards:broken"], "reward model 'broken' returned nan for the pair"),
        (["{run}", "--rewards", LATE, "--batch_size", "0"], "batch_size is 0, expected at least 1"),
        (["{run}", "--rewards"], "argument --rewards: expected at least one argument"),
        (["{run}"], "the following arguments are required: --rewards"),
        (["{run}/nowhere", "--rewards", LATE], "nowhere has no run.sqlite: expected the output_dir"),
    ],
)
def test_mistakes_are_told_in_one_sentence(run, rewards, capsys, arguments, words):
    before = everything(run)
    assert words in refused(capsys, *(argument.replace("{run}", str(run)) for argument in arguments))
    after = everything(run)
    assert {**after, "meta": None} == {**before, "meta": None}


def test_a_sweep_that_has_not_finished_is_refused(run, rewards, capsys):
    (run / "rlhf_lines.json").unlink()
    assert "of a sweep that has not finished" in refused(capsys, run, "--rewards", LATE)


def test_a_real_sweep_gets_the_scores_that_it_would_have_had(sft, policies, rewards, tmp_path):
    """The stage itself, with texts outside the task and predicted points: once with two rewards and then ``score``,
    once with all three."""
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{a}{b}"}}\n' for a in "abcdefgh" for b in "uvwxyz"))
    (tmp_path / "control.txt").write_text("a text.\n\nanother one.\n\nand the third")
    flags = [
        *("--sft_model", sft, "--policies", *policies[:2], "--dataset_name", tmp_path / "prompts.jsonl"),
        *(
            "--scalings",
            "0.5 0.5",
            "--sampler",
            "map",
            "--num_weights",
            5,
            "--map_points",
            1,
            "--validation_weights",
            3,
        ),
        *("--validation_prompts", 2, "--test_prompts", 3, "--samples_per_prompt", 2, "--max_new_tokens", 5),
        *("--control", tmp_path / "control.txt", "--control_texts", 3, "--batch_size", 64),
    ]
    folders = {"later": FIRST, "at_once": [*FIRST, LATE]}
    for name, models in folders.items():
        run_stage("sweep", [str(x) for x in (*flags, "--rewards", *models, "--output_dir", tmp_path / name)])
    later, at_once = (everything(tmp_path / name) for name in folders)
    shared = len(later["scores"]) // 2
    rewards.SCORED.clear()
    outcome = score(tmp_path / "later", [LATE])
    assert (
        outcome.scored == {"late": len(rewards.SCORED)} and len(rewards.SCORED) == len(later["completions"]) == shared
    )
    assert (outcome.front["rewards"], outcome.front["metrics"]) == (["long", "digits"], ["late"])
    outcome = score(tmp_path / "later", [LATE], as_objectives=True)
    assert (outcome.scored, outcome.front["objectives"]) == ({"late": 0}, ["long", "digits", "late"])
    # The third reward moves the points that are predicted: the others are the same, completions and scores.
    later = everything(tmp_path / "later")
    both = {row[1] for row in later["specs"]} & {row[1] for row in at_once["specs"]}
    assert len(both) > 10

    def named(tables: dict) -> dict:
        specs, prompts = dict(tables["specs"]), {row[0]: row[1:3] for row in tables["prompts"]}
        rows = ((specs[spec], prompts[prompt], *row) for spec, prompt, *row in tables["scores"])
        return {tuple(row[:-1]): row[-1] for row in rows if row[0] in both}

    assert named(later) == named(at_once)
    assert {key[3] for key in named(later)} == {"long", "digits", "late"}
    front = {json.dumps([p["group"], p["spec"]]): p for p in at_once["front"]["points"]}
    for point in outcome.front["points"]:
        if json.dumps([point["group"], point["spec"]]) in front:
            other = front[json.dumps([point["group"], point["spec"]])]
            assert {**point, "id": None, "perplexity": None} == {**other, "id": None, "perplexity": None}
            # In other company, a text is in a batch of another layout, which sums in another order in float32.
            assert point["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
    assert outcome.front["forgetting"]["texts"] == 3


def test_the_example_of_the_run_gets_the_reading_of_an_added_reward(run, rewards):
    with Store(run) as store:
        store.replace(example=[["policy", "'as it was'"]])
        first = next(store.rows("test", ()))
        prompt = store.prompts("test")[first.prompt].scored_text
    for _ in range(2):
        score(run, [LATE])
    with Store(run) as store:
        reading = ["reward late", f"prompt {prompt!r}, completion {first.text!r}"]
        assert store.recall("example") == [["policy", "'as it was'"], reading]


def test_a_function_is_asked_with_what_the_run_kept_of_its_prompts(run, rewards, tmp_path, monkeypatch):
    (tmp_path / "kept_rewards.py").write_text(
        "def f(prompts, completions, completion_ids, answer=None, **columns):\n"
        "    assert prompts[0][0]['role'] == 'user'\n"
        "    return [len(ids) + 1000 * (a or 0) for ids, a in zip(completion_ids, answer or [0] * len(prompts))]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Store(run) as store:
        (prompt, *_), tokens = store.prompts("test"), {row[:3]: len(row.token_ids) for row in store.rows("test", ())}
        turns = [{"role": "user", "content": "kept"}]
        store.add_shown({prompt: {"conversation": turns, "columns": {"answer": 2}}})
    score(run, [{"model": "kept_rewards:f", "template": "chat"}])
    with Store(run) as store:
        found = {row[:3]: row.scores["f"] for row in store.rows("test", ["f"])}
    assert found == {key: count + 2000 * (key[1] == prompt) for key, count in tokens.items()}


def test_what_an_earlier_version_scored_stays_an_objective(run, rewards):
    database = sqlite3.connect(run / "run.sqlite")
    with database:
        database.execute("DELETE FROM meta WHERE key IN ('objectives', 'reference_point')")
    database.close()
    assert score(run, [LATE]).front["objectives"] == ["long", "digits"]
    with Store(run, reading=True) as store:
        assert store.recall("objectives") == ["long", "digits"]


def test_a_reference_point_of_other_objectives_is_not_taken_for_these(run, rewards, capsys):
    assert cli.main(["front", str(run), "--reference_point", "-1", "0.5"]) == 0
    capsys.readouterr()
    before = everything(run)
    sentence = refused(capsys, run, "--rewards", LATE, "--as_objectives")
    assert "the reference point -1 0.5 was given for long, digits: with other objectives it is another one" in sentence
    assert everything(run) == before and rewards.SCORED == []
    assert cli.main(["score", str(run), "--rewards", LATE]) == 0  # a metric needs none
    assert everything(run)["front"]["reference_point"] == [-1.0, 0.5]


def test_a_name_of_something_else_in_the_front_is_refused(run, rewards, capsys):
    before = everything(run)
    sentence = refused(capsys, run, "--rewards", '{"model": "late_rewards:late", "name": "tokens"}')
    assert "a reward has the name tokens, which is what a front calls something else" in sentence
    assert everything(run) == before
