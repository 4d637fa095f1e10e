"""How a causal language model is read: what its forward pass takes, padding that it does not see, positions, tokens.

Architectures differ in what a batch may look like. Most hide padding behind an attention mask and number the tokens as
they are told, so rows of any length share a batch. Where that is not so (a recurrence that runs over padding,
positions that are counted from the start of the row), rows of one length are read together and nothing is padded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reward_models import padding
from reward_models.padding import count_positions, takes
from rlhf_lines.key_cache import add_rows, holds_all, with_room


AT_ONCE = 2048  # tokens of prompts in one forward pass of a CPU, which holds their activations; more are no faster
# What forward passes call a cache that can drop rows: transformers 5.24 calls all of them `cache`.
CACHES = ("cache", "past_key_values", "cache_params")
# Without position_ids, or with a recurrence, and yet a row reads the same with padding before it: a test asserts it.
MASKED = {
    "bamba",
    "bloom",
    "falcon",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "lfm2_moe",
    "mamba",
    "mamba2",
    "minimax",
    "mpt",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "zamba2",
}


def masks_padding(model: nn.Module) -> bool:
    """Whether a row of a batch reads the same with padding before it, its tokens numbered from 0 by the caller."""
    return model.config.get_text_config().model_type in MASKED or padding.masks_padding(model)


def of_one_length(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of a batch, by index, in parts whose rows have one length."""
    parts: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        parts.setdefault(length, []).append(row)
    return list(parts.values())


class Reader:
    """The logits of the next token of a growing batch, from a cache where the model has one that can drop rows.

    Args:
        model: a causal language model.
        inputs: token ids `[N, T]`.
        mask: their attention mask `[N, T]`; padding, if any, comes first, and `masks_padding` holds.
        room: how many tokens will be appended, if that is known and no gradient is asked for: the cache then grows in
            place.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, mask: Tensor, room: int = 0) -> None:
        self._model, self._mask, self._room, self._begins = model, mask, room, True
        self._unread = inputs
        self._cache_name = next((name for name in CACHES if takes(model, name)), None)
        self._cache = None

    def next_logits(
        self,
        before: Callable[[Tensor], None] = lambda rows: None,
        after: Callable[[Tensor, Tensor], None] = lambda rows, logits: None,
    ) -> Tensor:
        """The logits `[N, V]` of the next token of every row, with a graph where gradients are on.

        Args:
            before: called with the rows, by index, that the next forward pass reads.
            after: called with the same rows and their logits.
        """
        found = []
        for rows in self._passes():
            before(rows)
            output = self._pass(rows)
            logits = output.logits[:, -1]
            after(rows, logits)
            found.append(logits)
            if not self._take(output, len(rows)):
                return self.next_logits(before, after)
        return torch.cat(found) if len(found) > 1 else found[0]

    def _passes(self) -> Sequence[Tensor]:
        """The rows of every pass: on a CPU few of a first one, whose activations are large."""
        rows = torch.arange(len(self._unread), device=self._unread.device)
        if self._cache is not None or not self._room or self._unread.device.type != "cpu":
            return [rows]
        return rows.split(max(1, AT_ONCE // self._unread.shape[1]))

    def _pass(self, rows: Tensor):
        # Those that begin are few, the others all: indexing would copy what is read.
        part = slice(None) if len(rows) == len(self._unread) else rows
        cache = {}
        if self._cache_name is not None:
            cache = {"use_cache": True, self._cache_name: None if self._begins else self._cache}
        # The states of a purely recurrent model hold no padding, and it takes no mask for what they have read.
        mask = self._mask[part] if self._begins or self._cache_name != "cache_params" else None
        return _forward(self._model, self._unread[part], mask, 1, **cache)

    def _take(self, output, rows: int) -> bool:
        """Keep the cache of a pass over so many rows; False if all of them have to be read in one pass instead."""
        found = output.get(self._cache_name) if self._cache_name is not None else None
        if self._begins and self._cache_name == "cache" and not holds_all(found):
            found = None  # of recurrent states this name does not say which mask a pass over them takes
        is_part = rows < len(self._unread)
        if self._begins and self._room:
            if holds_all(found):
                if self._cache is None:
                    found = with_room(found, len(self._unread), self._room)
                else:
                    add_rows(self._cache, found)
                    found = self._cache
            elif is_part:
                self._room = 0
                return False
        self._cache = found if hasattr(found, "reorder_cache") else None
        if self._cache is None:  # the model has none, or keeps it to itself: it reads everything again
            self._cache_name = None
        return True

    def append(self, tokens: Tensor) -> None:
        """Let every row go on with its token `[N]`."""
        self._begins = self._cache is None
        column = tokens.unsqueeze(1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(column.shape)], dim=1)
        if self._cache is None:
            column = torch.cat([self._unread, column], dim=1)
        self._unread = column

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, by index and in this order."""
        self._mask, self._unread = self._mask[rows], self._unread[rows]
        if self._cache is None:
            return
        from transformers import Cache

        if type(self._cache).batch_select_indices is Cache.batch_select_indices:
            # It leaves out the states of recurrent layers, which the reordering of beams takes along.
            self._cache.reorder_cache(rows)
        else:
            self._cache.batch_select_indices(rows)


def last_logits(model: nn.Module, inputs: Tensor, mask: Tensor, count: int) -> Tensor:
    """The logits `[N, count, V]` of the last tokens of a batch.

    Args:
        model: a causal language model.
        inputs: token ids `[N, T]`.
        mask: their attention mask; padding, if any, comes first, and `masks_padding` holds.
        count: how many.
    """
    return _forward(model, inputs, mask, count).logits[:, -count:]


@torch.no_grad()
def last_hidden_states(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """What a causal language model holds at the last token of each row, where its head reads: `[N, d]`, float64, CPU.

    Rows of one length are read together, and nothing is padded: a row reads the same in any company up to rounding.

    Args:
        model: a causal language model.
        rows: token ids.
    """
    found: dict[int, Tensor] = {}
    for indices in of_one_length([len(row) for row in rows]):
        step = max(1, AT_ONCE // len(rows[indices[0]]))
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            inputs = torch.tensor([list(rows[i]) for i in part], device=model.device)
            states = _forward(model, inputs, torch.ones_like(inputs), 1, output_hidden_states=True).hidden_states[-1]
            found |= zip(part, states[:, -1].double().cpu(), strict=True)
    return torch.stack([found[i] for i in range(len(rows))])


def _forward(model: nn.Module, inputs: Tensor, mask: Tensor | None, count: int, **arguments):
    if mask is not None and takes(model, "position_ids") and masks_padding(model):
        arguments["position_ids"] = count_positions(mask)[:, -inputs.shape[1] :]
    if takes(model, "logits_to_keep"):
        arguments["logits_to_keep"] = count
    if takes(model, "use_cache") or takes(model, "past_key_values"):
        arguments.setdefault("use_cache", False)
    head = model.get_output_embeddings()
    with contextlib.nullcontext() if head is None else head.register_forward_pre_hook(_whole):
        return model(input_ids=inputs, attention_mask=mask, **arguments)


def _whole(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Of states that are cut out of a batch torch makes a product per row, and copies a frozen head's weight for each.
    return (inputs[0].contiguous(), *inputs[1:])
