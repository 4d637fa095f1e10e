"""What a merge rule is: the one place where everything about it that is no arithmetic is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rlhf_lines.merge.inputs.statistics import Statistics
from rlhf_lines.merge.rules.common import options_of
from rlhf_lines.merge.rules.mergekit import Method


@dataclass(frozen=True)
class Rule:
    """One way to combine K policies.

    Attributes:
        combine: see `function`; or, of the rules here, module below this package and name of that function.
        source: where it was published, as a model card says it.
        coefficients: of a rule that is a weighted sum of the residuals, `(K, weights)` to the f_k in
            tau_M = sum_k f_k tau_k; None for other rules.
        by_layer: whether its options hold a `Profile`, whose factors by policy and layer multiply the residuals.
        on_factors: whether it combines the factors A and B of adapters, which no residual shows.
        python_only: options that no file can hold.
        statistics: what it needs of each policy.
        whole: of a rule that works on whole linear maps, what one takes beside the residuals: tensors of its size in
            float64, and matrices `[in, in]`. None if chunks are enough.
        by_parameter: whether with these options every parameter is merged alone, and a factor on its residuals is one
            on the result: LiNeS before such a rule is LiNeS after it. Not asked of rules that are linear or on factors.
        searches: how many values of each policy it looks for at once by their ranks with these options, and among the
            entries of a whole `model` or of each `parameter`; None of a rule that looks for none.
        mergekit: `(weights, options, scales)` to the same merge as a method of mergekit, None where that has none;
            `scales` are the factors of LiNeS. None if mergekit has no such rule.
    """

    combine: Callable[..., Any] | str
    source: str
    coefficients: Callable[[int, Sequence[float] | None], list[float]] | None = None
    by_layer: bool = False
    on_factors: bool = False
    python_only: tuple[str, ...] = ()
    statistics: Statistics | None = None
    whole: tuple[int, int] | None = None
    by_parameter: Callable[[Mapping[str, Any]], bool] = lambda options: False
    searches: Callable[[Mapping[str, Any]], tuple[int, str] | None] = lambda options: None
    mergekit: Callable[[Sequence[float], Mapping[str, Any], Sequence[float]], Method | None] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """What makes of `(residuals, weights, **options)` the merged residual.

        Where `on_factors`, it makes of `(adapters, weights)` the factors of the merged adapter. Options are
        keyword-only, plain JSON values unless `python_only`.
        """
        if not isinstance(self.combine, str):
            return self.combine
        module, name = self.combine.split(".")
        return getattr(import_module(f"rlhf_lines.merge.rules.{module}"), name)

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its default."""
        return options_of(self.function)

    @property
    def is_linear(self) -> bool:
        """Whether tau_M is a weighted sum of the tau_k in every layer, so that specs differ only by coefficients."""
        return self.coefficients is not None

    def takes_lines_before(self, options: Mapping[str, Any]) -> bool:
        """Whether LiNeS before the rule is another merge than LiNeS after it, with these options."""
        return not (self.makes_adapter or self.by_parameter(self.options | options))

    @property
    def makes_adapter(self) -> bool:
        """Whether the merge of adapters is an adapter exactly."""
        return self.is_linear or self.on_factors
