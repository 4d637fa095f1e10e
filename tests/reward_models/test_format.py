"""Templates are filled in one pass; settings survive the disk."""

from __future__ import annotations

import json

import pytest

from reward_models import Format, read_settings, write_settings


TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": None}


@pytest.mark.parametrize(
    ("template", "prompt", "completion", "expected"),
    [
        ("{prompt}{completion}", "a", "b", ("ab",)),
        ("{completion} {bos_token} {prompt}", "post", "summary", ("summary <s> post",)),
        (("{prompt}", "{completion}"), "a", "b", ("a", "b")),
        ("{completion}", "a", "b", ("b",)),
        # Braces in texts are characters: no second pass, no format fields.
        ("{prompt}|{completion}", "{completion}", "{prompt}", ("{completion}|{prompt}",)),
        ("{prompt}|{completion}", "{0} {} {{", "} {bos_token}", ("{0} {} {{|} {bos_token}",)),
        # Backslashes are not escapes of a substitution.
        ("{prompt}{completion}", r"\1", r"\g<0>", (r"\1\g<0>",)),
        # Braces in the template that are no placeholder stay.
        ("{ {prompt} } {completion}", "a", "b", ("{ a } b",)),
    ],
)
def test_render(template, prompt, completion, expected):
    assert Format(template=template).render(prompt, completion, TOKENS) == expected


@pytest.mark.parametrize(
    ("template", "completion", "expected"),
    [
        ("{prompt}{completion}", "b", ("ab</s>",)),
        # TRL's RewardTrainer adds EOS only where the text does not end with it.
        ("{prompt}{completion}", "b</s>", ("ab</s>",)),
        (("{prompt}", "{completion}"), "b", ("a", "b</s>")),
    ],
)
def test_append_eos(template, completion, expected):
    assert Format(template=template, append_eos=True).render("a", completion, TOKENS) == expected


def test_a_missing_special_token_is_an_error():
    with pytest.raises(ValueError, match="needs the tokenizer's sep_token, and this tokenizer has none"):
        Format("{prompt}{sep_token}{completion}").render("a", "b", TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{prompt}"}, "has no {completion}"),
        ({"template": "{post}{completion}"}, r"placeholders \['post'\]"),
        ({"template": ("{prompt}", "{completion}", "x")}, "has 3 texts"),
        ({"label": -1}, "the label is -1"),
        ({"label": (0, 1, 2)}, "two of them for a difference"),
        ({"sign": 0}, "the sign is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"cut": "middle"}, "cut is 'middle'"),
    ],
)
def test_a_bad_format_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        Format(**changes)


@pytest.mark.parametrize(
    "settings",
    [
        Format(),
        Format(template=("{completion}", "{prompt}"), label=(1, 0), sign=-1, max_length=64, cut="right"),
        Format(template="é\n{prompt} {completion}", append_eos=True, add_special_tokens=False),
    ],
)
def test_settings_survive_the_disk(tmp_path, settings):
    path = write_settings(tmp_path, settings)
    assert path == tmp_path / "reward_model.json"
    assert read_settings(tmp_path) == settings


def test_the_settings_file_has_the_keys_of_the_contract(tmp_path):
    content = json.loads(write_settings(tmp_path, Format(label=(1, 0))).read_text())
    assert content == {
        "format": 1,
        "template": "{prompt}{completion}",
        "append_eos": False,
        "add_special_tokens": True,
        "label": [1, 0],
        "sign": 1,
        "max_length": None,
        "cut": "left",
    }


def test_bad_settings_name_the_file(tmp_path):
    assert read_settings(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_settings(tmp_path / "absent", Format())
    for content, message in (
        ("{", "not valid JSON"),
        ('{"format": 2}', "not of format 1"),
        ('{"format": 1, "tempalte": "{completion}"}', r"unknown keys \['tempalte'\]"),
        ('{"format": 1, "sign": 3}', r"reward_model.json: the sign is 3"),
    ):
        (tmp_path / "reward_model.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_settings(tmp_path)
