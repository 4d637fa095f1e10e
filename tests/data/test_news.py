"""News from local copies, in the columns that their Hub data sets have."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from rlhf_lines.data import news
from rlhf_lines.data.splits import SPLITS, split_of


def article(n, text="WASHINGTON (Reuters) - The senate - all of it -\nvoted {n}."):
    return {"text": text.format(n=n), "prediction": [{"score": 1.0, "text": f"Senate votes {n}"}], "id": str(n)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PARIS (Reuters) - A - b\n c.", "A - b c."),
        ("No agency - at all.", "No agency - at all."),
        ("X (Reuters) - a (Reuters) - b", "a (Reuters) - b"),
    ],
)
def test_an_article_begins_after_its_agency(text, expected):
    assert news.article(text) == expected


def test_news(write, make_tokenizer):
    path = write("news.parquet", [article(n) for n in range(40)])
    prompt = (
        "### Instruction: Generate a one-sentence summary of this post. ### Input: The senate - all of it - voted {n}. "
        "### Response:"
    )
    shown = "The senate - all of it - voted {n}."
    found = {}
    for split in SPLITS:
        own = [n for n in range(40) if split_of(prompt.format(n=n)) == split]
        found[split] = own
        rows = data.load("news", "prompts", split, dataset_path=path).to_list()
        expected = [{"prompt": prompt.format(n=n), "scored_prompt": shown.format(n=n)} for n in own]
        assert [{k: row[k] for k in ("prompt", "scored_prompt")} for row in rows] == expected
        rows = data.load("news", "demonstrations", split, dataset_path=path).to_list()
        assert rows == [{"prompt": prompt.format(n=n), "completion": f" Senate votes {n}"} for n in own]
    assert all(found.values())
    n = found["test"][0]
    (row,) = data.load("news", "prompts", "test", dataset_path=path, tokenizer=make_tokenizer(), max_samples=1)
    question = f"Generate a one-sentence summary of this post.\n\n{shown.format(n=n)}"
    assert row == {
        "prompt": f"<user>{question}</s><assistant>",
        "scored_prompt": shown.format(n=n),
        "conversation": [{"role": "user", "content": question}],
        "blank": " ",
    }


def test_news_without_a_summary_is_no_demonstration(write):
    rows = [{**article(n), "prediction": [{"score": 1.0, "text": " "}] if n % 2 else []} for n in range(3)]
    path = write("news.jsonl", [*rows, {**article(4), "text": None}, article(3)])
    kept = [row for split in SPLITS for row in news.demonstrations(split, path=path)]
    assert [row["completion"] for row in kept] == [" Senate votes 3"]
    with pytest.raises(ValueError, match="the news task has no preferences; it has demonstrations, prompts"):
        data.load("news", "preferences", "train", dataset_path=path)
    path = write("other.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="lacks the column prediction for the news task; it has text"):
        data.load("news", "prompts", "train", dataset_path=path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": 5}, r"text is a number \(5\), expected a text"),
        ({"prediction": "a summary"}, "prediction is a text, expected a list"),
        ({"prediction": ["a summary"]}, "prediction 1 is a text, expected a mapping"),
        ({"prediction": [{"label": "a summary"}]}, "text of prediction 1 is missing: fill it in, or leave out the row"),
    ],
)
def test_news_of_another_form_is_refused_with_its_row(changes, told, write):
    path = write("news.jsonl", [{"text": None}, article(1), {**article(2), **changes}])
    with pytest.raises(ValueError, match=f"^row 3 of dataset {path}: {told}"):
        data.load("news", "demonstrations", "train", dataset_path=path, test_size=1)


def test_the_splits_of_the_hub_are_swapped_and_those_of_a_copy_are_not(write, tmp_path, monkeypatch):
    write("news/train.jsonl", [article(n) for n in range(5)])
    write("news/test.jsonl", [article(n) for n in range(5, 40)])
    folder = str(tmp_path / "news")
    test = news.prompts("test", path=folder)
    assert len(test) == 35
    monkeypatch.setattr(news, "HUB_ID", folder)  # the folder in the place of the Hub
    assert len(news.prompts("test", path=folder)) == 5
    assert len(news.prompts("train", path=folder)) + len(news.prompts("validation", path=folder)) == 35
