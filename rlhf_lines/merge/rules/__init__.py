"""Merge rules: how the residuals of K policies become one residual.

A rule is a function `(residuals, weights, **options) -> merged`: `Residuals` in, `Merged` out, both read chunk by chunk
(see `rlhf_lines.merge.tensors.residuals`). `weights` is None or one finite float per residual. All else that the
package knows about a rule stands in its entry of `RULES`, a `Rule`. To add one: write its file and enter it. All of it
is known without torch, for which neither a config nor a help text waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf_lines.errors import counted, one_of
from rlhf_lines.merge.inputs.statistics import FISHER, GRAM, SECOND_MOMENTS
from rlhf_lines.merge.rules import mergekit
from rlhf_lines.merge.rules.common import (
    check_options,
    mean_factors,
    preference_factors,
    ranks_by_parameter,
    searches_as_ties,
)
from rlhf_lines.merge.rules.profile import Profile, read_profile
from rlhf_lines.merge.rules.rule import Rule
from rlhf_lines.merge.tensors.largest import LARGEST


if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_lines.merge.tensors.residuals import Merged, Residuals


RULES: dict[str, Rule] = {
    "linear": Rule(
        "linear.linear", "arXiv 2306.04488 (rewarded soups)", coefficients=mean_factors, mergekit=mergekit.linear
    ),
    "sum": Rule(
        "linear.sum_residuals",
        "arXiv 2212.04089 (task arithmetic)",
        coefficients=preference_factors,
        mergekit=mergekit.sum_residuals,
    ),
    "layerwise": Rule(
        "layerwise.layerwise",
        "arXiv 2310.02575 (AdaMerging, layer-wise)",
        coefficients=preference_factors,
        by_layer=True,
        mergekit=mergekit.layerwise,
    ),
    "slerp": Rule(
        "slerp.slerp",
        "arXiv 2406.16768 (WARP)",
        by_parameter=lambda options: (options["granularity"], options["of"]) == ("tensor", "residuals"),
        mergekit=mergekit.slerp,
    ),
    "ties": Rule(
        "ties.ties",
        "arXiv 2306.01708",
        by_parameter=ranks_by_parameter,
        searches=searches_as_ties,
        mergekit=mergekit.ties,
    ),
    "ties_layerwise": Rule(
        "ties.ties_layerwise",
        "arXiv 2310.02575 (AdaMerging++)",
        by_layer=True,
        searches=lambda options: (1, "model"),
    ),
    "dare": Rule(
        "dare.dare",
        "arXiv 2311.03099",
        python_only=("masks", "generator"),
        by_parameter=lambda options: options["then"] == "linear" or ranks_by_parameter(options["ties_options"]),
        searches=lambda options: searches_as_ties(options["ties_options"]) if options["then"] == "ties" else None,
    ),
    "breadcrumbs": Rule(
        "breadcrumbs.breadcrumbs",
        "arXiv 2312.06795",
        by_parameter=ranks_by_parameter,
        searches=lambda options: {"global": (2, "model"), "tensor": (2, "parameter")}.get(options["granularity"]),
        mergekit=mergekit.breadcrumbs,
    ),
    "consensus": Rule(
        "consensus.consensus",
        "arXiv 2405.07813",
        by_parameter=lambda options: options["of"] == "sum" or ranks_by_parameter(options["ties_options"]),
        searches=lambda options: searches_as_ties(options["ties_options"]) if options["of"] == "ties" else None,
    ),
    "pcb": Rule("pcb.pcb", "arXiv 2410.02396", searches=lambda options: (2, "model")),
    "opcm": Rule("opcm.opcm", "arXiv 2501.09522", whole=(5, 0)),
    "doge": Rule(
        "doge.doge",
        "arXiv 2501.01230 (DOGE)",
        whole=(6, 0),
        by_parameter=lambda options: options["relative"] and options["keep"] == 1,
        searches=lambda options: (1, "model"),
    ),
    "widen": Rule("widen.widen", "arXiv 2408.03092"),
    "twin": Rule("twin.twin", "arXiv 2406.15479 (Twin-Merging)", whole=(5, 0), by_parameter=lambda options: True),
    "fisher": Rule(
        "fisher.fisher",
        "arXiv 2111.09832",
        statistics=FISHER,
        by_parameter=lambda options: True,
        searches=lambda options: (1, "model"),
    ),
    "ota": Rule(
        "ota.ota",
        "arXiv 2509.11167 (OTA)",
        statistics=SECOND_MOMENTS,
        by_parameter=lambda options: options["density"] is None and options["thresholds"] is None,
        searches=lambda options: None if options["density"] is None else (1, "model"),
    ),
    "regmean": Rule(
        "regmean.regmean",
        "arXiv 2212.09849",
        statistics=GRAM,
        whole=(4, 5),
        by_parameter=lambda options: True,
    ),
    "factor_average": Rule("factors.factor_average", "the code of arXiv 2306.04488 (rewarded soups)", on_factors=True),
    "peft_linear": Rule("factors.peft_linear", "PEFT, add_weighted_adapter", on_factors=True),
}


def check_rule(rule: str, options: Mapping[str, object]) -> None:
    """Stop with a ValueError if the rule or one of its options is unknown, or is not for specs."""
    _check_names(rule, options)
    for option in options:
        if option in RULES[rule].python_only:
            raise ValueError(
                f"option {option!r} of rule {rule!r} is for merge_residuals in Python and cannot be written into a "
                "merge spec; give a seed instead"
            )


def profile_of(rule: str, options: Mapping[str, object]) -> Profile | None:
    """The factors by policy and layer that options of a rule hold; None of a rule that has none.

    Raises:
        ValueError: they are missing or wrong.
    """
    return Profile.of(options) if RULES[rule].by_layer else None


def read_options(rule: str, options: Mapping[str, object]) -> Mapping[str, object]:
    """The options of a rule as a spec holds them: with the content of a file that they name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the rule is unknown, or the file cannot be read.
    """
    one_of("rule", rule, RULES)
    return read_profile(options) if RULES[rule].by_layer else options


def _check_names(rule: str, options: Mapping[str, object]) -> None:
    one_of("rule", rule, RULES)
    if options:  # else neither they nor torch are needed
        check_options(rule, RULES[rule].options, options)


def merge_residuals(
    residuals: Sequence[Mapping[str, Tensor]],
    rule: str = "linear",
    *,
    weights: Sequence[float] | None = None,
    sft: Mapping[str, Tensor] | None = None,
    statistics: Sequence[Mapping[str, Tensor]] = (),
    transposed: Collection[str] = (),
    **options: object,
) -> dict[str, Tensor]:
    """The merged residual tau_M of K residuals, unscaled (LiNeS comes afterwards).

    Weights may be any finite numbers: a residual form cannot rescale the base, so weights that do not sum to one
    extrapolate, and all-zero weights give the SFT model. None means 1/K each for `linear` and a plain sum for `sum`. A
    rule that is not linear in the residuals gets its weights by scaling tau_k by K w_k before it, unless its own
    docstring says otherwise.

    Args:
        residuals: one mapping from parameter name to tensor per policy; a missing name counts as zero.
        rule: a name in `RULES`, of a rule on residuals.
        weights: one per residual.
        sft: parameter name to the SFT model's tensor, for rules that look at it (`widen`, `slerp` of whole weights).
        statistics: one mapping per residual, for rules that need them: `fisher` and `ota` (diagonals by
            parameter name) and `regmean` (Gram matrices by parameter name).
        transposed: names of matrices that are stored `[in, out]` (Conv1D of GPT-2), for rules that look at columns
            (`doge`, `regmean`, `widen`).
        **options: options of the rule.

    Returns:
        A new residual in float32, float64 where an input is float64. The inputs are not changed. Values that are not
        finite are not looked for: they make some of the result not finite, or count as small or large entries (only
        merges of files refuse them).

    Raises:
        ValueError: unknown rule or option, weights that do not fit, or shapes that differ.
    """
    from rlhf_lines.merge.tensors.residuals import residuals_in_memory

    if isinstance(residuals, Mapping):
        raise ValueError("residuals is one mapping, expected a list with one mapping per policy")
    held = replace(residuals_in_memory(residuals, sft=sft, statistics=statistics), transposed=frozenset(transposed))
    merged = merge_lazily(held, rule, weights=weights, **options)
    return {name: merged.tensor(name) for name in merged.residuals.shapes}


def merge_lazily(
    residuals: Residuals, rule: str, *, weights: Sequence[float] | None = None, **options: object
) -> Merged:
    """The merged residual of residuals that are read chunk by chunk; see `merge_residuals`."""
    _check_names(rule, options)
    if RULES[rule].on_factors:
        raise ValueError(f"rule {rule!r} combines the factors of adapters, which residuals do not show; use linear")
    if weights is not None:
        weights = [float(weight) for weight in weights]
        if len(weights) != residuals.count:
            raise ValueError(
                f"{counted(len(weights), 'weight')} for {counted(residuals.count, 'residual')}; give one "
                "weight per residual"
            )
        for weight in weights:
            if not residuals.count * abs(weight) <= LARGEST:  # not a number, or K w_k that float32 does not hold
                raise ValueError(
                    f"weights are {weights}, expected finite numbers of at most {LARGEST / residuals.count:.2g} in size"
                )
    return RULES[rule].function(residuals, weights, **options)
