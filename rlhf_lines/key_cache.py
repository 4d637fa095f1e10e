"""Keys and values that grow in place: a batch that is sampled from takes room for all of its tokens once.

transformers' own layers are copied whole for every token that is added, and again whenever rows leave. On a CPU, with a
model in bfloat16, that takes about as long as the products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer, `keys` and `values` being views `[rows, heads, tokens, size]` of what there is room for.

    Args:
        layer: as it has read some of the rows.
        rows: how many there will be.
        more: for how many further tokens there is room.
    """

    def __init__(self, layer: DynamicLayer, rows: int, more: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self._room = [
            states.new_empty(rows, states.shape[1], states.shape[2] + more, states.shape[3])
            for states in (layer.keys, layer.values)
        ]
        self._show(0, layer.get_seq_length())

    def add_rows(self, layer: DynamicLayer) -> None:
        """Take over what a layer has read of the next rows."""
        start, end, tokens = len(self.keys), len(self.keys) + len(layer.keys), self.get_seq_length()
        for room, states in zip(self._room, (layer.keys, layer.values), strict=True):
            room[start:end, :, :tokens] = states
        self._show(end, tokens)

    def get_seq_length(self) -> int:
        """How many tokens every row has."""
        return self.keys.shape[2]

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


def holds_all(cache: object) -> bool:
    """Whether a cache holds the keys and values of every token, and nothing else."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def with_room(cache: DynamicCache, rows: int, more: int) -> DynamicCache:
    """A cache for the rows of this one, which `holds_all` and is emptied, and those that `add_rows` brings.

    Args:
        cache: of the first rows.
        rows: how many there will be.
        more: for how many further tokens there is room.
    """
    roomy = DynamicCache()
    for layer in cache.layers:
        roomy.layers.append(RoomyLayer(layer, rows, more))
        _move(layer, roomy.layers[-1])
    return roomy


def add_rows(roomy: DynamicCache, cache: DynamicCache) -> None:
    """Take over the next rows, which another cache has read; it is emptied."""
    for layer, into in zip(cache.layers, roomy.layers, strict=True):
        _move(layer, into)


def _move(layer: DynamicLayer, into: RoomyLayer) -> None:
    into.add_rows(layer)
    # One layer is held twice, not all of them: `reset` of older transformers fills what it keeps with zeros.
    layer.keys = layer.values = None
    layer.is_initialized = False
