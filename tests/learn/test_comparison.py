"""Runs of `learn` beside each other: the spread of their factors, and intervals over runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.learn.comparison import LearnRun, over_runs
from rlhf_lines.learn.shown import comparison_text
from rlhf_lines.stages import run_stage


def a_run(seed: int, worth: float, factors: list[list[float]], by_prompt: dict[str, list[float]]) -> LearnRun:
    """A run whose learned factors are these, beside a soup that is worth 0."""
    values = {"learned": {"value": worth}, "soup": {"value": 0.0}}
    soup = {"factors": [[0.5, 0.5]] * 2, "outside": [0.5, 0.5]}
    record = {
        **{"method": "evolution", "aim": "utility" if by_prompt else "hypervolume", "seed": seed},
        **{"policies": ["runs/brief", "runs/kind"], "validation": values},
        "profiles": {"learned": {"factors": factors, "outside": [0.5, 0.5]}, "soup": soup},
    }
    return LearnRun(f"runs/{seed}", record, {}, [f"prompt {i}" for i in range(200)], by_prompt)


def test_the_interval_of_a_hypervolume_is_students_over_runs():
    worth = [0.3, 0.5, 0.45]
    found = over_runs([a_run(seed, value, [[0.5, 1.0], [0.25, 0.0]], {}) for seed, value in enumerate(worth)])
    low, high = stats.t.interval(0.95, 2, np.mean(worth), stats.sem(worth))
    for one in (found["validation"]["learned"], found["differences"]["soup"]):
        assert [one["mean"], one["low"], one["high"]] == pytest.approx([np.mean(worth), low, high])
        assert one["runs"] == pytest.approx(worth)


def test_the_interval_of_a_utility_is_for_other_runs_and_other_prompts():
    draws = np.random.default_rng(3)
    shared, own = draws.normal(size=200), draws.normal(size=(3, 200)) / 4
    values = shared + own + np.array([0.1, 0.2, 0.4])[:, None]
    runs = [
        a_run(seed, row.mean(), [[0.5, 1.0], [0.25, 0.0]], {"learned": row.tolist(), "soup": [0.0] * 200})
        for seed, row in enumerate(values)
    ]
    one = over_runs(runs)["validation"]["learned"]
    # Of other runs s^2 / S; of other prompts the covariance of the means of two runs.
    of_runs = values.mean(axis=1).var(ddof=1) / 3
    of_prompts = np.cov(values)[np.triu_indices(3, 1)].mean() / 200
    reach = np.sqrt(stats.t.ppf(0.975, 2) ** 2 * of_runs + stats.t.ppf(0.975, 199) ** 2 * of_prompts)
    assert one["mean"] == pytest.approx(values.mean()) and one["high"] - one["mean"] == pytest.approx(reach, rel=0.1)


def test_factors_spread_over_runs():
    factors = [[[0.5, 1.0], [0.25, 0.0]], [[1.0, 1.0], [0.5, 0.0]]]
    found = over_runs([a_run(seed, 0.1, rows, {}) for seed, rows in enumerate(factors)])
    learned = found["profiles"]["learned"]
    assert learned["mean"] == [[1.0, 1.5, 2.0], [1.0, 0.75, 0.0]], "in units of 1/2, first outside the layers"
    np.testing.assert_allclose(learned["standard_deviation"], [[0.0, 0.5**0.5, 0.0], [0.0, 0.125**0.5, 0.0]])
    assert learned["smallest"][0] == [1.0, 1.0, 2.0] and learned["largest"][0] == [1.0, 2.0, 2.0]
    text = comparison_text(found)
    assert "  1.50 +- 0.71 (1.00..2.00)  0.75 +- 0.35 (0.50..1.00)" in text
    assert not any(line.strip().startswith("soup") for line in text.splitlines()[5:]), "which is 1 everywhere"


def test_a_table_of_many_layers_and_policies_stays_on_a_page():
    layers = {key: np.ones((5, 31)).tolist() for key in ("mean", "standard_deviation", "smallest", "largest")}
    found = over_runs([a_run(seed, 0.1, [[0.5, 1.0], [0.25, 0.0]], {}) for seed in range(6)])
    found |= {"profiles": {"learned": layers, "lines": layers}, "policies": [f"policy {k}" for k in range(5)]}
    lines = comparison_text(found).splitlines()
    assert max(map(len, lines)) <= 110 and "(" not in "".join(lines[6:]), "of many runs no range"
    assert sum(line.startswith("layer 30") for line in lines) == 2, "blocks of columns"


def test_the_command_compares_runs_of_other_seeds(flags, tmp_path, capsys):
    small = {"num_candidates": 5, "train_prompts": 3, "validation_prompts": 3}
    folders = [run_stage("learn", flags(tmp_path / f"seed{seed}", seed=seed, **small)) for seed in (1, 2)]
    out = tmp_path / "compared"
    assert cli.main(["compare", *map(str, folders), "--output_dir", str(out)]) == 0
    told, found = capsys.readouterr().out, read_record(out)
    assert "2 runs of evolution: utility on 3 validation prompts, 95 % intervals" in told and "learned - lines" in told
    factors = np.array([json.loads((folder / "factors.json").read_text())["factors"] for folder in folders])
    np.testing.assert_allclose(np.array(found["profiles"]["learned"]["mean"])[:, 1:], 2 * factors.mean(axis=0))
    values = [read_record(folder)["validation"]["learned"]["value"] for folder in folders]
    assert found["validation"]["learned"]["runs"] == values and found["seeds"] == [1, 2]
    assert found["validation"]["learned"]["mean"] == pytest.approx(np.mean(values))

    other = run_stage("learn", flags(tmp_path / "other", step=0.5, compare_grid="false", **small))
    assert cli.main(["compare", str(folders[0]), str(other), "--output_dir", str(tmp_path / "no")]) == 2
    assert "differ in compare_grid, step: compare runs that differ in seed" in capsys.readouterr().err
    assert cli.main(["compare", str(folders[0]), str(tmp_path), "--output_dir", str(tmp_path / "no")]) == 2
    assert "is no finished run of learn" in capsys.readouterr().err
    assert cli.main(["compare", *map(str, folders), "--against", "x", "--output_dir", str(tmp_path / "no")]) == 2
    assert "--against is of sweeps" in capsys.readouterr().err
    learned = folders[1] / "learned.json"
    learned.write_text(json.dumps({"format": 1, "candidates": [], "losses": []}))  # as an earlier version wrote it
    assert cli.main(["compare", *map(str, folders), "--output_dir", str(tmp_path / "no")]) == 2
    assert "learned by a version that kept no values by prompt" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
