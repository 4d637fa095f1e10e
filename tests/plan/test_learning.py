"""The plan of learning: how many specs and completions, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf_lines.plan import Options, plan
from tests import tiny


@pytest.fixture
def planned(folder, llama):
    """A function from changes of a small config to its plan."""
    from transformers import AutoModelForCausalLM

    for name in ("a", "b"):
        model = AutoModelForCausalLM.from_config(llama)
        tiny.save_adapter(model, folder / name, seed=1, r=2, target_modules=["q_proj", "v_proj"])

    def make(**changes):
        content = {
            "sft_model": "sft",
            "policies": ["a", "b"],
            "rewards": ["string:capwords", "rule:length"],
            "output_dir": "out",
            "dataset_name": "data",
            "num_candidates": 30,
            "train_prompts": 6,
            "validation_prompts": 5,
            "max_new_tokens": 7,
            "batch_size": 16,
            **changes,
        }
        Path("learn.yaml").write_text(yaml.safe_dump(content))
        return plan(["--config", "learn.yaml"], Options())

    return make


@pytest.mark.parametrize(
    ("changes", "train", "validation"),
    [
        # The SFT model and two policies; 3 generations of 9 (4 + 3 ln 6) and the mean; 3 weights with 3 alphas and 3
        # betas of LiNeS; the soup. Then learned, LiNeS and soup.
        ({}, 3 + 28 + 27 + 1, 3 + 3),
        ({"compare_grid": False, "population": 14}, 3 + 29 + 1, 3 + 2),
        # 5 numbers and 6 of LiNeS at 5 weights each, as each of the others.
        ({"aim": "hypervolume", "num_weights": 5, "compare_grid": False}, 3 + 5 * 29, 3 + 5 * 2),
        ({"method": "grid"}, 3 + 27 + 1, 3 + 2),
        ({"method": "natural_niches"}, 3 + 30 + 27 + 1, 3 + 3),
        ({"method": "adamerging"}, 3 + 1 + 27 + 1, 3 + 3),
    ],
)
def test_specs_and_completions_by_hand(planned, changes, train, validation):
    made = planned(**changes)
    work = dict(made.work)
    assert made.stage == "learn"
    assert work["points"] == f"{train} on train prompts, {validation} on validation prompts"
    completions = 6 * train + 5 * validation
    assert work["completions to generate"] == f"at most {completions:,}"
    assert work["tokens to generate"] == f"at most {7 * completions:,}"
    assert any("along gradients" in note for note in made.notes) == (changes.get("method") == "adamerging")
    assert {"generation", "scoring"} <= {phase.name for phase in made.phases}


def test_completions_along_the_gradient_of_the_rewards_are_counted(planned):
    work = dict(planned(method="reward_gradient", num_steps=20, step_prompts=4, samples_per_prompt=2).work)
    specs = (3 + 1 + 27 + 1) * 6 + (3 + 3) * 5
    assert work["completions to generate"] == f"at most {2 * specs + 20 * 4 * 2:,}"
