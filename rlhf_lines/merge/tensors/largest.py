"""The largest number that a weight or a factor may be; known without torch, so that configs are checked without it."""

from __future__ import annotations


LARGEST = (2 - 2**-23) * 2.0**127  # of float32: torch refuses to multiply float32 tensors by more
