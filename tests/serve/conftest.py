"""Finished sweeps of a tiny SFT model with policies that are there, written without sampling."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_lines.merge import MergeSpec
from rlhf_lines.pareto import read_front, write_front
from rlhf_lines.sweep.finished import front
from rlhf_lines.sweep.inputs import fingerprints_of_models, numbered_policies
from rlhf_lines.sweep.store import Store
from tests import tiny
from tests.sweep.small_run import write_run


REWARDS = ["rule:length", {"model": "rule:length", "name": "letters", "options": {"unit": "characters"}}]
POINTS = [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (1.0, 0.0)]
BY_LAYER = {"factors": [[0.2, 1.0, 0.0, 0.5], [1.0, 0.3, 0.6, -0.4]], "outside": [0.5, 0.0]}
LINES = {"alpha": 0.5, "beta": 1.0, "schedule": "sqrt"}
GROUPS = {
    "test": {
        "sft": [MergeSpec("linear", (0.0, 0.0))],
        "rewarded_soup": [MergeSpec("linear", weights) for weights in POINTS],
        "lines": [MergeSpec("linear", weights, **LINES) for weights in POINTS],
        "by layer": [MergeSpec("layerwise", weights, options=BY_LAYER) for weights in POINTS],
        "others": [MergeSpec("linear", (0.0, weights[0], 0.0, weights[1]), 0.7) for weights in POINTS],
        "search": [MergeSpec("linear", weights, alpha=1 + k) for k, weights in enumerate(POINTS)],
        "routed": [MergeSpec("twin", weights, options={"rank": 2, "router": "5f"}) for weights in POINTS],
        "ties": [MergeSpec("ties", POINTS[1], options={"density": 0.3})],
        "morlhf": [MergeSpec("linear", (0.0, 0.0, 1.0))],
        "wise_ft": [MergeSpec("linear", (0.5, 0.0), 0.9)],
    }
}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with ``sft``, its policies ``helpful``, ``harmless`` and ``third``, and ``both``, a MORLHF run."""
    root = tmp_path_factory.mktemp("models")
    tiny.llama(vocab_size=24).save_pretrained(root / "sft")
    for seed, (name, rank) in enumerate({"helpful": 4, "harmless": 3, "both": 2, "third": 2}.items()):
        tiny.save_adapter(root / "sft", root / name, seed=seed, r=rank, target_modules=["q_proj", "down_proj"])
    return root


@pytest.fixture(scope="session")
def run(models, tmp_path_factory) -> Path:
    """One for tests that only read it."""
    listed = [models / name for name in ("helpful", "harmless", "both", "third")]
    numbered = numbered_policies(listed[:2], listed[2:3], listed)
    with pytest.MonkeyPatch.context() as patch:  # figures take longer than all the rest
        for name in ("plot_front", "plot_kl", "plot_validation", "plot_forgetting"):
            patch.setattr(front, name, lambda front, *paths: None)
        return write_run(
            tmp_path_factory.mktemp("sweeps") / "run",
            REWARDS,
            groups=GROUPS,
            sft_model=str(models / "sft"),
            policies=list(map(str, listed[:2])),
            morlhf=[str(listed[2])],
            policy_sets=[{"name": "others", "policies": [str(listed[1]), str(listed[3])]}],
            dtype="float32",
            inputs_sha256=fingerprints_of_models(
                str(models / "sft"), models / "sft", zip(numbered, listed, strict=True), []
            ),
        )


@pytest.fixture
def changed(run, tmp_path):
    """A function that makes a copy of the sweep, of other policies or with other facts in its store."""

    def make(policies: Sequence[Path | str] = (), **facts) -> Path:
        folder = shutil.copytree(run, tmp_path / "changed")
        entry = read_front(folder)
        entry["policies"][: len(policies)] = map(str, policies)
        write_front(folder, entry)
        with Store(folder) as store:
            store.replace(policies=entry["policies"][:2], **facts)
            store.finish()
        return folder

    return make
