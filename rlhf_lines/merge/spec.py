"""One merged policy as a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any, Literal

from rlhf_lines.errors import one_of, unknown_name
from rlhf_lines.merge.rules import RULES, check_rule, profile_of
from rlhf_lines.merge.rules.profile import Profile
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.merge.tensors.largest import LARGEST


LINES = ("after", "before")  # the rule


@dataclass(frozen=True)
class MergeSpec:
    """What to merge how: theta = theta_SFT + LiNeS(rule(tau_1..tau_K; weights); alpha, beta).

    With `lines` before the rule: theta = theta_SFT + rule(LiNeS(tau_1)..LiNeS(tau_K); weights).

    Weights are any finite numbers. They need not sum to one: the residual form cannot rescale the base, so other sums
    extrapolate, and all zeros is the SFT model.

    >>> spec = MergeSpec("linear", (0.25, 0.75), beta=1.0)
    >>> spec == MergeSpec.from_dict(spec.to_dict())
    True

    Attributes:
        rule: how residuals are combined.
        weights: one number per policy.
        alpha: LiNeS factor of the first layer, and of what lies outside the layers; `"auto"` is measured on the
            residuals when they are merged (see `lines_alpha`).
        beta: what the last layer has more than the first.
        schedule: the shape between first and last layer.
        options: options of the rule, plain JSON values.
        lines: whether LiNeS scales the merged residual, or, `before` the rule, that of each policy.
    """

    rule: str
    weights: tuple[float, ...]
    alpha: float | Literal["auto"] = 1.0
    beta: float = 0.0
    schedule: str = "linear"
    options: dict[str, Any] = field(default_factory=dict)
    lines: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        if isinstance(self.weights, (str, Real)):
            raise ValueError(f"weights is {self.weights!r}, expected a sequence of numbers, one per policy")
        weights = tuple(_finite(f"weights[{k}]", weight) for k, weight in enumerate(self.weights))
        if not weights:
            raise ValueError("weights is empty, expected one number per policy")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options is {self.options!r}, expected a mapping from option name to value")
        check_rule(self.rule, self.options)
        one_of("schedule", self.schedule, SCHEDULES)
        try:
            # A copy, so that a caller who changes the dict later does not change the spec.
            options = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"options {self.options!r} must be plain JSON values: {error}") from error
        profile = profile_of(self.rule, options)
        object.__setattr__(self, "weights", weights)
        if self.alpha != "auto":
            object.__setattr__(
                self, "alpha", _finite("alpha", self.alpha, expected='a finite number that float32 holds, or "auto"')
            )
        object.__setattr__(self, "beta", _finite("beta", self.beta))
        self._check_lines()
        self._check_alpha(profile)
        object.__setattr__(self, "options", options if profile is None else options | profile.to_options())

    def __hash__(self) -> int:
        return hash(self._canonical())

    @property
    def profile(self) -> Profile | None:
        """The factors by policy and layer, of a rule that has such."""
        return profile_of(self.rule, self.options)

    @property
    def is_routed(self) -> bool:
        """Whether its weights are a preference, for which a router chooses those of every prompt."""
        return self.options.get("router") is not None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values, every field written, but `lines` only where it is `before` the rule."""
        values = {**asdict(self), "weights": list(self.weights)}
        if self.lines == "after":  # so records and digests from when there was nothing else stay what they are
            del values["lines"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeSpec:
        """The spec that `to_dict` wrote; all but `rule` and `weights` may be left out.

        Raises:
            ValueError: an unknown or missing key, or a bad value.
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(unknown_name("key of a merge spec", key, known))
        for key in ("rule", "weights"):
            if key not in values:
                raise ValueError(f"the merge spec {dict(values)!r} has no {key!r}; add it")
        return cls(**values)

    def _check_lines(self) -> None:
        one_of("lines", self.lines, LINES)
        if self.lines == "after":
            return
        if not RULES[self.rule].takes_lines_before(self.options):
            options = f" with options {self.options}" if self.options and self.profile is None else ""
            raise ValueError(
                f"lines is 'before', but rule {self.rule!r}{options} gives the same merge whether LiNeS comes before "
                "or after it; leave lines out"
            )
        if self.alpha == "auto":
            raise ValueError(
                "alpha is 'auto', which is measured on the residual that the rule makes, but lines is 'before' the "
                "rule; give a number"
            )

    def _check_alpha(self, profile: Profile | None) -> None:
        if self.alpha != "auto":
            return
        for name, numbers in (("weights", self.weights), ("factors by layer", profile.vector() if profile else (1.0,))):
            if not any(numbers):
                raise ValueError(
                    f"alpha is 'auto', but {name} of zero merge nothing that it could be measured on: give alpha as a "
                    f"number, or other {name}"
                )

    def digest(self) -> str:
        """Twelve hex digits of SHA-256 over the canonical JSON: the same for equal specs, on every machine."""
        return hashlib.sha256(self._canonical().encode()).hexdigest()[:12]

    def _canonical(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def number_or_auto(name: str, value: object) -> float | Literal["auto"]:
    """The alpha that a flag or a config file gives; whether the number is finite is for `MergeSpec` to say.

    Raises:
        ValueError: neither a number nor `auto`; `name` says where.
    """
    try:
        return "auto" if value == "auto" else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, expected a number or auto") from None


def _finite(name: str, value: object, *, expected: str = "a finite number that float32 holds") -> float:
    if not isinstance(value, Real) or not abs(value) <= LARGEST:
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    # Adding zero turns -0.0 into 0.0, which would otherwise give equal specs different digests.
    return float(value) + 0.0
