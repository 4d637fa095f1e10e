"""A config file means what it looks like, and says where it does not."""

from __future__ import annotations

import json
import re

import pytest

from rlhf_lines.config_file import read_settings


@pytest.fixture
def read(tmp_path):
    def run(content: str):
        path = tmp_path / "c.yaml"
        path.write_text(content, encoding="utf-8")
        return read_settings(path)

    return run


NUMBERS = ["1e-4", "-1e-3", "1.5e3", "1E5", "0.5", "10", "-3", "0", "1e+2", "-0.25", "2.5E-07"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_of_json_is_the_same_number(read, number):
    held, expected = read(f"a: {number}\nb: [{number}]\nc: {{d: {number}}}\n"), json.loads(number)
    assert held == {"a": expected, "b": [expected], "c": {"d": expected}}
    assert type(held["a"]) is type(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0x1f", 31), ("0o17", 15), ("+3", 3), (".5", 0.5), ("1.", 1.0), (".inf", float("inf")),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("'1e5'", "1e5"), ("1e", "1e"),
        ("no", False), ("on", True), ("true", True), ("null", None), ("~", None), ("''", ""), ("bfloat16", "bfloat16"),
    ],
)  # fmt: skip
def test_other_values_are_what_they_look_like(read, text, value):
    held = read(f"a: {text}\n")["a"]
    assert held == value and type(held) is type(value)


def test_lines_and_texts_are_kept(read):
    settings = read("# first\na: no\n\nb: [1e5, on]\nc:\n  d: 1\non: 12\n12: x\n")
    assert dict(settings) == {"a": False, "b": [1e5, True], "c": {"d": 1}, "on": 12, "12": "x"}
    assert settings.lines == {"a": 2, "b": 4, "c": 5, "on": 7, "12": 8}
    assert settings.texts == {"a": "no", "b": ["1e5", "on"], "on": "12", "12": "x"}
    assert settings.place("b") == f"config file {settings.path}, line 4"
    assert settings.place("z") == settings.place() == f"config file {settings.path}"


def test_a_merge_key_may_be_overruled(read):
    assert read("base: &b {a: 1, c: 2}\nmine:\n  <<: *b\n  a: 3\n")["mine"] == {"a": 3, "c": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' stands in line 1 already; keep one of them"),
        ("r:\n- model: x\n  model: y\n", "line 3: key 'model' stands in line 2 already"),
        ("a: 1\nb:\n", "line 2: b is empty, expected a value; write null for none"),
        ("a: {b: , c: 1}\n", "line 1: b is empty, expected a value"),
        ('"": 3\n', "line 1: a value without a key"),
        ("a:\na: 1\n", r"2 problems: \(1\) .*line 1: a is empty.*; \(2\) .*line 2: key 'a' stands in line 1 already"),
        (": 3\n", "is not valid YAML in line 1"),
        ("a: 1\n\tb: 2\n", "is not valid YAML in line 2: found character '.t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "is not valid YAML in line 2"),
        ("? {a: b}\n: c\n", "is not valid YAML in line 1"),
        ("a: !!python/object:os.system x\n", "is not valid YAML in line 1: could not determine a constructor"),
        ("a: &all [*all]\n", "is not valid YAML in line 1: found unconstructable recursive node"),
        ("a: !!int x\n", "is not valid YAML: invalid literal"),
        ("a: \0", "is not valid YAML"),
        ("- a\n", "must be a mapping of keys to values .*, but holds a list"),
        ("7\n", "must be a mapping .*, but holds one value, 7"),
        ("", "must be a mapping .*, but holds nothing"),
    ],
)
def test_mistakes_are_one_sentence_with_their_line(read, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value) and re.search(r"config file \S+c\.yaml", str(error.value))


def test_text_beyond_ascii_is_read_whatever_the_locale(read):
    assert read("a: „Größe“ 文\n") == {"a": "„Größe“ 文"}
