r"""Pairs of dialogues that share their beginning: the prompt is implicit, as in HH-RLHF.

chosen    "\n\nHuman: Are drag queens men?\n\nAssistant: No."
rejected  "\n\nHuman: Are drag queens men?\n\nAssistant: Yes."
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator


REPLY = "\n\nAssistant:"

logger = logging.getLogger(__name__)


def divide(chosen: str, rejected: str) -> dict[str, str] | None:
    r"""`{"prompt", "chosen", "rejected"}`, or None where the two share no turn of the assistant.

    The prompt ends with the last `"\n\nAssistant:"` up to which both texts are equal, and the rest of each text is
    its reply: prompt + reply is the text, to the character. A reply may be empty, or go on with turns of its own.

    >>> divide("\n\nHuman: 1+1?\n\nAssistant: 2", "\n\nHuman: 1+1?\n\nAssistant: 3")
    {'prompt': '\n\nHuman: 1+1?\n\nAssistant:', 'chosen': ' 2', 'rejected': ' 3'}
    """
    start = chosen.rfind(REPLY)
    while start >= 0:
        end = start + len(REPLY)
        if rejected.startswith(chosen[:end]):
            return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}
        start = chosen.rfind(REPLY, 0, start)
    return None


def rows(pairs: Iterable[dict], kind: str, source: str) -> list[dict]:
    """The rows of one kind from pairs `{"chosen", "rejected"}`; as preferences they keep their further columns.

    A demonstration is the chosen reply, unless it is empty: an annotator may well prefer silence, but nobody learns to
    speak from it. Pairs that cannot be divided are left out, and their number is logged.

    Raises:
        ValueError: no pair can be divided.
    """
    pairs = list(pairs)
    divided = [divide(pair["chosen"], pair["rejected"]) for pair in pairs]
    found = [{**pair, **row} for pair, row in zip(pairs, divided, strict=True) if row is not None]
    if not found:
        raise ValueError(
            f"dataset {source} has no column prompt, and chosen and rejected share no {REPLY!r} that would end one: "
            "add a column prompt"
        )
    if len(found) < len(divided):
        logger.warning("%s: %d of %d pairs share no prompt: left out", source, len(divided) - len(found), len(divided))
    return list(_of_kind(found, kind))


def _of_kind(rows: Iterable[dict], kind: str) -> Iterator[dict]:
    for row in rows:
        if kind == "prompts":
            yield {"prompt": row["prompt"]}
        elif kind == "preferences":
            yield row
        elif row["chosen"].strip():
            yield {"prompt": row["prompt"], "completion": row["chosen"]}
