"""The reward for some prompts only, as docs/sweep.md has it: an objective and a minimum, worked out from the store."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlhf_lines import cli
from rlhf_lines.stages import run_stage
from tests.sweep.of_a_run import area, read, strict_json


pytestmark = pytest.mark.usefixtures("without_pictures")
PAGE = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Harmful prompts")[2].partition("\n## ")[0]
REFUSES = "[hjq]"  # what stands for a refusal in texts of random letters
ROWS = (
    "SELECT o.id, json_extract(h.more, '$.columns.harmful'), c.text FROM points o "
    "JOIN completions c ON c.spec = o.spec JOIN prompts p ON p.id = c.prompt AND p.split = o.split "
    "JOIN shown h ON h.prompt = p.id WHERE o.split = "
)


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)
    return found


@pytest.fixture
def sweep(flags, rewards, tmp_path):
    """A function from a name, rows and changes to the folder of a sweep with the reward of the page."""
    module = Path(rewards.__file__).with_name("my_rewards.py")
    source, replaced = re.subn(r'"pattern": r".*?"', f'"pattern": "{REFUSES}"', block("python"))
    assert replaced == 1
    module.write_text(source)
    config = yaml.safe_load(block("yaml"))

    def make(name: str, rows: list[dict], **changes) -> Path:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        of_page = {"rewards": ["tiny_rewards:short", json.dumps(config["rewards"][1])]}
        small = {"num_weights": 3, "validation_weights": 2, "validation_prompts": 18, "test_prompts": 18}
        settings = {**small, **of_page, "dataset_name": data, "test_size": 0.5, **changes}
        return run_stage("sweep", flags(tmp_path / name, **settings))

    return make


@pytest.fixture
def rows(dataset) -> list[dict]:
    """Every third prompt is harmful, and every third says nothing of it."""
    prompts = [json.loads(line)["prompt"] for line in dataset.read_text().splitlines()]
    marks = [{"harmful": True}, {}, {"harmful": False}]
    return [{"prompt": prompt, **marks[i % 3]} for i, prompt in enumerate(prompts)]


def by_hand(folder, split: str) -> tuple[dict[int, float], dict[int, float], float]:
    """By point, the share of refusals on harmful prompts and the mean length; and the share of harmful prompts."""
    found: dict[int, list] = {}
    for point, harmful, text in read(folder, f"{ROWS}'{split}'"):
        found.setdefault(point, []).append((bool(harmful), re.search(REFUSES, text) is not None, -len(text)))
    refused = {point: np.mean([hit for mark, hit, _ in each if mark]) for point, each in found.items()}
    short = {point: np.mean([length for *_, length in each]) for point, each in found.items()}
    (share,) = {np.mean([mark for mark, *_ in each]) for each in found.values()}
    assert 0 < share < 1
    return refused, short, share


def test_as_an_objective_it_ranks_points_by_the_mean_over_harmful_prompts(sweep, rows):
    """Scores are (share of the marked) x (mean over them - bound); an area above a point is that share of the other."""
    reference = [-9.0, -1.0]
    folder = sweep("run", rows, reference_point=reference)
    refused, short, share = by_hand(folder, "test")
    front, bound = strict_json(folder / "front.json"), 0.9
    assert front["objectives"] == ["short", "harmless"] and len(set(refused.values())) > 2
    for point in front["points"]:
        expected = share * (refused[point["id"]] - bound)
        assert point["scores"]["harmless"]["mean"] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    for group, entry in front["fronts"].items():
        ids = [point["id"] for point in front["points"] if point["group"] == group]
        over_marked = area(
            np.array([[short[i], refused[i]] for i in ids]), np.array([reference[0], bound + reference[1] / share])
        )
        assert entry["hypervolume"]["value"] == pytest.approx(share * over_marked, rel=1e-12)


def test_as_a_minimum_it_keeps_the_bound_on_harmful_prompts(sweep, rows):
    free = sweep("free", rows, objectives=["short"])
    refused, *_ = by_hand(free, "validation")
    points = dict(read(free, "SELECT id, \"group\" FROM points WHERE split = 'validation'"))
    grid = strict_json(free / "front.json")["validation"]["grid"]
    names = [f"lines {entry['alpha']} {entry['beta']} {entry['schedule']}" for entry in grid]
    lowest = [min(refused[i] for i, group in points.items() if group == name) for name in names]
    assert len(set(lowest)) > 1
    bound = (min(lowest) + max(lowest)) / 2
    reward = json.dumps({**yaml.safe_load(block("yaml"))["rewards"][1], "options": {"bound": bound}})
    limits = {"objectives": ["short"], "minimum": json.dumps(yaml.safe_load(block("yaml"))["minimum"])}
    folder = sweep("kept", rows, rewards=["tiny_rewards:short", reward], **limits)
    validation = strict_json(folder / "front.json")["validation"]
    assert validation["minimum"] == {"harmless": 0.0}
    assert [entry["within_limits"] for entry in validation["grid"]] == [value >= bound for value in lowest]
    within = [entry for entry in validation["grid"] if entry["within_limits"]]
    best = max(within, key=lambda entry: entry["hypervolume"]["value"])
    assert all(validation["chosen"][key] == best[key] for key in validation["chosen"])


def test_the_marked_prompts_are_counted_as_the_page_does(sweep, rows):
    folder = sweep("run", rows, minimum='{"harmless": -1}')
    (query,) = re.findall(r"run\.sqlite '(.*?)'", SECTION.replace("\n", " "))
    marked = {row["prompt"] for row in rows if row.get("harmful")}
    texts = read(folder, "SELECT split, scored_text FROM prompts")
    expected = {split: sum(text in marked for s, text in texts if s == split) for split in ("test", "validation")}
    assert dict(read(folder, query.replace('"', "'"))) == expected and all(expected.values())


def test_a_minimum_that_limits_nothing_is_told(sweep, rows, caplog):
    told = "the score harmless is the same for all validation prompts and points, so its minimum limits nothing"
    sweep("none", [{**row, "harmful": False} for row in rows], minimum='{"harmless": 0}')
    assert told in caplog.text
    caplog.clear()
    sweep("some", rows, minimum='{"harmless": -1}')
    assert told not in caplog.text


def test_without_the_column_the_reward_is_refused_before_the_work(flags, sweep, rows, tmp_path, capsys):
    data = tmp_path / "plain.jsonl"
    data.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    reward = json.dumps(yaml.safe_load(block("yaml"))["rewards"][1])
    assert cli.main(["sweep", *flags(tmp_path / "run", dataset_name=data, rewards=[reward])]) == 2
    assert "'harmless' cannot be called: missing a required argument: 'harmful'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
