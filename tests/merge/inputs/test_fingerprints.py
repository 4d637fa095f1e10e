"""What an input is made of, as hashes: equal for what computes the same, another for what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_lines.errors import InputProblems
from rlhf_lines.merge.inputs.fingerprints import (
    changed_parts,
    check_unchanged,
    config_sha256,
    model_fingerprint,
    policy_fingerprint,
    reward_fingerprint,
    rows_fingerprint,
)


ADAPTER = {
    **{"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": False, "target_modules": ["q_proj", "v_proj"]},
    **{"rank_pattern": {"q": 8, "q_proj": 2}, "alpha_pattern": {}, "fan_in_fan_out": False, "lora_dropout": 0.1},
    **{"base_model_name_or_path": "sft", "peft_version": "0.19", "inference_mode": True, "layers_to_transform": None},
}


def write(folder: Path, name: str, content: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"lora_alpha": 160}, False),
        ({"r": 8}, False),
        ({"use_rslora": True}, False),
        ({"fan_in_fan_out": True}, False),
        ({"use_dora": True}, False),
        ({"alpha_pattern": {"q_proj": 3}}, False),
        ({"rank_pattern": {"q_proj": 2, "q": 8}}, False),  # the first key that matches counts
        ({"target_modules": ["q_proj"]}, False),
        ({"layers_to_transform": 0}, False),
        ({"an_option_of_tomorrow": 1}, False),
        ({"target_modules": ["v_proj", "q_proj"]}, True),  # PEFT writes a set
        ({"an_option_of_tomorrow": None}, True),
        (
            {
                "base_model_name_or_path": "/moved/sft",
                "peft_version": "1",
                "lora_dropout": 0.0,
                "inference_mode": False,
            },
            True,
        ),
    ],
    ids=str,
)
def test_an_adapter_is_known_by_what_it_computes(tmp_path, changes, same):
    one, other = (tmp_path / name for name in "ab")
    write(one, "adapter_config.json", ADAPTER)
    write(other, "adapter_config.json", {**ADAPTER, **changes})
    assert (config_sha256(one) == config_sha256(other)) == same


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"tie_word_embeddings": True}, False),
        ({"num_hidden_layers": 3}, False),
        ({"text_config": {"rope_theta": 2, "_name_or_path": "a"}}, False),
        ({"_name_or_path": "elsewhere", "transformers_version": "6", "text_config": {"rope_theta": 1}}, True),
    ],
    ids=str,
)
def test_a_model_is_known_by_its_config(tmp_path, changes, same):
    config = {"num_hidden_layers": 2, "text_config": {"rope_theta": 1, "_name_or_path": "b"}}
    one, other = (tmp_path / name for name in "ab")
    write(one, "config.json", config)
    write(other, "config.json", {**config, **changes})
    assert (config_sha256(one) == config_sha256(other)) == same


def test_all_that_a_stage_reads_of_a_model_counts(sft, helpful, tmp_path):
    model = Path(shutil.copytree(sft, tmp_path / "model"))
    first = model_fingerprint(model)
    assert policy_fingerprint(model).items() <= first.items() and {"weights", "config.json"} <= first.keys()
    of_tokenizer = ("chat_template.jinja", "tokenizer.model", "source.spm", "tekken.json")
    for file in (*of_tokenizer, "generation_config.json", "reward_model.json", "code.py"):
        before = (model / file).read_bytes() if (model / file).exists() else None
        (model / file).write_text("{}")
        assert changed_parts(first, model_fingerprint(model)) == [file]
        (model / file).unlink() if before is None else (model / file).write_bytes(before)
    (model / "README.md").write_text("a note")
    (model / "rlhf_lines.json").write_text("{}")
    assert model_fingerprint(model) == first

    adapter = Path(shutil.copytree(helpful, tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    write(adapter, "adapter_config.json", {**config, "base_model_name_or_path": str(model)})
    on_base = model_fingerprint(adapter)
    config = json.loads((model / "config.json").read_text())
    write(model, "config.json", {**config, "vocab_size": 1})
    assert changed_parts(on_base, model_fingerprint(adapter)) == ["config.json of its base"]


def test_a_function_is_known_by_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "fingerprinted_rewards.py"
    path.write_text("def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    before = reward_fingerprint("fingerprinted_rewards:score")
    assert before == reward_fingerprint("fingerprinted_rewards.score") and before.keys() == {"source"}
    path.write_text("def score(prompts, completions):\n    return [1.0] * len(prompts)\n")
    assert changed_parts(before, reward_fingerprint("fingerprinted_rewards:score")) == ["source"]
    assert reward_fingerprint("rule:length") == {}


def test_a_function_is_known_by_what_it_imports_from_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imported_package").mkdir()
    texts = {
        "importing_rewards.py": "import json\nimport torch\nfrom imported_constants import SCALE\n\n"
        "def score(prompts, completions):\n    from imported_package.inner import shift\n    return [SCALE + shift]\n",
        "imported_constants.py": "SCALE = 1.0\n",
        "imported_package/__init__.py": "",
        "imported_package/inner.py": "from .deep import shift\nfrom rlhf_lines.errors import reason\n",
        "imported_package/deep.py": "shift = 0.0\n",
        "bystander.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    before = reward_fingerprint("importing_rewards:score")
    assert before.keys() == {"source", *texts.keys() - {"importing_rewards.py", "bystander.py"}}
    for name in texts:
        (tmp_path / name).write_text(texts[name] + "# changed\n")
        part = {"importing_rewards.py": ["source"], "bystander.py": []}.get(name, [name])
        assert changed_parts(before, reward_fingerprint("importing_rewards:score")) == part
        (tmp_path / name).write_text(texts[name])
    assert reward_fingerprint("importing_rewards:score") == before
    assert reward_fingerprint("statistics:mean").keys() == reward_fingerprint("numpy.linalg:norm").keys() == {"source"}


def test_rows_are_known_by_content_and_order():
    rows = [{"prompt": "a", "n": 1}, {"prompt": [{"role": "user", "content": "b\ud800"}]}]
    assert rows_fingerprint(rows) == rows_fingerprint([dict(reversed(row.items())) for row in rows])
    assert len({rows_fingerprint(other)["rows"] for other in (rows, rows[::-1], rows[:1], [])}) == 4


def test_all_that_has_changed_is_told_at_once():
    before = {"model a": {"weights": "1", "config.json": "2"}, "rows": {"rows": "3"}, "gone": {"x": "1"}}
    check_unchanged(before, {**before, "new": {}}, since="out was made", way_out="restore it")
    now = {"model a": {f"{k}": "9" for k in range(5)}, "rows": {"rows": "4"}}
    with pytest.raises(InputProblems) as caught:
        check_unchanged(before, now, since="out was made", way_out="restore it")
    assert caught.value.problems == (
        "model a has changed since out was made (0, 1, 2, 4 more): restore it",
        "rows has changed since out was made (rows): restore it",
    )
