"""Which split a prompt belongs to, decided by the prompt alone."""

from __future__ import annotations

import hashlib


SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.1


def split_of(prompt: str) -> str:
    """Return ``"train"``, ``"validation"`` or ``"test"`` for a prompt.

    A hash of the text decides, so that a prompt is in one split only, whatever the order or the size of the corpus.
    """
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"
