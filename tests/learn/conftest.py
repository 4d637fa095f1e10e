"""The tiny models and rewards of the tests of sweeps, and the flags of a small run."""

from __future__ import annotations

import json

import pytest

from tests.sweep.conftest import dataset, policies, rewards, sft  # noqa: F401 - fixtures
from tests.sweep.of_a_run import words


@pytest.fixture
def demonstrations(tmp_path):
    """A JSONL file of different prompts with completions."""
    path = tmp_path / "demonstrations.jsonl"
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = [
        {"prompt": f"{a}{b}", "completion": f" {b}{a}"}
        for a, b in zip(letters * 2, letters[3:] + letters, strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def flags(sft, policies, dataset, rewards):  # noqa: F811
    """A function from an output folder and changes to the flags of a small run; None leaves a flag out."""

    def make(output_dir, **changes) -> list[str]:
        settings = {
            "sft_model": sft,
            "policies": policies[:2],
            "rewards": ["tiny_rewards:short", "tiny_rewards:early"],
            "dataset_name": dataset,
            "output_dir": output_dir,
            "num_candidates": 9,
            "population": 4,
            "train_prompts": 5,
            "validation_prompts": 4,
            "max_new_tokens": 3,
            "batch_size": 64,
            **changes,
        }
        return words({key: value for key, value in settings.items() if value is not None})

    return make
