"""Which split a row belongs to: its source's own where it has one, else decided by the prompt alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.1


def split_of(prompt: str) -> str:
    """`"train"`, `"validation"` or `"test"` for a prompt.

    A hash of the text decides, so that a prompt is in one split only, whatever the order or the size of the corpus.
    """
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


def rows_of(own_splits: Mapping[str, Sequence[dict]], split: str, *, key: str = "prompt") -> list[dict]:
    """The rows of one split, each once, in their order; no prompt of it is in another split.

    1. A validation or test split that the source lacks is taken out of its train split, by `split_of`.
    2. A prompt that is then in several splits stays in test, else in validation: its other rows are left out.
    3. Of equal rows the first is kept.

    Args:
        own_splits: the rows by the splits of the source; a source without splits has all its rows in `"train"`.
        split: `"train"`, `"validation"` or `"test"`.
        key: the column that is the prompt.
    """
    placed: dict[str, list[dict]] = {name: [] for name in SPLITS}
    home: dict[str, str] = {}
    for name, rows in own_splits.items():
        for row in rows:
            wanted = split_of(row[key]) if name == "train" else name
            place = name if wanted in own_splits else wanted  # the source has that split already
            placed[place].append(row)
            home[row[key]] = max(home.get(row[key], place), place, key=SPLITS.index)
    distinct: dict[str, dict] = {}
    for row in placed.get(split, []):
        if home[row[key]] == split:
            distinct.setdefault(repr(row), row)
    return list(distinct.values())
