"""From a run folder to ``report.html``."""

from __future__ import annotations

import json
import shlex

import pytest

from rlhf_lines import __version__
from rlhf_lines.artifact import write_record
from rlhf_lines.cli import main
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import build_front, write_front
from rlhf_lines.sweep.finished.report import read_completions, write_report
from rlhf_lines.sweep.store import Row, Store
from tests.pareto.report.parsed import Page
from tests.sweep.small_run import write_run


REWARDS = ["short", "kind </script>"]
WEIGHTS = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


@pytest.fixture
def run(tmp_path):
    """A run folder of five points, two of which share a spec, with two samples for each of six prompts."""
    folder = tmp_path / "my run"
    folder.mkdir()
    with Store(folder) as store:
        store.remember(reward_names=REWARDS, samples_per_prompt=2, seed=3, validation=None, surrogate=None)
        store.remember(sft_model="base", policies=["one", "two </script>"], morlhf=[])
        store.add_prompts("validation", {"not in the report": "x"})
        prompts = store.add_prompts("test", {f"prompt {i} <b>": f"shown {i}" for i in range(6)})
        points = store.add_points("test", "sft", [MergeSpec("linear", (0.0, 0.0))])
        points += store.add_points("test", "rewarded_soup", [MergeSpec("linear", w) for w in WEIGHTS])
        points += store.add_points("test", "lines", [MergeSpec("linear", WEIGHTS[0])])
        for spec in dict.fromkeys(point.spec_id for point in points):
            store.add(
                Row(spec, prompt, sample, f"{spec}/{prompt}/{sample}", (1, 2), 0.25 * sample, scores)
                for prompt in prompts
                for sample in (0, 1)
                for scores in [{name: spec + 0.5 * sample + k for k, name in enumerate(REWARDS)}]
            )
        write_front(
            folder,
            build_front(
                rewards=REWARDS,
                sft_model="base",
                policies=["one", "two </script>"],
                split="test",
                seed=3,
                resamples=20,
                points=[
                    {"id": p.id, "group": p.group, "spec": p.spec.to_dict(), "samples_per_prompt": 2}
                    | {"scores": store.scores(p.spec_id, "test", REWARDS), "kl": store.kl(p.spec_id, "test")}
                    for p in points
                ],
            ),
        )
    write_record(folder, "sweep", {"seed": 3, "note": "</script>"})
    return folder


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def shown(measure):
    return [[[measure["texts"][i] for i in row] for row in rows] for rows in measure["ranks"]]


def test_the_report_holds_what_the_store_holds(run):
    path = write_report(run)
    assert path == run / "report.html"
    found = page_of(path).data["completions"]
    assert found["prompts"] == [f"prompt {i} <b>" for i in range(6)]
    assert found["asked"] == [f"…{i}" for i in range(6)]  # reward models are shown "shown 0" to "shown 5"
    with Store(run) as store:
        points, prompts = store.points("test"), list(store.prompts("test"))
    assert sorted(found["spec_of"]) == sorted(str(point.id) for point in points)
    assert len(points) == 5 and len(found["written"]) == 4
    _, kind, kl = (shown(measure) for measure in found["measures"])
    for point in points:
        spec = found["spec_of"][str(point.id)]
        texts = [[found["texts"][i] for i in row] for row in found["written"][spec]]
        assert texts == [[f"{point.spec_id}/{prompt}/{sample}" for sample in (0, 1)] for prompt in prompts]
        assert kl[spec] == [["0.000", "0.250"]] * 6
        assert kind[spec] == [[f"{point.spec_id + 1}.000", f"{point.spec_id + 1}.500"]] * 6


def value_of(name, texts):
    return texts[texts.index(name) + 1]


def test_what_a_completion_is_told_beside_its_scores_is_called_kl_only_where_it_estimates_one(tmp_path):
    """By how it was drawn: the log-ratio of a greedy completion is no KL, nor is any group compared at equal KL."""
    for settings, head in (
        ({}, "KL"),
        ({"temperature": 0.0}, "log-ratio"),
        ({"top_p": 0.9}, "log-ratio"),
    ):
        folder = write_run(tmp_path / str(settings), ["rule:length"], **settings)
        page = write_report(folder).read_text(encoding="utf-8")
        sample = page.partition('<template id="sample">')[2].partition("</template>")[0]
        heads = [text.partition("</bdi>")[0] for text in sample.split('<bdi title="')[1:]]
        assert [text.rpartition('">')[2] for text in heads] == ["length", head]
        assert head == "KL" or "Hypervolume at equal KL" not in page


def test_how_it_was_made_is_said(run):
    texts = page_of(write_report(run)).texts
    assert f"{run.parent.name}/my run" in texts
    assert "seed: 3\nnote: </script>\n" in texts
    assert value_of("rlhf_lines", texts) == __version__
    assert value_of("seed", texts) == "3" and value_of("samples per prompt", texts) == "2"
    again = run.with_name("my run-again")
    assert f"rlhf-lines sweep --config '{run / 'config.yaml'}' --output_dir '{again}'" in texts


def test_the_commands_pick_what_is_picked_on_the_page(run, capsys):
    data = page_of(write_report(run)).data
    picks = data["picks"]
    assert picks["choices"][3] == f"rlhf-lines pick '{run}' --preference 0.7 0.3 --scale range"
    points = [choice["point"] for choice in data["choices"]]
    for command, point in [*zip(picks["choices"], points, strict=True), (f"{picks['point']}{points[3]}", points[3])]:
        assert main(shlex.split(command)[1:]) == 0
        assert capsys.readouterr().out.startswith(f"point {point}: ")


def test_every_point_says_how_to_make_its_policy(run):
    texts = page_of(write_report(run)).texts
    commands = [text for text in texts if text.startswith("rlhf-lines merge")]
    assert texts.count("To be run where the sweep ran: models are named as they were there.") == len(commands)
    points = json.loads((run / "front.json").read_text())["points"]
    assert [shlex.split(command)[-1] for command in commands] == (
        [str(run / f"point_{p['id']}") for p in points if p["group"] != "sft"]
    )
    words = shlex.split(commands[1])
    assert words[words.index("--policies") + 1 :][:2] == ["one", "two </script>"]
    assert words[words.index("--weights") + 1 :][:2] == ["0.5", "0.5"]


def test_a_missing_sample_is_none(run):
    with Store(run) as store:
        [point] = store.points("test")[:1]
        prompt = store.add_prompts("test", {"half": "half"})[0]
        store.add([Row(point.spec_id, prompt, 1, "second", (1,), 0.0, {REWARDS[0]: 1.0})])
        front = json.loads((run / "front.json").read_text())
        found = read_completions(store, front)
    assert found.texts[point.spec_id][-1] == [None, "second"]
    assert found.scores[REWARDS[1]][point.spec_id][-1] == [None, None]


def test_of_many_prompts_some_are_read(run):
    with Store(run) as store:
        found = read_completions(store, json.loads((run / "front.json").read_text()), limit=3)
    assert found.prompts == ["prompt 1 <b>", "prompt 3 <b>", "prompt 5 <b>"]
    assert found.asked == ["…1", "…3", "…5"]
    assert found.total == 6


def test_no_token_is_read(run):
    """Of a large run they are most of what the store holds, and the page has none of them."""
    with Store(run) as store:
        front = json.loads((run / "front.json").read_text())
        found = read_completions(store, front)
        with store._db:
            store._db.execute("UPDATE completions SET token_ids = 'no tokens'")
        assert read_completions(store, front) == found


def places_of(trace):
    return list(zip(trace.get("customdata", []), trace["x"], trace["y"], strict=False))


def test_a_front_that_is_missing_is_traced(run):
    with_front = page_of(write_report(run)).data
    (run / "front.json").unlink()
    traced = page_of(write_report(run)).data
    assert (run / "front.json").is_file()
    assert traced["completions"] == with_front["completions"]
    places = [
        sorted(place for trace in data["figures"]["front-figure"]["figure"]["data"] for place in places_of(trace))
        for data in (with_front, traced)
    ]
    assert len(places[0]) == 5 and places[0] == places[1]


def test_a_sweep_that_has_not_finished_is_refused(run, capsys):
    (run / "rlhf_lines.json").unlink()
    assert main(["report", str(run)]) == 2
    assert "has not finished" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_an_old_report_is_replaced_and_nothing_else_is_left(run):
    before = {path.name for path in run.iterdir()}
    (run / "report.html").write_text("old")
    write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_a_report_that_cannot_be_written_leaves_nothing(run):
    (run / "report.html").mkdir()
    before = {path.name for path in run.iterdir()}
    with pytest.raises(IsADirectoryError):
        write_report(run)
    assert {path.name for path in run.iterdir()} == before


def test_the_command_writes_it_and_says_where(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'}: 4.9 MB")


def test_a_folder_without_a_store_is_refused_in_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} has no run.sqlite" in capsys.readouterr().err
