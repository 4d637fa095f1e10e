"""A sweep whose front is made of one of its two rewards, from a reference point of the user's."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines import cli
from rlhf_lines.pareto.schema import faults
from rlhf_lines.stages import run_stage
from tests.sweep.of_a_run import means_by_hand, strict_json


def test_a_front_of_one_reward_with_the_other_beside_it(flags, rewards, tmp_path, capsys):
    run_stage("sweep", flags(tmp_path / "run", objectives=["early"], reference_point=[-0.5]))
    front, means = strict_json(tmp_path / "run" / "front.json"), means_by_hand(tmp_path / "run", "test", rewards)
    assert [problem for problem in faults(front) if problem[0] != "unknown"] == []
    assert (front["objectives"], front["metrics"], front["reference_point"]) == (["early"], ["short"], [-0.5])
    for point in front["points"]:
        assert point["scores"]["early"]["mean"] == pytest.approx(means[point["id"]][1], rel=1e-12)
        assert point["metrics"]["short"]["mean"] == pytest.approx(means[point["id"]][0], rel=1e-12)
    for group, entry in front["fronts"].items():
        best = max(means[point["id"]][1] for point in front["points"] if point["group"] == group)
        assert entry["hypervolume"]["value"] == pytest.approx(best + 0.5, rel=1e-12)
    # alpha and beta are chosen by the objective alone: the length above a reference point on that axis.
    validation = front["validation"]
    scores = [means[1] for means in means_by_hand(tmp_path / "run", "validation", rewards).values()]
    (reference,) = validation["reference_point"]
    assert max(entry["hypervolume"]["value"] for entry in validation["grid"]) == pytest.approx(
        np.max(scores) - reference, rel=1e-9
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"front.png", "report.html", "validation.png"} <= names
    assert cli.main(["pick", str(tmp_path / "run"), "--preference", "1"]) == 0
    assert "  short  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectives": ["erly"]}, "objectives: unknown reward 'erly'; known: early, short; did you mean 'early'?"),
        ({"objectives": ["early", "early"]}, "objectives has 'early' twice"),
        ({"minimum": '{"erly": 0}'}, "minimum: unknown reward 'erly'; known: early, short; did you mean 'early'?"),
        ({"reference_point": [1.0]}, "reference_point is 1, expected one finite number for each objective: short"),
        ({"objectives": ["early"], "reference_point": ["nan"]}, "reference_point is nan, expected one finite number"),
        ({"rewards": ["tiny_rewards:short", '{"model": "tiny_rewards:early", "name": "win_rate"}']},
         "a reward has the name win_rate, which is what a front calls something else"),
        ({"rewards": ["tiny_rewards:short", '{"model": "tiny_rewards:early", "name": "kl"}']},
         "a reward has the name kl, which is what a front calls something else"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_work(flags, tmp_path, capsys, changes, words):
    assert cli.main(["sweep", *flags(tmp_path / "run", **changes)]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
