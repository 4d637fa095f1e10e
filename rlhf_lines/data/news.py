"""News: given an article, write its summary in one sentence. Rows of the Hub data set `argilla/news-summary`.

An article is the column `text`, without the place and agency that open it (`"WASHINGTON (Reuters) - "`); its
summaries are the column `prediction`, a list of `{"text", "score"}` with the best first. The data set has 1,000
rows in train and 20,417 in test: as rewarded soups do (arXiv 2306.04488, llama/tasks/summary.py), the two are swapped.
A `path` to rows of these columns is read alike, but its splits are what they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_lines.data.files import about_row, checked, columns_of, place, split_rows
from rlhf_lines.data.sources import read
from rlhf_lines.data.splits import TestSize
from rlhf_lines.data.templates import TEMPLATES


HUB_ID = "argilla/news-summary"
TEMPLATE = "summary"
SWAPPED = {"train": "test", "test": "train"}


def demonstrations(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}`: articles that have a summary."""
    return _rows("demonstrations", split, path, test_size)


def prompts(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    """Rows `{"prompt"}`."""
    return _rows("prompts", split, path, test_size)


def scored_prompt(prompt: str) -> str:
    """What a reward model of summaries is shown in place of the prompt: the article alone."""
    return TEMPLATES[TEMPLATE].messages(prompt)[0]["content"]


def article(text: str) -> str:
    r"""The text of an article in one line, without place and agency.

    >>> article("WASHINGTON (Reuters) - The senate\nvoted.")
    'The senate voted.'
    """
    return " ".join(text.partition("(Reuters) -")[2].split() or text.split())


def _rows(kind: str, split: str, path: str, test_size: TestSize) -> list[dict[str, str]]:
    own_splits = read(path)
    if path == HUB_ID:
        own_splits = {SWAPPED.get(name, name): rows for name, rows in own_splits.items()}

    def convert(name: str, wanted: str) -> list[dict[str, str]]:
        where = place(path, name)
        rows = columns_of(own_splits[name], ("text", "prediction"), "the news task", where)
        return list(_of_kind(rows, wanted, where))

    return split_rows(own_splits, split, convert, kind, path, test_size)


def _of_kind(rows: Sequence[dict], kind: str, source: str) -> Iterator[dict[str, str]]:
    for number, row in enumerate(rows, start=1):
        if row["text"] is None:
            continue
        with about_row(number, source):
            text = article(checked(row["text"], str, "text"))
            summary = None if kind == "prompts" else _best(row["prediction"])
        prompt = TEMPLATES[TEMPLATE].text([{"role": "user", "content": text}])
        if kind == "prompts":
            yield {"prompt": prompt}
        elif summary:
            yield {"prompt": prompt, "completion": f" {summary}"}


def _best(prediction: object) -> str:
    """The first of the summaries, which may be empty, as their list may be."""
    summaries = [] if prediction is None else checked(prediction, list, "prediction")
    if not summaries:
        return ""
    return checked(checked(summaries[0], dict, "prediction 1").get("text"), str, "text of prediction 1").strip()
