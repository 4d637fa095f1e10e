"""Rows of one batch, with padding on the left that a model does not see."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from reward_models.positions import FROM_PADDING


@functools.cache
def _arguments(architecture: type) -> frozenset[str]:
    return frozenset(inspect.signature(architecture.forward).parameters)


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward pass names this argument."""
    return argument in _arguments(type(model))


def masks_padding(model: Any) -> bool:
    """Whether a row reads the same with masked padding before it, its tokens numbered from 0 by who calls."""
    counted = model.config.get_text_config().model_type not in FROM_PADDING
    return counted and takes(model, "position_ids") and not getattr(model, "_is_stateful", False)


def left_pad(rows: Sequence[Sequence[int]], pad_token_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both `[N, longest row]`, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def count_positions(mask: torch.Tensor) -> torch.Tensor:
    """The number of every token in its row, from 0, for a mask `[N, T]` that may begin with padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
