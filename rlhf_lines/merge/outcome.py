"""What a user wants to know about a finished merge, from its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def loss_text(dtype: str, lost: Mapping[str, float | None]) -> str:
    """What the last cast cost, in one sentence."""
    text = f"written in {dtype}; the cast changed the merged residual by {lost['relative_l2']:.2%} (relative L2)"
    if lost["unchanged"] is not None:
        text += f"; {lost['unchanged']:.1%} of the changed parameters kept their SFT value"
    return text


def outcome_lines(record: Mapping[str, Any]) -> list[str]:
    """What the cast lost, then every warning, a line each."""
    return [
        loss_text(record["dtype"], record["lost_residual"]),
        *(f"warning: {warning}" for warning in record["warnings"]),
    ]
