"""Rows by task, file or folder, and one sentence where that cannot be."""

from __future__ import annotations

import json
import socket

import pytest

from rlhf_lines import data
from rlhf_lines.data import docstrings
from rlhf_lines.data.splits import split_of


SPLITS = ("train", "validation", "test")
ROWS = [
    {"prompt": f"prompt {n}", "completion": f" answer {n}", "chosen": f" good {n}", "rejected": f" bad {n}", "extra": n}
    for n in range(60)
]


def one_sentence(caught):
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def asked(text):
    return [{"role": "user", "content": text}]


# --- files


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("demonstrations", {"prompt": "prompt", "completion": "completion"}),
        ("prompts", {"prompt": "prompt", "scored_prompt": "prompt", "conversation": "prompt", "columns": "prompt"}),
        ("preferences", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ],
)
def test_a_file_is_split_by_its_prompts(write, name, kind, columns):
    path = write(name, ROWS)
    found = []
    for split in SPLITS:
        dataset = data.load(path, kind, split)
        assert dataset.column_names == list(columns)
        own_rows = [row for row in ROWS if split_of(row["prompt"]) == split]
        expected = [{column: row[own] for column, own in columns.items()} for row in own_rows]
        if kind == "prompts":
            for row, whole in zip(expected, own_rows, strict=True):
                row["conversation"] = asked(row["prompt"])
                row["columns"] = json.dumps({name: value for name, value in whole.items() if name != "prompt"})
        assert dataset.to_list() == expected and expected
        found += expected
    assert len(found) == len(ROWS)


def test_a_file_of_texts_is_split_by_its_texts(write):
    path = write("texts.jsonl", [{"text": row["prompt"]} for row in ROWS])
    for split in SPLITS:
        found = [row["text"] for row in data.load(path, "text", split)]
        assert found == [row["prompt"] for row in ROWS if split_of(row["prompt"]) == split]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_folder_keeps_its_own_splits(write, tmp_path, suffix):
    for number, split in enumerate(SPLITS):
        write(f"folder/{split}.{suffix}", ROWS[number * 20 : number * 20 + 20])
    for number, split in enumerate(SPLITS):
        found = data.load(str(tmp_path / "folder"), "prompts", split)
        assert list(found["prompt"]) == [row["prompt"] for row in ROWS[number * 20 : number * 20 + 20]]


@pytest.mark.parametrize("spoken", [False, True])
def test_no_prompt_is_in_two_splits_under_a_chat_template_that_trims(write, make_tokenizer, spoken):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    texts = [f"{text}{blank}" for text in map(str, range(60)) for blank in ("", " ")]
    path = write("rows.jsonl", [{"prompt": asked(text) if spoken else text} for text in texts])
    found = {split: data.load(path, "prompts", split, tokenizer=tokenizer)["prompt"] for split in SPLITS}
    assert sum(map(len, found.values())) == len({text for own in found.values() for text in own}) == 60


def test_max_samples_keeps_the_first_rows(write):
    path = write("rows.jsonl", ROWS)
    everything = data.load(path, "prompts", "train")["prompt"]
    assert data.load(path, "prompts", "train", max_samples=7)["prompt"] == everything[:7]
    assert len(data.load(path, "prompts", "train", max_samples=10_000)) == len(everything)


def test_a_changed_file_is_read_anew(write):
    path = write("rows.jsonl", ROWS)
    before = data.load(path, "prompts", "train")["prompt"]
    write("rows.jsonl", ROWS[:30])
    after = data.load(path, "prompts", "train")["prompt"]
    assert list(after) == [prompt for prompt in before if prompt in {row["prompt"] for row in ROWS[:30]}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_reading_a_local_file_asks_nobody(write, monkeypatch, name):
    asked = []

    def refuse(host, *arguments, **options):
        asked.append(host)
        raise OSError(f"no network: {host}")

    path = write(name, ROWS)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    assert len(data.load(path, "prompts", "train")) > 0
    assert asked == []


def test_a_missing_column_is_named(write, tmp_path):
    path = write("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError) as caught:
        data.load(path, "preferences", "train")
    expected = f"dataset {path} lacks the columns chosen, rejected for preferences; it has prompt, completion"
    assert one_sentence(caught) == expected
    write("folder/train.jsonl", [{"prompt": "a"}])
    with pytest.raises(ValueError) as caught:
        data.load(str(tmp_path / "folder"), "demonstrations", "train")
    expected = f"{tmp_path}/folder, split train, lacks the column completion for demonstrations; it has prompt"
    assert one_sentence(caught) == f"dataset {expected}"


def test_only_the_prompts_of_other_splits_are_needed(write, tmp_path):
    write("folder/train.jsonl", ROWS[:20])
    write("folder/test.jsonl", [{"prompt": row["prompt"]} for row in ROWS[15:30]])
    assert len(data.load(str(tmp_path / "folder"), "demonstrations", "train")) < 16
    assert len(data.load(str(tmp_path / "folder"), "prompts", "test")) == 15


@pytest.mark.parametrize(
    ("rows", "missing"),
    [([{"prompt": "a"}, {"prompt": None}], "prompt"), ([ROWS[0], {"chosen": "a", "prompt": "b"}], "rejected")],
)
def test_a_row_without_a_text_is_named(write, rows, missing):
    path = write("rows.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        data.load(path, "prompts" if missing == "prompt" else "preferences", "train")
    expected = f"row 2 of dataset {path} has no {missing}: fill it in, or leave out the row"
    assert one_sentence(caught) == expected


def test_a_column_of_numbers_is_refused(write):
    path = write("rows.jsonl", [{"prompt": 1}])
    with pytest.raises(ValueError) as caught:
        data.load(path, "prompts", "train")
    assert one_sentence(caught) == f"row 1 of dataset {path}: prompt is a number (1), expected a text"


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows"])
def test_an_unknown_format_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt\na\n")
    with pytest.raises(ValueError) as caught:
        data.load(str(path), "prompts", "train")
    expected = f"dataset file {path} has the format {path.suffix!r}, expected one of .jsonl, .json, .parquet, .jsonl.gz"
    advice = "; datasets.Dataset.from_csv(file).to_json(other) converts it" if path.suffix == ".csv" else ""
    assert one_sentence(caught) == f"{expected}, .json.gz{advice}"


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "missing", "a/b/missing.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path / name), "prompts", "train")
    nor = f", nor does its folder {tmp_path}/a/b" if "/" in name else ""
    assert one_sentence(caught) == f"dataset file {tmp_path / name} does not exist{nor}"


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.parquet", "./missing", "~/missing"])
def test_a_missing_relative_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"dataset file {name} does not exist"):
        data.load(name, "prompts", "train")


def test_a_folder_without_the_split_is_refused(write, tmp_path):
    write("folder/test.jsonl", ROWS)
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path / "folder"), "prompts", "validation")
    expected = f"dataset {tmp_path}/folder has no validation split, nor a train split to take one from"
    assert one_sentence(caught) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path / "empty"), "prompts", "test")
    expected = f"dataset folder {tmp_path}/empty has no train split: expected {tmp_path}/empty/train.jsonl"
    assert one_sentence(caught) == expected


def test_a_folder_of_a_train_split_is_split_as_a_file_is(write, tmp_path):
    write("folder/train.jsonl", ROWS)
    file = write("rows.jsonl", ROWS)
    for split in SPLITS:
        assert (
            data.load(str(tmp_path / "folder"), "prompts", split).to_list()
            == data.load(file, "prompts", split).to_list()
        )


@pytest.mark.parametrize("name", ["data/train-{}-of-00002-0a1b.parquet", "train-{}.jsonl", "train/{}.jsonl.gz"])
def test_shards_are_one_split(write, tmp_path, name):
    for number in range(2):
        write(f"folder/{name.format(f'0000{number}')}", ROWS[number * 30 : number * 30 + 30])
    write("folder/test.jsonl" if name.startswith("train") else "folder/data/test.parquet", ROWS[:1])
    found = [data.load(str(tmp_path / "folder"), "prompts", split)["prompt"] for split in ("train", "validation")]
    assert sorted(prompt for prompts in found for prompt in prompts) == sorted(row["prompt"] for row in ROWS[1:])


def test_an_empty_split_is_refused(write):
    path = write("rows.jsonl", [{"prompt": "textwrap.wrap:"}])  # of the train split
    assert len(data.load(path, "prompts", "train")) == 1
    with pytest.raises(ValueError) as caught:
        data.load(path, "prompts", "test")
    way_out = "add some, or hold out more of them (test_size)"
    assert one_sentence(caught) == f"dataset {path} has no prompts in its test split: {way_out}"


def test_a_file_has_no_named_preferences(write):
    path = write("rows.jsonl", ROWS)
    with pytest.raises(ValueError) as caught:
        data.load(path, "preferences", "train", preference="brief")
    assert one_sentence(caught) == f"preference 'brief' was given, but {path} is a plain source of pairs"


# --- tasks


def test_the_rows_of_a_task_are_those_of_its_module():
    prompts = data.load("docstrings", "prompts", "test").to_list()
    expected = [
        {**row, "scored_prompt": row["prompt"], "conversation": asked(row["prompt"])}
        for row in docstrings.prompts("test")
    ]
    assert prompts == expected
    pairs = data.load("docstrings", "preferences", "test", preference="brief", max_samples=5)
    assert pairs.to_list() == docstrings.preferences("test", "brief")[:5]


@pytest.mark.parametrize("preference", [None, "kind"])
def test_an_unknown_preference_of_a_task_is_refused(preference):
    with pytest.raises(ValueError) as caught:
        data.load("docstrings", "preferences", "train", preference=preference)
    expected = f"preference {preference!r} is unknown to the docstrings task, which has brief and specific"
    assert one_sentence(caught) == expected


def test_a_task_without_such_rows_is_refused():
    with pytest.raises(ValueError) as caught:
        data.load("tldr", "text", "train")
    assert one_sentence(caught) == "the tldr task has no text; it has demonstrations, prompts, preferences"


def test_a_task_with_one_preference_refuses_a_name_for_it():
    with pytest.raises(ValueError) as caught:
        data.load("tldr", "preferences", "train", preference="brief")
    assert one_sentence(caught) == "preference 'brief' was given, but the tldr task has one preference: leave it out"


def test_an_empty_split_of_a_task_is_refused():
    with pytest.raises(ValueError, match="dataset docstrings has no prompts in its dev split"):
        data.load("docstrings", "prompts", "dev")


# --- prompts of files


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
DIALOGUE = "\n\nHuman: Hi.\n\nAssistant:"


@pytest.mark.parametrize(
    ("rows", "template", "text", "turns"),
    [
        ({"prompt": "Hi."}, None, "Hi.", "user Hi."),
        ({"prompt": "Hi."}, "hh", DIALOGUE, "user Hi."),
        ({"prompt": DIALOGUE}, "hh", DIALOGUE, "user Hi."),
        ({"prompt": DIALOGUE}, None, DIALOGUE, f"user {DIALOGUE}"),
        ({"prompt": CHAT}, None, f"\n\nSystem: Be brief.{DIALOGUE}", "system Be brief. user Hi."),
        ({"prompt": CHAT[1:]}, "plain", "Hi.", "user Hi."),
        ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}, None, DIALOGUE, "user Hi."),
        ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}, "plain", "Hi.", "user Hi."),
    ],
)
def test_prompts_of_files(write, make_tokenizer, rows, template, text, turns):
    path, split = write("rows.jsonl", [rows]), split_of(text)
    (row,) = data.load(path, "prompts", split, prompt_template=template)
    conversation = [{"role": role, "content": content} for role, content in pairs_of(turns)]
    if row["conversation"] != conversation:  # of a plain text, the text is what the user says
        assert row["conversation"] == asked(text)
    assert row == {"prompt": text, "scored_prompt": text, "conversation": row["conversation"]}
    tokenizer = make_tokenizer()
    (row,) = data.load(path, "prompts", split, prompt_template=template, tokenizer=tokenizer)
    messages = "".join(f"<{role}>{content}</s>" for role, content in pairs_of(turns))
    blank = " " if text.endswith("Assistant:") and conversation != asked(text) else ""  # plain texts are left alone
    shown = {"scored_prompt": text, "conversation": conversation, "blank": blank}
    assert row == {"prompt": f"{messages}<assistant>", **shown}


def pairs_of(turns):
    """Return (role, content) of every turn in "system a user b"."""
    words = turns.replace("system ", "|system|").replace("user ", "|user|").split("|")[1:]
    return [(role, content.strip(" ")) for role, content in zip(words[::2], words[1::2], strict=True)]


def test_pairs_and_replies_may_be_messages(write):
    def said(text):
        return [{"role": "assistant", "content": text}]

    rows = [{"prompt": CHAT[1:], "completion": said("a"), "chosen": said("b"), "rejected": said("c")}]
    path, split = write("rows.jsonl", rows), split_of(DIALOGUE)
    assert data.load(path, "demonstrations", split).to_list() == [{"prompt": DIALOGUE, "completion": " a"}]
    expected = [{"prompt": DIALOGUE, "chosen": " b", "rejected": " c"}]
    assert data.load(path, "preferences", split).to_list() == expected


def test_a_template_and_a_path_are_refused_where_they_mean_nothing(write):
    path = write("rows.jsonl", ROWS)
    for source, options, message in (
        (
            "docstrings",
            {"prompt_template": "hh"},
            "prompt_template 'hh' was given, but the docstrings task has its own",
        ),
        ("docstrings", {"dataset_path": path}, f"dataset_path {path} was given, but the docstrings task reads no"),
        (path, {"dataset_path": path}, f"dataset_path {path} was given, but {path} is no task: give one of them"),
        (path, {"prompt_template": "x"}, "prompt_template 'x' is unknown, expected one of plain, hh, summary"),
        (path, {"max_prompt_length": 3}, "max_prompt_length is 3, but there is no tokenizer to count with"),
    ):
        with pytest.raises(ValueError) as caught:
            data.load(source, "prompts", "train", **options)
        assert one_sentence(caught).startswith(message)


@pytest.mark.parametrize("kind", ["prompts", "demonstrations", "preferences"])
@pytest.mark.parametrize("chat", [True, False])
def test_long_prompts_are_left_out_and_counted(write, make_tokenizer, caplog, kind, chat):
    path = write("rows.jsonl", [{**row, "prompt": "x" * n} for n, row in enumerate(ROWS, start=1)])
    tokenizer = make_tokenizer(chat=chat)
    # One token per character, and a BOS token; what the chat template adds is <user>, </s> (a token) and <assistant>.
    added = 1 + (len("<user>") + 1 + len("<assistant>")) * (chat and kind != "preferences")
    lengths = [n for n in range(1, 61) if split_of("x" * n) == "train"]
    rows = data.load(path, kind, "train", tokenizer=tokenizer, max_prompt_length=added + 30).to_list()
    assert len(rows) == sum(n <= 30 for n in lengths)
    left_out = len(lengths) - len(rows)
    assert caplog.messages[1:] == [  # behind the one on how the file was split
        f"{path}, split train: {left_out} of {len(lengths)} prompts are longer than {added + 30} tokens: left out"
    ]


def test_the_rule_of_the_split_is_told_once_and_set_by_test_size(write, caplog):
    path = write("rows.jsonl", ROWS)
    for split in ("train", "train", "test"):
        data.load(path, "prompts", split, test_size=6)
    assert caplog.messages == [
        f"{path} has no validation and test split, so a hash of the prompt holds some of train out: 48 train, "
        "6 validation, 6 test (test_size: 6)"
    ]


def test_test_size_is_refused_where_it_means_nothing(write, tmp_path):
    for split in SPLITS:
        write(f"folder/{split}.jsonl", ROWS[:3])
    with pytest.raises(ValueError, match=r"test_size is 2, but dataset .* has splits of its own: leave it out"):
        data.load(str(tmp_path / "folder"), "prompts", "test", test_size=2)
    for own in ("validation", "test"):
        write(f"{own}/train.jsonl", ROWS[:20])
        write(f"{own}/{own}.jsonl", ROWS[20:23])
        for split in SPLITS:
            with pytest.raises(ValueError, match=f"test_size is all, but dataset .* has a {own} split of its own, so"):
                data.load(str(tmp_path / own), "prompts", split, test_size="all")
        other = "test" if own == "validation" else "validation"  # which is taken out of train
        assert len(data.load(str(tmp_path / own), "prompts", other, test_size=4)) == 4
    with pytest.raises(ValueError, match="test_size 2 was given, but the docstrings task reads no files: leave it out"):
        data.load("docstrings", "prompts", "test", test_size=2)
    path = write("rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"has no prompts in its validation split \(test_size is all\)"):
        data.load(path, "prompts", "validation", test_size="all")
