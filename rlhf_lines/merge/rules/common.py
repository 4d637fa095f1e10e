"""What several rules share: checks of options, sums, preference weights, parameters that statistics cover."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from torch import Tensor

from rlhf_lines.errors import unknown_name
from rlhf_lines.merge.tensors.precision import LARGEST
from rlhf_lines.merge.tensors.residuals import Residuals


def share(name: str, value: object) -> None:
    """Stop with a ValueError unless 0 <= value <= 1."""
    number(name, value, low=0, high=1)


def number(name: str, value: object, *, low: float, high: float = LARGEST) -> None:
    """Stop with a ValueError unless `value` is a finite number of [low, high], by default up to float32's largest."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        bounds = f"at least {low:g} that float32 holds" if high == LARGEST else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value!r}, expected a number {bounds}")


def yes_or_no(name: str, value: object) -> None:
    """Stop with a ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Stop with a ValueError unless `value` is one of the known names."""
    if value not in known:
        raise ValueError(unknown_name(name, str(value), known))


def whole(name: str, value: object, *, low: int, high: int) -> None:
    """Stop with a ValueError unless `value` is an integer of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected a whole number between {low} and {high}")


def known_options(rule: str, function: Callable | None, options: Mapping[str, object]) -> None:
    """Stop with a ValueError at the first option that the rule has not; `function` is the rule, None takes none."""
    parameters = inspect.signature(function).parameters.values() if function else ()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f"option of rule {rule!r}", option, known))


def ties_options(options: Mapping[str, object] | None, ties: Callable, chosen: str, value: str) -> dict[str, object]:
    """The options for TIES inside another rule, checked; `chosen` is that rule's option which may name TIES.

    Raises:
        ValueError: no mapping, an option that TIES does not have, or options although `value` is another rule.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"ties_options is {options!r}, expected a mapping from an option of ties to its value")
    if options and value != "ties":
        raise ValueError(f'ties_options is {dict(options)!r}, which only {chosen}="ties" uses; {chosen} is {value!r}')
    known_options("ties", ties, options)
    return dict(options)


def total(taus: Sequence[Tensor]) -> Tensor:
    """sum_k tau_k, a new tensor."""
    summed = taus[0].clone()
    for tau in taus[1:]:
        summed += tau
    return summed


def weighted_total(taus: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """sum_k f_k tau_k, a new tensor."""
    summed = taus[0] * factors[0]
    for tau, factor in zip(taus[1:], factors[1:], strict=True):
        summed.add_(tau, alpha=factor)
    return summed


def preference_factors(count: int, weights: Sequence[float] | None) -> list[float]:
    """The factors K w_k that scale tau_k before a rule, so that equal weights 1/K change nothing; ones without weights.

    Args:
        count: K.
        weights: K floats, or None.
    """
    return [1.0] * count if weights is None else [count * weight for weight in weights]


def mean_shares(rule: str, count: int, weights: Sequence[float] | None) -> list[float]:
    """The shares w_k / sum_j w_j of a weighted mean, 1/K each without weights; zeros if all weights are zero.

    Args:
        rule: named in the error.
        count: K.
        weights: K floats, or None.

    Raises:
        ValueError: a negative weight, which can make the denominator of such a rule vanish.
    """
    weights = [1.0] * count if weights is None else list(weights)
    if min(weights) < 0:
        raise ValueError(
            f"weights are {weights}, but rule {rule!r} is a weighted mean and needs weights of at least 0; "
            "extrapolate with `linear`"
        )
    total = sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


VERBS = {"fisher": "fisher", "regmean": "gram"}  # that compute what a rule needs


def common_names(residuals: Residuals, rule: str, kind: str) -> list[str]:
    """The parameters that every policy has statistics of, in the order of the residuals.

    Args:
        residuals: K residuals with their statistics.
        rule: a name in `VERBS`.
        kind: what they are, for errors.

    Raises:
        ValueError: not one set per policy, or no parameter in common.
    """
    sets = residuals.statistics
    if len(sets) != residuals.count:
        raise ValueError(
            f"rule {rule!r} needs {kind} of each policy, got {len(sets)} sets for {residuals.count} policies; "
            f"compute them with `rlhf-lines {VERBS[rule]}`"
        )
    names = [name for name in residuals.shapes if all(name in tensors.shapes for tensors in sets)]
    if residuals.shapes and not names:
        known = next((name for tensors in sets for name in tensors.shapes), None)
        raise ValueError(
            f"no parameter has {kind} from every policy: the residuals have names such as "
            f"{next(iter(residuals.shapes))!r}, the statistics {repr(known) if known else 'none'}; "
            f"compute them for these policies with `rlhf-lines {VERBS[rule]}`"
        )
    return names
