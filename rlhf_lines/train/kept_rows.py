"""How many rows a trainer of TRL left out or cut because they are longer than `max_length`."""

from __future__ import annotations

import logging


logger = logging.getLogger(__name__)


def tell_long_rows(kept, total: int, *, max_length: int | None, end: int | None, source: str) -> dict[str, int]:
    """Log how many rows are left out or cut, and return both numbers for the record.

    Args:
        kept: the rows that the trainer made: token ids as `input_ids`, cut to `max_length`; a row without a token to
            learn is not among them.
        total: how many rows it was given.
        max_length: tokens of a row; None is no limit.
        end: the token that ends every whole row.
        source: where the rows come from.

    Raises:
        ValueError: none is kept.
    """
    if not len(kept):
        raise ValueError(
            f"each of the {total} demonstrations of {source} has a prompt of at least {max_length} tokens, which "
            "leaves no completion to learn: raise max_length, or shorten the prompts"
        )
    cut = 0
    if max_length is not None:
        cut = sum(len(ids) >= max_length and ids[-1] != end for ids in kept["input_ids"])
    left_out = total - len(kept)
    if left_out:
        logger.warning(
            "%s: %d of %d prompts have at least max_length %d tokens, so no completion is left to learn: left out",
            source, left_out, total, max_length,
        )  # fmt: skip
    if cut:
        logger.warning("%s: %d of %d rows are cut to max_length %d", source, cut, total, max_length)
    return {"train_rows": len(kept), "train_rows_left_out": left_out, "train_rows_cut": cut}
