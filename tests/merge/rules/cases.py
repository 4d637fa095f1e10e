"""The one table of rules and options on which every property and every merge of files is tested.

A new rule gets all of them by one line. The first line of a rule is also merged from files (`every_rule.py`), so its
options act on a tiny model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_lines.merge.rules import RULES


Property = Literal["threads", "names", "factor", "sign", "order", "untouched"]


@dataclass(frozen=True)
class Case:
    """A rule with options, and what does not hold of it.

    Attributes:
        rule: its name.
        options: its options.
        count: how many policies are merged.
        but_not: the properties that the rule does not have, as test_rule_properties.py names them.
        one_hot: what all weight on one policy gives: that policy bit for bit ("bits") or up to rounding ("close"), what
            the rule makes of that policy alone ("alone"), or something else.
    """

    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 3
    but_not: tuple[Property, ...] = ()
    one_hot: Literal["bits", "close", "alone"] | None = None

    def __str__(self) -> str:
        return "-".join([self.rule, *map(str, self.options.values())])

    def weights(self) -> list[float]:
        """Weights that differ."""
        return [0.5, 0.2, 0.3][: self.count]


CASES = [
    Case("linear", one_hot="bits"),
    Case("sum"),
    Case("layerwise", {"factors": [[0.5, 0.3, 1.5, 1.0], [1.0, -0.5, 0.25, 2.0]], "outside": [0.5, 1.5]}, count=2),
    Case("layerwise", {"factors": [[0.7, 0.2, 1.1, 0.9], [0.1] * 4, [1.0] * 4], "outside": [0.3, 0.6, 0.9]}),
    Case("slerp", count=2, one_hot="bits"),
    Case("slerp", {"granularity": "global"}, count=2, one_hot="bits"),
    Case("slerp", {"of": "weights"}, count=2, one_hot="bits", but_not=("factor", "sign")),
    Case("slerp", {"of": "weights", "granularity": "global"}, count=2, one_hot="bits", but_not=("factor", "sign")),
    Case("ties", {"density": 0.3}, one_hot="alone"),
    Case("ties", one_hot="alone"),
    Case("ties", {"density": 0.5, "reduction": "sum", "granularity": "tensor"}, one_hot="alone"),
    Case("ties", {"density": 0.4, "reduction": "max", "zero_sign": "positive"}, one_hot="alone", but_not=("sign",)),
    Case(
        "ties_layerwise",
        {"factors": [[0.5, 0.3, 1.5, 1.0], [1.0, -0.5, 0.25, 2.0]], "outside": [0.5, 1.5], "density": 0.5},
        count=2,
    ),
    Case("ties_layerwise", {"factors": [[0.7, 0.2, 1.1, 0.9], [0.1] * 4, [1.0] * 4], "outside": [0.3, 0.6, 0.9]}),
    Case(
        "dare",
        {"drop_rate": 0.5, "then": "ties", "seed": 3, "ties_options": {"density": 0.4}},
        but_not=("names", "order"),
    ),
    Case("dare", {"drop_rate": 0.6, "seed": 5}, but_not=("names", "order")),
    Case("dare", {"rescale": "l1", "drop_rate": 0.5}, but_not=("names", "order")),
    Case("breadcrumbs", {"keep": 0.4}, one_hot="alone"),
    Case("breadcrumbs", one_hot="alone"),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "order": "keep_first"}, one_hot="alone"),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "granularity": "tensor"}, one_hot="alone"),
    Case("breadcrumbs", {"keep": 0.5, "remove": 0.2, "granularity": "global", "scale": 0.3}, one_hot="alone"),
    Case("consensus", {"thresholds": 0.3}),
    Case("consensus"),
    Case("consensus", {"k": 3, "thresholds": [0.1, 0.2, 0.3]}),
    Case("consensus", {"of": "ties", "thresholds": 0.6, "ties_options": {"density": 0.5}}),
    Case("pcb", {"ratio": 0.4}, but_not=("factor",)),  # tanh
    Case("pcb", {"ratio": 0.3, "clamp": 0.02}, but_not=("factor",)),
    Case("pcb", {"ratio": 0.3, "clamp": 0.02, "balance": "clamped"}, but_not=("factor",)),
    Case("opcm", one_hot="close", but_not=("threads", "order")),
    Case("opcm", {"energy": 0.4}, one_hot="close", but_not=("threads", "order")),
    # Few steps: where a gradient passes zero, a step of Adam makes much of its rounding.
    Case("doge", {"keep": 0.5, "steps": 5}, but_not=("threads",)),
    Case("doge", {"subspace": 2, "lr": 0.05, "steps": 10}, but_not=("threads",)),
    Case("doge", {"keep": 1, "steps": 3}, but_not=("threads",)),
    Case("doge", {"relative": False, "eta": 0.07, "lr": 1e-3, "steps": 5}, but_not=("threads", "factor")),
    Case("widen", but_not=("threads", "factor", "sign")),  # columns of theta_SFT + tau_k
    Case("widen", {"ratio": 1.1, "calibration": 0.8}, but_not=("threads", "factor", "sign")),
    # What is cut off is missing where a policy has nothing: tau_s + v_k is not 0 there.
    Case("twin", {"rank": 2}, but_not=("threads", "untouched")),
    Case("twin", {"rank": 3, "shared": 0.3}, but_not=("threads", "untouched")),
    Case("twin", one_hot="close"),
    Case("fisher", one_hot="close"),
    Case("fisher", {"normalize": "tensor"}, one_hot="close"),
    Case("fisher", {"floor": 0.1, "floor_on": "first", "add": 0.01, "normalize": "model"}, but_not=("order",)),
    Case("ota", {"density": 0.7}),
    Case("ota", {"density": 0.4, "rank1": True, "power": 0.25}),
    Case("ota", {"thresholds": 0.02, "add": 1e-3}, but_not=("factor",)),
    Case("ota", one_hot="close"),
    Case("regmean", {"reduce": 0.7}, one_hot="close", but_not=("threads",)),
    Case("regmean", {"reduce": 0.5}, one_hot="close", but_not=("threads",)),
]
FIRST: dict[str, Case] = {}  # of each rule its first line
for case in CASES:
    FIRST.setdefault(case.rule, case)
OPTIONS = {rule: case.options for rule, case in FIRST.items()}


def options_needed(rule: str) -> dict[str, Any]:
    """The options without which two policies cannot be merged by the rule."""
    return OPTIONS[rule] if RULES[rule].by_layer else {}
