"""HH-RLHF from a copy of its files: the folders of the Hub data set, one of them, or one file."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from rlhf_lines.data import hh_rlhf
from rlhf_lines.data.splits import split_of


def pairs(name, count):
    start = "\n\nHuman: {name} {n}?\n\nAssistant:".format
    return [{"chosen": f"{start(name=name, n=n)} yes", "rejected": f"{start(name=name, n=n)} no"} for n in range(count)]


@pytest.fixture
def copy(write, tmp_path):
    """A copy of two of the four subsets, with train and test."""
    for subset in ("harmless-base", "helpful-base"):
        write(f"hh/{subset}/train.jsonl.gz", pairs(f"{subset} train", 60))
        write(f"hh/{subset}/test.jsonl.gz", pairs(f"{subset} test", 5))
    return str(tmp_path / "hh")


def prompts_of(path, split, **options):
    return data.load("hh_rlhf", "prompts", split, dataset_path=path, **options)["prompt"]


def test_subsets_are_preferences(copy):
    rows = data.load("hh_rlhf", "preferences", "test", preference="helpful-base", dataset_path=copy).to_list()
    assert rows == [
        {"prompt": f"\n\nHuman: helpful-base test {n}?\n\nAssistant:", "chosen": " yes", "rejected": " no"}
        for n in range(5)
    ]
    assert len(data.load("hh_rlhf", "preferences", "test", dataset_path=copy)) == 10
    with pytest.raises(ValueError, match="preference 'kind' is unknown to the hh_rlhf task, which has harmless-base"):
        data.load("hh_rlhf", "preferences", "test", preference="kind", dataset_path=copy)


def test_the_test_split_is_its_own_and_the_validation_split_comes_out_of_train(copy):
    train, validation, test = (prompts_of(copy, split) for split in ("train", "validation", "test"))
    assert len(test) == 10 and all(" test " in prompt for prompt in test)
    assert len(train) + len(validation) == 120 and len(validation) > 5
    assert {split_of(prompt) for prompt in validation} == {"validation"}
    assert {split_of(prompt) for prompt in train} == {"train", "test"}  # it has a test split, so none is taken out


def test_one_subset_and_one_file_are_sources_too(copy):
    folder, file = f"{copy}/harmless-base", f"{copy}/harmless-base/test.jsonl.gz"
    assert list(prompts_of(folder, "test")) == [p for p in prompts_of(copy, "test") if "harmless" in p]
    assert sorted(p for s in ("train", "validation", "test") for p in data_or_none(file, s)) == sorted(
        prompts_of(folder, "test")
    )


@pytest.mark.parametrize("place", ["helpful-base", "helpful-base/test.jsonl.gz", "helpful-base-test.jsonl.gz", ""])
def test_a_source_of_another_preference_is_refused(place, copy, write):
    write("hh/helpful-base-test.jsonl.gz", pairs("helpful-base test", 5))
    preference, path = "helpful-online" if place == "" else "harmless-base", f"{copy}/{place}".rstrip("/")
    others = "helpful-base" if place else "harmless-base, helpful-base"
    told = rf"^preference is {preference}, but dataset_path {path} has {others}: give the path of {preference}, or"
    with pytest.raises(ValueError, match=told):
        data.load("hh_rlhf", "preferences", "train", preference=preference, dataset_path=path, max_samples=1)


@pytest.mark.parametrize(
    "place",
    [
        "harmless-base/train.jsonl",
        "harmless-base/",
        "harmless-base-test.jsonl",
        "mine.jsonl",
        "helpful-base/harmless-base/a.jsonl",
        "helpful-base/data/mine.jsonl",
        "helpful-base-and-harmless-base.jsonl",
    ],
)
def test_a_source_of_the_preference_is_read(place, write, tmp_path):
    """Of any name, unless it, or the folder that it is in, is called after another subset."""
    rows = pairs("some", 60)
    write(f"{place}train.jsonl" if place.endswith("/") else place, rows)
    given = {"preference": "harmless-base", "dataset_path": str(tmp_path / place)}
    found = data.load("hh_rlhf", "preferences", "train", **given)["prompt"]
    prompts = [row["chosen"].removesuffix(" yes") for row in rows]
    assert list(found) == [prompt for prompt in prompts if split_of(prompt) == "train"]


def test_what_a_copy_lacks_is_told_once(copy, caplog):
    for split in ("train", "test"):
        prompts_of(copy, split)
    told = "has harmless-base, helpful-base of the hh_rlhf task, and lacks helpful-online, helpful-rejection-sampled"
    assert [record.getMessage() for record in caplog.records].count(f"{copy} {told}") == 1
    caplog.clear()
    data.load("hh_rlhf", "preferences", "test", preference="helpful-base", dataset_path=copy)
    prompts_of(f"{copy}/helpful-base", "test")
    assert "of the hh_rlhf task" not in caplog.text


def data_or_none(path, split):
    try:
        return list(prompts_of(path, split))
    except ValueError as error:  # five prompts are few for three splits
        assert "has no prompts in its" in str(error)
        return []


def test_replies_are_demonstrations(copy):
    rows = data.load("hh_rlhf", "demonstrations", "test", dataset_path=copy, max_samples=1).to_list()
    assert rows == [{"prompt": "\n\nHuman: harmless-base test 0?\n\nAssistant:", "completion": " yes"}]


def test_other_columns_are_refused(write):
    path = write("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        ValueError, match=f"dataset {path} lacks the columns chosen, rejected for the hh_rlhf task; it has"
    ):
        data.load("hh_rlhf", "prompts", "train", dataset_path=path)


def test_a_wrong_value_is_told_with_its_subset_and_split(copy, write):
    write("hh/helpful-base/test.jsonl.gz", [*pairs("helpful-base test", 1), {"chosen": 5, "rejected": "no"}])
    told = r"row 2 of dataset \S+/hh/helpful-base, split test,: chosen is a number \(5\), expected a text"
    with pytest.raises(ValueError, match=told):
        data.load("hh_rlhf", "prompts", "train", dataset_path=copy)


TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye."},
]


def test_a_policy_with_a_chat_template_reads_turns(copy, make_tokenizer, write):
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Bye.\n\nAssistant:"
    path = write("hh.jsonl", [{"chosen": start + " See you.", "rejected": start + " No."}])
    split = split_of(start)
    tokenizer = make_tokenizer()
    (row,) = data.load("hh_rlhf", "prompts", split, dataset_path=path, tokenizer=tokenizer)
    assert row == {
        "prompt": "<user>Hi.</s><assistant>Hello.</s><user>Bye.</s><assistant>",
        "scored_prompt": start,
        "conversation": TURNS,
        "blank": " ",
    }
    (row,) = data.load("hh_rlhf", "prompts", split, dataset_path=path, tokenizer=make_tokenizer(chat=False))
    assert row == {"prompt": start, "scored_prompt": start, "conversation": TURNS}
    (row,) = data.load("hh_rlhf", "demonstrations", split, dataset_path=path, tokenizer=tokenizer)
    assert [m["content"] for m in row["prompt"]] == ["Hi.", "Hello.", "Bye."]
    assert row["completion"] == [{"role": "assistant", "content": "See you."}]
    # Reward models have tokenizers of their own: their prompts are the text of the data.
    (row,) = data.load("hh_rlhf", "preferences", split, dataset_path=path, tokenizer=tokenizer)
    assert row == {"prompt": start, "chosen": " See you.", "rejected": " No."}
    assert hh_rlhf.prompts(split, path=path) == [{"prompt": start}]


def test_a_chat_model_learns_the_first_turn_of_a_reply_that_goes_on(write, make_tokenizer, caplog):
    start = "\n\nHuman: a?\n\nAssistant:"
    replies = [" b", " b\n\nAssistant: c", " b\n\nHuman: d\n\nAssistant: e", "\n\nHuman: d\n\nAssistant: e", " b: c"]
    rows = [{"chosen": start + reply, "rejected": f"{start} no"} for reply in replies]
    given = {"dataset_path": str(write("hh.jsonl", rows)), "test_size": "all"}
    found = data.load("hh_rlhf", "demonstrations", "test", tokenizer=make_tokenizer(), **given)
    assert [row["completion"] for row in found] == [
        [{"role": "assistant", "content": said}] for said in ("b", "b\n\nc", "b", "b: c")
    ]
    assert found[0]["prompt"] == [{"role": "user", "content": "a?"}]
    assert "3 of 5 completions go on with turns of their own: the first turn of the assistant" in caplog.text
    assert "1 of 5 completions are empty: left out" in caplog.text
    as_text = data.load("hh_rlhf", "demonstrations", "test", tokenizer=make_tokenizer(chat=False), **given)
    assert list(as_text["completion"]) == replies
