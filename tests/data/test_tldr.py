"""TL;DR from local copies, in the columns that their Hub data sets have."""

from __future__ import annotations

import pytest

from rlhf_lines import data
from rlhf_lines.data import tldr
from rlhf_lines.data.splits import SPLITS, split_of


POST = "SUBREDDIT: r/cats\n\nTITLE: Late {n}\n\nPOST: My cat came home late {n}.\nTL;DR: no\n\nTL;DR:"


def comparison(n, choice, post="My cat came home late {n}.\nTL;DR: no"):
    info = {"id": str(n), "post": post and post.format(n=n), "title": f"Late {n}", "subreddit": "cats", "site": None,
            "article": None if post else "News."}  # fmt: skip
    summaries = [{"text": text, "policy": "ref", "note": None} for text in (" First.", "Second.")]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "split": "train"}


@pytest.fixture
def comparisons(write, tmp_path):
    """A copy of the comparisons as the Hub converts them, the second with the other choice, the last of an article."""
    rows = [comparison(0, 0), comparison(1, 1), comparison(2, 0, post=None)]
    write("feedback/comparisons/validation/0000.parquet", rows)
    write("feedback/comparisons/train/0000.parquet", [comparison(n, 0) for n in range(3, 63)])
    return str(tmp_path / "feedback")


def test_a_comparison_of_an_article_has_no_post():
    row = comparison(2, 0, post=None)
    without = {key: value for key, value in row["info"].items() if key not in ("post", "subreddit")}
    for info in (row["info"], without):
        assert tldr.comparison(info, row["summaries"], 0) is None


def test_comparisons_are_preferences(comparisons):
    rows = data.load("tldr", "preferences", "validation", dataset_path=comparisons).to_list()
    shown = "My cat came home late {}.\nTL;DR: no".format
    assert rows == [
        {"prompt": shown(0), "chosen": " First.", "rejected": " Second."},
        {"prompt": shown(1), "chosen": " Second.", "rejected": " First."},
    ]


def test_comparisons_are_demonstrations_and_prompts(comparisons):
    rows = data.load("tldr", "demonstrations", "validation", dataset_path=comparisons).to_list()
    assert rows == [
        {"prompt": POST.format(n=0), "completion": " First."},
        {"prompt": POST.format(n=1), "completion": " Second."},
    ]
    (first, _) = data.load("tldr", "prompts", "validation", dataset_path=comparisons).to_list()
    assert first == {
        "prompt": POST.format(n=0),
        "scored_prompt": "My cat came home late 0.\nTL;DR: no",
        "conversation": [{"role": "user", "content": POST.format(n=0)}],
    }
    test = data.load("tldr", "prompts", "test", dataset_path=comparisons)["prompt"]
    train = data.load("tldr", "prompts", "train", dataset_path=comparisons)["prompt"]
    assert len(test) + len(train) == 60 and {split_of(prompt) for prompt in test} == {"test"}


def test_rows_of_posts_are_read_as_they_are(write, tmp_path):
    rows = [{"prompt": POST.format(n=n), "completion": f" {n}", "id": n} for n in range(30)]
    for split, part in zip(SPLITS, (rows[:20], rows[20:25], rows[25:]), strict=True):
        write(f"tldr/data/{split}-00000-of-00001.parquet", part)
    for split, part in zip(SPLITS, (rows[:20], rows[20:25], rows[25:]), strict=True):
        found = data.load("tldr", "demonstrations", split, dataset_path=str(tmp_path / "tldr")).to_list()
        assert found == [{"prompt": row["prompt"], "completion": row["completion"]} for row in part]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"info": None}, "info is missing: fill it in, or leave out the row"),
        ({"info": "a post"}, "info is a text, expected a mapping"),
        ({"info": {}}, "subreddit of info is missing"),
        ({"info": {"subreddit": "s", "title": 3, "post": "p"}}, r"title of info is a number \(3\), expected a text"),
        ({"summaries": {"text": "a"}}, "summaries is a mapping, expected a list"),
        ({"summaries": ["a", "b"]}, "summary 1 is a text, expected a mapping"),
        ({"summaries": [{"text": "a"}, {"text": None}]}, "text of summary 2 is missing"),
        ({"summaries": [{"text": "a"}]}, "summaries holds 1, expected 2"),
        ({"choice": None}, "choice is null, expected 0 or 1"),
        ({"choice": 2}, r"choice is a number \(2\), expected 0 or 1"),
        ({"choice": True}, r"choice is a switch \(true\), expected 0 or 1"),
    ],
)
def test_a_comparison_of_another_form_is_refused_with_its_row(changes, told, write, tmp_path):
    write("rows/train.jsonl", [comparison(0, 0), {**comparison(1, 0), **changes}])
    for kind in ("preferences", "prompts"):
        with pytest.raises(ValueError, match=rf"^row 2 of dataset \S+rows, split train,: {told}"):
            data.load("tldr", kind, "train", dataset_path=str(tmp_path / "rows"))


def test_a_chat_model_is_asked_for_the_summary(comparisons, make_tokenizer):
    options = {"dataset_path": comparisons, "max_samples": 1, "tokenizer": make_tokenizer()}
    (row,) = data.load("tldr", "prompts", "validation", **options)
    assert row["prompt"] == f"<user>{POST.format(n=0)}</s><assistant>"
    assert row["scored_prompt"] == "My cat came home late 0.\nTL;DR: no"


def test_tldr_reads_its_own_hub_ids(monkeypatch):
    asked = []

    def read(source, *, subset=None, revision=None):
        asked.append((source, subset, revision))
        raise FileNotFoundError

    monkeypatch.setattr(tldr, "read", read)
    for kind, path in (("prompts", None), ("preferences", None), ("preferences", tldr.COMPARISONS_HUB_ID)):
        with pytest.raises(FileNotFoundError):
            data.load("tldr", kind, "train", dataset_path=path)
    assert asked == [
        ("trl-lib/tldr", None, None),
        ("trl-lib/tldr-preference", None, None),
        ("openai/summarize_from_feedback", "comparisons", "refs/convert/parquet"),
    ]


TLDR = "SUBREDDIT: r/cats\n\nTITLE: Late\n\nPOST: My cat came home late. TL;DR: she is\nfine\n\nTL;DR:"


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (TLDR, "My cat came home late. TL;DR: she is\nfine"),
        ("POST: a POST: b\nTL;DR:", "a POST: b"),
        ("POST: a\n\nTL;DR: \n", "a"),
        ("SUBREDDIT: r/cats\n\nPOST: a post without its mark", "a post without its mark"),
        ("POST: a TL;DR: b", "a TL;DR: b"),  # no mark at its end
        ("no mark at all", "no mark at all"),
    ],
)
def test_judges_of_tldr_read_the_post_alone(prompt, shown):
    assert tldr.scored_prompt(prompt) == shown
