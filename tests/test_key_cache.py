"""A cache with room holds what transformers' own holds, whatever is added, and whichever rows stay."""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from rlhf_lines.key_cache import add_rows, holds_all, with_room


def states(rows: int, tokens: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of two layers with 3 heads of 4 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(2, rows, 3, tokens, 4, generator=generator)) for _ in range(2)]


def filled(of_layers: list[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(of_layers):
        cache.update(keys, values, layer)
    return cache


def test_rows_and_tokens_are_those_of_a_cache_that_is_copied():
    first, second, token, other = states(3, 5, 0), states(2, 5, 1), states(5, 1, 2), states(3, 1, 3)
    whole = filled(
        [tuple(torch.cat(pair) for pair in zip(a, b, strict=True)) for a, b in zip(first, second, strict=True)]
    )
    roomy = with_room(filled(first), 5, 2)
    add_rows(roomy, filled(second))
    rows = torch.tensor([0, 4, 2])
    for cache in (whole, roomy):
        for layer in range(2):
            cache.update(*token[layer], layer)
        cache.reorder_cache(rows)
    for layer in range(2):
        expected, got = whole.update(*other[layer], layer), roomy.update(*other[layer], layer)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert roomy.get_seq_length() == whole.get_seq_length() == 7


def test_what_is_taken_over_is_held_once_by_any_transformers(monkeypatch):
    """`reset` of 5.16.1 kept the tensors."""
    monkeypatch.setattr(DynamicLayer, "reset", CacheLayerMixin.reset)
    first, second = filled(states(3, 5, 0)), filled(states(2, 5, 1))
    add_rows(with_room(first, 5, 2), second)
    for layer in (*first.layers, *second.layers):
        assert (layer.keys, layer.values, layer.get_seq_length()) == (None, None, 0)


def test_only_a_cache_of_all_tokens_can_have_room():
    assert holds_all(filled(states(1, 2, 0)))
    assert not holds_all(with_room(filled(states(1, 2, 0)), 1, 1))
    assert not holds_all(None)
