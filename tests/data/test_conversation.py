"""Conversations: which turns a file's messages are, in every column and kind, and what is refused with its row."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from rlhf_lines.data.conversation import last_reply, shared_turns, turns_of


def said(text, role="user"):
    return {"role": role, "content": text}


def reply(text):
    return said(text, "assistant")


def load(path, kind, **options):
    """All rows of a file, whichever split they are in."""
    return data.load(path, kind, "test", test_size="all", **options).to_list()


SYSTEM = [said("Be brief.", "system"), said("Hi."), reply("Hello."), said("2+2?")]
WRITTEN = "\n\nSystem: Be brief.\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: 2+2?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "kind", "rest"),
    [
        ({"prompt": SYSTEM}, "prompts", {}),
        ({"prompt": SYSTEM, "completion": [reply("4")]}, "demonstrations", {"completion": " 4"}),
        ({"prompt": SYSTEM, "completion": "4"}, "demonstrations", {"completion": " 4"}),
        ({"messages": [*SYSTEM, reply("4")]}, "demonstrations", {"completion": " 4"}),
        ({"messages": [*SYSTEM, reply("4")]}, "prompts", {}),
        ({"messages": SYSTEM}, "prompts", {}),
        ({"prompt": SYSTEM, "chosen": [reply("4")], "rejected": [reply("5")]}, "preferences",
         {"chosen": " 4", "rejected": " 5"}),
        # The prompt is what the dialogues share, as TRL has it, also beside a prompt that is a text.
        ({"chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}, "preferences",
         {"chosen": " 4", "rejected": " 5"}),
        ({"prompt": "2+2?", "chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}, "preferences",
         {"chosen": " 4", "rejected": " 5"}),
        ({"chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}, "demonstrations", {"completion": " 4"}),
        ({"chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}, "prompts", {}),
        # A dialogue may repeat the prompt that stands beside it.
        ({"prompt": SYSTEM, "chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}, "preferences",
         {"chosen": " 4", "rejected": " 5"}),
    ],
)  # fmt: skip
def test_a_prompt_is_the_same_in_every_kind_of_rows(write, row, kind, rest):
    (found,) = load(write("rows.jsonl", [row]), kind)
    assert found["prompt"] == WRITTEN
    assert {column: found[column] for column in rest} == rest
    if kind == "prompts":
        assert found["conversation"] == SYSTEM and found["scored_prompt"] == WRITTEN


def test_a_text_beside_messages_is_what_the_user_says(write):
    (row,) = load(write("rows.jsonl", [{"prompt": "2+2?", "completion": [reply("4")]}]), "demonstrations")
    assert row == {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "completion": " 4"}
    mixed = write("mixed.jsonl", [{"prompt": "a"}, {"prompt": [said("b")]}])
    assert [row["conversation"] for row in load(mixed, "prompts")] == [[said("a")], [said("b")]]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "text", "text": "a", "image": None}], "a"),  # as Arrow fills parts up
        ([], ""),
        (None, ""),
        ("", ""),
    ],
)
def test_content_is_a_text_or_text_parts_or_nothing(content, text):
    assert turns_of([said("q"), reply(content)]) == [said("q"), reply(text)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([said("a"), said("b", "tool")], "prompt has the role 'tool' in turn 2, expected system, user, assistant"),
        ([said("a", None)], "prompt has the role None in turn 1"),
        (
            [said([{"type": "image_url", "image_url": {"url": "x"}}])],
            "prompt holds a part of type 'image_url' in turn 1",
        ),
        ([said(3)], r"prompt holds a number \(3\) as content of turn 1, expected a text or text parts"),
        ([{"from": "human", "value": "a"}], "prompt holds a message with from, value as turn 1, expected role and"),
        (["a"], "prompt holds a text as item 1, expected a message with role and content"),
        ([], "prompt holds no turn"),
        ([reply("")], "prompt has no turn that says something"),
        ([said(" "), reply("\n"), said("")], "prompt has no turn that says something"),
        (3, r"prompt is a number \(3\), expected a text or messages"),
        (None, "prompt is missing: fill it in, or leave out the row"),
        ([said("a"), {**reply(None), "tool_calls": [{"id": 1}]}], "prompt has tool_calls in turn 2, which cannot be"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(write, prompt, message):
    path = write("rows.jsonl", [{"prompt": [said("fine")]}, {"prompt": prompt}])
    with pytest.raises(ValueError, match=rf"^row 2 of dataset .*rows.jsonl: {message}"):
        load(path, "prompts")


def test_what_a_chat_template_would_be_given_besides_is_refused(write):
    path = write(
        "rows.jsonl", [{"prompt": [said("a")], "tools": []}, {"prompt": [said("b")], "tools": [{"name": "f"}]}]
    )
    with pytest.raises(ValueError, match=r"row 2 of dataset .*: tools stands beside its messages"):
        load(path, "prompts")


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"prompt": [said("a")], "completion": [reply("b"), said("c"), reply("d")]}, "demonstrations",
         "completion has turns of assistant, user, assistant behind the prompt, expected one of the assistant"),
        ({"prompt": [said("a")], "chosen": [said("b")], "rejected": [reply("c")]}, "preferences",
         "chosen has turns of user behind the prompt"),
        ({"prompt": [said("a"), reply("b")], "completion": "c"}, "demonstrations",
         "prompt ends in a turn of the assistant, which no demonstration can go on with"),
        # Not of the column that may stand in for it, which the file does not have.
        ({"prompt": [said("a")], "completion": None}, "demonstrations", "completion is missing: fill it in"),
        ({"prompt": [said("a")], "messages": [said("b"), reply("c")]}, "demonstrations", "completion is missing"),
    ],
)  # fmt: skip
def test_a_reply_is_one_turn_of_the_assistant(write, row, kind, message):
    with pytest.raises(ValueError, match=f"row 1 of dataset .*: {message}"):
        load(write("rows.jsonl", [row]), kind)


def test_a_reply_of_a_preference_may_go_on(write):
    """As in dialogues that are texts: the pair parts at the first reply."""
    row = {"chosen": [said("a"), reply("b"), said("c"), reply("d")], "rejected": [said("a"), reply("e")]}
    (found,) = load(write("rows.jsonl", [row]), "preferences")
    assert found["chosen"] == " b\n\nHuman: c\n\nAssistant: d" and found["rejected"] == " e"


def test_a_reply_stands_behind_the_prompt_as_any_turn_does(write):
    """Prompt and reply are the text that a further turn would be asked with, blank and all, as in HH-RLHF."""
    (pair,) = load(
        write("rows.jsonl", [{"chosen": [*SYSTEM, reply("4")], "rejected": [*SYSTEM, reply("5")]}]), "preferences"
    )
    (asked,) = load(write("next.jsonl", [{"prompt": [*SYSTEM, reply("4"), said("Why?")]}]), "prompts")
    assert asked["prompt"] == f"{pair['prompt']}{pair['chosen']}\n\nHuman: Why?\n\nAssistant:"
    begun = {"prompt": [said("2+2?"), reply("It")], "chosen": [reply("'s 4")], "rejected": " is 5"}
    (pair,) = load(write("begun.jsonl", [begun]), "preferences")
    assert pair["prompt"] + pair["chosen"] == "\n\nHuman: 2+2?\n\nAssistant: It's 4"
    assert pair["prompt"] + pair["rejected"] == "\n\nHuman: 2+2?\n\nAssistant: It is 5"


@pytest.mark.parametrize(
    ("rows", "options", "blanks"),
    [
        ([{"prompt": [said("a")]}, {"prompt": [said("a"), reply("b")]}], {}, [" ", ""]),
        ([{"prompt": "a"}], {}, [""]),
        ([{"prompt": "a"}], {"prompt_template": "summary"}, [" "]),
    ],
)
def test_the_turn_of_a_chat_model_is_shown_behind_a_blank(write, make_tokenizer, rows, options, blanks):
    path = write("rows.jsonl", rows)
    found = load(path, "prompts", tokenizer=make_tokenizer(), **options)
    assert [row["blank"] for row in found] == blanks
    assert "blank" not in load(path, "prompts", tokenizer=make_tokenizer(chat=False), **options)[0]


def test_pairs_that_share_no_turn_are_left_out_and_counted(write, caplog):
    pair = {"chosen": [said("a"), reply("b")], "rejected": [said("a"), reply("c")]}
    other = {"chosen": [said("a"), reply("b")], "rejected": [said("x"), reply("c")]}
    path = write("rows.jsonl", [pair, other])
    assert len(load(path, "preferences")) == 1
    assert f"{path}: 1 of 2 pairs share no turn: left out" in caplog.messages


def test_one_turn_templates_refuse_a_dialogue(write):
    path = write("rows.jsonl", [{"prompt": SYSTEM}])
    with pytest.raises(ValueError, match=r"row 1 of dataset .*: prompt has turns of system, user, assistant, user"):
        load(path, "prompts", prompt_template="plain")


def test_shared_turns_leave_each_dialogue_one_of_its_own():
    a, b, c = said("a"), reply("b"), said("c")
    assert shared_turns([a, b], [a, b]) == 1  # equal replies are a pair, too
    assert shared_turns([a, b, c], [a, b]) == 1
    assert shared_turns([a, b], [c, b]) == 0
    assert last_reply([b]) == ([b], [])


# --- with a chat template


def test_a_prompt_that_ends_in_a_reply_is_continued(write, make_tokenizer):
    path = write("rows.jsonl", [{"prompt": [said("2+2?"), reply("It is")]}])
    (row,) = load(path, "prompts", tokenizer=make_tokenizer())
    assert row["prompt"] == "<user>2+2?</s><assistant>It is"
    assert row["scored_prompt"] == "\n\nHuman: 2+2?\n\nAssistant: It is"
    path = write("opened.jsonl", [{"prompt": [said("2+2?"), reply("")]}])
    (row,) = load(path, "prompts", tokenizer=make_tokenizer())
    assert row["prompt"] == "<user>2+2?</s><assistant>"


def test_a_template_that_raises_is_a_sentence(write, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.name_or_path = "owner/chat"
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    path = write("rows.jsonl", [{"prompt": [said("fine")]}, {"prompt": SYSTEM}])
    with pytest.raises(ValueError) as caught:
        load(path, "prompts", tokenizer=tokenizer)
    expected = f"row 2 of dataset {path} is refused by the chat template of owner/chat: TemplateError System role not"
    assert str(caught.value).startswith(expected)


THINKING = "{% if add_generation_prompt and enable_thinking is false %}<think></think>{% endif %}"


@pytest.mark.parametrize("kind", ["prompts", "demonstrations"])
def test_settings_of_the_chat_template_reach_it(write, make_tokenizer, kind):
    tokenizer = make_tokenizer()
    tokenizer.chat_template += THINKING
    path = write("rows.jsonl", [{"prompt": "2+2?", "completion": "4"}])
    settings = {"enable_thinking": False}
    (row,) = load(path, kind, tokenizer=tokenizer, chat_template_kwargs=settings)
    if kind == "prompts":
        assert row["prompt"] == "<user>2+2?</s><assistant><think></think>"
    else:  # TRL's SFTTrainer takes them from the row
        assert row["chat_template_kwargs"] == settings


@pytest.mark.parametrize(
    ("chat", "settings", "message"),
    [
        (
            True,
            {"enable_thinkin": False},
            "has enable_thinkin, which the chat template of .* does not read: it reads e",
        ),
        (True, {"messages": []}, "has messages, which"),
        (False, {"enable_thinking": False}, "the tokenizer has no chat template: leave it out"),
    ],
)
def test_settings_that_have_no_effect_are_refused(write, make_tokenizer, chat, settings, message):
    tokenizer = make_tokenizer(chat=chat)
    if chat:
        tokenizer.chat_template += THINKING
    with pytest.raises(ValueError, match=message):
        load(write("rows.jsonl", [{"prompt": "a"}]), "prompts", tokenizer=tokenizer, chat_template_kwargs=settings)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("kind", ["text", "prompts", "demonstrations", "preferences"])
def test_a_bos_text_of_the_data_is_not_doubled(write, make_tokenizer, caplog, kind, chat):
    tokenizer = make_tokenizer(chat=chat)
    texts = {"completion": "c", "chosen": "c", "rejected": "d"}
    path = write("rows.jsonl", [{"prompt": f"{bos}{n} a", "text": f"{bos}{n} a", **texts}
                                for n, bos in enumerate(["<s>", ""])])  # fmt: skip
    rows = load(path, kind, tokenizer=tokenizer)
    assert (
        f"{path}, split test: 1 of 2 texts begin with the BOS token <s>, which the tokenizer adds itself: written once"
        in (caplog.messages)
    )
    for row in rows:
        read = row["text" if kind == "text" else "prompt"]
        if not isinstance(read, str):
            read = read[0]["content"]
        assert "<s>" not in read and read.count(" a") == 1
        assert tokenizer(read)["input_ids"].count(tokenizer.bos_token_id) == 1
    # A tokenizer that adds none, and has no chat template that would, leaves the text alone.
    if not chat:
        first, _ = load(path, kind, tokenizer=make_tokenizer(chat=False, adds_bos=False))
        assert "<s>0 a" in first.values()


def test_what_a_chat_template_does_without_a_word_is_told(write, make_tokenizer, caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    path = write("rows.jsonl", [{"prompt": SYSTEM}, {"prompt": "<|im_start|>user"}, {"prompt": "a"}])
    assert len(load(path, "prompts", tokenizer=tokenizer)) == 3
    start = f"{path}, split test: "
    assert [message.removeprefix(start) for message in caplog.messages if message.startswith(start)] == [
        "the chat template changes or leaves out a turn of 1 of 3 prompts; the first is one of the system: 'Be brief.'"
    ]
    path = write("written.jsonl", [{"prompt": "<|im_start|>user"}, {"prompt": "a"}])
    load(path, "prompts", tokenizer=tokenizer)
    assert f"{path}, split test: 1 of 2 prompts begin with a special token, as if" in caplog.text


def test_what_a_tokenizer_is_asked_of_itself_it_is_asked_once_for_all_rows(write, make_tokenizer, monkeypatch):
    """Its table of added tokens took 48 ms a row with the 6,400 of Gemma 3."""
    tokenizer, asked = make_tokenizer(), []
    table, call = type(tokenizer).added_tokens_decoder, type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "added_tokens_decoder", property(lambda it: (asked.append("table"), table.fget(it))[1])
    )
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda it, text, **options: (asked.append(text), call(it, text, **options))[1]
    )
    counts = []
    for rows in (1, 50):
        asked.clear()
        load(write(f"{rows}.jsonl", [{"prompt": f"<s>{n}"} for n in range(rows)]), "prompts", tokenizer=tokenizer)
        counts.append((asked.count("table"), asked.count("")))
    assert counts[0] == counts[1] and counts[0][0] == 1 and counts[0][1] > 0


@pytest.mark.parametrize("setting", [{"prompt_template": "hh"}, {"chat_template_kwargs": {"a": 1}}])
def test_texts_take_no_setting_of_prompts(write, make_tokenizer, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*, but text has no prompts: leave it out"):
        load(write("rows.jsonl", [{"text": "a"}]), "text", tokenizer=make_tokenizer(), **setting)


def test_a_prompt_that_says_nothing_is_refused_where_a_chat_template_would_write_it(write, make_tokenizer):
    path = write("rows.jsonl", [{"prompt": "fine"}, {"prompt": " "}])
    with pytest.raises(ValueError, match=r"has a prompt that says nothing \(row 2\): fill it in, or leave out the row"):
        load(path, "prompts", tokenizer=make_tokenizer())


def test_pairs_that_prefer_nothing_are_told(write, caplog):
    alike = {"prompt": "a", "chosen": " b", "rejected": "b "}
    load(write("rows.jsonl", [alike, {**alike, "rejected": " c"}]), "preferences")
    assert "chosen and rejected say the same in 1 of 2 pairs" in caplog.text
