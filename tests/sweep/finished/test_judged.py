"""A judge compares the completions of a finished sweep with those of one point; its win rate is a metric of the run."""

from __future__ import annotations

import csv
import json
import re
import sqlite3

import pytest

from reward_models import service
from rlhf_lines import cli
from rlhf_lines.sweep.finished.export import export
from rlhf_lines.sweep.finished.front import metrics_of
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.store import Store
from tests.served import Answer, served
from tests.sweep.small_run import PROMPTS, SAMPLES, SPECS, write_run


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
