"""scripts/evidence: what is kept of a study tells no text that is not ours, and gives the same tables again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import mean_estimate
from rlhf_lines.pareto.schema import GROUPS, SOUP
from rlhf_lines.sweep.finished import front as finished_front
from rlhf_lines.sweep.finished.compare import compare
from rlhf_lines.sweep.store import RUN_STORE, Row, Store
from tests.sweep.finished import several_runs


FOLDER = Path(__file__).parents[1] / "scripts" / "evidence"
PROMPTS = tuple(f"Say what this does: function {i}" for i in range(40))
SHARES = (0.0, 0.5, 1.0)
CONTROL = {f"{source} text {i}": source for source in ("code", "hh") for i in range(6)}
SCALING = {"alpha": 1.0, "beta": 0.5, "schedule": "linear"}


def _module(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def evidence():
    """The script's modules, by name; they import each other as a folder that Python runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield _module("evidence_main", FOLDER / "__main__.py")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("kept", "runs", "questions", "pictures"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished seed of a task and one that has only begun, without models; scores are numbers of the seed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "docstrings").mkdir()
    rows = [json.dumps({"text": text, "source": source}) for text, source in CONTROL.items()]
    (folder / "docstrings" / "control.jsonl").write_text("\n".join(rows))
    there = folder / "docstrings" / "seed_0"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_front", "plot_kl", "plot_validation", "plot_forgetting"):
            patch.setattr(finished_front, name, lambda *files: None)
        patch.setattr(several_runs, "build_front", lambda **content: {})
        patch.setattr(several_runs, "write_front", lambda *content: None)
        _write(there / "sweep", 0, _compared())
        _write(there / "thirds", 10, _thirds())
        _write(there / "search", 20, _searched())
    _learned(there / "learn_evolution")
    (there / "configs").mkdir()
    content = "seed: 0\ndataset_path: /home/me/pairs/test.jsonl\npolicies:\n- /a b/c\n"
    (there / "configs" / "sft.yaml").write_text(content)
    (folder / "docstrings" / "seed_1" / "sweep").mkdir(parents=True)
    return folder


def _along(rule, *scaling, **options):
    return [MergeSpec(rule, (1.0 - share, share), *scaling, options=options) for share in SHARES]


def _compared():
    groups = {
        "sft": [MergeSpec("linear", (0.0, 0.0))],
        "rewarded_soup": _along("linear"),
        "lines": _along("linear", 1.0, 0.5),
        "scaled": _along("linear", 0.8),
        "reversed": _along("linear", 1.0, 0.5, "reversed"),
        "ties": _along("ties", density=0.2),
        "ties with LiNeS": _along("ties", 1.0, 0.5, density=0.2),
        "slerp": _along("slerp"),
        "slerp with LiNeS": _along("slerp", 1.0, 0.5),
        "averaged factors": _along("factor_average"),
        "PEFT linear": _along("peft_linear"),
    }
    places = {"morlhf": (2, 3, 4), "layerwise": (5, 6), "frozen": (7, 8)}
    for name, own in places.items():
        one_hot = [tuple(float(k == place) for k in range(9)) for place in own]
        groups[name] = [MergeSpec("linear", weights) for weights in one_hot]
        if len(own) == 2:
            groups[name].insert(1, MergeSpec("linear", tuple(0.5 * (k in own) for k in range(9))))
    return groups


def _thirds():
    def profile(levels, share):
        rows = [[level for level in levels for _ in range(2)]] * 2
        return MergeSpec("layerwise", (1.0 - share, share), options={"factors": rows, "outside": [1.0, 1.0]})

    levels = product((0.5, 1.0), repeat=3)
    groups = {"thirds " + " ".join(f"{x:g}" for x in each): [profile(each, s) for s in SHARES] for each in levels}
    return {"sft": [MergeSpec("linear", (0.0, 0.0))], "rewarded_soup": _along("linear"), **groups}


def _searched():
    def profile(share):
        options = {"factors": [[1.0, 1.5, 2.0]] * 2, "outside": [1.0, 1.0]}
        return MergeSpec("layerwise", (1.0 - share, share), options=options)

    own = {"search": [profile(share) for share in SHARES], "one factor": _along("linear", 1.5)}
    rules = {"rewarded_soup": _along("linear"), "lines": _along("linear", 1.0, 0.5)}
    return {"sft": [MergeSpec("linear", (0.0, 0.0))], **rules, **own}


def _learned(folder):
    """A finished `learn`, of which the record is read."""
    profile = {"factors": [[0.5, 0.75, 1.0], [1.0, 0.75, 0.5]], "outside": [0.5, 1.0]}
    values = {"learned": 0.8, "lines": 0.7, "soup": 0.5}
    record = {
        "method": "evolution",
        "aim": "utility",
        "space": "profile",
        "prompts": {"train": 8, "validation": 10},
        "candidates": 4,
        "validation": {name: {"value": value, "kl": 10 * value} for name, value in values.items()},
        "differences": {"lines": {"value": 0.1, "low": 0.05, "high": 0.15}},
        "profiles": dict.fromkeys(values, profile),
    }
    with new_folder(folder) as made:
        write_record(made, "learn", {"sft_model": "/home/me/sft"}, **record)


def _write(folder, seed, groups):
    measured = {"value": 1.0, "corrected": 1.0, "low": 0.5, "high": 1.5}
    tried = {**SCALING, "hypervolume": measured, "kl": 1.0, "forgetting": None, "lowest": {}, "within_limits": True}
    tuning = {"grid": [tried], "chosen": SCALING, "at_edge": False}
    limits = {"prompts": 5, "weights": 3, "reference_point": [0, 0], "max_kl": None, "max_forgetting": None}
    others = {name: tuning for name in ("scaled", "ties") if name in groups}
    validation = {**tuning, **limits, "minimum": {}, "groups": others}
    several_runs.write_sweep(
        folder,
        seed,
        prompts=PROMPTS,
        groups=groups,
        max_new_tokens=8,
        end_tokens=[2],
        control="control.jsonl",
    )
    generator = np.random.default_rng(seed)
    with Store(folder) as store:
        sets = [{"name": name, "policies": [f"{name}/{k}" for k in "ab"]} for name in ("layerwise", "frozen")]
        store.replace(validation=validation, policies=["out/faithful", "out/readable"], policy_sets=sets)
        store.replace(reward_models={"brief": {"model": "similarity:/home/me/models/encoder"}})
        store.replace(example=[["policy", "a prompt as it is read"]])
        store.replace(morlhf=[f"out/morlhf_{share}" for share in (0.25, 0.5, 0.75)])
        texts = store.add_forgetting_texts(dict.fromkeys(CONTROL, 5))
        store.add_nll((spec, text, 10.0 + generator.normal()) for spec in store.specs() for text in texts)
        (prompt,) = store.add_prompts("validation", {"seen while choosing": "seen while choosing"})
        store.add([Row(min(store.specs()), prompt, 0, "its answer", (1, 2), 0.5, {"brief": 1.0, "kind": 2.0})])
        store.finish()
    finished_front.trace_front(folder)


@pytest.fixture(scope="module")
def kept(evidence, study, tmp_path_factory):
    """What is kept of the study."""
    folder = tmp_path_factory.mktemp("kept")
    evidence.keep_finished(study, folder)
    return folder


@pytest.fixture(scope="module")
def tasks(evidence, kept, tmp_path_factory):
    """The same, read again."""
    return evidence.read_kept(kept, tmp_path_factory.mktemp("unpacked"))


def test_only_finished_seeds_are_kept_with_their_configs(kept):
    assert sorted(path.name for path in (kept / "docstrings").iterdir()) == ["seed_0"]
    assert (kept / "docstrings" / "seed_0" / "configs.yaml").read_text() == (
        "--- # sft\nseed: 0\ndataset_path: test.jsonl\npolicies:\n- c\n"
    )


def test_what_is_kept_has_the_numbers_of_the_sweep(study, tasks):
    there = study / "docstrings" / "seed_0" / "sweep"
    folder = tasks[0].folders[0]
    assert (folder / "front.json").read_bytes() == (there / "front.json").read_bytes()
    with Store(there, reading=True) as store, Store(folder, reading=True) as kept:
        assert kept.recall("reward_models") == {"brief": {"model": "similarity:encoder"}}
        assert list(kept.rows("test", several_runs.REWARDS)) == list(store.rows("test", several_runs.REWARDS))
        assert [kept.nll(spec).tolist() for spec in kept.specs()] == [store.nll(spec).tolist() for spec in kept.specs()]
        (chosen_by,) = kept.rows("validation", several_runs.REWARDS)
    assert (chosen_by.text, chosen_by.token_ids, chosen_by.scores) == ("", (), {"brief": 1.0, "kind": 2.0})


def test_texts_that_are_not_ours_are_kept_as_hashes(evidence, study, tmp_path):
    there = study / "docstrings" / "seed_0" / "sweep"
    evidence.keep(there, study / "docstrings" / "control.jsonl", tmp_path / "a" / "b" / "x.tar.xz", hide_prompts=True)
    folder = evidence.unpack(tmp_path / "a" / "b" / "x.tar.xz", tmp_path)
    stored = (folder / RUN_STORE).read_bytes()
    assert b"function 3" in (there / RUN_STORE).read_bytes()
    assert not any(text.encode() in stored for text in (*PROMPTS, *CONTROL, "seen while choosing", "as it is read"))
    with sqlite3.connect(folder / RUN_STORE) as store:
        found = [text.split() for (text,) in store.execute("SELECT text FROM control_texts ORDER BY id")]
    assert [source for source, _ in found] == list(CONTROL.values())
    assert len({sha256 for _, sha256 in found}) == len(CONTROL)


def test_a_sweep_without_texts_outside_the_task_is_kept(evidence, tmp_path):
    swept = several_runs.write_sweep(tmp_path / "demo" / "seed_0" / "search", 0, control=None)
    archive = tmp_path / "kept" / "demo" / "seed_0" / "search.tar.xz"
    evidence.keep(swept, tmp_path / "demo" / "control.jsonl", archive, hide_prompts=False)
    run = evidence.Run.read(evidence.unpack(archive, tmp_path / "unpacked"), "seed_0")
    assert run.front["points"] == evidence.Run.read(swept, "seed_0").front["points"] and run.sources == []


def test_searches_of_several_seeds_are_told_by_seed_too(evidence, tasks):
    (run,) = tasks[0].searches
    alone = evidence.questions.searched(tasks[0]).splitlines()
    both = evidence.questions.searched(replace(tasks[0], searches=[run, run])).split("\n\n")
    of_one = alone[2].strip("| ").split(" | ")
    assert [table.splitlines()[2].strip("| ").split(" | ")[0] for table in both] == [of_one[0]] * 2
    assert both[1].splitlines()[2].strip("| ").split(" | ")[1:] == [f"{cell}; {cell}" for cell in of_one[2:]]


def test_a_task_has_the_tables_of_what_was_measured_of_it(evidence, tasks):
    some = replace(tasks[0], name="other", runs=[], folders=[], learned={})
    assert evidence.tables([some]).keys() - {"chosen", "sizes"} == {"thirds other", "profiles other", "search other"}


def test_a_first_look_at_a_task_stands_beside_a_whole_comparison(evidence, tasks, tmp_path, monkeypatch):
    """One seed that chose nothing, without MORLHF and without wrong mergers."""
    told = {"max_new_tokens": 8, "end_tokens": [2], "control": "control.jsonl"}
    folder = several_runs.write_sweep(tmp_path / "seed_0", 0, prompts=PROMPTS, **told)
    with Store(folder) as store:
        store.replace(policies=["out/harmless", "out/relevant"])
        texts = store.add_forgetting_texts(dict.fromkeys(CONTROL, 5))
        store.add_nll((spec, text, 10.0) for spec in store.specs() for text in texts)
        store.finish()
    for name in ("plot_front", "plot_kl", "plot_forgetting"):
        monkeypatch.setattr(finished_front, name, lambda *files: None)
    finished_front.trace_front(folder)
    look = evidence.Task("hh", [folder], [evidence.Run.read(folder, "seed_0")], [])
    tables = evidence.tables([tasks[0], look])
    assert {name for name in tables if name.endswith(" hh")} == {"differences hh", "forgetting hh", "readers hh"}
    assert tables["sizes"].splitlines()[3].startswith("| hh | 1 | 40 | nothing is chosen | 12 |")
    assert tables["chosen"].splitlines()[0] == "| alpha/beta, a pair a seed | docstrings |"
    groups = [row.split(" | ")[0].strip("| ") for row in tables["forgetting hh"].splitlines()[2:]]
    assert groups == ["harmless", "relevant", "rewarded soup", "LiNeS"]
    for name, draw in evidence.pictures.PICTURES["runs"].items():
        draw(tmp_path / f"{name}.png", [tasks[0], look])
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_what_was_learned_is_kept_without_settings(kept, tasks, evidence):
    written = (kept / "docstrings" / "seed_0" / "learn_evolution.json").read_text()
    assert "/home/me" not in written
    assert tasks[0].learned["evolution"] == [json.loads(written)]
    (row,) = evidence.questions.learned(tasks[0]).splitlines()[2:]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "evolution",
        *("0.800", "0.700", "0.500", "8.00", "7.00", "5.00"),
        "+0.100 [0.050, 0.150] (to LiNeS)",
    ]


def test_a_seed_of_which_only_learn_is_finished_is_kept(evidence, study, tmp_path):
    there = tmp_path / "study" / "docstrings" / "seed_3"
    shutil.copytree(study / "docstrings" / "seed_0" / "learn_evolution", there / "learn_evolution")
    evidence.keep_finished(tmp_path / "study", tmp_path / "kept")
    kept = tmp_path / "kept" / "docstrings" / "seed_3"
    assert {path.name for path in kept.iterdir()} == {"configs.yaml", "learn_evolution.json"}


def test_the_search_is_compared_in_its_own_sweep(evidence, tasks):
    (task,) = tasks
    rows = [row.strip("| ").split(" | ") for row in evidence.questions.searched(task).splitlines()[2:]]
    assert [row[0] for row in rows][:3] == ["search - LiNeS", "search - one factor", "search - rewarded soup"]
    (front,) = [run.front for run in task.searches]
    entry = next(e for e in front["comparisons"] if {e["a"], e["b"]} == {"search", "lines"})
    sign = 1 if entry["a"] == "search" else -1
    base = front["fronts"]["lines"]["expected_utility"]["corrected"]
    value = 100 * sign * entry["expected_utility_difference"]["corrected"] / base
    assert rows[0][3].startswith(f"{value:+.0f} %")


def test_groups_are_asked_for_by_the_names_that_the_study_gives_them(evidence):
    questions, stages = evidence.questions, _module("study_stages", FOLDER.parent / "study" / "stages.py")
    made = stages.stages(stages.TASKS["docstrings"], 0, Path("seed_0"), stages.Choices({}))
    configs = {stage.name: stage.config for stage in made if stage.verb == "sweep"}
    further = {
        name: {entry["name"] for entry in (*config["groups"], *config.get("policy_sets", []))}
        for name, config in configs.items()
    }
    levels = product(questions.LEVELS, repeat=len(questions.THIRDS))
    assert further["thirds"] == set(map(questions.third_name, levels))
    assert further["search"] == {questions.ONE_FACTOR}
    asked = {name for pair in questions.PAIRS for name in pair} | set(questions.WRONG)
    assert asked - GROUPS.keys() == further["sweep"]


def test_a_third_is_worth_the_mean_difference_between_its_levels(evidence, tasks):
    (task,) = tasks
    questions = evidence.questions
    (effect, *_) = questions.effects(task)
    run = task.thirds[0]
    pairs = [("0.5 0.5 0.5", "0.5 1 0.5"), ("1 0.5 0.5", "1 1 0.5"), ("0.5 0.5 1", "0.5 1 1"), ("1 0.5 1", "1 1 1")]
    by_hand = np.mean(
        [run.utility(run.point(f"thirds {high}")) - run.utility(run.point(f"thirds {low}")) for low, high in pairs],
        axis=0,
    )
    found = questions.third_effect(task, effect, 1)
    assert found.value == pytest.approx(by_hand.mean()) and found[:3] == pytest.approx(mean_estimate(by_hand)[:3])


def test_a_difference_is_in_percent_of_the_second_and_changes_sign_with_the_order(tasks):
    (task,) = tasks
    front = task.runs[0].front
    entry = next(e for e in front["comparisons"] if (e["a"], e["b"]) == ("lines", "rewarded_soup"))
    base = front["fronts"]["rewarded_soup"]["hypervolume"]["corrected"]
    found = task.difference("lines", "rewarded_soup", "hypervolume")
    expected = [100 * entry["hypervolume_difference"][key] / base for key in ("corrected", "low", "high")]
    assert found[:3] == pytest.approx(expected)
    back = task.difference("rewarded_soup", "lines", "hypervolume")
    base = front["fronts"]["lines"]["hypervolume"]["corrected"]
    assert back[:3] == pytest.approx(
        [-100 * entry["hypervolume_difference"][key] / base for key in ("corrected", "high", "low")]
    )
    spent = task.difference("lines", "rewarded_soup", "equal_kl")
    assert spent.value == pytest.approx(
        100 * entry["equal_kl_difference"]["corrected"] / entry["equal_kl_hypervolumes"][1]
    )


def test_over_seeds_differences_are_those_of_compare(evidence, tmp_path):
    folders = [several_runs.write_sweep(tmp_path / f"seed_{seed}", seed, control=None) for seed in (0, 1)]
    runs = [evidence.Run.read(folder, folder.name) for folder in folders]
    task = evidence.Task("docstrings", folders, runs, [])
    compared = compare(folders, output_dir=tmp_path / "compared")
    entry = next(e for e in compared["comparisons"] if (e["a"], e["b"]) == ("lines", "rewarded_soup"))
    # All runs are measured from one reference point there, which is none of theirs.
    assert compared["reference_point"] not in [run.front["reference_point"] for run in runs]
    for measure in ("hypervolume", "expected_utility", "equal_kl"):
        if measure == "equal_kl":
            lines, soup = np.mean(entry["equal_kl_hypervolumes"], axis=0)
        else:
            groups = [run["groups"] for run in compared["runs"]]
            lines, soup = (np.mean([g[name][measure]["corrected"] for g in groups]) for name in ("lines", SOUP))
        found = task.difference("lines", "rewarded_soup", measure)
        ends = [100 * entry[f"{measure}_difference"][key] / soup for key in ("low", "high")]
        assert found[:3] == pytest.approx([100 * (lines / soup - 1), *ends], rel=1e-9), measure
        back = task.difference("rewarded_soup", "lines", measure)
        assert back.value == pytest.approx(100 * (soup / lines - 1), rel=1e-9), measure


def test_a_pair_is_compared_over_the_seeds_that_have_both(evidence, tasks, tmp_path):
    (whole,) = tasks[0].runs
    folder = several_runs.write_sweep(tmp_path / "seed_1", 1, prompts=PROMPTS, control=None)
    task = evidence.Task("docstrings", [], [whole, evidence.Run.read(folder, "seed_1")], [])
    assert task.having("lines", "rewarded_soup") is task
    assert task.having("ties", "ties with LiNeS").runs == [whole] and not task.having("missing").runs
    rows = [row.strip("| ").split(" | ") for row in evidence.questions.differences(task).splitlines()[2:]]
    by_seed = [row.strip("| ").split(" | ") for row in evidence.questions.by_seed(task).splitlines()[2:]]
    alone = evidence.questions.differences(evidence.Task("docstrings", [], [whole], [])).splitlines()[2]
    assert by_seed[0][1].split("; ")[0] == alone.strip("| ").split(" | ")[2] and by_seed[0][1].count("; ") == 1
    assert {row[0]: row[1] for row in rows}.items() >= {
        "LiNeS - rewarded soup": "2",
        "ties with LiNeS - ties": "1",
    }.items()


def test_a_mean_over_seeds_knows_that_other_seeds_would_be_others(evidence):
    generator = np.random.default_rng(0)
    shared = generator.normal(size=100)
    alike, apart = ([shared + place for place in places] for places in ((1.0, 1.0, 1.0), (0.0, 1.0, 2.0)))
    over_seeds = sys.modules["runs"].over_seeds
    for values in (alike, apart):
        assert over_seeds(values).value == pytest.approx(np.mean(values))
    widths = [over_seeds(values).high - over_seeds(values).low for values in (alike, apart)]
    assert widths[0] == pytest.approx(2 * 1.984 * shared.std(ddof=1) / 10, rel=0.2)  # of one seed, over prompts
    assert widths[1] > 2 * 4.303 / np.sqrt(3)  # Student's t of three seeds
    assert over_seeds([shared])[:3] == mean_estimate(shared)[:3]


def test_the_page_has_every_table_and_every_figure(evidence, kept, tasks, tmp_path, monkeypatch):
    tables = evidence.tables(tasks)
    page = tmp_path / "page.md"
    page.write_text(
        "# Evidence\n\n" + "\n".join(f"<!-- {name} -->\nold\n<!-- end -->\n" for name in tables) + "\nsaid\n"
    )
    monkeypatch.setattr(sys, "argv", ["evidence", "--kept", str(kept), "--page", str(page)])
    evidence.main()
    written = page.read_text()
    assert "old" not in written and "nan" not in written and written.endswith("\nsaid\n")
    assert "| LiNeS - rewarded soup | " in written and written.count("<!-- end -->") == len(tables)
    assert "not measured" not in tables["differences docstrings"]
    for name in (name for drawn in evidence.pictures.PICTURES.values() for name in drawn):
        assert (kept / f"{name}.png").stat().st_size > 10_000
    before = page.read_text(), (kept / "soup.png").read_bytes()
    evidence.main()
    assert before == (page.read_text(), (kept / "soup.png").read_bytes())


def test_a_table_without_marks_is_named(evidence):
    with pytest.raises(ValueError, match=r"marks for wrong, and there are tables sizes"):
        evidence.with_tables("<!-- wrong -->\n<!-- end -->\n", {"sizes": "| |"})
