"""Rules that combine the factors A and B apart, for comparison with published curves only.

A merge of policies is a merge of residuals s B A. These rules average A and B each on its own, which is another
function of the policies: their product holds cross terms B_i A_j of different policies, which no policy was trained
with. They equal the merge of residuals only where one weight is not zero, or where all policies share A or B. Use
`linear`, which is exact, unless a curve of somebody else is to be reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_lines.merge.inputs.adapter import Adapter, Factors


def factor_average(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Factors]:
    """Every adapter tensor averaged on its own.

        tau_M = s (sum_k w_k B_k) (sum_k w_k A_k)

    This is what the code of rewarded soups computes, where the paper defines sum_k w_k s B_k A_k. Own terms count
    w_k^2 in place of w_k, so with equal weights of two policies half of each residual is gone.

    Source: arXiv 2306.04488, alexrame/rewardedsoups, `WeightAverager.average_weights`.

    Raises:
        ValueError: adapters with different modules, ranks or scales, whose tensors cannot be averaged.
    """
    _check_equal(adapters)
    return {
        module: Factors(
            sum(weight * adapter.modules[module].A for adapter, weight in zip(adapters, weights, strict=True)),
            sum(weight * adapter.modules[module].B for adapter, weight in zip(adapters, weights, strict=True)),
            first.scale,
        )
        for module, first in sorted(adapters[0].modules.items())
    }


def peft_linear(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Factors]:
    """PEFT's `add_weighted_adapter` with `combination_type="linear"`.

        tau_M = (sum_k sqrt|c_k| B_k) (sum_k sign(c_k) sqrt|c_k| A_k),   c_k = w_k s_k

    Own terms have their weight w_k s_k; cross terms sqrt|c_i c_j| B_i A_j come on top. A module that some policies lack
    is combined over those that have it. The sign goes on A, as in PEFT 0.21: with weights of both signs the cross
    terms depend on the side.

    Source: PEFT 0.21.2, `LoraModel.add_weighted_adapter`.

    Raises:
        ValueError: adapters with different ranks in a module.
    """
    combined = {}
    for module in sorted({module for adapter in adapters for module in adapter.modules}):
        owners = [
            (adapter, adapter.modules[module], weight * adapter.modules[module].scale)
            for adapter, weight in zip(adapters, weights, strict=True)
            if module in adapter.modules
        ]
        first, factors, _ = owners[0]
        for adapter, other, _ in owners:
            _check_shapes("peft_linear", module, first, factors, adapter, other)
        combined[module] = Factors(
            sum(math.copysign(math.sqrt(abs(c)), c) * factors.A for _, factors, c in owners),
            sum(math.sqrt(abs(c)) * factors.B for _, factors, c in owners),
            1.0,
        )
    return combined


def _check_equal(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for adapter in adapters[1:]:
        alone = sorted(first.modules.keys() ^ adapter.modules.keys())
        if alone:
            owner = first if alone[0] in first.modules else adapter
            raise ValueError(
                f"factor_average averages tensors of one name, but only adapter {owner.path!r} has {alone[0]!r}, not "
                f"{(adapter if owner is first else first).path!r}; use rule linear, which merges any adapters exactly"
            )
        for module, factors in first.modules.items():
            _check_shapes("factor_average", module, first, factors, adapter, adapter.modules[module])
            if adapter.modules[module].scale != factors.scale:
                raise ValueError(
                    f"factor_average needs equal scales, but {module!r} has {factors.scale:g} in {first.path!r} and "
                    f"{adapter.modules[module].scale:g} in {adapter.path!r}; use rule linear, which merges any "
                    "adapters exactly"
                )


def _check_shapes(rule: str, module: str, first: Adapter, factors: Factors, adapter: Adapter, other: Factors) -> None:
    ours, theirs = (tuple(f.A.shape) + tuple(f.B.shape) for f in (factors, other))
    if ours != theirs:
        raise ValueError(
            f"{rule} adds up factors of equal shapes, but {module!r} has rank {ours[0]} and shape {ours[2]} x "
            f"{ours[1]} in {first.path!r} and rank {theirs[0]} and shape {theirs[2]} x {theirs[1]} in "
            f"{adapter.path!r}; use rule linear, which merges any adapters exactly"
        )
