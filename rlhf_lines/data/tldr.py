"""Reddit TL;DR: given a post, write its summary. Rows of the Hub data set ``trl-lib/tldr``.

A prompt reads ``SUBREDDIT: r/... TITLE: ... POST: ... TL;DR:`` and a completion is the summary that follows. The data
set has its own train, validation and test splits, and they are used as they are.
"""

from __future__ import annotations


HUB_ID = "trl-lib/tldr"
PREFERENCE_HUB_ID = "trl-lib/tldr-preference"


def demonstrations(split: str):
    """Return the ``datasets.Dataset`` of rows ``{"prompt", "completion"}``."""
    from datasets import load_dataset

    return load_dataset(HUB_ID, split=split)


def prompts(split: str):
    """Return the ``datasets.Dataset`` of rows ``{"prompt"}``."""
    return demonstrations(split).select_columns(["prompt"])


def scored_prompt(prompt: str) -> str:
    """Return what a reward model of summaries is shown in place of the prompt: the post alone.

    >>> scored_prompt("SUBREDDIT: r/cats\\n\\nTITLE: Late\\n\\nPOST: My cat came home late.\\n\\nTL;DR:")
    'My cat came home late.'
    """
    _, mark, post = prompt.partition("POST:")
    return post.rpartition("TL;DR:")[0].strip() if mark else prompt


def preferences(split: str, preference: str | None = None):
    """Return the ``datasets.Dataset`` of rows ``{"prompt", "chosen", "rejected"}``, as humans compared summaries."""
    from datasets import load_dataset

    if preference is not None:
        raise ValueError(f"preference {preference!r} was given, but the tldr task has one preference: leave it out")
    return load_dataset(PREFERENCE_HUB_ID, split="train" if split == "train" else "validation")
