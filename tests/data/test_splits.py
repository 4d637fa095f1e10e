"""A prompt belongs to one split for ever."""

from __future__ import annotations

import hashlib

import pytest

from rlhf_lines.data.splits import SPLITS, places, prompts_by_split, read_test_size, rows_of, split_of
from rlhf_lines.data.templates import bare


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


# --- where the prompts of a source are placed


def placed(prompts, test_size=None):
    place = places(prompts, test_size)
    return [place(bare(prompt)) for prompt in prompts]


def test_prompts_are_placed_by_their_hash():
    # Of SHA-256: 0.08, 0.15 and 0.89 of its range.
    prompts = ["prompt 15", "prompt 2", ""]
    assert placed(prompts) == ["test", "validation", "train"]
    assert placed(prompts, 0.0) == ["train"] * 3
    assert placed(prompts, 0.05) == ["validation", "train", "train"]
    assert placed(prompts, 0.5) == ["test", "test", "validation"]
    assert placed(prompts, "all") == ["test"] * 3


def test_a_number_of_prompts_is_that_many_in_the_order_of_their_hashes():
    assert placed(["", "prompt 2", "prompt 15"], 1) == ["train", "validation", "test"]
    with pytest.raises(ValueError, match="test_size is 2, for test and for validation, but there are 3 different"):
        places(["", "prompt 2", "prompt 15"], 2)
    assert placed(["prompt 2", "prompt 15", "prompt 2"], 1) == ["validation", "test", "validation"]


def test_prompts_that_differ_by_blanks_around_a_turn_are_placed_as_the_shortest():
    assert split_of("prompt 15") == "test" and split_of("  prompt 15") != "test"
    assert placed(["  prompt 15", "prompt 15"]) == placed(["prompt 15", "  prompt 15"]) == ["test", "test"]
    assert placed(["  prompt 15"]) == [split_of("  prompt 15")], "alone it stays where its text puts it"


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


BLANKS = (("", ""), ("", " "), ("\n", ""), ("  ", "\n\n"))


@pytest.mark.parametrize("form", ["{}", "\n\nHuman: {}\n\nAssistant:", "\n\nSystem: {}\n\nHuman: Hi.\n\nAssistant:"])
@pytest.mark.parametrize("test_size", [None, 0.3, 10])
def test_blanks_around_a_turn_make_no_other_prompt(form, test_size):
    plain = named(form.format(prompt) for prompt in PROMPTS[:60])
    rows = [row for n in range(60) for row in named(form.format(f"{a}{PROMPTS[n]}{b}") for a, b in BLANKS)]
    for split in SPLITS:
        expected = rows_of({"train": plain}, split, test_size=test_size)
        assert rows_of({"train": rows}, split, test_size=test_size) == expected and expected
        kept = [row["prompt"] for row in rows_of({"train": rows[::-1]}, split, test_size=test_size)]
        last = [form.format(f"  {p}\n\n") for p in reversed(PROMPTS[:60]) if named([form.format(p)])[0] in expected]
        assert kept == last  # the first in their order


def test_a_prompt_alone_stays_where_its_own_text_is_hashed():
    for prompt in (f" {number}\n" for number in range(40)):
        assert rows_of({"train": named([prompt])}, split_of(prompt)) == named([prompt])


def test_a_prompt_of_test_that_stands_in_train_with_a_blank_is_left_out_there():
    own = {"train": named(["a ", "b", "\n\nHuman:  Hi. \n\nAssistant:"]), "test": named(["a"])}
    own["validation"] = named(["\n\nHuman: Hi.\n\nAssistant:"])
    assert all_of(own) == {name: ["b"] if name == "train" else [own[name][0]["prompt"]] for name in SPLITS}


def test_answers_and_turns_are_compared_without_blanks_around_them():
    turns = [{"role": "user", "content": "Hi."}], [{"role": "user", "content": " Hi.\n"}]
    rows = [{"prompt": "Hi.", "completion": said, "messages": asked} for asked in turns for said in ("4", " 4", "5")]
    assert rows_of({"test": rows}, "test") == [rows[0], rows[2]]


# --- how much is held out


TWO_DOZEN = [{"prompt": f"p{n}"} for n in range(24)]


@pytest.mark.parametrize(
    ("test_size", "counts"),
    [
        (4, (16, 4, 4)),
        (12, (0, 12, 12)),
        (0, (24, 0, 0)),
        ("all", (0, 0, 24)),
    ],
)
def test_a_number_of_prompts_is_held_out_exactly(test_size, counts):
    own = {"train": [*TWO_DOZEN, *TWO_DOZEN[:5]]}  # a prompt that is there twice is one
    found = {split: rows_of(own, split, test_size=test_size) for split in SPLITS}
    assert tuple(len(rows) for rows in found.values()) == counts
    assert prompts_by_split(own, test_size=test_size) == dict(zip(SPLITS, counts, strict=True))
    assert sorted(row["prompt"] for rows in found.values() for row in rows) == sorted(
        row["prompt"] for row in TWO_DOZEN
    )


def test_held_out_are_the_prompts_that_the_hash_puts_first():
    def position(row):
        return hashlib.sha256(row["prompt"].encode()).hexdigest()

    ordered = sorted(TWO_DOZEN, key=position)
    own = {"train": TWO_DOZEN[::-1]}  # whatever their order
    assert sorted(rows_of(own, "test", test_size=4), key=position) == ordered[:4]
    assert sorted(rows_of(own, "validation", test_size=4), key=position) == ordered[4:8]


def test_a_share_is_one_of_the_range_of_the_hash():
    rows = [{"prompt": str(n)} for n in range(200)]
    for split in SPLITS:
        found = rows_of({"train": rows}, split, test_size=0.25)
        assert found == [row for row in rows if split_of(row["prompt"], 0.25) == split]
        assert abs(len(found) / 200 - {"train": 0.5}.get(split, 0.25)) < 0.1


def test_a_split_of_the_source_is_not_cut():
    own = {"train": TWO_DOZEN[:20], "test": TWO_DOZEN[20:]}
    assert rows_of(own, "test", test_size=4) == TWO_DOZEN[20:]
    assert len(rows_of(own, "validation", test_size=4)) == 4 and len(rows_of(own, "train", test_size=4)) == 16


def test_more_than_there_is_cannot_be_held_out():
    with pytest.raises(ValueError, match="test_size is 13, for test and for validation, but there are 24 different"):
        rows_of({"train": TWO_DOZEN}, "test", test_size=13)


@pytest.mark.parametrize(
    ("given", "size"), [(None, None), ("all", "all"), ("0.2", 0.2), (0.5, 0.5), ("12", 12), (12.0, 12), (0, 0), (1, 1)]
)
def test_sizes_of_a_config(given, size):
    assert read_test_size(given) == size


@pytest.mark.parametrize("given", [0.6, -1, 1.5, "half", True, "", [1], float("nan"), "inf"])
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ValueError, match=r"test_size is .*, expected a share of at most 0.5"):
        read_test_size(given)


@pytest.mark.parametrize(
    "twin", ["\n\n\nHuman: {}\n\nAssistant:", "\n\nHuman:  {} \n\nAssistant:", " \n\nHuman: {}\n\nAssistant: "]
)
def test_blanks_around_marks_and_turns_make_no_other_prompt(twin):
    for n in range(40):
        assert bare(twin.format(n)) == bare(f"\n\nHuman: {n}\n\nAssistant:") != bare(f"\n\nHuman: {n}")
