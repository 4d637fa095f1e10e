"""Which split a row belongs to: its source's own where it has one, else decided by the prompts alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from rlhf_lines.data.templates import bare


SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
SHARE = 0.1  # of the prompts, for test, and as many for validation
ALL = "all"
ABOUT_A_ROW = ("row", "columns")  # keys of a row that do not make it another one

TestSize = float | int | str | None


def read_test_size(value: object) -> TestSize:
    """`test_size` as a config has it: a share below 1, a number of prompts, or `"all"`; None is a tenth.

    Raises:
        ValueError: it is none of them.
    """
    if value is None or value == ALL:
        return value
    try:
        size = float(value)
    except (TypeError, ValueError):
        size = -1.0
    if isinstance(value, bool) or not (0 <= size <= 0.5 or (size >= 1 and size.is_integer())):
        raise ValueError(
            f"test_size is {value!r}, expected a share of at most 0.5 (for test, and as much for validation), a number "
            f"of prompts, or {ALL}"
        )
    return int(size) if size >= 1 else size


def split_of(prompt: str, share: float = SHARE) -> str:
    """`"train"`, `"validation"` or `"test"` for a prompt.

    A hash of the text decides, so that a prompt is in one split only, whatever the order or the size of the corpus.
    """
    position = _position(prompt)
    if position < share:
        return "test"
    return "validation" if position < 2 * share else "train"


def places(prompts: Iterable[str], test_size: TestSize = None) -> Callable[[str], str]:
    """The split of each prompt of a source without splits, by how prompts are compared (`bare`).

    A share is one of the hash's range, so it holds about that many of the prompts; a number is that many exactly, those
    that the hash puts first. Prompts that differ by blanks around a turn alone are one, and the shortest is hashed.

    Args:
        prompts: all that the source has.
        test_size: see `read_test_size`.

    Raises:
        ValueError: there are fewer prompts than test and validation are to have.
    """
    if test_size == ALL:
        return lambda key: "test"
    hashed: dict[str, str] = {}  # by how prompts are compared
    for prompt in prompts:
        key = bare(prompt)
        hashed[key] = min(hashed.get(key, prompt), prompt, key=lambda text: (len(text), text))
    if test_size is None or test_size < 1:
        share = SHARE if test_size is None else test_size
        return lambda key: split_of(hashed[key], share)
    ordered = sorted(hashed, key=lambda key: _position(hashed[key]))
    if 2 * test_size > len(ordered):
        raise ValueError(
            f"test_size is {test_size}, for test and for validation, but there are {len(ordered)} different prompts"
        )
    place = dict.fromkeys(ordered, "train")
    place |= dict.fromkeys(ordered[:test_size], "test") | dict.fromkeys(
        ordered[test_size : 2 * test_size], "validation"
    )
    return place.__getitem__


def rows_of(
    own_splits: Mapping[str, Sequence[dict]], split: str, *, key: str = "prompt", test_size: TestSize = None
) -> list[dict]:
    """The rows of one split, each once, in their order; no prompt of it is in another split.

    1. A validation or test split that the source lacks is taken out of its train split, by `places`.
    2. A prompt that is then in several splits stays in test, else in validation: its other rows are left out.
    3. Of equal rows the first is kept.

    Blanks around what a turn says make no other prompt, and none around a text another row: a chat template may leave
    them out.

    Args:
        own_splits: the rows by the splits of the source; a source without splits has all its rows in `"train"`.
        split: `"train"`, `"validation"` or `"test"`.
        key: the column that is the prompt.
        test_size: how much of train is held out where the source lacks a split.
    """
    placed, home = _placed(own_splits, key, test_size)
    distinct: dict[str, dict] = {}
    for row in placed.get(split, []):
        prompt = bare(row[key])
        if home[prompt] == split:
            others = [(name, _compared(value)) for name, value in row.items() if name not in (key, *ABOUT_A_ROW)]
            distinct.setdefault(repr((prompt, others)), row)
    return list(distinct.values())


def prompts_by_split(
    own_splits: Mapping[str, Sequence[dict]], *, key: str = "prompt", test_size: TestSize = None
) -> dict[str, int]:
    """How many different prompts each split has, as `rows_of` places them."""
    _, home = _placed(own_splits, key, test_size)
    found = list(home.values())
    return {name: found.count(name) for name in SPLITS}


def _placed(
    own_splits: Mapping[str, Sequence[dict]], key: str, test_size: TestSize
) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """The rows of each split, and the split in which each prompt stays."""
    place_of = places((row[key] for row in own_splits.get("train", ())), test_size)
    placed: dict[str, list[dict]] = {name: [] for name in SPLITS}
    home: dict[str, str] = {}
    for name, rows in own_splits.items():
        for row in rows:
            prompt = bare(row[key])
            wanted = place_of(prompt) if name == "train" else name
            place = name if wanted in own_splits else wanted  # the source has that split already
            placed[place].append(row)
            home[prompt] = max(home.get(prompt, place), place, key=SPLITS.index)
    return placed, home


def _compared(value: object) -> object:
    """What rows are compared by beside their prompts: numbers, and texts and turns without the blanks around them."""
    if isinstance(value, float):
        return value
    if isinstance(value, str):
        return value.strip()
    return [(turn["role"], turn["content"].strip()) for turn in value]  # of a conversation


def _position(prompt: str) -> float:
    """Where a prompt is in [0, 1), by a hash of its text."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
