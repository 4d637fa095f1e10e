"""Checks of the statistics that `fisher` and `regmean` read, one set per policy."""

from __future__ import annotations

from rlhf_lines.merge.tensors.residuals import Residuals


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
