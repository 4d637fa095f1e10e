"""Keys and values that grow in place: a batch that is sampled from takes room for all of its tokens once.

transformers' own layers are copied whole for every token that is added, and again whenever rows leave. On a CPU, with a
model in bfloat16, that takes about as long as the products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer, `keys` and `values` being views `[rows, heads, tokens, size]` of what there is room for.

    Args:
        layer: what has been read.
        more: for how many further tokens there is room.
    """

    def __init__(self, layer: DynamicLayer, more: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._room = [_with_room(states, more) for states in (layer.keys, layer.values)]
        self._show(*layer.keys.shape[::2])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add tokens to all rows, and return all keys and values."""
        rows, start, end = len(key_states), self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:rows, :, start:end] = states
        self._show(rows, end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, by index, in this order; only those that change their place are copied."""
        tokens, places = self.get_seq_length(), torch.arange(len(beam_idx), device=beam_idx.device)
        moved = (beam_idx != places).nonzero().squeeze(1)
        for room in self._room:
            room[moved, :, :tokens] = room[beam_idx[moved], :, :tokens]
        self._show(len(beam_idx), tokens)

    batch_select_indices = reorder_cache  # what some caches call in its place

    def _show(self, rows: int, tokens: int) -> None:
        self.keys, self.values = (room[:rows, :, :tokens] for room in self._room)


def give_room(cache: Cache, more: int) -> None:
    """Let a cache grow in place by so many tokens, in the layers that hold all of the text; others stay as they are."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = RoomyLayer(layer, more)


def _with_room(states: Tensor, more: int) -> Tensor:
    rows, heads, tokens, size = states.shape
    room = states.new_empty(rows, heads, tokens + more, size)
    room[:, :, :tokens] = states
    return room
