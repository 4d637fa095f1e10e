"""Derivatives of a loss by the numbers of a space, from passes through mixed adapters; and Adam along them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reward_models.padding import left_pad
from rlhf_lines.merge.space import Space, Vector
from rlhf_lines.progress import beat
from rlhf_lines.reading import last_logits, masks_padding, of_one_length
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.protocol import Pair
from rlhf_lines.sweep.engines.sampling import rows_of_pass


RowLoss = Callable[[Tensor, Pair], Tensor]  # from the logits [T, V] of a row's T tokens, and these, to a scalar
Slope = tuple[float, NDArray[np.float64]]  # a loss, and its derivatives


class Differentiated:
    """Losses of a mix and their derivatives, without dense residuals.

    The numbers x of a space stand for factors c = M x, and one forward and backward pass through the adapters gives
    dL/dc, of which M^T dL/dc is taken.

    Args:
        multi_lora: the base, which is frozen, with the policies.
        space: of the numbers.
        num_policies: K.
        pad_token_id: fills up the rows.
    """

    def __init__(self, multi_lora: MultiLoRA, space: Space, num_policies: int, pad_token_id: int) -> None:
        self._multi_lora, self._pad = multi_lora, pad_token_id
        self._matrix = torch.tensor(space.matrix())
        self._shape = (num_policies, len(self._matrix) // num_policies)
        multi_lora.model.requires_grad_(False)

    def __call__(self, vector: Vector, pairs: Sequence[Pair], loss: RowLoss, weights: Sequence[float]) -> Slope:
        """sum_i w_i loss_i of rows of tokens, and its derivatives by the vector.

        Args:
            vector: numbers of the space.
            pairs: the tokens of each row, in two parts.
            loss: of a row.
            weights: of the rows.
        """
        numbers = torch.tensor(np.asarray(vector, np.float64), requires_grad=True)
        total = 0.0
        for chunk in self.passes(pairs):
            with torch.enable_grad():
                part = self._loss(numbers, [pairs[i] for i in chunk], loss, [weights[i] for i in chunk])
                part.backward()
            total += part.item()
        return total, numbers.grad.numpy()

    def passes(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """The rows of each pass; see `passes`."""
        return passes(self._multi_lora.model, pairs)

    def _loss(self, numbers: Tensor, pairs: Sequence[Pair], loss: RowLoss, weights: Sequence[float]) -> Tensor:
        model = self._multi_lora.model
        factors = (self._matrix @ numbers).view(self._shape).to(model.device, torch.float32)
        with self._multi_lora.mixed(factors, len(pairs)):
            return loss_of_pass(model, pairs, loss, weights, self._pad)


def loss_of_pass(
    model: nn.Module, pairs: Sequence[Pair], loss: RowLoss, weights: Sequence[float], pad_token_id: int
) -> Tensor:
    """sum_i w_i loss_i of rows that are read together."""
    inputs, mask = left_pad([before + after for before, after in pairs], pad_token_id, model.device)
    logits = last_logits(model, inputs, mask, inputs.shape[1])
    lengths = [len(before) + len(after) for before, after in pairs]
    rows = zip(logits, lengths, pairs, weights, strict=True)
    return sum(weight * loss(row[len(row) - length :].float(), pair) for row, length, pair, weight in rows)


def passes(model: nn.Module, pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """The rows of each pass: as many as logits of all their tokens allow."""
    lengths = [len(before) + len(after) for before, after in pairs]
    rows = rows_of_pass(model.config.get_text_config().vocab_size, model.device.type, max(lengths), max(lengths))
    parts = [list(range(len(pairs)))] if masks_padding(model) else of_one_length(lengths)
    for part in parts:
        for start in range(0, len(part), rows):
            yield part[start : start + rows]


def descend(
    slope: Callable[[NDArray[np.float64], int], Slope],
    start: Sequence[float],
    *,
    steps: int,
    learning_rate: float,
    project: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda numbers: numbers,
) -> tuple[list[float], list[float]]:
    """The vector at the end of Adam's steps, and the loss before each of them.

    Args:
        slope: from a vector and the number of the step, from 0, to the loss and its derivatives.
        start: the first vector.
        steps: how many.
        learning_rate: Adam's; betas 0.9 and 0.999.
        project: from what a step gives to the nearest vector that is allowed.
    """
    numbers = torch.tensor(list(start), dtype=torch.float64)
    optimizer = torch.optim.Adam([numbers], lr=learning_rate)
    losses = []
    for step in range(steps):
        beat(f"step {step + 1} of {steps}")
        loss, derivatives = slope(numbers.numpy().copy(), step)
        losses.append(loss)
        numbers.grad = torch.tensor(derivatives)
        optimizer.step()
        numbers.copy_(torch.from_numpy(project(numbers.numpy())))
    return numbers.tolist(), losses
