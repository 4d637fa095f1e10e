"""docs/reward_models.md: its examples run, and its tables say what the code does."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from reward_models import PRESETS, RULES, Comparer, Format, Grader, RemoteReward, RewardModel, load, read_settings
from reward_models.grading import OPTIONS as GRADING_OPTIONS
from reward_models.judge import OPTIONS as OPTIONS_OF_JUDGES
from reward_models.load import check_grading, check_similarity
from reward_models.remote import OPTIONS as OPTIONS_OF_SERVICES
from reward_models.service import Service
from reward_models.similarity import OPTIONS
from reward_models.wire import WIRES
from rlhf_lines.task_rewards import RewardEntry


PAGE = (Path(__file__).parents[2] / "docs" / "reward_models.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def examples(tmp_path):
    """What the Python examples define, after they ran in the order of the page."""
    (tmp_path / "costs").mkdir()
    defined = {"folder": tmp_path / "costs"}
    for block in blocks("python"):
        exec(compile(block, "reward_models.md", "exec"), defined)
    return defined


def test_the_examples_run(examples):
    assert read_settings(examples["folder"]) == examples["costs"]
    assert examples["brevity"](["p"], ["a" * 150]) == [-0.5]


def test_the_list_of_rewards_can_be_loaded(tmp_path, monkeypatch):
    (source,) = [block for block in blocks("python") if block.startswith("# my_rewards.py")]
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config, *_ = blocks("yaml")
    scores = {}
    for item in yaml.safe_load(config)["rewards"]:
        item = {"model": item} if isinstance(item, str) else item
        model = load(item["model"], name=item.get("name"), options=item.get("options"))
        assert isinstance(model, RewardModel)
        (scores[model.name],) = model.score(["write a list"], ["a list:\n - b"])
    # Of a, list and b, the first two are in the prompt; the dash is no word. Split at whitespace there are four.
    assert scores == {"brevity": 0.0, "forty_words": -3.6, "no_lists": 0.0, "lexical": 2 / 3}


def test_the_table_of_a_similarity():
    _, config, *_ = blocks("yaml")
    for item in yaml.safe_load(config)["rewards"]:
        check_similarity(item["model"], name=item["name"], options=item["options"])
    rows = re.findall(
        r"^\| `(\w+)` \|", PAGE.partition("## Similarity")[2].partition("## Generative")[0], flags=re.MULTILINE
    )
    assert tuple(rows) == OPTIONS


def test_the_table_of_generative_reward_models():
    shared = set()
    for item in yaml.safe_load(blocks("yaml")[2])["rewards"]:
        entry = RewardEntry.of(item)
        grading = check_grading(entry.model, name=entry.name, options=entry.options)
        shared.add(entry.shared_weights())
        assert "is" in grading.text("what is it?", "It is.", {}) and len(grading.grades) in (2, 5)
    assert len(shared) == 1, "the weights are loaded once"
    assert grading.text("Q\n", "A", {}).startswith("Question: Q\n\nAnswer: A\n\nIs the answer correct?")
    section = PAGE.partition("## Generative")[2].partition("## Services")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == GRADING_OPTIONS


def test_the_tables_of_services():
    config = blocks("yaml")[3]
    for item in yaml.safe_load(config)["rewards"]:
        assert isinstance(load(item.pop("model"), **item), RemoteReward)
    section = PAGE.partition("## Services")[2].partition("## ")[0]
    first = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert first == [*WIRES, *OPTIONS_OF_SERVICES]
    for name, wire in WIRES.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", section, flags=re.MULTILINE)
        assert wire.service in row and f"| {', '.join(wire.takes)} |" in row
    defaults = inspect.signature(Service.__init__).parameters
    for option in ("timeout", "concurrency", "retries"):
        (row,) = re.findall(rf"^\| `{option}` \|.*$", section, flags=re.MULTILINE)
        assert row.endswith(f"; {defaults[option].default:g} |")


def test_the_table_of_judges():
    of_judge, of_several = blocks("yaml")[4:]
    for item in yaml.safe_load(of_judge)["rewards"]:
        assert isinstance(load(item.pop("model"), **item), Grader)
    labels = [item["label"] for item in yaml.safe_load(of_several)["rewards"]]
    assert len(labels) == 2 and all(Format(label=label) for label in labels)
    section = PAGE.partition("## Judges")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", section, flags=re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", " ".join(rows))) == OPTIONS_OF_JUDGES
    command = re.search(r"--rewards '(.*?)'\n", section, flags=re.DOTALL)[1]
    entry = json.loads(command)
    assert isinstance(load(entry["model"], options=entry["options"]), Comparer)


def test_a_pickle_can_be_converted(examples, make_model, make_tokenizer, tmp_path):
    model, source, folder = make_model("distilbert", num_labels=2), tmp_path / "source", tmp_path / "humor"
    model.config.save_pretrained(source)
    make_tokenizer("encoder").save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    examples["convert"](source, folder, PRESETS["humor"].format)
    ids = make_tokenizer("encoder")("a joke", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(model(ids).logits[0, 1])
    assert load(folder).score(["p"], ["a joke"]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets(name):
    preset = PRESETS[name]
    (row,) = re.findall(rf"^\| `{name}` \| `.*$", PAGE, flags=re.MULTILINE)
    assert f"`{preset.model}`" in row
    texts = " ".join(f"`{text}`" for text in preset.format.texts()).replace("` `", "`, `")
    assert (f"the pair {texts}" if isinstance(preset.format.template, tuple) else f"| {texts} |") in row
    assert " minus ".join(f"output {label}" for label in preset.format.labels()) in row


@pytest.mark.parametrize("name", RULES)
def test_the_table_of_rules(name):
    (row,) = re.findall(rf"^\| `rule:{name}` \| .*$", PAGE, flags=re.MULTILINE)
    options = inspect.signature(RULES[name]).parameters
    assert set(re.findall(r"`(\w+)`:", row)) == set(options) - {"name"}
    for option, parameter in options.items():
        if isinstance(parameter.default, str) and option != "name":
            assert f"`{option}`: {parameter.default}" in row
