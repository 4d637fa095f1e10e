"""Scores of different reward models on one scale: mean and standard deviation, measured once and then kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from reward_models.base import is_number


@dataclass(frozen=True)
class Normalization:
    """A fixed change of scale, and a limit.

        apply(s) = min(max((s - mean) / std, -clip), clip)

    The weight of a score in a sum is no part of it: weights multiply what this returns.

    >>> Normalization(mean=2.0, std=4.0, clip=1.5).apply([0.0, 4.0, 100.0])
    [-0.5, 0.5, 1.5]

    Attributes:
        mean: the score that becomes 0.
        std: the difference of scores that becomes 1.
        clip: the largest absolute value after that, or None for no limit.
    """

    mean: float = 0.0
    std: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, value, holds, expected in (
            ("mean", self.mean, is_number(self.mean), "a finite number"),
            ("std", self.std, is_number(self.std) and self.std > 0, "a positive number"),
            ("clip", self.clip, self.clip is None or (is_number(self.clip) and self.clip > 0), "a positive number"),
        ):
            if not holds:
                raise ValueError(f"{name} of a normalisation is {value!r}; expected {expected}")

    @classmethod
    def measure(cls, scores: Any, *, name: str, clip: float | None = None) -> Normalization:
        """The normalisation after which these scores have mean 0 and standard deviation 1 before clipping.

        Both are computed in float64, the standard deviation with divisor n - 1.

        Args:
            scores: at least two raw scores, in a sequence or a one-dimensional tensor.
            name: name of the reward model, for error messages.
            clip: as the attribute.

        Raises:
            ValueError: there are fewer than two scores, one is not finite, or all are equal.
        """
        values = [float(score) for score in scores]
        if len(values) < 2:
            raise ValueError(
                f"the scores of reward model {name!r} cannot be normalised by {len(values)} samples; "
                "expected at least 2, better some hundred"
            )
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise ValueError(
                    f"the scores of reward model {name!r} cannot be normalised: sample {i} scored {value}; "
                    "expected finite numbers"
                )
        if min(values) == max(values):
            raise ValueError(
                f"the scores of reward model {name!r} cannot be normalised: all {len(values)} samples scored "
                f"{values[0]}, so there is no scale; turn its normalisation off, or measure more samples"
            )
        return cls(mean=statistics.fmean(values), std=statistics.stdev(values), clip=clip)

    def apply(self, scores: Any) -> Any:
        """The normalised scores, in a list for a sequence, or in a tensor of the same shape and dtype."""
        if isinstance(scores, Sequence):
            return [self._one(score) for score in scores]
        normalised = (scores - self.mean) / self.std
        return normalised if self.clip is None else normalised.clamp(-self.clip, self.clip)

    def to_dict(self) -> dict[str, float | None]:
        """What `from_dict` reads, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        """What `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or sorted(values) != sorted(known):
            raise ValueError(f"a saved normalisation has the keys {', '.join(known)}, but this one is {values!r}")
        return cls(**values)

    def _one(self, score: float) -> float:
        normalised = (score - self.mean) / self.std
        return normalised if self.clip is None else min(max(normalised, -self.clip), self.clip)
