"""Rows that a stage leaves out: without a reply to learn, or too long. Their number is told."""

from __future__ import annotations

import logging

from rlhf_lines.limits import token_ids


logger = logging.getLogger(__name__)


def leave_out(rows: list[dict], kind: str, tokenizer, longest: int | None, source: str) -> list[dict]:
    """The rows that can be used, without their `read`; what is left out is logged.

    Args:
        rows: of the kind, with the text of the prompt that is read as `read`.
        kind: `"demonstrations"`, `"prompts"` or `"preferences"`.
        tokenizer: counts tokens.
        longest: tokens of a prompt; None is no limit.
        source: its name.

    Raises:
        ValueError: no row is left.
    """
    if kind == "demonstrations":  # nobody learns to speak from an empty reply
        rows = _told([row for row in rows if _reply(row).strip()], len(rows), "completions are empty", source)
    if longest is not None:
        ids = token_ids(tokenizer, (row["read"] for row in rows))
        short = [row for row, tokens in zip(rows, ids, strict=True) if len(tokens) <= longest]
        rows = _told(short, len(rows), f"prompts are longer than {longest} tokens", source)
    return [{key: value for key, value in row.items() if key != "read"} for row in rows]


def _told(kept: list[dict], total: int, what: str, source: str) -> list[dict]:
    if not kept:
        raise ValueError(f"{source}: all {total} {what}, so no row is left")
    if len(kept) < total:
        logger.warning("%s: %d of %d %s: left out", source, total - len(kept), total, what)
    return kept


def _reply(row: dict) -> str:
    completion = row["completion"]
    return completion if isinstance(completion, str) else completion[0]["content"]
