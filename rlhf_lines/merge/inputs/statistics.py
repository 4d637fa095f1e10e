"""The kinds of statistics that a rule may need of each policy; known without torch, so that configs do without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """One kind of statistics that a rule may need of each policy.

    Attributes:
        verb: of `rlhf-lines`, which makes a folder of them.
        text: what they are, for errors.
        of_linear_maps: whether only linear maps have any; else all parameters may.
        example: a matrix `[out, in]` of noise to statistics of this kind, on which a rule is rehearsed.
        or_optimizer: whether a Trainer's checkpoint, in which Adam's state is, will do in place of such a folder.
    """

    verb: str
    text: str
    of_linear_maps: bool
    example: Callable[[Tensor], Tensor]
    or_optimizer: bool = False

    @property
    def file(self) -> str:
        """The file in such a folder."""
        return f"{self.verb}.safetensors"


FISHER = Statistics("fisher", "the Fisher diagonal", of_linear_maps=False, example=lambda tau: tau.square())
SECOND_MOMENTS = Statistics(
    "fisher", "the second moment", of_linear_maps=False, example=lambda tau: tau.square(), or_optimizer=True
)
GRAM = Statistics("gram", "Gram matrices", of_linear_maps=True, example=lambda tau: tau.T @ tau)
