"""From run folders to a table, `comparison.json`, a figure and a page; and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest

from rlhf_lines.cli import main
from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import read_front
from rlhf_lines.pareto.comparison import read_comparison
from rlhf_lines.pareto.comparison_table import comparison_table
from rlhf_lines.pareto.comparisons import MEASURES
from rlhf_lines.pareto.table import p_text
from rlhf_lines.sweep.finished.compare import compare
from rlhf_lines.sweep.finished.front import trace_front
from tests.sweep.finished.several_runs import PROMPTS, REWARDS, specs, write_sweep


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three sweeps of one recipe and two of another, for tests that only read them."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_sweep(root / f"seed{seed}", seed)
    for seed in (7, 8):
        write_sweep(root / f"other{seed}", seed, gain=0.2)
    return root


def refused(capsys, arguments) -> str:
    """The sentence that `rlhf-lines compare` ends with."""
    assert main(["compare", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rlhf-lines compare: ") and err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    """What comparing three runs of one recipe printed, where it wrote, and what the runs' folders held before."""
    folders, out = [runs / f"seed{seed}" for seed in range(3)], tmp_path_factory.mktemp("compared") / "out"
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", *map(str, folders), "--output_dir", str(out)]) == 0
    return {"folder": out, "text": printed.getvalue(), "before": before, "runs": folders}


def test_a_file_a_picture_and_a_page_are_written(compared):
    figures = {"comparison.png", "comparison.pdf"}
    written = {path.name for path in compared["folder"].iterdir()}
    assert written == {"comparison.json", "comparison.html", "config.yaml", "rlhf_lines.json"} | figures
    assert {path: path.read_bytes() for run in compared["runs"] for path in run.iterdir()} == compared["before"]
    assert [run["name"] for run in read_comparison(compared["folder"])["runs"]] == ["seed0", "seed1", "seed2"]


def test_the_table_has_the_numbers_of_the_file(compared):
    out, (entry, *_) = compared["text"], read_comparison(compared["folder"])["comparisons"]
    *table, last = out.splitlines()
    assert max(map(len, table)) <= 110 and last == (
        f"wrote {compared['folder'] / 'comparison.html'}, and beside it comparison.json, comparison.png, comparison.pdf"
    )
    cell = r"(\S+) \[(\S+), (\S+)\] +(\S+) +3 of 3"
    rows = re.findall(r"^LiNeS - rewarded soup +(?!seed)(\w+) +(.*3 of 3)$", out, flags=re.M)
    assert {verdict for verdict, _ in rows} == {entry["verdict"]}
    cells = [found for _, row in rows for found in re.findall(cell, row)]
    for cell, measure in zip(cells, MEASURES, strict=True):  # as many beside each other as fit
        over = entry[f"{measure}_difference"]
        expected = [over[key] for key in ("corrected", "low", "high")]
        assert [float(text) for text in cell[:3]] == pytest.approx(expected, abs=1e-3)
        assert cell[3] == p_text(over["adjusted_p_value"])
    assert "\nFew prompts (12): intervals are widened for it" in out
    assert "12 test prompts, the same in all runs" in out and "note:" not in out


def test_the_differences_are_those_of_the_fronts_by_one_reference_point(runs, tmp_path):
    front = read_front(runs / "seed0")
    found = compare(
        [runs / "seed0", runs / "seed1"], output_dir=tmp_path / "out", reference_point=front["reference_point"]
    )
    theirs = {(entry["a"], entry["b"]): entry for entry in front["comparisons"]}
    assert len(found["comparisons"]) == len(theirs) == 3
    for entry in found["comparisons"]:
        for measure in ("hypervolume_difference", "equal_kl_difference"):
            ours = entry[measure]["runs"][0]
            assert ours == pytest.approx({key: theirs[entry["a"], entry["b"]][measure][key] for key in ours})


def test_two_recipes_and_two_single_runs(runs, tmp_path, capsys):
    a, b = [str(runs / f"seed{seed}") for seed in (0, 1)], [str(runs / f"other{seed}") for seed in (7, 8)]
    assert main(["compare", *a, "--against", *b, "--output_dir", str(tmp_path / "recipes")]) == 0
    out = capsys.readouterr().out
    assert "seed0, seed1 (a) against other7, other8 (b)" in out and "LiNeS: a - b" in out
    assert main(["compare", a[0], "--against", b[0], "--output_dir", str(tmp_path / "single")]) == 0
    assert "intervals for other prompts, for these policies" in capsys.readouterr().out
    for entry in read_comparison(tmp_path / "single")["comparisons"]:
        assert entry["hypervolume_difference"]["error_of_runs"] is None


def test_rewards_in_another_order_are_the_same_rewards(runs, tmp_path):
    turned = write_sweep(tmp_path / "turned", 1, rewards=REWARDS[::-1])
    found = compare([runs / "seed0", turned], output_dir=tmp_path / "out")
    front = read_front(turned)
    best = {r: max(p["scores"][r]["mean"] for p in front["points"] if p["single_policy"] is not None) for r in REWARDS}
    assert found["objectives"] == list(REWARDS)
    assert all(ideal >= best[r] - 1e-12 for r, ideal in zip(REWARDS, found["ideal_point"], strict=True))


def test_objectives_are_compared_and_metrics_are_not(tmp_path, runs):
    """Of runs with further scores, and with the objectives in another order: as without."""
    folders = []
    for seed in (0, 1):
        folder = write_sweep(tmp_path / f"seed{seed}", seed, rewards=REWARDS)
        trace_front(folder, objectives=["kind"])
        folders.append(folder)
    found = compare(folders, output_dir=tmp_path / "one")
    assert found["objectives"] == ["kind"] and len(found["reference_point"]) == 1 and found["attainment"] is None
    assert all("brief" not in entry["groups"] for entry in found["runs"])
    with pytest.raises(ValueError, match=r"have other objectives, kind and brief, kind: .* --objectives"):
        compare([folders[0], runs / "seed1"], output_dir=tmp_path / "two")


def test_what_each_run_has_learned_for_its_own_policies_is_no_other_way_to_merge(tmp_path, capsys):
    def folder(seed: int, rank: int = 2):
        by_layer = [{"factors": [[seed, 1.0 + k], [0.5, 1.0]], "outside": [1.0, 1.0]} for k in range(3)]
        weights = [spec.weights for spec in specs()["lines"]]
        groups = {
            "search": [MergeSpec("layerwise", w, options=own) for w, own in zip(weights, by_layer, strict=True)],
            "routed": [MergeSpec("twin", w, options={"rank": rank, "router": f"5f{seed}"}) for w in weights],
        }
        return write_sweep(tmp_path / f"seed{seed} rank{rank}", seed, groups=groups | anchors)

    anchors = {name: specs()[name] for name in ("sft", "rewarded_soup")}
    found = compare([folder(0), folder(1)], output_dir=tmp_path / "out")
    assert {"search", "routed"} <= found["runs"][0]["groups"].keys()
    told = refused(capsys, [folder(2), folder(3, rank=4), "--output_dir", tmp_path / "other"])
    assert '\'routed\' in two ways, twin {"rank": 2} and twin {"rank": 4}' in told


def test_a_log_ratio_that_is_no_kl_is_not_compared(tmp_path):
    folders = []
    for seed in (0, 1):
        folders.append(write_sweep(tmp_path / f"seed{seed}", seed, temperature=0))
        trace_front(folders[-1])
    found = compare(folders, output_dir=tmp_path / "out")
    assert [entry["equal_kl_difference"] for entry in found["comparisons"]] == [None] * 3
    assert {entry["verdict"] for entry in found["comparisons"]} <= {"higher", "lower", "mixed", "undecided"}
    reason = "(no KL: the text is greedy, or drawn with top_p or top_k)"
    said = f"nothing is compared at equal KL, and so no group is called better {reason}"
    table = " ".join(comparison_table(found).split())
    assert said in table and "KL" not in table.replace(said, "")
    page = re.sub(r'src="data:[^"]+"', "", (tmp_path / "out/comparison.html").read_text())
    assert page.count("KL") == 2 * page.count(f"not compared at equal KL {reason}") == 6


def test_other_prompts_are_said_and_paired_as_far_as_they_are_the_same(runs, tmp_path, capsys):
    other = write_sweep(tmp_path / "other", 1, prompts=[*PROMPTS[:9], "new 1", "new 2"])
    assert main(["compare", str(runs / "seed0"), str(other), "--output_dir", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the runs have other prompts (seed0 12, other 11; 9 in all)" in out and "11 to 12 test prompts" in out
    assert read_comparison(tmp_path / "out")["shared_prompts"] == 9


def test_what_makes_runs_no_replicates_is_said(runs, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(runs / "seed0", copied)
    fewer = {name: some[:2] if name == "reversed" else some for name, some in specs().items()}
    fewer["extra"] = [MergeSpec("ties", spec.weights) for spec in specs()["lines"]]
    other = write_sweep(tmp_path / "fewer", 4, groups=fewer)
    notes = compare([runs / "seed0", copied, other], output_dir=tmp_path / "out")["notes"]
    assert notes == [
        "the same policies are in seed0 and copied: these are no independent training runs",
        "weights differ between runs in reversed: more points make a larger hypervolume",
        "left out, because not every run has them: extra",
    ]


def test_runs_that_were_sampled_otherwise_are_said_to_be(tmp_path):
    """Only what a store tells: one of an earlier version tells less, and a seed is each run's own."""
    alike = {"sft_sha256": "s", "temperature": 1, "top_p": None, "stop": [], "dtype": "float32", "load_in_8bit": False}
    first = write_sweep(tmp_path / "first", 0, max_new_tokens=16, **alike)
    second = write_sweep(tmp_path / "second", 1, max_new_tokens=16, **{**alike, "temperature": 1.0})
    early = write_sweep(tmp_path / "early", 2)
    assert compare([first, second, early], output_dir=tmp_path / "same")["notes"] == []
    changes = {"temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "dtype": "bfloat16", "load_in_8bit": True}
    other = write_sweep(tmp_path / "other", 3, max_new_tokens=8, **{**alike, "sft_sha256": "t", **changes})
    notes = [
        "temperature differs: first 1, other 0.5",
        "top_p differs: first null, other 0.9",
        'stop differs: first [], other ["\\n"]',
        "max_new_tokens differs: first 16, other 8",
        "dtype differs: first float32, other bfloat16",
        "load_in_8bit differs: first false, other true",
        "the SFT models differ: first sft, other sft",
    ]
    assert compare([first, early, other], output_dir=tmp_path / "a")["notes"] == notes
    assert compare([first], [other], output_dir=tmp_path / "b")["notes"] == notes


@pytest.mark.parametrize("hostile", ['<script>alert("x")</script>', "b & <b>", "$x^2$"])
def test_names_are_shown_as_text_and_the_page_needs_nothing(tmp_path, hostile):
    folders = []
    for seed in (1, 2):
        groups = {**specs(), hostile: [MergeSpec("linear", s.weights, 0.5) for s in specs()["lines"]]}
        folders.append(write_sweep(tmp_path / f"<i>{seed}", seed, groups=groups, rewards=(hostile, "kind")))
    compare(folders, output_dir=tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "&lt;i&gt;1" in page
    assert "\x00" not in page and re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "default-src 'none'" in page and len(page) < 2_000_000


def test_the_page_has_the_numbers_of_the_file(compared):
    found, page = read_comparison(compared["folder"]), (compared["folder"] / "comparison.html").read_text()
    cells = re.findall(r'<span>([^<]+)<span class="range"> \[([^,]+), ([^\]]+)\]</span></span>', page)
    values = [tuple(float(text.replace("\u2212", "-")) for text in cell) for cell in cells]
    expected = [
        tuple(entry[f"{m}_difference"][k] for k in ("corrected", "low", "high"))
        for entry in found["comparisons"]
        for m in MEASURES
    ]
    np.testing.assert_allclose(values[: len(expected)], expected, atol=1e-3)
    assert len(values) == len(expected) + 3 * 3 * len(found["comparisons"]) + 2 * 3 * 3


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, capsys):
    one, two, out = runs / "seed0", runs / "seed1", ["--output_dir", tmp_path / "out"]
    assert "got one run: the spread over runs is not known" in refused(capsys, [one, *out])
    assert "got 2 runs against 1" in refused(capsys, [one, two, *out, "--against", runs / "other7"])
    assert "are one folder: give every run once" in refused(capsys, [one, f"{one}/../seed0", *out])
    assert "are one folder" in refused(capsys, [one, *out, "--against", one])
    assert "has no run.sqlite" in refused(capsys, [one, tmp_path / "no", *out])
    for words in (["1"], ["1", "nan"]):
        told = refused(capsys, [one, two, *out, "--reference_point", *words])
        assert f"is {' '.join(words)}, expected one finite number for each objective: brief, kind" in told
    other = write_sweep(tmp_path / "rewards", 1, rewards=("brief", "long"))
    assert "have other objectives, brief, kind and brief, long" in refused(capsys, [one, other, *out])
    models = {name: {"model": name, "files": {"weights": "f00"}} for name in REWARDS}
    known = write_sweep(tmp_path / "known", 1, reward_models=models)
    changed = write_sweep(tmp_path / "changed", 2, reward_models={**models, "kind": {"files": {"weights": "ba4"}}})
    told = refused(capsys, [known, changed, *out])
    assert "different reward models of the name 'kind' (files differ)" in told
    ties = {**specs(), "lines": [MergeSpec("ties", spec.weights) for spec in specs()["lines"]]}
    other = write_sweep(tmp_path / "ties", 1, groups=ties)
    assert "merge the group 'lines' in two ways, linear and ties" in refused(capsys, [one, other, *out])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(one, unfinished)
    (unfinished / "rlhf_lines.json").unlink()
    assert "has not finished" in refused(capsys, [one, unfinished, *out])
    stale = tmp_path / "stale"
    shutil.copytree(one, stale)
    front = json.loads((stale / "front.json").read_text())
    front["points"][0]["id"] = 99
    (stale / "front.json").write_text(json.dumps(front))
    assert "has points that its run store has not" in refused(capsys, [stale, two, *out])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_existing_folder_is_replaced_only_when_told_to(runs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    arguments = [runs / "seed0", runs / "seed1", "--output_dir", out]
    assert "add --overwrite to replace it" in refused(capsys, arguments)
    assert main(["compare", *map(str, arguments), "--overwrite"]) == 0
    assert (out / "comparison.json").is_file()
    copied = tmp_path / "copied"
    shutil.copytree(runs / "seed0", copied)
    capsys.readouterr()
    inside = [copied, runs / "seed1", "--output_dir", copied, "--overwrite"]
    assert "which --overwrite would delete" in refused(capsys, inside)


def test_runs_of_the_same_name_have_that_of_the_folder_above(runs, tmp_path):
    folders = []
    for seed in (1, 2):
        (tmp_path / f"s{seed}").mkdir()
        shutil.copytree(runs / f"seed{seed}", folder := tmp_path / f"s{seed}" / "sweep")
        folders.append(folder)
    found = compare(folders, output_dir=tmp_path / "out")
    assert [run["name"] for run in found["runs"]] == ["s1/sweep", "s2/sweep"]
