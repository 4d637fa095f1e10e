"""A judge compares the completions of a finished sweep with those of one point; its win rate is a metric of the run."""

from __future__ import annotations

import csv
import json
import re
import sqlite3

import numpy as np
import pytest

from reward_models import service
from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto.resampling import Resampling
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.sweep.finished.front import metrics_of
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.store import Store
from tests.served import Answer, served
from tests.sweep.small_run import GROUPS, PROMPTS, SAMPLES, SOUP, SPECS, write_run


pytestmark = pytest.mark.usefixtures("without_pictures")
DECIDED = 5  # the judge cannot decide between texts whose lengths differ by less


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(service, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def longer(request):
    question = request.body["messages"][0]["content"]
    a, b = (re.search(rf"<reply_{x}>\n(.*?)\n</reply_{x}>", question, re.DOTALL)[1] for x in "ab")
    verdict = "A" if len(a) - len(b) >= DECIDED else "B" if len(b) - len(a) >= DECIDED else "A"
    return Answer(200, {"choices": [{"message": {"content": f"Verdict: {verdict}"}}]})


def entry(server, **options):
    options = {"model": "m", "rubric": "longer", **options}
    return json.dumps({"model": f"judge:{server.address}/v1", "name": "wins", "options": options})


def texts_of(folder):
    """Text by spec, prompt and sample, of the test split."""
    with sqlite3.connect(folder / "run.sqlite") as database:
        rows = database.execute(
            "SELECT spec, prompt, sample, c.text FROM completions c JOIN prompts ON prompts.id = prompt "
            "WHERE split = 'test'"
        ).fetchall()
        points = database.execute("SELECT id, \"group\", spec FROM points WHERE split = 'test' ORDER BY id").fetchall()
    return {tuple(key): text.strip() for *key, text in rows}, points


def outcome(own, rival):
    difference = len(own) - len(rival)
    return 0.5 if abs(difference) < DECIDED else float(difference > 0)


@pytest.mark.parametrize("against", ["sft", 4])
def test_the_win_rate_is_a_metric_of_every_point(tmp_path, capsys, against):
    run = write_run(tmp_path / "run", ["rule:length"])
    texts, points = texts_of(run)
    rival = next(spec for point, group, spec in points if (group if against == "sft" else point) == against)
    with served(longer) as server:
        assert cli.main(["score", str(run), "--rewards", entry(server, against=against)]) == 0
        told, asked = capsys.readouterr().out, len(server.requests)
        assert cli.main(["score", str(run), "--rewards", entry(server, against=against)]) == 0
        assert len(server.requests) == asked, "all is stored"
    keys = list(texts)
    differ = [key for key in keys if texts[key] != texts[rival, *key[1:]]]
    close = [key for key in differ if abs(len(texts[key]) - len(texts[rival, *key[1:]])) < DECIDED]
    assert asked == 2 * len(differ) and 0 < len(close) < len(differ)
    assert f"wins: scored {len(keys)} completions" in told
    assert len(keys) == SPECS["test"] * len(PROMPTS["test"]) * SAMPLES, "validation has nothing to compare with"
    counted = f"asked for {len(differ)} pairs in both orders: {len(close)} verdicts changed with the order and 0 could"
    assert f"wins: {counted}" in told
    front = json.loads((run / "front.json").read_text())
    assert front["objectives"] == ["length"] and front["metrics"] == ["wins"]
    for point, (_, _, spec) in zip(front["points"], points, strict=True):
        own = [outcome(texts[key], texts[rival, *key[1:]]) for key in keys if key[0] == spec]
        assert point["metrics"]["wins"]["mean"] == pytest.approx(sum(own) / len(own))
        assert spec != rival or point["metrics"]["wins"]["mean"] == 0.5
    assert counted in write_report(run).read_text(encoding="utf-8")
    with Store(run, reading=True) as store:
        assert metrics_of(store, "test") == ["wins"] and metrics_of(store, "validation") == []
    export(run, tmp_path / "tables", format="csv")
    for table, column in (("completions", "score_wins"), ("points", "score_wins_mean")):
        with (tmp_path / "tables" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {(row["split"], row[column] == "") for row in rows} == {("test", False), ("validation", True)}


def test_a_point_that_the_run_lacks_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "run", ["rule:length"])
    with Store(run, reading=True) as store:
        of_validation = store.points("validation")[-1].id
    for point in (99, of_validation):
        with served(longer) as server:
            assert cli.main(["score", str(run), "--rewards", entry(server, against=point)]) == 2
        assert f"point {point}, which the front lacks; its points are in front.csv" in capsys.readouterr().err
    assert json.loads((run / "front.json").read_text())["metrics"] == []


def rate(texts, own, rival):
    """The win rate of a spec against another, by hand."""
    found = [outcome(text, texts[rival, *key]) for (spec, *key), text in texts.items() if spec == own]
    return sum(found) / len(found)


@pytest.mark.parametrize("against", ["rewarded_soup", "lines"])
def test_points_meet_the_group_s_point_of_the_same_weights(tmp_path, capsys, against):
    run = write_run(tmp_path / "run", ["rule:length"])
    texts, points = texts_of(run)
    with served(longer) as server:
        assert cli.main(["score", str(run), "--rewards", entry(server, against=against)]) == 0
        told, asked = capsys.readouterr().out, len(server.requests)
        assert cli.main(["score", str(run), "--rewards", entry(server, against=against)]) == 0
        assert len(server.requests) == asked, "all is stored"
    weights = {spec: tuple(said["weights"]) for spec, said in specs_of(run).items()}
    rival_at = {weights[spec]: spec for _, group, spec in points if group == against}
    front = json.loads((run / "front.json").read_text())
    met = {}
    for point, (_, group, spec) in zip(front["points"], points, strict=True):
        found = point["metrics"]["wins"]
        if group in ("sft", "morlhf"):  # they have no weights that others have
            assert found is None
            continue
        assert found["mean"] == pytest.approx(rate(texts, spec, rival_at[weights[spec]]))
        assert found["mean"] == 0.5 or group != against
        met.setdefault(group, []).append(spec)
    assert {group: len(of) for group, of in met.items()} == {"rewarded_soup": 3, "lines": 3, "ties": 1}
    other = {"rewarded_soup": "lines", "lines": "rewarded_soup"}[against]
    names = {"rewarded_soup": "rewarded soup", "lines": "LiNeS"}
    # Over prompts, of the mean of a prompt's samples under all three points.
    column = np.zeros(len(PROMPTS["test"]))
    prompts = sorted({prompt for _, prompt, _ in texts})
    for (spec, prompt, sample), text in texts.items():
        if spec in met[other]:
            rival = texts[rival_at[weights[spec]], prompt, sample]
            column[prompts.index(prompt)] += outcome(text, rival) / 3 / SAMPLES
    share = Resampling(seed=3).scores({"": column})[""]
    ends = "" if share["low"] is None else f" [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
    wins = f"{names[other]} wins {100 * column.mean():.1f} %{ends} against {names[against]} at the same weights, over 3"
    sentence = re.escape(wins)
    assert re.search(rf"^wins: {sentence} points$", told, re.MULTILINE), told
    (tied,) = met["ties"]
    ties = f"wins {100 * rate(texts, tied, rival_at[weights[tied]]):.1f} %"
    assert re.search(rf"^wins: \S+ {ties} .*over 1 point$", told, re.MULTILINE), told
    assert re.search(sentence, write_report(run).read_text(encoding="utf-8"))
    with (run / "front.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows if row["score_wins_mean"] == ""] == ["sft", "morlhf"]
    export(run, tmp_path / "tables", format="csv")
    assert cli.main(["front", str(run), "--all"]) == 0
    assert cli.main(["pick", str(run), "--min", "wins=0.5", "--maximize", "length"]) == 0


def specs_of(folder):
    """What a spec says, by its id."""
    with sqlite3.connect(folder / "run.sqlite") as database:
        return {spec: json.loads(text) for spec, text in database.execute("SELECT id, spec FROM specs")}


SFT_AND_SOUP = {key: GROUPS["test"][key] for key in ("sft", "rewarded_soup")}
TWICE = {**SFT_AND_SOUP, "ties": [MergeSpec("ties", SOUP[1].weights, options={"density": d}) for d in (0.1, 0.2)]}
APART = {**SFT_AND_SOUP, "ties": [MergeSpec("ties", (0.4, 0.6), options={"density": 0.3})]}


@pytest.mark.parametrize(
    ("groups", "against", "told"),
    [
        (
            GROUPS["test"],
            "reward_soup",
            r"the group 'reward_soup', which the front lacks; did you mean 'rewarded_soup'",
        ),
        (GROUPS["test"], "x", "its groups are sft, rewarded_soup, lines, ties, morlhf"),
        (GROUPS["test"], "morlhf", "'morlhf', but no point of another group stands at the weights"),
        (APART, "ties", "'ties', but no point of another group stands at the weights"),
        (TWICE, "ties", "'ties', which has two points at the weights 0.75, 0.25; name a point by its id"),
    ],
)
def test_a_group_that_cannot_be_met_is_refused_before_anybody_is_asked(tmp_path, capsys, groups, against, told):
    run = write_run(tmp_path / "run", ["rule:length"], groups={"test": groups})
    before = (run / "front.json").read_bytes()
    with served(longer) as server:
        assert cli.main(["score", str(run), "--rewards", "rule:readability", entry(server, against=against)]) == 2
        assert server.requests == []
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert (run / "front.json").read_bytes() == before
    with Store(run, reading=True) as store:
        assert store.recall("reward_names") == ["length"], "nothing was scored by the others either"


def test_what_some_points_lack_is_no_objective(tmp_path, capsys):
    run = write_run(tmp_path / "run", ["rule:length"])
    with served(longer) as server:
        asked = ["score", str(run), "--rewards", entry(server, against="rewarded_soup")]
        assert cli.main([*asked, "--as_objectives"]) == 2
        assert "it can be a metric, but no objective; leave out --as_objectives" in capsys.readouterr().err
        assert server.requests == []
        assert cli.main(asked) == 0
    assert cli.main(["front", str(run), "--objectives", "length", "wins"]) == 2
    assert "point 1 has no score wins" in capsys.readouterr().err
