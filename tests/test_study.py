"""scripts/study: its stages are what the command line accepts, and each reads what an earlier one writes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlhf_lines.arguments import parse
from rlhf_lines.stages import configs_of


FOLDER = Path(__file__).parents[1] / "scripts" / "study"
INPUTS = ("model_name_or_path", "sft_model", "policies", "morlhf", "reuse")
MODULES = ("stages", "control", "processes")


@pytest.fixture(scope="module")
def study():
    """The script's modules, by name; they import each other as a folder that Python runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


ALL_STAGES = ["sft", *["ppo"] * 9, *["sweep"] * 3, *["learn"] * 3]


@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("docstrings", ALL_STAGES),
        ("hh", ["reward", *ALL_STAGES]),
        ("demo", ["sft", "reward", "reward", "sft", "ppo", "ppo", "sweep", *["learn"] * 3]),
    ],
)
def test_every_stage_is_accepted_and_reads_what_is_there_by_then(study, name, verbs, tmp_path):
    task, changes = study.stages.TASKS[name], {"dataset_path": "pairs"} if name == "hh" else {}
    before = list(study.stages.before(task, changes))
    stages = [*before, *study.stages.stages(task, 7, tmp_path / "seed_7", study.stages.Choices(changes))]
    assert [stage.verb for stage in stages] == verbs
    written = {"models/SmolLM2-135M-Instruct", "models/all-MiniLM-L6-v2"}
    written |= {f"outputs/demo/untrained/{kind}" for kind in ("llama", "gpt2", "bert")}
    for number, stage in enumerate(stages):
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(yaml.safe_dump(stage.config))
        configs, given = parse(configs_of(stage.verb), ["--config", str(path)], prog=stage.verb)
        if number >= len(before):
            assert any(getattr(config, "seed", None) == (0 if stage.verb == "sweep" else 7) for config in configs)
        read = [given[key] for key in INPUTS if key in given]
        for each in (one for value in read for one in ([value] if isinstance(value, str) else value)):
            assert each in written, f"{stage.name} reads {each}"
        assert given["output_dir"] not in written
        written.add(given["output_dir"])
    sweep = next(stage for stage in stages if stage.verb == "sweep")
    sets = [policy for group in sweep.config.get("policy_sets", []) for policy in group["policies"]]
    assert len(set(sets)) == (4 if task.other else 0) and set(sets) <= written


def test_a_part_alone_trains_and_reads_only_what_it_needs(study):
    task = study.stages.TASKS["docstrings"]

    def made(*parts, **changes):
        return list(study.stages.stages(task, 0, Path("out"), study.stages.Choices({}, parts=parts, **changes)))

    assert [stage.name for stage in made("search")] == ["sft", "faithful", "readable", "search"]
    assert "reuse" not in made("search")[-1].config and "reuse" in made("comparison", "search")[-1].config
    assert [stage.name for stage in made("thirds", rivals=["frozen"])][1:] == ["faithful", "readable", "thirds"]
    half = made(*study.stages.PARTS, bf16=True)
    assert {stage.config["dtype"] for stage in half if stage.verb != "sft"} == {"bfloat16"}
    assert {stage.config.get("bf16") for stage in half if stage.verb == "ppo"} == {True}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--tasks", "demo", "--parts", "comparison"], "task demo has none of the parts comparison"),
        (["--parts", "search", "--rivals"], "--rivals and --rules are of the comparison"),
        (["--tasks", "demo", "--rules", "ties"], "--rivals and --rules are of the comparison"),
    ],
)
def test_what_would_do_nothing_is_refused(asked, sentence, tmp_path):
    command = [sys.executable, str(FOLDER), *asked, "--output_dir", str(tmp_path / "study")]
    path = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 2 and sentence in ended.stderr and not (tmp_path / "study").exists()


def test_the_thirds_of_the_depth_take_every_pair_of_levels(study):
    groups = [study.stages.third_group(levels) for levels in [(0.5, 0.5, 1.0), (1.0, 0.5, 0.5)]]
    assert [group["name"] for group in groups] == ["thirds 0.5 0.5 1", "thirds 1 0.5 0.5"]
    for group, early, late in zip(groups, (0.5, 1.0), (1.0, 0.5), strict=True):
        assert group["options"]["factors"] == [[early] * 10 + [0.5] * 10 + [late] * 10] * 2
    made = study.stages.stages(study.stages.TASKS["docstrings"], 0, Path("out"), study.stages.Choices({}))
    thirds = next(stage for stage in made if stage.name == "thirds")
    names = [group["name"] for group in thirds.config["groups"]]
    assert len(set(names)) == 8 and {"thirds 0.5 0.5 0.5", "thirds 1 1 1"} <= set(names)


def test_what_is_forgotten_is_measured_on_code_and_on_the_other_task(study, tmp_path):
    assert {row["source"] for row in study.control.control_texts("hh", None, 20)} == {"code"}
    rows = list(study.control.control_texts("docstrings", None, 20))
    assert [row["source"] for row in rows] == ["code"] * 10 + ["docstrings"] * 10
    assert len({row["text"] for row in rows}) == 20 and all(len(row["text"]) > 100 for row in rows)


def test_what_fails_is_shown_and_nothing_after_it_is_run(study, tmp_path, capsys):
    missing = study.stages.Stage("sweep", "first", {"sft_model": "missing", "output_dir": str(tmp_path / "out")})
    with pytest.raises(SystemExit, match=r"first\.yaml ended with exit status 2"):
        study.processes.run_all(iter([missing, missing._replace(name="second")]), tmp_path, 1)
    shown = capsys.readouterr()
    assert "policies" in shown.err and "first.txt" in shown.out
    assert (tmp_path / "logs" / "first.txt").read_text().strip() and not (tmp_path / "logs" / "second.txt").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_begun_after_a_failure(study, tmp_path, monkeypatch, jobs):
    """Of policies that are trained side by side, what waits is not begun; what runs is run to its end."""
    begun = []

    def run(stage, folder, **options):
        begun.append(stage.name)
        if stage.name == "fails":
            raise SystemExit("stage fails")
        time.sleep(0.1)

    monkeypatch.setattr(study.processes, "run", run)
    names = ["fails", *(f"policy {i}" for i in range(20))]
    with pytest.raises(SystemExit, match="stage fails"):
        study.processes.run_all(iter([study.stages.Stage("ppo", name, {}) for name in names]), tmp_path, jobs)
    assert len(begun) <= jobs
