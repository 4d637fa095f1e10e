"""Which policy a point is: what people call it, whether it was trained as it is, and how it is made again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import PurePosixPath

from rlhf_lines.merge.rules import RULES
from rlhf_lines.pareto.schema import MORLHF, Spec, shortened


def policy_names(policies: Sequence[str]) -> list[str]:
    """The names of policies: those of their folders, with the parent's where they repeat.

    >>> policy_names(["runs/helpful", "runs/harmless/"])
    ['helpful', 'harmless']
    >>> policy_names(["helpful/final", "harmless/final"])
    ['helpful/final', 'harmless/final']
    """
    paths = [PurePosixPath(policy.replace("\\", "/")) for policy in policies]
    repeated = len({path.name for path in paths}) < len(paths)
    return [shortened("/".join(path.parts[-2:]) if repeated else path.name) for path in paths]


def shared_weights(group: str, weights: Sequence[float]) -> list[float] | None:
    """The weights at which a point stands beside those of other groups, from those of its spec; None of one with none.

    MORLHF runs have none of their group's choosing: theirs only say which run it is. Nor has a step from the SFT model
    towards one policy.
    """
    return list(weights) if group != MORLHF and math.isclose(sum(weights), 1.0, abs_tol=1e-9) else None


def single_policy(spec: Spec, policies: Sequence[str]) -> int | None:
    """Which of the policies a merge is, as it was trained; None for any other model.

    That is `linear` with one weight of 1 and the others 0, and neither alpha nor beta scales it. MORLHF runs are
    written so too, by weights behind those of the merged policies. `sum` with such weights is K times the policy.

    >>> spec = {"rule": "linear", "weights": [0.0, 1.0], "alpha": 1.0, "beta": 0.0}
    >>> single_policy(spec, ["helpful", "harmless"]), single_policy({**spec, "rule": "sum"}, ["helpful", "harmless"])
    (1, None)
    """
    index = _unchanged(spec)
    return None if index is None or index >= len(policies) else index


def anchors(points: Iterable[tuple[Spec, str]]) -> list[tuple[float, ...] | None]:
    """Which anchor each point is: `()` for the SFT model, the weights of a single policy as it was trained, else None.

    Anchors belong to no way to merge, so that reference and ideal point are theirs. MORLHF runs and the policies of
    other sets, whose weights stand behind those of the merged policies, are none: they are compared with others.

    Args:
        points: spec and group of each.
    """
    points = list(points)
    merged = min((len(spec["weights"]) for spec, _ in points), default=0)

    def of(spec: Spec, group: str) -> tuple[float, ...] | None:
        if not any(spec["weights"]):
            return ()
        own = group != MORLHF and len(spec["weights"]) == merged
        return tuple(spec["weights"]) if own and _unchanged(spec) is not None else None

    return [of(spec, group) for spec, group in points]


def share(weight: float) -> str:
    """A weight as people write it, with at most three decimals, never -0."""
    return f"{round(weight, 3):zg}"


def weights_text(weights: Sequence[float]) -> str:
    """The weights of the policies as people write them.

    >>> weights_text([0.7, 1 / 3, -0.0])
    '0.7 / 0.333 / 0'
    """
    return " / ".join(map(share, weights))


def point_label(spec: Spec, policies: Sequence[str]) -> str:
    """What people read for a point inside its group: the name of the policy that it is, or its weights."""
    single = single_policy(spec, policies)
    return weights_text(spec["weights"]) if single is None else policy_names(policies)[single]


def arguments_to_merge(
    spec: Spec, sft_model: str | None, policies: Sequence[str], *, sft_renamed: bool = False
) -> list[str] | None:
    """The arguments of `rlhf-lines merge`, but for `--output_dir`, that make the policy of a spec; all are written.

    The weights belong to the first policies. Where an adapter can hold the merge exactly it is one, else a dense
    checkpoint. None for the SFT model, which is not merged, where the weights depend on the prompt, and where the
    policies are not known. `sft_renamed` is for adapters that know the SFT model by another name.
    """
    if sft_model is None or not policies or not any(spec["weights"]) or is_routed(spec):
        return None
    options = ["--rule_options", json.dumps(spec["options"])] if spec["options"] else []
    return [
        *("--sft_model", sft_model),
        *("--policies", *policies[: len(spec["weights"])]),
        *(["--sft_renamed", "true"] if sft_renamed else []),
        *("--weights", *map(_plain, spec["weights"])),
        *("--rule", spec["rule"], *options),
        *("--alpha", spec["alpha"] if spec["alpha"] == "auto" else _plain(spec["alpha"])),
        *("--beta", _plain(spec["beta"]), "--schedule", spec["schedule"]),
        *(["--lines", "before"] if lines_before(spec) else []),
        *("--save", "adapter" if RULES[spec["rule"]].makes_adapter else "dense"),
    ]


def is_routed(spec: Spec) -> bool:
    """Whether its weights are a preference, for which a router gives every prompt weights of its own."""
    return spec["options"].get("router") is not None


def lines_before(spec: Spec) -> bool:
    """Whether LiNeS scales the residuals of the policies, before a rule that then scales something, or nothing."""
    return spec.get("lines") == "before" and (spec["alpha"], spec["beta"]) != (1.0, 0.0)


def _unchanged(spec: Spec) -> int | None:
    """The place of the one policy that a spec takes as it is, or None."""
    weights = spec["weights"]
    one_hot = sorted(weights) == [0.0] * (len(weights) - 1) + [1.0]
    as_it_is = spec["rule"] == "linear" and (spec["alpha"], spec["beta"]) == (1.0, 0.0)
    return weights.index(1.0) if one_hot and as_it_is else None


def _plain(number: float) -> str:
    """All digits of a number without an exponent: argparse takes `-1e-05` for a flag."""
    return format(Decimal(repr(float(number))), "f")
