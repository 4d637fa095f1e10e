"""A prompt belongs to one split for ever."""

from __future__ import annotations

import hashlib

import pytest

from rlhf_lines.data.splits import SPLITS, rows_of, split_of


@pytest.mark.parametrize(
    ("prompt", "split"),
    [
        # The first 8 bytes of SHA-256 as a fraction: below 0.1 test, below 0.2 validation.
        ("json.dumps:", "test"),
        ("textwrap.wrap:", "train"),
        ("builtins.len:", "train"),
        ("", "train"),  # e3b0c442...: 0.89
        ("prompt 15", "test"),  # 14fcdacc...: 0.08
        ("prompt 2", "validation"),  # 259a648c...: 0.15
        ("Grüße, 世界", "train"),  # 49837434...: 0.29
        ("\udcff", "train"),  # half of a surrogate pair, as broken files hold them
    ],
)
def test_these_prompts_stay_where_they_are(prompt, split):
    assert split_of(prompt) == split


def test_the_hash_of_the_text_decides():
    for number in range(500):
        prompt = f"name_{number}:"
        fraction = int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16) / 16**16
        expected = "test" if fraction < 0.1 else "validation" if fraction < 0.2 else "train"
        assert split_of(prompt) == expected


def test_the_shares():
    found = [split_of(f"{number}") for number in range(20_000)]
    # Four standard deviations of a share of 0.1 in 20,000 draws: 4 * sqrt(0.09 / 20000) = 0.0085
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert found.count(split) / 20_000 == pytest.approx(share, abs=0.0085 if share == 0.1 else 0.0114)


# --- rows of a source


def named(prompts, **columns):
    return [{"prompt": prompt, **columns} for prompt in prompts]


PROMPTS = [f"{number}" for number in range(300)]


def all_of(own_splits):
    return {split: [row["prompt"] for row in rows_of(own_splits, split)] for split in SPLITS}


def test_a_source_without_splits_is_split_by_the_hash():
    assert all_of({"train": named(PROMPTS)}) == {s: [p for p in PROMPTS if split_of(p) == s] for s in SPLITS}


def test_own_splits_are_kept_and_missing_ones_come_out_of_train():
    train, test = PROMPTS[:200], PROMPTS[200:]
    expected = {
        "train": [p for p in train if split_of(p) != "validation"],
        "validation": [p for p in train if split_of(p) == "validation"],
        "test": test,
    }
    assert all_of({"train": named(train), "test": named(test)}) == expected
    validation = PROMPTS[100:200]
    own_splits = {"train": train[:100], "validation": validation, "test": test}
    assert all_of({name: named(prompts) for name, prompts in own_splits.items()}) == own_splits


@pytest.mark.parametrize("names", [SPLITS, ("train", "test"), ("train", "validation"), ("train",)])
def test_no_prompt_is_in_two_splits_and_test_wins(names):
    own_splits = {name: named(PROMPTS[start : start + 150]) for name, start in zip(names, (0, 100, 50), strict=False)}
    found = all_of(own_splits)
    everything = [prompt for prompts in found.values() for prompt in prompts]
    assert sorted(everything) == sorted({row["prompt"] for rows in own_splits.values() for row in rows})
    if "test" in names:
        assert found["test"] == [row["prompt"] for row in own_splits["test"]]


def test_equal_rows_are_one_and_the_first_is_kept():
    prompt = next(p for p in PROMPTS if split_of(p) == "train")
    a, b = {"prompt": prompt, "completion": "a"}, {"prompt": prompt, "completion": "b"}
    assert rows_of({"train": [a, b, dict(a), dict(b), b]}, "train") == [a, b]


def test_a_prompt_of_test_takes_none_of_its_train_rows_along():
    own_splits = {"train": [{"prompt": "x", "completion": "a"}], "test": [{"prompt": "x", "completion": "b"}]}
    assert rows_of(own_splits, "test") == own_splits["test"]
    assert rows_of(own_splits, "train") == [] == rows_of(own_splits, "dev")
