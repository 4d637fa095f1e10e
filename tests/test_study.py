"""scripts/study.py: its stages are what the command line accepts, and each reads what an earlier one writes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest
import yaml

from rlhf_lines.arguments import parse
from rlhf_lines.stages import configs_of


SCRIPT = Path(__file__).parents[1] / "scripts" / "study.py"
INPUTS = ("model_name_or_path", "sft_model", "policies", "morlhf", "reuse")


@pytest.fixture
def study():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", ["docstrings", "hh"])
def test_every_stage_is_accepted_and_reads_what_is_there_by_then(study, task, tmp_path):
    changes = {"dataset_path": "pairs"} if task == "hh" else {}
    stages = list(study.stages(task, 7, tmp_path / "seed_7", changes))
    assert [stage.verb for stage in stages] == ["sft", *["ppo"] * 9, *["sweep"] * 3, *["learn"] * 3]
    written = {"models/SmolLM2-135M-Instruct"}
    for stage in stages:
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(yaml.safe_dump(stage.config))
        configs, given = parse(configs_of(stage.verb), ["--config", str(path)], prog=stage.verb)
        assert any(getattr(config, "seed", None) == (0 if stage.verb == "sweep" else 7) for config in configs)
        read = [given[key] for key in INPUTS if key in given]
        for each in (one for value in read for one in ([value] if isinstance(value, str) else value)):
            assert each in written, f"{stage.name} reads {each}"
        assert given["output_dir"] not in written
        written.add(given["output_dir"])
    sets = [policy for group in stages[10].config["policy_sets"] for policy in group["policies"]]
    assert len(set(sets)) == 4 and set(sets) <= written


def test_the_thirds_of_the_depth_take_every_pair_of_levels(study):
    groups = [study.third_group(levels) for levels in [(0.5, 0.5, 1.0), (1.0, 0.5, 0.5)]]
    assert [group["name"] for group in groups] == ["thirds 0.5 0.5 1", "thirds 1 0.5 0.5"]
    for group, early, late in zip(groups, (0.5, 1.0), (1.0, 0.5), strict=True):
        assert group["options"]["factors"] == [[early] * 10 + [0.5] * 10 + [late] * 10] * 2
    thirds = next(stage for stage in study.stages("docstrings", 0, Path("out"), {}) if stage.name == "thirds")
    names = [group["name"] for group in thirds.config["groups"]]
    assert len(set(names)) == 8 and {"thirds 0.5 0.5 0.5", "thirds 1 1 1"} <= set(names)


def test_what_is_forgotten_is_measured_on_code_and_on_the_other_task(study, tmp_path):
    assert {row["source"] for row in study.control_texts("docstrings", None, 20)} == {"code"}
    rows = list(study.control_texts("hh", None, 20))
    assert [row["source"] for row in rows] == ["code"] * 10 + ["docstrings"] * 10
    assert len({row["text"] for row in rows}) == 20 and all(len(row["text"]) > 100 for row in rows)


def test_what_fails_is_shown_and_nothing_after_it_is_run(study, tmp_path, capsys):
    missing = study.Stage("sweep", "first", {"sft_model": "missing", "output_dir": str(tmp_path / "out")})
    with pytest.raises(SystemExit, match=r"first\.yaml ended with exit status 2"):
        study.run_all(iter([missing, missing._replace(name="second")]), tmp_path, 1)
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

    monkeypatch.setattr(study, "run", run)
    names = ["fails", *(f"policy {i}" for i in range(20))]
    with pytest.raises(SystemExit, match="stage fails"):
        study.run_all(iter([study.Stage("ppo", name, {}) for name in names]), tmp_path, jobs)
    assert len(begun) <= jobs
