"""Reddit TL;DR: given a post, write its summary.

A prompt reads `SUBREDDIT: r/... TITLE: ... POST: ... TL;DR:` and a completion is the summary that follows. The rows
come from the Hub data sets `trl-lib/tldr` (posts with their authors' summaries) and `trl-lib/tldr-preference`
(pairs of summaries that people compared), or from `path`, which may hold

- rows with the columns of these two, or
- comparisons as `openai/summarize_from_feedback` has them, with the columns `info`, `summaries` and `choice`
  (arXiv 2009.01325). The demonstrations are then the summaries that people chose. Comparisons of news articles, which
  that data set holds besides, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_lines.data.conversation import kind_of
from rlhf_lines.data.files import COLUMNS, about_row, checked, columns_of, place, split_rows, texts_of
from rlhf_lines.data.sources import columns, read
from rlhf_lines.data.splits import TestSize


HUB_ID = "trl-lib/tldr"
PREFERENCE_HUB_ID = "trl-lib/tldr-preference"
COMPARISONS_HUB_ID = "openai/summarize_from_feedback"
TEMPLATE = "plain"
COMPARISON = ("info", "summaries", "choice")


def demonstrations(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}`."""
    return _rows("demonstrations", split, path, test_size)


def prompts(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    """Rows `{"prompt"}`."""
    return _rows("prompts", split, path, test_size)


def preferences(
    split: str, preference: str | None = None, *, path: str = PREFERENCE_HUB_ID, test_size: TestSize = None
) -> list[dict[str, str]]:
    """Rows `{"prompt", "chosen", "rejected"}`, as humans compared summaries."""
    if preference is not None:
        raise ValueError(f"preference {preference!r} was given, but the tldr task has one preference: leave it out")
    return _rows("preferences", split, path, test_size)


def scored_prompt(prompt: str) -> str:
    r"""What a reward model of summaries is shown in place of the prompt: the post alone.

    >>> scored_prompt("SUBREDDIT: r/cats\n\nTITLE: Late\n\nPOST: My cat came home late.\n\nTL;DR:")
    'My cat came home late.'
    """
    _, mark, post = prompt.partition("POST:")
    return post.strip().removesuffix("TL;DR:").strip() if mark else prompt


def comparison(info: dict, summaries: list[dict], choice: int) -> dict[str, str] | None:
    """`{"prompt", "chosen", "rejected"}` of one comparison of two summaries of a post; of an article, None.

    Raises:
        ValueError: the row has another form.
    """
    if checked(info, dict, "info").get("post", "") is None or ("post" not in info and "article" in info):
        return None
    subreddit, title, post = (
        checked(info.get(name), str, f"{name} of info") for name in ("subreddit", "title", "post")
    )
    post = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    texts = [
        checked(checked(summary, dict, f"summary {number}").get("text"), str, f"text of summary {number}")
        for number, summary in enumerate(checked(summaries, list, "summaries"), start=1)
    ]
    if len(texts) != 2:
        raise ValueError(f"summaries holds {len(texts)}, expected 2")
    if not isinstance(choice, int) or isinstance(choice, bool) or choice not in (0, 1):
        raise ValueError(f"choice is {kind_of(choice)}, expected 0 or 1")
    chosen, rejected = (text if text[:1].isspace() else f" {text}" for text in (texts[choice], texts[1 - choice]))
    return {"prompt": post, "chosen": chosen, "rejected": rejected}


def _rows(kind: str, split: str, path: str, test_size: TestSize) -> list[dict[str, str]]:
    # The Hub converts that data set's files, which only a script could read, to Parquet, on a branch of their own.
    revision = "refs/convert/parquet" if path == COMPARISONS_HUB_ID else None
    subset = None if path in (HUB_ID, PREFERENCE_HUB_ID) else "comparisons"
    own_splits = read(path, subset=subset, revision=revision)

    def convert(name: str, wanted: str) -> list[dict[str, str]]:
        own, where = own_splits[name], place(path, name)
        if not set(COMPARISON) <= set(columns(own)):
            return texts_of(own, COLUMNS[wanted], wanted, where)
        pairs = list(_compared(columns_of(own, COMPARISON, wanted, where), where))
        if wanted == "preferences":
            return pairs
        taken = {"prompt": "prompt", "completion": "chosen"} if wanted == "demonstrations" else {"prompt": "prompt"}
        return [{column: pair[source] for column, source in taken.items()} for pair in pairs]

    return split_rows(own_splits, split, convert, kind, path, test_size)


def _compared(rows: Sequence[dict], source: str) -> Iterator[dict[str, str]]:
    for number, row in enumerate(rows, start=1):
        with about_row(number, source):
            pair = comparison(**row)
        if pair is not None:
            yield pair
