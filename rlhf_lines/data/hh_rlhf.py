"""Helpful and harmless dialogues: rows of the Hub data set `Anthropic/hh-rlhf`.

A row of the data set is two dialogues that differ in their last reply; see `dialogues`. It has four subsets, which
are the preferences of this task, train and test splits, and no validation split: that comes out of train.

`path` may be a copy of the data set (`harmless-base/train.jsonl.gz`, ...), the folder of one subset, or one file. A
copy that lacks subsets is told, and one that is called after another subset than the preference is refused.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from rlhf_lines.data import dialogues
from rlhf_lines.data.files import place, split_rows, texts_of
from rlhf_lines.data.sources import read
from rlhf_lines.data.splits import TestSize


HUB_ID = "Anthropic/hh-rlhf"
TEMPLATE = "hh"
PREFERENCES = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")

logger = logging.getLogger(__name__)


def demonstrations(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    """Rows `{"prompt", "completion"}`: the chosen replies that are not empty."""
    return _rows("demonstrations", split, path, test_size)


def prompts(split: str, *, path: str = HUB_ID, test_size: TestSize = None) -> list[dict[str, str]]:
    r"""Rows `{"prompt"}`: dialogues up to `"\n\nAssistant:"`."""
    return _rows("prompts", split, path, test_size)


def preferences(
    split: str, preference: str | None = None, *, path: str = HUB_ID, test_size: TestSize = None
) -> list[dict[str, str]]:
    """Rows `{"prompt", "chosen", "rejected"}`, of one subset, or of all where the preference is None.

    Raises:
        ValueError: there is no such subset, or the path is that of another one.
    """
    if preference not in (None, *PREFERENCES):
        raise ValueError(
            f"preference {preference!r} is unknown to the hh_rlhf task, which has {', '.join(PREFERENCES)}"
        )
    return _rows("preferences", split, path, test_size, preference)


def _rows(kind: str, split: str, path: str, test_size: TestSize, preference: str | None = None) -> list[dict[str, str]]:
    own_splits: dict[str, list[dict]] = {}
    for subset in _subsets(path, preference):
        for name, own in read(path, subset=subset).items():
            where = place(f"{path}/{subset}" if subset else path, name)
            own_splits.setdefault(name, []).extend(texts_of(own, ("chosen", "rejected"), "the hh_rlhf task", where))
    return split_rows(
        own_splits, split, lambda name, wanted: dialogues.rows(own_splits[name], wanted, path), kind, path, test_size
    )


def _subsets(path: str, preference: str | None) -> tuple[str | None, ...]:
    """The folders to read: those of the preference or of all; none in a source that is one subset by itself.

    Raises:
        ValueError: the source has other subsets than the preference.
    """
    if not Path(path).exists():
        return PREFERENCES if preference is None else (preference,)
    inside = [subset for subset in PREFERENCES if (Path(path) / subset).is_dir()]
    if preference is None:
        if inside and (lacking := [subset for subset in PREFERENCES if subset not in inside]):
            _tell_partial(path, ", ".join(inside), ", ".join(lacking))
        return tuple(inside) or (None,)
    if preference in inside:
        return (preference,)
    others = inside or _called_after(Path(path))
    if others and preference not in Path(path).name and others != [preference]:
        raise ValueError(
            f"preference is {preference}, but dataset_path {path} has {', '.join(others)}: give the path of "
            f"{preference}, or another preference"
        )
    return (None,)


def _called_after(path: Path) -> list[str]:
    """The subset that a path is called after, if any, or the folder that it is in.

    So are `helpful-base/test.jsonl.gz` and `helpful-base-test.jsonl.gz`.
    """
    named = [subset for subset in PREFERENCES if path.name.startswith(subset)]
    return named or [subset for subset in PREFERENCES if path.parent.name == subset]


@cache  # a stage reads several splits of one source, and is told once
def _tell_partial(path: str, found: str, lacking: str) -> None:
    logger.warning("%s has %s of the hh_rlhf task, and lacks %s", path, found, lacking)
