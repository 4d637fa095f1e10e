"""What cannot be swept is refused in one sentence before anything is sampled, and nothing is left of it."""

from __future__ import annotations

import json
import re

import pytest

from rlhf_lines import cli
from rlhf_lines.data.splits import SPLITS, split_of
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.config import SweepConfig


def group(**keys) -> list[str]:
    return [json.dumps({"name": "mine", **keys})]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "map", "num_weights": 2}, "count of 2 weights for 2 policies; expected 3"),
        ({"groups": group(rule="factor_average")}, "factor_average averages tensors of one name"),
        ({"groups": group(rule="ties", options={"density": 7})}, "density is 7, expected a number between 0 and 1"),
        ({"groups": group(rule="fisher")}, "rule 'fisher' needs the statistics of each policy, got 0"),
        ({"groups": group(rule="fisher", statistics=["no", "no"])}, "'no' has no fisher.safetensors"),
        ({"groups": group(rule="ties", statistics=["no", "no"])}, "statistics are given, but rule 'ties' uses none"),
        ({"groups": group(name=" ")}, "groups has name ' ', expected a text without line breaks"),
        ({"stop": ["x<eos>"]}, "stop holds 'x<eos>', but '<eos>' is a special token"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"seed": 2**63}, "expected a whole number from 0"),
        ({"max_new_tokens": 60}, "the longest prompt has 5 tokens and max_new_tokens is 60, but the model has 64"),
        ({"control": "{control}"}, "control_tokens is 256, but the model has 64 positions"),
        ({"dataset_name": "{control}.jsonl"}, "has 1 prompt in its validation split, expected at least 2"),
        ({"output_dir": "{control}/sweep"}, "cannot be made, because .*control.txt is not a folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_it_is_refused_before_the_work(flags, rewards, tmp_path, capsys, changes, message):
    control = tmp_path / "control.txt"
    control.write_text("ab\n\n" + 100 * "x")
    of_splits = {split_of(text): text for text in "abcdefghijklmnop"}
    (tmp_path / "control.txt.jsonl").write_text(
        "".join(json.dumps({"prompt": of_splits[split]}) + "\n" for split in SPLITS)
    )
    changes = {
        key: value.format(control=control) if isinstance(value, str) else value for key, value in changes.items()
    }
    assert cli.main(["sweep", *flags(changes.pop("output_dir", tmp_path / "sweep"), **changes)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("rlhf-lines sweep: ") and re.search(message, sentence)
    assert rewards.SCORED == []
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("control")] == []


def test_a_prompt_without_tokens_is_refused(flags, rewards, tmp_path):
    for split in SPLITS:
        rows = [f"{split[0]}{letter}" for letter in "abc"] + [""] * (split == "test")
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="has a prompt without tokens"):
        run_stage("sweep", flags(tmp_path / "sweep", dataset_name=tmp_path))
    assert rewards.SCORED == []


def test_a_rule_of_two_policies_is_refused_for_three(flags, policies, rewards, tmp_path):
    with pytest.raises(ValueError, match="slerp merges two policies, got 3"):
        run_stage("sweep", flags(tmp_path / "sweep", policies=policies, groups=group(rule="slerp")))
    assert rewards.SCORED == []


def test_a_folder_that_holds_a_policy_is_not_replaced(flags, policies, rewards, tmp_path):
    import shutil

    copy = shutil.copytree(policies[0], tmp_path / "runs" / "brief")
    with pytest.raises(FileExistsError, match=r"runs contains .*brief, which --overwrite would delete"):
        run_stage("sweep", [*flags(tmp_path / "runs", policies=[copy, policies[1]]), "--overwrite"])
    assert copy.is_dir() and rewards.SCORED == []


@pytest.mark.parametrize(
    ("setting", "name"), [("dataset_name", "prompts.jsonl"), ("control", "texts.txt"), ("rewards", "similarity:judge")]
)
def test_a_folder_that_holds_what_else_is_read_is_not_replaced(flags, sft, rewards, tmp_path, setting, name):
    import shutil

    runs = tmp_path / "runs"
    shutil.copytree(sft, runs / "judge")
    rows = [json.dumps({"prompt": f"a {i}"}) for i in range(40)]
    for file in ("prompts.jsonl", "texts.txt"):
        (runs / file).write_text("\n\n".join(rows))
    kind, colon, last = name.rpartition(":")
    with pytest.raises(FileExistsError, match=rf"runs contains .*{last}, which --overwrite would delete"):
        run_stage("sweep", [*flags(runs, **{setting: f"{kind}{colon}{runs / last}"}), "--overwrite"])
    assert (runs / last).exists() and rewards.SCORED == []


def test_what_a_merge_refuses_a_sweep_refuses(flags, sft, policies, rewards, tmp_path):
    """Another vocabulary, another base, an adapter that is more than s B A: before a model is loaded."""
    import shutil

    def copy_of(policy, name, **config):
        folder = shutil.copytree(policy, tmp_path / name)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    words = copy_of(policies[0], "words")
    tokens = json.loads((sft / "tokenizer.json").read_text())
    tokens["model"]["vocab"] = dict(
        zip(tokens["model"]["vocab"], reversed(tokens["model"]["vocab"].values()), strict=True)
    )
    (words / "tokenizer.json").write_text(json.dumps(tokens))
    hub, dora = (
        copy_of(policies[1], "hub", base_model_name_or_path="org/base"),
        copy_of(policies[1], "d", use_dora=True),
    )
    for wrong, message in (
        (words, "words' has a vocabulary of 37 tokens that is not the SFT model's"),
        (hub, "hub' was trained on org/base, but the SFT model given is .* say --sft_renamed"),
        (dora, "sets use_dora in adapter_config.json"),
        (sft, "has no adapter_config.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_stage(
                "sweep", flags(tmp_path / "sweep", policies=[wrong, wrong], rewards=["rule:length", "rule:format"])
            )
    from rlhf_lines.sweep.adapters import load_policies

    assert len(load_policies([policies[0], hub], sft, sft_renamed=True)) == 2
    assert not (tmp_path / "sweep").exists()


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    from rlhf_lines.sweep.adapters import load_policies
    from tests import tiny

    config = T5Config(d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2, vocab_size=16, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    base = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
    policy = tiny.save_adapter(base, tmp_path / "p", seed=1, target_modules=r"decoder\..*\.q", task_type="SEQ_2_SEQ_LM")
    with pytest.raises(
        ValueError, match="t5' is a T5ForConditionalGeneration, which transformers does not load as a causal"
    ):
        load_policies([policy], tmp_path / "t5")


@pytest.mark.parametrize("key", ["dtype", "engine", "sampler", "seed", "temperature", "num_weights"])
def test_an_empty_value_is_told_once(key):
    rewards = ["rule:length", "rule:format"]
    values = {"sft_model": "sft", "policies": ["a", "b"], "rewards": rewards, "output_dir": "out"}
    with pytest.raises(ValueError, match=rf"^{key} is empty, expected a value$"):
        SweepConfig(**values, **{key: None})
