"""A group of rule `layerwise`: its file is read with the config, compared on `--resume`, refused where it is wrong."""

from __future__ import annotations

import json
import re

import pytest

from rlhf_lines.plan import Options, plan
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.choices import GroupEntry, Scaling
from tests.sweep.of_a_run import strict_json


FACTORS = {"factors": [[0.2, 1.0, 0.5, 1.5], [1.0, 0.5, 0.0, 2.0]], "outside": [1.0, 0.5]}
SMALL = {"num_weights": 2, "test_prompts": 3, "max_new_tokens": 2, "scalings": ["1 1"], "validation_prompts": 2}


@pytest.fixture
def group(tmp_path):
    """A function from the content of a file of factors to a group that names the file, as JSON."""

    def make(content: dict) -> str:
        path = tmp_path / "c.json"
        path.write_text(json.dumps(content))
        return json.dumps({"name": "learned", "rule": "layerwise", "options": {"factors": str(path)}, "alpha": 1.0})

    return make


def test_a_group_holds_the_numbers_of_its_file(group):
    entry = GroupEntry.of(group(FACTORS))
    assert entry.options == FACTORS
    assert entry.spec((0.3, 0.7), Scaling(1.0, 0.0)).options == FACTORS


def test_a_group_without_its_file_is_named(group, tmp_path):
    given = group(FACTORS)
    (tmp_path / "c.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"groups: learned: factors is .*, and there is no such file"):
        GroupEntry.of(given)


def test_a_sweep_records_the_numbers_and_is_kept_while_they_are_the_same(flags, group, tmp_path):
    arguments = flags(tmp_path / "out", groups=[group(FACTORS)], **SMALL)
    front = strict_json(run_stage("sweep", arguments) / "front.json")
    specs = [point["spec"] for point in front["points"] if point["group"] == "learned"]
    assert [spec["weights"] for spec in specs] == [[1.0, 0.0], [0.0, 1.0]]
    assert all(spec["options"] == FACTORS for spec in specs)
    assert run_stage("sweep", [*arguments, "--resume"]) == tmp_path / "out"
    group({**FACTORS, "outside": [1.0, 0.6]})
    with pytest.raises(ValueError, match=r"factors of group learned has changed since .*: restore it, choose another"):
        run_stage("sweep", [*arguments, "--resume"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"factors": [[1.0] * 4] * 3, "outside": [1.0] * 3}, "are of 3 policies, but 2 are merged"),
        ({"factors": [[1.0] * 3] * 2, "outside": [1.0] * 2}, "are of 3 layers, but the policies change a model of 4"),
    ],
)
def test_wrong_numbers_are_refused_before_the_work(flags, group, tmp_path, content, message):
    arguments = flags(tmp_path / "out", groups=[group(content)], **SMALL)
    for refuse in (lambda: run_stage("sweep", arguments), lambda: plan(arguments, Options("sweep"))):
        with pytest.raises(ValueError, match=f"groups: learned: .*{re.escape(message)}"):
            refuse()
    assert not list(tmp_path.glob("*out*"))
