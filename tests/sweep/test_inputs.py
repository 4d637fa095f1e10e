"""What is told of the inputs of a sweep, and of learning, before the work."""

from __future__ import annotations

import json
import shutil

import pytest

from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.learn import inputs as of_learn
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.sweep import inputs as of_sweep
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.inputs import tell_unused_drawing


DRAWN = {"repetition_penalty": 1.3, "temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": 1}


def config(**changes) -> SweepConfig:
    needed = {"sft_model": "sft", "policies": ["a", "b"], "rewards": ["rule:length"], "output_dir": "out"}
    return SweepConfig(**needed, **changes)


@pytest.mark.parametrize(
    ("given", "changes", "told"),
    [
        (
            DRAWN,
            {},
            "temperature 0.6, top_k 20, repetition_penalty 1.3 in generation_config.json of the SFT model have no",
        ),
        (
            DRAWN,
            {"temperature": 0.6, "top_k": 20},
            "repetition_penalty 1.3 in generation_config.json of the SFT model has",
        ),
        ({"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "top_k": 0, "suppress_tokens": []}, {}, None),
        ({"eos_token_id": [1, 2], "max_new_tokens": 5, "do_sample": False, "top_p": None}, {}, None),
        (None, {}, None),
    ],
)
def test_settings_of_the_generation_config_without_effect_are_told_once(tmp_path, caplog, given, changes, told):
    if given is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(given))
    tell_unused_drawing(tmp_path, config(**changes))
    assert len(caplog.records) == (told is not None)
    assert told is None or f"which its KL is of: {told}" in caplog.text


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_generation_config_that_cannot_be_read_is_one_sentence(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^generation_config.json of .* cannot be read"):
        tell_unused_drawing(tmp_path, config())


@pytest.mark.parametrize(("stage", "kind"), [(of_sweep, SweepConfig), (of_learn, LearnConfig)], ids=["sweep", "learn"])
def test_both_stages_tell_them(sft, policies, dataset, tmp_path, caplog, stage, kind):
    shutil.copytree(sft, tmp_path / "sft")
    (tmp_path / "sft" / "generation_config.json").write_text(json.dumps(DRAWN))
    given = {"sft_model": str(tmp_path / "sft"), "policies": list(map(str, policies[:2])), "sft_renamed": True}
    asked = {"rewards": ["rule:length"], "output_dir": str(tmp_path / "out"), "max_new_tokens": 8}
    asked |= {"validation_prompts": 4}
    stage.read_inputs(PromptDataConfig(str(dataset)), kind(**given, **asked))
    assert caplog.text.count("repetition_penalty 1.3 in generation_config.json") == 1
