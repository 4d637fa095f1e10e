"""Rows of prompts and completions that are padded to one length: tensors in, tensors out."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from reward_models.padding import count_positions


def deal(rollout: dict, count: int) -> list[dict]:
    """`count` minibatches: minibatch m holds the rows m, m + count, m + 2 count, ...

    Prompts come in random order, so that no shuffle is needed; and this way a minibatch holds the same rows whether
    the rollout lies on one process or, in contiguous parts, on several.
    """
    return [{k: v[m::count] if v.dim() > 0 else v for k, v in rollout.items()} for m in range(count)]


def states_of_choices(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden states `[n, H]` in which the n tokens of the mask `[B, T]` are chosen.

    The state at position j of the sequence has read tokens 0 to j: token j + 1 is chosen in it.
    """
    return hidden[:, -mask.shape[1] - 1 : -1][mask.to(hidden.device)]


def spread(x: Tensor, mask: Tensor) -> Tensor:
    """`[B, T]` with the n numbers of `x` where the mask is, and zero elsewhere."""
    x = x.to(mask.device)  # a model on several devices ends on another one than it begins
    return x.new_zeros(mask.shape).masked_scatter(mask, x)


def of_length(x: Tensor, length: int) -> Tensor:
    """`[B, length]` of `[B, T]`, whose further columns are padding, or with more of it: zeros."""
    return functional.pad(x, (0, length - x.shape[1]))


def number_positions(module, args, kwargs):
    """What a model is called with, its tokens numbered from the first that is no padding, if the caller did not.

    Prompts are padded on the left, and TRL gives no positions. Rotary models see only differences; a model with
    absolute positions would read every prompt as if it stood further right.
    """
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and ids is not None and mask is not None and mask.shape == ids.shape:
        kwargs["position_ids"] = count_positions(mask)
    return args, kwargs
