"""Trackers are told of every point once it is done, with its means."""

from __future__ import annotations

import re

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.local import LocalEngine
from tests.sweep.of_a_run import strict_json


pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def told(monkeypatch):
    """What a tracker of the user's own is told, and in which order."""
    found = []

    class Notebook(GeneralTracker):
        name, requires_logging_directory, main_process_only = "notebook", False, True

        def __init__(self, run_name):
            super().__init__()
            found.append(("project", run_name))

        @property
        def tracker(self):
            return found

        def start(self):
            found.append(("start",))

        def store_init_configuration(self, values):
            found.append(("settings", values))

        def log(self, values, step=None, **kwargs):
            found.append((step, values))

        def finish(self):
            found.append(("finish",))

    register_tracker_class(Notebook)
    yield found
    LOGGER_TYPE_TO_CLASS.pop("notebook")


def by_point(told, split):
    """What was told of the points of a split, by their ids."""
    return {
        values[name]: values
        for _, values in filter(lambda entry: isinstance(entry[0], int), told)
        for name in values
        if name.startswith(f"{split}/") and name.endswith("/point")
    }


def test_a_tracker_gets_every_point_with_its_means(told, flags, tmp_path):
    settings = {"num_weights": 3, "test_prompts": 4, "max_new_tokens": 4, "scalings": ["0.5 1.5", "1 1"]}
    settings |= {"groups": ['{"name": "ties", "rule": "ties"}'], "edge_extensions": 2, "validation_prompts": 3}
    folder = run_stage("sweep", flags(tmp_path / "sweep", report_to=["notebook"], **settings))
    assert told[:2] == [("project", "rlhf_lines"), ("start",)] and told[-1] == ("finish",)
    assert told[2][0] == "settings" and told[2][1]["max_new_tokens"] == 4
    points = {point["id"]: point for point in strict_json(folder / "front.json")["points"]}
    logged = by_point(told, "test")
    assert logged.keys() == points.keys()
    for number, point in points.items():
        start = f"test/{point['group']}/"
        expected = {name: mean["mean"] for name, mean in point["scores"].items()} | {"log_ratio": point["kl"]["mean"]}
        expected |= {"point": number}
        expected |= {f"weight_{k}": weight for k, weight in enumerate(point["spec"]["weights"], start=1)}
        assert logged[number].keys() == {start + name for name in expected}
        for name, value in expected.items():
            assert np.isclose(logged[number][start + name], value, rtol=1e-12, atol=1e-12)
    validation = [values for _, values in told[3:-1] if any(name.startswith("validation/") for name in values)]
    assert len(validation) == len(told[3:-1]) - len(logged) > 0
    steps = [step for step, _ in told[3:-1]]
    assert steps == list(range(len(steps))), "each once, also where a choice at an edge is tried beyond"
    assert len(strict_json(folder / "front.json")["validation"]["grid"]) > 2


def test_a_sweep_that_goes_on_tells_what_was_told_by_the_same_steps(told, flags, rewards, tmp_path, monkeypatch):
    """Points of a rule that is not linear are done after those of higher ids."""
    settings = {"num_weights": 3, "test_prompts": 4, "max_new_tokens": 4, "scalings": ["0.5 1.5"]}
    settings |= {
        "groups": ['{"name": "ties", "rule": "ties", "alpha": 1}', '{"name": "sum", "rule": "sum", "alpha": 1}']
    }
    flags = flags(tmp_path / "sweep", report_to=["notebook"], batch_size=4, **settings)
    complete, calls = LocalEngine.complete, []

    def stopping(engine, requests):
        calls.append(len(requests))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return complete(engine, requests)

    monkeypatch.setattr(LocalEngine, "complete", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_stage("sweep", flags)
    before = [entry for entry in told if isinstance(entry[0], int)]
    told.clear()
    run_stage("sweep", [*flags, "--resume"])
    after = [entry for entry in told if isinstance(entry[0], int)]
    assert 0 < len(before) < len(after) == len(strict_json(tmp_path / "sweep" / "front.json")["points"])
    assert after[: len(before)] == before
    assert [step for step, _ in after] == list(range(len(after)))
    ids = list(by_point(told, "test"))
    assert ids != sorted(ids)


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, words in (("tensorbord", "did you mean 'tensorboard'"), ("wandb", "wandb, which is not installed")):
        with pytest.raises(ValueError, match=re.escape(words)):
            run_stage("sweep", flags(tmp_path / "sweep", report_to=[name]))
    assert list(tmp_path.iterdir()) == []
