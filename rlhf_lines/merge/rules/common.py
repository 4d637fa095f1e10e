"""What several rules share: checks of options, sums, preference weights, parameters that statistics cover."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from rlhf_lines.errors import counted, unknown_name
from rlhf_lines.merge.inputs.statistics import Statistics
from rlhf_lines.merge.tensors.largest import LARGEST


if TYPE_CHECKING:
    from torch import Tensor

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


def whole(name: str, value: object, *, low: int, high: int) -> None:
    """Stop with a ValueError unless `value` is an integer of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, expected a whole number between {low} and {high}")


def one_per_policy(name: str, value: object, count: int) -> list[float]:
    """K numbers of at least 0, from one for all or a list.

    Args:
        name: of the option, in the plural.
        value: what it was given.
        count: K.

    Raises:
        ValueError: another number of them, or one that is no such number.
    """
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ValueError(
            f"{counted(len(values), name.removesuffix('s'), name)} for {counted(count, 'residual')}; give one "
            "number, or one per residual"
        )
    for one in values:
        number(f"a {name.removesuffix('s')}", one, low=0)
    return values


def options_of(function: Callable) -> dict[str, Any]:
    """Every keyword-only parameter of a function with its default."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def ranks_by_parameter(options: Mapping[str, Any] | None) -> bool:
    """Whether options, as TIES and breadcrumbs have them, rank the entries of each parameter alone.

    Raises:
        ValueError: as `for_ties`.
    """
    return for_ties(options).get("granularity", "global") != "global"


def for_ties(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that a rule was given for TIES inside it.

    Raises:
        ValueError: they are no mapping.
    """
    if not isinstance(options, Mapping | None):
        raise ValueError(f"ties_options is {options!r}, expected a mapping from an option of ties to its value")
    return dict(options or {})


def searches_as_ties(options: Mapping[str, Any] | None) -> tuple[int, str]:
    """What `Rule.searches` is for TIES with these options."""
    return (1, "parameter" if ranks_by_parameter(options) else "model")


def check_options(rule: str, known: Collection[str], options: Iterable[str]) -> None:
    """Stop with a ValueError at the first option that is not known; the rule is named in the error."""
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f"option of rule {rule!r}", option, known))


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


def mean_factors(count: int, weights: Sequence[float] | None) -> list[float]:
    """The K weights w_k as they are, 1/K each without weights."""
    return [1 / count] * count if weights is None else list(weights)


def preference_factors(count: int, weights: Sequence[float] | None) -> list[float]:
    """The K factors K w_k that scale tau_k before a rule: equal weights 1/K change nothing, nor do no weights."""
    return [1.0] * count if weights is None else [count * weight for weight in weights]


def mean_shares(rule: str, count: int, weights: Sequence[float] | None) -> list[float]:
    """The K shares w_k / sum_j w_j of a weighted mean, 1/K each without weights; zeros if all weights are zero.

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


def check_statistics_shapes(residuals: Residuals, names: Iterable[str], kind: Statistics) -> None:
    """Stop with a ValueError unless the statistics of these parameters have the shapes of the residuals."""
    for name in names:
        for k, tensors in enumerate(residuals.statistics):
            if tuple(tensors.shapes[name]) != tuple(residuals.shapes[name]):
                raise ValueError(
                    f"{kind.text} of policy {k + 1} has shape {tuple(tensors.shapes[name])} for {name!r}, the "
                    f"residuals have {tuple(residuals.shapes[name])}; compute it on the model that is merged"
                )


def common_names(residuals: Residuals, rule: str, kind: Statistics) -> list[str]:
    """The parameters that every policy has statistics of this kind of, in the order of the residuals.

    Raises:
        ValueError: not one set per policy, or no parameter in common.
    """
    sets = residuals.statistics
    if len(sets) != residuals.count:
        raise ValueError(
            f"rule {rule!r} needs {kind.text} of each policy, got {counted(len(sets), 'set')} for "
            f"{counted(residuals.count, 'policy', 'policies')}; "
            f"compute them with `rlhf-lines {kind.verb}`"
        )
    names = [name for name in residuals.shapes if all(name in tensors.shapes for tensors in sets)]
    if residuals.shapes and not names:
        known = next((name for tensors in sets for name in tensors.shapes), None)
        raise ValueError(
            f"no parameter has {kind.text} from every policy: the residuals have names such as "
            f"{next(iter(residuals.shapes))!r}, the statistics {repr(known) if known else 'none'}; "
            f"compute them for these policies with `rlhf-lines {kind.verb}`"
        )
    return names
