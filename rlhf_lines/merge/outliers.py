"""What the signatures of policies say in words: which one is unlike the others, and how two of them compare.

Signatures are those of `audit`; whoever reads a finished run needs no torch for this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any


FEWEST = 3  # policies of which one can be unlike the others; of two, either
UNLIKE = 3.5  # robust z-score beyond which a value is an outlier (Iglewicz and Hoaglin, 1993)
NORMAL = 1.4826  # times the median absolute deviation: the standard deviation of normal values
# Few policies lie close together by chance, and then any other has a large z-score: a difference counts from here on.
TWICE, DEPTH, SHARE, COSINE = math.log(2), 0.15, 0.15, 0.2


def judged(policies: Sequence[dict], cosine: Sequence[Sequence[float | None]]) -> list[dict]:
    """`unlike` and `reason` of every policy.

    `unlike` says whether one of norm, mean cosine to the others, depth and share of the first direction is an outlier
    among the policies: |x - median| above 3.5 times 1.4826 times the median absolute deviation, and above what counts
    (twice the norm; 0.2 of the cosine; 0.15 of depth and share). It is null with fewer than three policies.

    Args:
        policies: K signatures, with norm, depth and spectrum.
        cosine: of every two, `[K][K]`; null for a policy without a residual.
    """
    count = len(policies)

    def to_others(k: int) -> float | None:
        values = [cosine[k][j] for j in range(count) if j != k and cosine[k][j] is not None]
        return sum(values) / len(values) if values else None

    reasons: list[list[str]] = [[] for _ in policies]
    for k, policy in enumerate(policies):
        if not policy["norm"]:
            reasons[k].append("it is the SFT model: its residual is 0")
    measures: list[tuple[list[float | None], float, Callable[[float, float], str]]] = [
        (
            [math.log(policy["norm"]) if policy["norm"] else None for policy in policies],
            TWICE,
            lambda value, middle: f"its norm is {math.exp(value - middle):z.2g} times the median one",
        ),
        (
            [to_others(k) for k in range(count)],
            COSINE,
            lambda value, middle: f"its mean cosine to the others is {value:z.2f}, where the median is {middle:z.2f}",
        ),
        (
            [policy["depth"] for policy in policies],
            DEPTH,
            lambda value, middle: f"its mean depth is {value:z.2f}, where the median is {middle:z.2f}",
        ),
        (
            [policy["spectrum"] and policy["spectrum"][0] for policy in policies],
            SHARE,
            lambda value, middle: (
                f"first directions hold {value:z.0%} of its squared norm, where the median is {middle:z.0%}"
            ),
        ),
    ]
    for values, counts, text in measures:
        known = [value for value in values if value is not None]
        if len(known) < FEWEST:
            continue
        middle = median(known)
        spread = NORMAL * median(abs(value - middle) for value in known)
        for k, value in enumerate(values):
            if value is not None and abs(value - middle) > max(UNLIKE * spread, counts):
                reasons[k].append(text(value, middle))
    enough = count >= FEWEST
    return [
        {"unlike": bool(found) if enough or found else None, "reason": "; ".join(found) or None} for found in reasons
    ]


def unlike_policies(audit: Mapping[str, Any]) -> list[str]:
    """One sentence for every policy that looks unlike the others."""
    policies = [policy for policy in audit["policies"] if policy["unlike"]]
    return [f"policy {policy['name']} looks unlike the others: {policy['reason']}" for policy in policies]


def two_policies(audit: Mapping[str, Any]) -> str | None:
    """What can be said of two policies, of which neither is an outlier; None of any other number.

    That is the ratio of their norms, their cosine, and the share of their squared norms in the first directions.
    """
    policies = audit["policies"]
    if len(policies) != 2:
        return None
    empty = [policy["name"] for policy in policies if not policy["norm"]]
    if empty:
        return f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} the SFT model: the residual is 0."
    longer, shorter = sorted(policies, key=lambda policy: -policy["norm"])
    shares = " and ".join(f"{policy['spectrum'][0]:.0%}" for policy in (longer, shorter))
    ratio = longer["norm"] / shorter["norm"]
    return (
        f"{longer['name']} has {ratio:z.2f} times the norm of {shorter['name']}, the cosine of the two is "
        f"{audit['cosine'][0][1]:z.2f}, and first directions hold {shares} of their squared norms (which of two is the "
        "unlike one, nothing tells)."
    )
